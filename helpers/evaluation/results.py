"""How close the restored images come: metrics per image, intervals, and `metrics.json`."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import Config
from ..degradation import degrade
from ..distances import Metrics
from ..errors import refused
from ..faces import Faces
from ..machine import Bar, versions
from ..splats import GAUSSIANS, STEPS, fitted_pairs
from ..storage import write_whole

HELD_OUT_SEED = 900_000  # image i of the test set is degraded by this seed plus i
PACKAGES = ("torch", "torchvision", "diffusers", "peft", "transformers", "lpips", "scikit-image",
            "numpy")
FIELDS = ("config", "seed", "base", "versions", "device", "sets")  # of metrics.json
HIGHER_IS_BETTER = ("psnr", "ssim", "identity")  # gain is a difference; of all others, a percentage


def held_out_pairs(config: Config, faces: Faces, *, device: torch.device | str,
                   batch: int = 4, indices: Sequence[int] | None = None,
                   ) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield held-out faces as batches (clean, degraded), each (B, 3, H, W) in [0, 1].

    Face i is always degraded by the same seed, at the full strength of the config.

    Args:
        indices: which faces of the test set; None is all of them.
    """
    wanted = list(range(len(faces.test)) if indices is None else indices)
    groups = [wanted[i:i + batch] for i in range(0, len(wanted), batch)]
    for group in Bar(groups, desc="Held-out faces", unit="batch", delay=2):
        clean, regions = (x.to(device) for x in faces.load("test", group))
        seeds = torch.tensor([HELD_OUT_SEED + i for i in group])
        yield clean, degrade(clean, regions, config.degrade, seeds)


