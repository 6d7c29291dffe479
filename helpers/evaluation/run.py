"""The evaluation of a run: its sets in one pass, by region and by strength, and whose weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoints import Checkpoint
from ..config import Config
from ..distances import Metrics
from ..errors import refused
from ..faces import Faces
from ..model import SplatEnhancer
from ..pairs import Sources
from .batch import Batch
from .filters import Filter, choose_filter
from .measuring import Measured, measure, show_again
from .result import Result
from .rows import Rows
from .sets import HeldOut
from .strengths import measure_strengths

VERSION = 1  # raised whenever the same pictures give other figures


@dataclass(frozen=True)
class Weights:
    """Whose weights were measured."""

    run: str
    step: int
    sha256: str  # of the trained tensors, in fp32


@dataclass(frozen=True)
class Evaluation:
    """All that was measured of a run."""

    config: Config
    weights: Weights
    cheap: Filter
    candidates: dict[str, float]  # what each filter left of the damage of training faces
    measured: dict[str, Measured]  # by set
    strengths: dict[str, Result]  # by damage
    absent: dict[str, str]  # what was not measured, and why
    metrics: tuple[str, ...]
    device: str
    history: list[dict[str, Any]] = field(default_factory=list)  # a record per step of training
    seconds: dict[str, float] = field(default_factory=dict)  # by stage

    @property
    def sets(self) -> dict[str, Result]:
        """The result of each set."""
        return {name: one.result for name, one in self.measured.items()}

    def notes(self) -> list[str]:
        """What was not measured, and the pictures without a finite figure, a line each.

        That equal pictures have no PSNR says nothing about a restoration: of those, none is listed.
        """
        lines = [f"{what} is absent: {why}." for what, why in self.absent.items()]
        for name, result in self.sets.items():
            for figure, images in result.summary()["undefined"].items():
                if figure.startswith("restored"):
                    some = ", ".join(images[:5]) + (", …" if len(images) > 5 else "")
                    lines.append(f"{name}: {figure} is undefined for {len(images)} of {result.n} "
                                 f"pictures ({some}).")
        return lines


def evaluate_run(config: Config, model: SplatEnhancer, faces: Faces, metrics: Metrics,
                 held_out: HeldOut, saved: Checkpoint, *, sources: Sources | None = None,
                 folder: Path | None = None, strengths: bool = True,
                 say: Callable[[str], None] = print) -> Evaluation:
    """Measure a trained enhancer on all sets, next to doing nothing and a cheap filter.

    Args:
        config: of the run.
        model: the enhancer, which holds the weights of `saved`.
        faces: prepared.
        metrics: what is measured; the first one ranks.
        held_out: the sets.
        saved: the checkpoint whose weights are measured.
        sources: of training pairs, on which the filter is chosen.
        folder: keeps each row as it is measured: interrupted, the evaluation goes on there.
        strengths: whether to measure by strength and effect, too.
        say: told in one line how long each stage took.

    Raises:
        ValueError: the model holds other weights than `saved`.
    """
    weights, device, seconds = _weights(config, model, saved), held_out.device, {}
    restore = restore_by(model)
    with timed("filter", seconds):
        cheap, candidates = choose_filter(config, faces, sources or {}, metrics, device=device)
    rows = Rows(folder, {"weights": asdict(weights), "filter": str(cheap), "version": VERSION,
                         "metrics": metrics.names, "sets": held_out.origin,
                         "device": str(device)}) if folder else None
    measured: dict[str, Measured] = {}
    with model.merged():
        for name in held_out:
            with timed(name, seconds):
                one = measure(name, restore, held_out[name], metrics, cheap=cheap, rows=rows)
                measured[name] = show_again(one, restore, held_out[name])
        found = {}
        if strengths:
            with timed("by strength", seconds):
                found = measure_strengths(config, faces, restore, metrics, device=device,
                                          cheap=cheap, rows=rows)
    if rows and rows.found:
        say(f"{rows.found} rows were measured before, and are taken from {rows.folder}.")
    say("measured in " + ", ".join(f"{name} {s:.1f} s" for name, s in seconds.items()))
    return Evaluation(config, weights, cheap, candidates, measured, found,
                      dict(metrics.absent) | _without_regions(measured), metrics.names,
                      _device_name(device), saved.history, seconds)


def restore_by(model: SplatEnhancer) -> Callable[[Batch], tuple[Tensor, Tensor]]:
    """A model's restoration of a batch, and where it repaired."""
    return lambda batch: model.enhance_and_show(batch.degraded)


def _weights(config: Config, model: SplatEnhancer, saved: Checkpoint) -> Weights:
    own = model.trainable()
    fits = own.keys() == saved.trained.keys() and all(
        torch.equal(tensor.to(own[name].dtype), own[name].detach().cpu())
        for name, tensor in saved.trained.items())
    if not fits:
        raise refused("model", f"the weights of step {saved.step}, as they were saved", "others",
                      "run the training cell again: it loads them")
    return Weights(config.run.name, saved.step, saved.digest)


def _without_regions(measured: Mapping[str, Measured]) -> dict[str, str]:
    return {f"{name} by region": "the regions of these photographs are not known"
            for name, one in measured.items() if not one.result.regions()}


def _device_name(device: torch.device | str) -> str:
    device = torch.device(device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


@contextmanager
def timed(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Enter how long a stage took."""
    started = time.perf_counter()
    yield
    seconds[name] = round(time.perf_counter() - started, 2)
