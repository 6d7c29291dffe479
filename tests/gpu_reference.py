"""pix2pix-turbo's own step and forward beside ours, from a checkout that stays outside.

Its constructor asks for "stabilityai/sd-turbo" by that name: a folder of that name in the working
directory, with the weights ours has, is what it finds. Nothing of it is patched.

Source: GaParmar/img2img-turbo, `src/pix2pix_turbo.py`, `src/train_pix2pix_turbo.py` (MIT).
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from helpers.config import SD_TURBO
from helpers.errors import refused
from helpers.plans.budget import PROMPT_TOKENS
from tests.gpu_rows import forward_row, train_row
from tests.gpu_setup import Bench, Figures, limit_memory, random_loss, short, timed
from tests.rehearsal import make_base

SAME_WORK = {"loss.gram": 0.0, "loss.clip": 0.0}  # L1 + LPIPS, beside the reference's L2 + LPIPS
LEARNING_RATE, LPIPS_WEIGHT, CLIP_NORM = 5e-6, 5.0, 1.0  # the defaults of its training script
NOTE = ("L2 + LPIPS; its CLIP and GAN terms, which need other packages and a second pass, "
        "are left out")
Row = tuple[str, Callable[[], Figures]]


def reference_rows(bench: Bench, checkout: Path | None, folder: Path) -> Iterator[Row]:
    """Both in fp32, as the reference trains, and in our first dtype; 5 GB go into the folder."""
    if checkout is None:
        yield "reference", lambda: {"note": "left out: no --reference PATH"}
        return
    both = list(dict.fromkeys((torch.float32, bench.setup.dtypes[0])))
    load = partial(load_reference, bench, checkout, folder)
    yield from on_both_sizes(bench, "reference train fp32",
                             lambda batch: reference_train_row(bench, load, batch))
    for dtype in both:
        for batch in bench.setup.batches:
            yield f"reference forward {short(dtype)}, batch {batch}", partial(
                reference_forward_row, bench, load, dtype, batch)
    for dtype in reversed(both):
        yield from on_both_sizes(bench, f"ours, same work, train {short(dtype)}",
                                 lambda batch, dtype=dtype: same_work_row(bench, dtype, batch))
    for batch in bench.setup.batches:
        yield f"ours forward fp32 merged, batch {batch}", partial(
            forward_row, bench, torch.float32, batch, merged=True)


def on_both_sizes(bench: Bench, what: str, row: Callable[[int], Figures]) -> Iterator[Row]:
    """Each batch in the memory of a T4 and, where there is more, in all of it."""
    for batch in bench.setup.train_batches:
        yield f"{what}, batch {batch}", partial(row, batch)
    if bench.setup.card_gib > 1.1 * bench.setup.limit_gib:  # a T4 itself has no more
        for batch in bench.setup.train_batches:
            yield f"{what}, batch {batch}, whole card", partial(
                on_whole_card, bench, partial(row, batch))


def on_whole_card(bench: Bench, row: Callable[[], Figures]) -> Figures:
    """A row without the limit, which returns after it."""
    limit_memory(bench.setup, bench.setup.card_gib)
    try:
        return row()
    finally:
        limit_memory(bench.setup, bench.setup.limit_gib)


def same_work_row(bench: Bench, dtype: torch.dtype, batch: int) -> Figures:
    """Our training step with the terms that the reference's row has."""
    config = bench.setup.config.with_(SAME_WORK | {"optim.batch": batch})
    return train_row(bench, dtype, config) | {"note": "L1 + LPIPS"}


def check_reference(checkout: Path) -> Path:
    """The folder itself; ValueError if the reference is not in it."""
    if not (checkout / "src" / "pix2pix_turbo.py").is_file():
        raise refused("--reference", "a checkout with src/pix2pix_turbo.py", str(checkout),
                      "clone https://github.com/GaParmar/img2img-turbo")
    return checkout.resolve()


def load_reference(bench: Bench, checkout: Path, folder: Path, dtype: torch.dtype) -> nn.Module:
    """Build Pix2Pix_Turbo on the random base, which is written at the first call."""
    setup, base = bench.setup, folder / SD_TURBO
    if not (base / "scheduler").is_dir():  # written last
        make_base(base, base=setup.base, text=dict(setup.text), device=setup.device, half=False)
    sys.path.insert(0, str(checkout / "src"))
    try:
        with contextlib.chdir(folder):
            network = importlib.import_module("pix2pix_turbo").Pix2Pix_Turbo()
    finally:
        sys.path.remove(str(checkout / "src"))
    return network if dtype == torch.float32 else network.to(dtype)


def reference_train_row(bench: Bench, load: Callable[[torch.dtype], nn.Module],
                        batch: int) -> Figures:
    """The first half of its script's step: reconstruct, backward, clip, step; all in fp32."""
    network = bench.keep("reference fp32", lambda: load(torch.float32))
    network.set_train()
    trained = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=LEARNING_RATE)
    lpips = random_loss(bench.setup, bench.setup.config.with_(SAME_WORK), torch.float32).lpips
    source, target = bench.images(batch), bench.images(batch, seed=1) * 2 - 1
    tokens = torch.zeros(batch, PROMPT_TOKENS, dtype=torch.int64, device=source.device)

    def step() -> None:
        restored = network(source, prompt_tokens=tokens, deterministic=True)
        loss = functional.mse_loss(restored, target)
        (loss + LPIPS_WEIGHT * lpips(restored, target).mean()).backward()
        nn.utils.clip_grad_norm_(trained, CLIP_NORM)
        optimiser.step()
        optimiser.zero_grad(set_to_none=False)  # as the script does unless told otherwise

    try:
        return timed(bench.setup, step, images=batch) | {"note": NOTE}
    finally:
        network.zero_grad(set_to_none=True)


@torch.no_grad()
def reference_forward_row(bench: Bench, load: Callable[[torch.dtype], nn.Module],
                          dtype: torch.dtype, batch: int) -> Figures:
    """One pass as its inference script runs it, the prompt embedded each time."""
    network = bench.keep(f"reference {short(dtype)}", lambda: load(dtype))
    network.set_eval()
    images, prompts = bench.images(batch).to(dtype), [bench.setup.config.model.prompt] * batch
    return timed(bench.setup, lambda: network(images, prompts), images=batch)
