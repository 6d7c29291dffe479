"""Measure SD-Turbo's true shapes on one CUDA GPU, in the memory of a T4.

    python -m tools.gpu [--first]    # --first: what is to be known first, in ten minutes

The weights are random, so nothing is downloaded and no picture means anything; time and memory do
not depend on them. Each row is written to `results/first_gpu.md` or `gpu.md` at once, and one that
fails does not stop the others.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor

from splat_enhancer.config import Config, DegradationConfig, preset
from splat_enhancer.data.faces import load_batches, prepare_faces
from splat_enhancer.data.pairs import prepare_pairs
from splat_enhancer.degradation.pipeline import degrade
from splat_enhancer.distributed import processes
from splat_enhancer.environment import detect, free_memory
from splat_enhancer.files import atomic_write
from splat_enhancer.gaussians.rasterizer import Splats, rasterize
from splat_enhancer.training.train import add_gradients, default_training_step, learning_rate_at
from splat_enhancer.training.trainer import Trainer
from tools import true_shapes as true

GAUSSIANS = 20_000
LIMIT_GIB = 14.5  # what this process may hold, as on a T4
SETTLE_STEPS = 20  # at most, until the loss scale fits
BLENDS = get_args(get_type_hints(Config)["blend"])
TITLE = ("what", "ms, median (5–95 %)", "images/s", "peak GiB, allocated / reserved", "notes")
Figures = dict[str, Any]
Row = tuple[str, Callable[[], Figures]]


@dataclass(frozen=True)
class Setup:
    """What is measured, and on what; the defaults are the true shapes."""

    folder: Path  # for prepared data
    device: str = "cuda"
    dtype: torch.dtype = torch.float16  # of the working copies
    shapes: true.Shapes = field(default_factory=lambda: true.SD_TURBO)
    changes: dict[str, Any] = field(default_factory=dict)  # to the config
    most: int = 16  # the largest batch that is tried
    large_px: Sequence[int] = (1024, 2048)  # sides of what `enhance` cuts into tiles
    workers: Sequence[int] = (0, 1, 2)  # processes that read ahead
    steps: int = 100  # at each timestep
    rounds: int = 12  # timed, after
    warm_up: int = 3  # that are not

    def config(self, **changes: Any) -> Config:
        """The preset `t4` (batch 2) without downloads, with changes."""
        return preset("t4").replace(**{
            "source": "heads", "max_train_samples": 16, "max_test_samples": 2, "weight_fit": 0.0,
            "gradient_checkpointing": "off", **self.changes, **changes})

    def timed(self, work: Callable[[], object], images: int = 1, rounds: int = 0) -> Figures:
        """Time calls after a warm-up, everything queued on the GPU included; their peak memory."""
        free_memory()  # what building the networks took
        for _ in range(self.warm_up):
            work()
        on_gpu = self.device == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        times = torch.tensor([
            true.seconds(work, self.device) for _ in range(rounds or self.rounds)])
        memory = (torch.cuda.max_memory_allocated, torch.cuda.max_memory_reserved)
        return {"ms": (1e3 * times.quantile(torch.tensor([0.05, 0.5, 0.95]))).tolist(),
                "images": images, "peaks": [peak() / 2**30 for peak in memory if on_gpu]}


def rows(setup: Setup, *, first: bool) -> Iterator[Row]:
    """All rows, or the first of them: what would spoil a run."""
    for mode in ("off", "on"):
        for batch in (2,) if first else (1, 2):
            yield f"train, batch {batch}, gradient checkpointing {mode}", partial(
                training_row, setup, train_batch_size=batch, gradient_checkpointing=mode)
    for blend in (other for other in BLENDS if other != setup.config().blend):
        yield f"train, batch 2, blend {blend}", partial(training_row, setup, blend=blend)
    yield "enhance, batch 1", partial(restoring_row, setup)
    yield "degrade, batch 2", partial(degradation_row, setup)
    yield f"rasterize {GAUSSIANS:,} Gaussians", partial(rasterizer_row, setup)
    for count in setup.workers:
        yield f"train with data, batch 2, loader workers {count}", partial(
            data_row, setup, setup.rounds, count)
    for timestep in (199, 249, 999):
        yield f"train, batch 1, {setup.steps} steps at timestep {timestep}", partial(
            data_row, setup, setup.steps, train_batch_size=1, timestep=timestep)
    if not first:
        for mode in ("off", "on"):
            yield f"train, largest batch, gradient checkpointing {mode}", partial(
                largest_row, setup, mode)
        for batch in (1, 4):
            yield f"forward, LoRA merged, batch {batch}", partial(
                restoring_row, setup, batch, tiled=False)
        for side_px in setup.large_px:
            yield f"enhance, {side_px} px", partial(restoring_row, setup, side_px=side_px)


def training_row(setup: Setup, **changes: Any) -> Figures:
    """Time and memory of a step, where the loss scale settled, and how many steps were skipped."""
    config = setup.config(**changes)
    step, trainer = true.random_step(config, setup.shapes, device=setup.device, dtype=setup.dtype)
    settling = next((n for n in range(SETTLE_STEPS) if not step()), SETTLE_STEPS)
    skipped: list[bool] = []
    figures = setup.timed(lambda: skipped.append(step()), config.train_batch_size)
    return figures | {"note": f"batch {config.train_batch_size}; loss scale "
                              f"{trainer.scaler.get_scale():g} after {settling} skipped steps, "
                              f"then {sum(skipped)} of {len(skipped)} skipped"}


def largest_row(setup: Setup, mode: str) -> Figures:
    """The training step of the largest batch that fits."""
    figures: Figures = {"note": "batch 1 does not fit"}
    with suppress(torch.OutOfMemoryError):
        for batch in range(1, setup.most + 1):
            figures = training_row(setup, train_batch_size=batch, gradient_checkpointing=mode)
            free_memory()
    return figures


@torch.no_grad()
def restoring_row(setup: Setup, batch: int = 1, side_px: int = 0, *, tiled: bool = True) -> Figures:
    """`enhance()` as a user calls it, tiles and clamping included, or one pass."""
    model = true.random_model(setup.config(), setup.shapes, device=setup.device, dtype=setup.dtype,
                              for_training=False).eval()
    images = torch.rand(batch, 3, *(side_px or setup.config().resolution,) * 2).to(setup.device)
    return setup.timed(lambda: (model.enhance if tiled else model)(images), batch)


def data_row(setup: Setup, steps: int, workers: int = 0, **changes: Any) -> Figures:
    """Steps with reading, degradation and update; the loss ranks nothing on random weights."""
    config = setup.config(max_train_steps=steps, **changes)
    faces = prepare_faces(config, setup.folder)
    pairs = prepare_pairs(config, faces, setup.folder)
    model, loss = (build(config, setup.shapes, device=setup.device, dtype=setup.dtype)
                   for build in (true.random_model, true.random_loss))
    trainer, forward = Trainer(config, model.train()), default_training_step(model, loss)
    losses: list[float] = []

    def step() -> None:
        trainer.set_learning_rate(learning_rate_at(trainer.step + 1, config))
        losses.append(add_gradients(trainer, forward, loss, pairs, [next(batches)],
                                    processes())["total"])
        trainer.update()

    with closing(load_batches(faces, range(10**6), seed=0, batch=config.train_batch_size,
                              workers=workers)) as batches:
        figures = setup.timed(step, config.train_batch_size, steps)
    few = max(1, steps // 10)
    return figures | {"note": f"loss {mean(losses[:few]):.3f} → {mean(losses[-few:]):.3f}"}


def degradation_row(setup: Setup) -> Figures:
    """`degrade` of two faces on this device and on the CPU."""
    parts = prepare_faces(setup.config(), setup.folder).load("train", range(2))
    return beside_cpu(setup, lambda device: degrade(
        *(part.to(device) for part in parts), DegradationConfig(), torch.arange(2)), 2)


def rasterizer_row(setup: Setup) -> Figures:
    """`rasterize` of random Gaussians on this device and on the CPU."""
    side, rng = setup.config().resolution, torch.Generator().manual_seed(0)
    factors = side / 128 * torch.randn(GAUSSIANS, 2, 2, generator=rng)
    parts = [side * torch.rand(GAUSSIANS, 2, generator=rng), factors @ factors.mT,
             *(torch.rand(GAUSSIANS, *shape, generator=rng) for shape in ((3,), (), ()))]
    return beside_cpu(setup, lambda device: rasterize(
        Splats(*(part.to(device) for part in parts)), side, side)[0])


@torch.no_grad()
def beside_cpu(setup: Setup, work: Callable[[str], Tensor], images: int = 1) -> Figures:
    """Time some work on the device, and compare time and result with the CPU's."""
    figures, results = setup.timed(partial(work, setup.device), images), []
    cpu_ms = 1e3 * true.seconds(lambda: results.append(work("cpu")))
    gap = (work(setup.device).cpu() - results[0]).abs()
    return figures | {"note": f"CPU {cpu_ms:.0f} ms; differs by {gap.max():.2g} at most, "
                              f"{gap.mean():.2g} on average"}


