"""How close the restored images come: metrics per image, intervals, and `metrics.json`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..config import Config
from ..distances import Metrics
from ..errors import refused
from ..machine import versions
from ..storage import write_whole
from .sets import Batch

PACKAGES = ("torch", "torchvision", "diffusers", "peft", "transformers", "lpips", "scikit-image",
            "numpy")
FIELDS = ("config", "seed", "base", "versions", "device", "sets")  # of metrics.json
HIGHER_IS_BETTER = ("psnr", "ssim", "identity")  # gain is a difference; of all others, a percentage


@dataclass(frozen=True)
class Result:
    """Metric → one value per image, for doing nothing (degraded) and the enhancer (restored)."""

    degraded: dict[str, list[float]]
    restored: dict[str, list[float]]
    identities: list[str] = field(default_factory=list)  # whose each image is; empty: all differ

    @property
    def n(self) -> int:
        """How many images were measured."""
        return len(next(iter(self.degraded.values())))

    @property
    def gain(self) -> dict[str, list[float]]:
        """The improvement per image, positive where restored is better; see `gain`."""
        return {name: gain(name, before, self.restored[name])
                for name, before in self.degraded.items()}

    def summary(self) -> dict[str, Any]:
        """`{n, identities, degraded, restored, gain, share_worse}`.

        The three in the middle are metric → `summarise(...)`, a metric without a finite value being
        left out (of clean pictures doing nothing has no PSNR); the last is metric → the share of
        images with a gain below 0.
        """
        who = self.identities or [str(i) for i in range(self.n)]
        parts = {"degraded": self.degraded, "restored": self.restored, "gain": self.gain}
        summary: dict[str, Any] = {"n": self.n, "identities": len(set(who))} | {
            part: {name: summarise(values, who) for name, values in metrics.items()
                   if np.isfinite(values).any()} for part, metrics in parts.items()}
        return summary | {"share_worse": {
            name: float(np.mean(np.asarray(parts["gain"][name]) < 0)) for name in summary["gain"]}}


def evaluate(enhance: Callable[[Tensor], Tensor], pairs: Iterable[Batch],
             metrics: Metrics) -> Result:
    """Measure an enhancer on held-out pairs, next to doing nothing.

    Args:
        enhance: degraded (B, 3, H, W) in [0, 1] → restored, same shape.
        pairs: batches of clean, degraded, each (B, 3, H, W) in [0, 1], and whose they are (B).
        metrics: what is measured. A figure that is not finite is kept as it is, and counted in the
            summary: PSNR of equal pictures is infinite.

    Raises:
        ValueError: no pairs, or `enhance` changed the shape or returned what is not finite.
    """
    result = Result(*({name: [] for name in metrics.names} for _ in range(2)))
    for clean, degraded, identities in pairs:
        with torch.no_grad():
            restored = enhance(degraded)
        _check(clean, degraded, restored)
        for part, images in ((result.degraded, degraded), (result.restored, restored)):
            for name, values in metrics(images, clean).items():
                part[name].extend(values)
        result.identities.extend(identities)
    if not result.n:
        raise refused("pairs", "at least one batch", None, "raise data.test_images")
    return result


def gain(name: str, degraded: Sequence[float], restored: Sequence[float]) -> list[float]:
    """The improvement of each image, positive where restored is better.

    Psnr and ssim: the difference. Distances (lower is better): the decrease, in percent of the
    degraded images' mean, so that the mean gain is the decrease of the mean, and an image that was
    hardly degraded cannot dominate it. NaN where that is undefined: nothing was degraded.
    """
    before, after = (np.asarray(values, dtype=np.float64) for values in (degraded, restored))
    with np.errstate(invalid="ignore", divide="ignore"):
        better = after - before if name in HIGHER_IS_BETTER else \
            100 * (before - after) / before.mean()
    return np.where(np.isfinite(better), better, np.nan).tolist()


def summarise(values: Sequence[float], identities: Sequence[str]) -> dict[str, Any]:
    """Describe a metric over images.

    Args:
        values: one per image, at least one of them finite.
        identities: whose each image is.

    Returns:
        `mean`, `median`, `std` (of these images: divided by n) and `ci95`, [low, high]: the 95 %
        interval of the mean, by percentile bootstrap over identities (Efron 1979), always the same:
        images of one person say less than as many of different ones. Where a value is not finite,
        `undefined` counts them, and the rest is of the others.

    Raises:
        ValueError: no finite value, or identities of another number.
    """
    sample, who = np.asarray(values, dtype=np.float64), np.asarray(identities)
    defined = np.isfinite(sample)
    if sample.ndim != 1 or sample.shape != who.shape or not defined.any():
        raise refused("values", "numbers, one per image, with an identity each, some finite",
                      (values, len(identities)), "drop what could not be measured")
    _, owner = np.unique(who[defined], return_inverse=True)
    sample = sample[defined]
    sums, counts = np.bincount(owner, sample), np.bincount(owner)
    chosen = np.random.default_rng(0).integers(len(sums), size=(2_000, len(sums)))
    means = sums[chosen].sum(1) / counts[chosen].sum(1)
    summary = {"mean": float(sample.mean()), "median": float(np.median(sample)),
               "std": float(sample.std()), "ci95": np.percentile(means, (2.5, 97.5)).tolist()}
    return summary | ({"undefined": int((~defined).sum())} if not defined.all() else {})


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
    for name in summary["restored"]:
        before, after = (_level(name, summary[part].get(name)) for part in ("degraded", "restored"))
        arrow = "↑" if name in HIGHER_IS_BETTER else "↓"
        rows.append((f"{name} {arrow}", before, after, _change(name, summary["gain"].get(name))))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    rows.insert(1, tuple("-" * width for width in widths))
    lines = (" | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    people = summary.get("identities", summary["n"])
    return "\n".join([f"{summary['n']} pictures of {people} identities; mean ± std", "",
                      *(f"| {line} |" for line in lines)])


def format_sets(sets: Mapping[str, Result]) -> str:
    """One Markdown table of all sets: the metric that ranks, PSNR as a guard, the share made worse.

    Args:
        sets: name → result of `evaluate`.
    """
    rows = ["| tested on | in → out | gain, 95 % interval | PSNR | made worse |",
            "|---|---|---|---|---|"]
    metric = next(iter(next(iter(sets.values())).restored))
    for name, result in sets.items():
        summary = result.summary()
        before, after = (summary[part][metric]["mean"] for part in ("degraded", "restored"))
        gain_text, decibels = (_change(m, summary["gain"].get(m)) for m in (metric, "psnr"))
        if metric in summary["gain"]:
            worse = f"{100 * summary['share_worse'][metric]:.0f} %"
        else:
            worse, decibels = "–", f"{summary['restored']['psnr']['mean']:.1f} dB"
        rows.append(f"| {name} ({summary['n']}) | {before:.3f} → {after:.3f} | {gain_text} | "
                    f"{decibels} | {worse} |")
    return f"{metric}, lower is better\n\n" + "\n".join(rows)


def _level(name: str, summary: Mapping[str, Any] | None) -> str:
    if summary is None:
        return "–"
    digits, unit = (2, " dB") if name == "psnr" else (3, "")
    return f"{summary['mean']:.{digits}f} ± {summary['std']:.{digits}f}{unit}"


def _change(name: str, summary: Mapping[str, Any] | None) -> str:
    if summary is None:
        return "–"
    digits, unit = {"psnr": (2, " dB"), "ssim": (3, ""), "identity": (3, "")}.get(name, (1, " %"))
    mean, low, high = (f"{v:+.{digits}f}" for v in (summary["mean"], *summary["ci95"]))
    return f"{mean}{unit} [{low}, {high}]"


def _check(clean: Tensor, degraded: Tensor, restored: Tensor) -> None:
    if not restored.shape == degraded.shape == clean.shape:
        shapes = [tuple(x.shape) for x in (clean, degraded, restored)]
        raise refused("images", "clean, degraded and restored of one shape", shapes,
                      "check what enhance returns")
    for name, images in (("clean", clean), ("degraded", degraded), ("restored", restored)):
        if not images.isfinite().all():
            raise refused(f"{name} images", "finite values", "NaN or infinity",
                          "look for a broken picture, or broken weights")


def _refuse_constant(constant: str) -> None:
    raise ValueError(constant)
