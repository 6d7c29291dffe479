"""What should be known first on a new GPU, in ten minutes: `python -m tests.bench_gpu --first`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from helpers.config import TINY_BASE
from helpers.errors import refused
from helpers.faces import draw_batch, load_batches, prepare
from helpers.faces.stream import Place, rows_from
from helpers.model.base import read_alpha_bar
from helpers.training.loop import add_gradients
from helpers.training.shares import gradient_shares
from helpers.training.trainer import Trainer
from tests.gpu_reference import Row
from tests.gpu_rows import SETTLE_STEPS, expected_peak_gib, trained_step, training_step
from tests.gpu_setup import Bench, Figures, random_loss, short, timed

TIMESTEPS = (199, 249, 999)
LABELS_OF = 60  # rows of the stream


def first_rows(bench: Bench, folder: Path, *, steps: int = 100,
               readers: Sequence[int] = (0, 1, 2)) -> Iterator[Row]:
    """All rows, what would spoil a run first; random weights, but for the stream and ST-LPIPS."""
    dtype = bench.setup.dtypes[0]
    yield f"labels of the stream's first {LABELS_OF} rows", labels_row
    for lean in (False, True):
        yield f"train {short(dtype)} {'lean' if lean else 'full'}, {steps // 2} steps", partial(
            scale_row, bench, dtype, steps // 2, lean=lean)
    yield "gradient shares", partial(shares_row, bench, dtype, folder)
    for on in (False, True):
        yield f"step, cudnn.benchmark {'on' if on else 'off'}", partial(
            benchmark_row, bench, dtype, on)
    for workers in readers:
        yield f"step with its data, loader workers {workers}", partial(
            data_row, bench, dtype, folder, workers)
    for timestep in TIMESTEPS:
        yield f"{steps} steps at timestep {timestep}", partial(
            timestep_row, bench, dtype, folder, timestep, steps)


def labels_row(rows: Callable = rows_from) -> Figures:
    """How many of each label the stream begins with; an error where no hub is at hand."""
    counted = Counter(str(row.get("label")) for row in islice(rows(None, Place()), LABELS_OF))
    return {"note": ", ".join(f"{count} {label}" for label, count in sorted(counted.items()))}


def scale_row(bench: Bench, dtype: torch.dtype, steps: int, *, lean: bool) -> Figures:
    """Time and memory of the steps, how many were skipped, and where the loss scale settled."""
    config = bench.setup.config.with_({"optim.batch": max(bench.setup.train_batches)})
    step, trainer = trained_step(bench, dtype, config, lean=lean)
    skipped = [step() for _ in range(steps)]
    figures = timed(bench.setup, step, images=config.optim.batch)
    return figures | {"expected_gib": expected_peak_gib(config, lean=lean), "note":
                      f"{sum(skipped)} of {steps} steps skipped, "
                      f"loss scale {trainer.scaler.get_scale():g}"}


def shares_row(bench: Bench, dtype: torch.dtype, folder: Path) -> Figures:
    """How hard each term pulls, on procedural heads."""
    config, faces, loss = _data(bench, dtype, folder)
    return {"note": str(gradient_shares(config, bench.model(dtype), loss, faces))}


def benchmark_row(bench: Bench, dtype: torch.dtype, on: bool) -> Figures:
    """A training step with cuDNN's own search for the fastest algorithm, or without."""
    config, before = bench.setup.config, torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = on
    try:
        step = training_step(bench, dtype, config)
        for _ in range(SETTLE_STEPS):
            if not step():
                break
        return timed(bench.setup, step, images=config.optim.batch)
    finally:
        torch.backends.cudnn.benchmark = before


def data_row(bench: Bench, dtype: torch.dtype, folder: Path, workers: int) -> Figures:
    """A step with reading, damage and update, by how many processes read ahead."""
    config, faces, loss = _data(bench, dtype, folder)
    trainer = Trainer(config, bench.model(dtype).train())
    batches = load_batches(faces, range(10**6), seed=0, batch=config.optim.batch, workers=workers)

    def step() -> None:
        add_gradients(trainer, loss, [next(batches)])
        trainer.update()

    try:
        return timed(bench.setup, step, images=config.optim.batch)
    finally:
        batches.close()


def timestep_row(bench: Bench, dtype: torch.dtype, folder: Path, timestep: int,
                 steps: int) -> Figures:
    """The loss before and after some steps at a timestep; it ranks only on real weights."""
    bench.drop()
    config, faces, loss = _data(bench, dtype, folder)
    model = bench.model(dtype).train()
    model.timestep.fill_(timestep)
    model.alpha_bar = read_alpha_bar(TINY_BASE, timestep)  # the schedule is SD-Turbo's
    trainer, losses, skipped = Trainer(config, model), [], 0
    for group in trainer.optimiser.param_groups:
        group["lr"] = config.optim.learning_rate * group["factor"]
    for number in range(steps):
        drawn = draw_batch(faces, seed=0, step=number, batch=config.optim.batch)
        losses.append(add_gradients(trainer, loss, [drawn])["total"])
        skipped += trainer.update()[1]
    bench.drop()
    few = max(1, steps // 10)
    if not all(map(torch.isfinite, torch.tensor(losses[-few:]))):
        raise refused("loss", "finite values", losses[-few:], "look at dtype and timestep")
    return {"note": f"loss {sum(losses[:few]) / few:.3f} → {sum(losses[-few:]) / few:.3f}, "
                    f"{skipped} skipped; random weights"}


def _data(bench: Bench, dtype: torch.dtype, folder: Path) -> tuple:
    """Config, prepared procedural heads, and the loss."""
    config = bench.setup.config.with_({
        "data.source": "avatars", "data.train_images": 4, "data.test_images": 1,
        "pairs.drawn": 1.0, "pairs.fitted": 0.0, "pairs.rendered": 0.0})
    faces = prepare(config.data, folder, progress=None)
    return config, faces, random_loss(bench.setup, config, dtype)