def measure(rows: Iterable[Row], file: Path, about: Sequence[str], minutes: float) -> list[str]:
    """Measure row after row until time is over; returns the lines of the table."""
    lines = ["| " + " | ".join(TITLE) + " |", "|---" * len(TITLE) + "|"]
    head, started = ["# On a GPU", "", *(f"- {line}" for line in about), ""], time.monotonic()
    for what, work in rows:
        try:
            late = time.monotonic() - started > 60 * minutes
            row = {"note": f"not begun: {minutes:g} minutes were over"} if late else work()
        except Exception as error:  # whatever it is, the other rows are wanted
            row = {"note": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        free_memory()
        low, median, high = row.get("ms", [0.0] * 3)
        cells = [what, f"{median:.1f} ({low:.1f}–{high:.1f})" if median else "",
                 f"{1e3 * row['images'] / median:.2f}" if median else "",
                 " / ".join(f"{peak:.2f}" for peak in row.get("peaks", [])), row.get("note", "")]
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
        print(f"[{time.monotonic() - started:4.0f} s]", lines[-1], flush=True)
        atomic_write(file, "\n".join([*head, *lines, ""]).encode())
    return lines


def main() -> None:
    """Measure everything on this machine's GPU."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", action="store_true", help="what is to be known first")
    first = parser.parse_args().first
    machine = detect()  # sets how CUDA's memory is divided
    if machine.device.type != "cuda":
        raise SystemExit("device: expected a CUDA GPU, got none; run it on a machine with one")
    torch.cuda.set_per_process_memory_fraction(min(1.0, LIMIT_GIB / machine.gpu_gib))
    about = [f"{machine.gpu}, {machine.gpu_gib:.2f} GiB, held to a T4's {LIMIT_GIB} GiB",
             f"torch {torch.__version__}, float16, random weights at SD-Turbo's shapes, loss of t4"]
    file = true.ROOT / "results" / ("first_gpu.md" if first else "gpu.md")
    with tempfile.TemporaryDirectory() as folder:
        measure(rows(Setup(Path(folder)), first=first), file, about, minutes=9 if first else 60)


if __name__ == "__main__":
    main()