def underfitted_pairs(config: Config, faces: Faces, *, device: torch.device | str,
                      folder: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield held-out faces with damage no training saw: Gaussians fitted to them, stopped early.

    Args:
        folder: keeps the renders, which are made only once.

    Yields:
        (clean, fitted), each (B, 3, H, W) in [0, 1]: the first `data.fitted_images` faces.
    """
    count = min(config.data.fitted_images, len(faces.test))
    groups = [range(i, min(i + 4, count)) for i in range(0, count, 4)]
    clean = (faces.load("test", group)[0].to(device) for group in groups)
    scale = config.data.size_px / 512  # fewer pixels take fewer Gaussians, which settle earlier
    yield from fitted_pairs(clean, folder, batches=len(groups), steps=round(STEPS * scale**0.5),
                            gaussians=round(GAUSSIANS * scale))


@dataclass(frozen=True)
class Result:
    """Metric → one value per image, for doing nothing (degraded) and the enhancer (restored)."""

    degraded: dict[str, list[float]]
    restored: dict[str, list[float]]

    @property
    def n(self) -> int:
        """How many images were measured."""
        return len(next(iter(self.degraded.values())))

    @property
    def gain(self) -> dict[str, list[float]]:
        """The improvement per image, positive where restored is better."""
        return {name: gain(name, before, self.restored[name])
                for name, before in self.degraded.items()}

    def summary(self) -> dict[str, Any]:
        """`{n, degraded, restored, gain}`, the last three metric → `summarise(...)`."""
        parts = {"degraded": self.degraded, "restored": self.restored, "gain": self.gain}
        return {"n": self.n} | {
            part: {name: summarise(values) for name, values in metrics.items()}
            for part, metrics in parts.items()
        }


def evaluate(enhance: Callable[[Tensor], Tensor], pairs: Iterable[tuple[Tensor, Tensor]],
             metrics: Metrics) -> Result:
    """Measure an enhancer on held-out pairs, next to doing nothing.

    Args:
        enhance: degraded (B, 3, H, W) in [0, 1] → restored, same shape.
        pairs: batches (clean, degraded), each (B, 3, H, W) in [0, 1].
        metrics: what is measured.

    Raises:
        ValueError: no pairs, `enhance` changed the shape, or a value is not finite.
    """
    result = Result(*({name: [] for name in metrics.names} for _ in range(2)))
    for clean, degraded in pairs:
        with torch.no_grad():
            restored = enhance(degraded)
        if not restored.shape == degraded.shape == clean.shape:
            shapes = [tuple(x.shape) for x in (clean, degraded, restored)]
            raise refused("images", "clean, degraded and restored of one shape", shapes,
                          "check what enhance returns")
        _extend(result.degraded, metrics(degraded, clean), "degraded")
        _extend(result.restored, metrics(restored, clean), "restored")
    if not result.n:
        raise refused("pairs", "at least one batch", None, "raise data.test_images")
    return result


def gain(name: str, degraded: Sequence[float], restored: Sequence[float]) -> list[float]:
    """The improvement of each image, positive where restored is better.

    Psnr and ssim: the difference. Distances (lower is better): the decrease, in percent of the
    degraded images' mean, so that the mean gain is the decrease of the mean, and an image that was
    hardly degraded cannot dominate it.
    """
    if name in HIGHER_IS_BETTER:
        return [after - before for before, after in zip(degraded, restored, strict=True)]
    mean = math.fsum(degraded) / len(degraded)
    if mean <= 0:
        raise refused(name, "degraded images at a mean distance above 0", mean,
                      "raise degrade.strength")
    return [100 * (before - after) / mean for before, after in zip(degraded, restored, strict=True)]


def summarise(values: Sequence[float]) -> dict[str, Any]:
    """Describe a metric over images.

    Args:
        values: one per image, finite.

    Returns:
        `mean`, `median`, `std` (of these images: divided by n) and `ci95`, [low, high]: the 95 %
        interval of the mean, by percentile bootstrap over images (Efron 1979), always the same.

    Raises:
        ValueError: no values, or one that is not finite.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or not sample.size or not np.isfinite(sample).all():
        raise refused("values", "finite numbers, one per image", values,
                      "drop what could not be measured")
    chosen = np.random.default_rng(0).integers(sample.size, size=(2_000, sample.size))
    interval = np.percentile(sample[chosen].mean(1), (2.5, 97.5))
    return {"mean": float(sample.mean()), "median": float(np.median(sample)),
            "std": float(sample.std()), "ci95": interval.tolist()}


def write_metrics(path: Path, *, config: Config, sets: Mapping[str, Result],
                  device: torch.device | str) -> dict[str, Any]:
    """Write `metrics.json`, whole or not at all, and return what it holds.

    Args:
        path: the file; its folder exists.
        config: of the run; its seed and base are repeated at the top level.
        sets: name of a set of images → its result.
        device: what the figures were computed on.

    Raises:
        ValueError: no sets, or a value that is not finite.
    """
    if not sets:
        raise refused("sets", "at least one result", sets, "run evaluate first")
    device = torch.device(device)
    device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    content = {
        "config": dataclasses.asdict(config), "seed": config.run.seed, "base": config.model.base,
        "versions": versions(*PACKAGES),
        "device": device_name, "sets": {name: result.summary() for name, result in sets.items()},
    }
    write_whole(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
    return content


def read_metrics(path: Path) -> dict[str, Any]:
    """Read what `write_metrics` wrote; ValueError if it is something else, or holds a NaN."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except ValueError as error:
        raise refused(str(path), "JSON with finite numbers", str(error),
                      "run the evaluation again") from error
    if not isinstance(content, dict) or not set(FIELDS) <= set(content):
        raise refused(str(path), f"the fields {FIELDS}", list(content), "run the evaluation again")
    return content


def format_table(result: Result | Mapping[str, Any]) -> str:
    """A Markdown table, also aligned as plain text: doing nothing against the enhancer.

    Args:
        result: from `evaluate`, or one set of `metrics.json`.
    """
    summary = result.summary() if isinstance(result, Result) else result
    rows = [("metric", "degraded (do nothing)", "restored", "gain, 95 % interval")]
    for name in summary["degraded"]:
        before, after = (_level(name, summary[part][name]) for part in ("degraded", "restored"))
        arrow = "↑" if name in HIGHER_IS_BETTER else "↓"
        rows.append((f"{name} {arrow}", before, after, _change(name, summary["gain"][name])))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    rows.insert(1, tuple("-" * width for width in widths))
    lines = (" | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    return f"n = {summary['n']}; mean ± std\n\n" + "\n".join(f"| {line} |" for line in lines)


def _level(name: str, summary: Mapping[str, Any]) -> str:
    digits, unit = (2, " dB") if name == "psnr" else (3, "")
    return f"{summary['mean']:.{digits}f} ± {summary['std']:.{digits}f}{unit}"


def _change(name: str, summary: Mapping[str, Any]) -> str:
    digits, unit = {"psnr": (2, " dB"), "ssim": (3, ""), "identity": (3, "")}.get(name, (1, " %"))
    mean, low, high = (f"{v:+.{digits}f}" for v in (summary["mean"], *summary["ci95"]))
    return f"{mean}{unit} [{low}, {high}]"


def _extend(columns: dict[str, list[float]], values: Mapping[str, list[float]], what: str) -> None:
    for name, column in values.items():
        for offset, value in enumerate(column):
            if not math.isfinite(value):
                index = len(columns[name]) + offset
                raise refused(f"{name} of {what} image {index}", "a finite number", value,
                              "look for NaN pixels, or for an image equal to its clean original "
                              "(infinite PSNR)")
        columns[name].extend(column)


def _refuse_constant(constant: str) -> None:
    raise ValueError(constant)
