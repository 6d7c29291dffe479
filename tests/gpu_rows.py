"""What `bench_gpu` measures of ours, row by row."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import cache, partial

import torch

from helpers.config import Config, DegradeConfig
from helpers.degradation.pipeline import degrade
from helpers.plans import budget
from helpers.splats.rasteriser import Splats, rasterise
from helpers.training.trainer import Trainer
from tests.bench import faces, seconds
from tests.gpu_setup import Bench, Figures, differences, random_loss, release, timed

SETTLE_STEPS = 20  # at most, until the loss scale fits
expected_peak_gib = cache(budget.expected_peak_gib)  # the same for fp16 and bf16


def training_step(bench: Bench, dtype: torch.dtype, config: Config, *,
                  lean: bool = False) -> Callable[[], bool]:
    """A step as `train` takes it, without data and degradation; says whether it was skipped."""
    return trained_step(bench, dtype, config, lean=lean)[0]


def trained_step(bench: Bench, dtype: torch.dtype, config: Config, *,
                 lean: bool = False) -> tuple[Callable[[], bool], Trainer]:
    """The same, and the trainer whose state it changes."""
    model = bench.model(dtype).train()
    model.zero_grad(set_to_none=True)
    model.use_lean_memory(lean)
    loss, trainer = random_loss(bench.setup, config, dtype), Trainer(config, model)
    degraded, clean = (bench.images(config.optim.batch, seed=seed) for seed in (0, 1))
    mask = torch.ones(len(clean), device=clean.device)

    def step() -> bool:
        trainer.backward(loss(model(degraded, mask), clean)["total"])
        return trainer.update()[1]
    return step, trainer


def train_row(bench: Bench, dtype: torch.dtype, config: Config, *, lean: bool = False) -> Figures:
    """Time and memory of a step, and how many of the timed ones were skipped."""
    step, skipped = training_step(bench, dtype, config, lean=lean), []
    for _ in range(SETTLE_STEPS):
        if not step():
            break
    figures = timed(bench.setup, lambda: skipped.append(step()), images=config.optim.batch)
    return figures | {"skipped_steps": sum(skipped[-bench.setup.rounds:])}


def budget_row(bench: Bench, dtype: torch.dtype, batch: int, *, lean: bool) -> Figures:
    """`train_row` of the `t4` preset, with the peak that was expected of it."""
    config = bench.setup.config.with_({"optim.batch": batch})
    return train_row(bench, dtype, config, lean=lean) | {
        "expected_gib": expected_peak_gib(config, lean=lean)}


def largest_row(bench: Bench, dtype: torch.dtype, *, lean: bool) -> Figures:
    """The training step of the largest batch that fits."""
    def two_steps(batch: int) -> None:
        config = bench.setup.config.with_({"optim.batch": batch})
        step = training_step(bench, dtype, config, lean=lean)
        step(), step()  # the second one has AdamW's moments

    batch = largest_batch(two_steps, bench.setup.most, partial(release, bench.setup.device))
    return budget_row(bench, dtype, batch, lean=lean)


def largest_batch(work: Callable[[int], object], most: int, clean_up: Callable[[], None]) -> int:
    """The last of 1, 2, … `most` that does not run out of memory; 1 where none fits."""
    for batch in range(1, most + 1):
        try:
            work(batch)
        except torch.OutOfMemoryError:
            return max(1, batch - 1)
        finally:
            clean_up()
    return most


@torch.no_grad()
def forward_row(bench: Bench, dtype: torch.dtype, batch: int, *, merged: bool) -> Figures:
    """One pass, LoRA folded in or beside."""
    model, images = bench.model(dtype).eval(), bench.images(batch)
    with model.merged() if merged else contextlib.nullcontext():
        return timed(bench.setup, lambda: model(images), images=batch)


@torch.no_grad()
def merging_row(bench: Bench, dtype: torch.dtype) -> Figures:
    """How far the output with merged LoRA is from that without."""
    model, images = bench.model(dtype).eval(), bench.images(1)
    unmerged = model(images)
    with model.merged():
        return differences(model(images), unmerged)


def enhance_row(bench: Bench, dtype: torch.dtype, side_px: int, *, merged: bool) -> Figures:
    """`enhance()` as a user calls it, tiles and clamping included."""
    model, images = bench.model(dtype), bench.images(1, side_px)
    with model.merged() if merged else contextlib.nullcontext():
        return timed(bench.setup, lambda: model.enhance(images))


@torch.no_grad()
def compiled_row(bench: Bench, dtype: torch.dtype, batch: int) -> Figures:
    """A merged pass after `model.compile()`; compiling a second time is an error."""
    model, images = bench.model(dtype).eval(), bench.images(batch)
    try:
        with model.merged():
            eager = model(images)
            model.compile(backend=bench.setup.compiler, dynamic=False)
            compiling_s = seconds(lambda: model(images), bench.setup.device)
            with torch._dynamo.config.patch(error_on_recompile=True):
                figures = timed(bench.setup, lambda: model(images), images=batch)
            return figures | {"compiling_s": compiling_s} | differences(model(images), eager)
    finally:
        bench.drop()
        torch._dynamo.reset()


def loss_row(bench: Bench, dtype: torch.dtype, term: str) -> Figures:
    """One term of the loss, forward and backward to the restored images."""
    batch = max(bench.setup.train_batches)
    weights = {name: float(name == term) for name in ("l1", "lpips", "gram", "clip")}
    config = bench.setup.config.with_({f"loss.{name}": w for name, w in weights.items()})
    loss, clean = random_loss(bench.setup, config, dtype), bench.images(batch)
    restored = bench.images(batch, seed=1).requires_grad_()
    return timed(bench.setup, lambda: torch.autograd.grad(loss(restored, clean)["total"], restored),
                 images=batch)


def degrade_row(bench: Bench) -> Figures:
    """`degrade` of a batch on this device, and how far it is from the CPU's."""
    batch, settings = bench.setup.degrade_batch, DegradeConfig()
    clean, regions = (half.repeat(-(-batch // 2), *[1] * (half.ndim - 1))[:batch]
                      for half in faces(2, bench.setup.size_px))
    seeds, own = torch.arange(batch), [x.to(bench.setup.device) for x in (clean, regions)]
    figures = timed(bench.setup, lambda: degrade(*own, settings, seeds), images=batch)
    return figures | differences(degrade(*own, settings, seeds),
                                 degrade(clean, regions, settings, seeds))


@torch.no_grad()
def rasterise_row(bench: Bench) -> Figures:
    """`rasterise` of random Gaussians on this device, and how far it is from the CPU's."""
    side, count = bench.setup.size_px, bench.setup.gaussians
    dice = torch.Generator().manual_seed(0)
    factors = side / 128 * torch.randn(count, 2, 2, generator=dice)
    splats = [side * torch.rand(count, 2, generator=dice), factors @ factors.mT,
              *(torch.rand(count, *c, generator=dice) for c in ((3,), (), ()))]
    own = Splats(*(part.to(bench.setup.device) for part in splats))
    figures = timed(bench.setup, lambda: rasterise(own, side, side))
    return figures | differences(rasterise(own, side, side)[0],
                                 rasterise(Splats(*splats), side, side)[0])
