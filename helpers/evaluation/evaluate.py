"""The evaluation of an enhancer as one table, beside the input and an unsharp mask.

    evaluation = evaluate(model, test_sets, metrics, folder=run_folder / "measured")
    print(evaluation.overview())

Every picture of every set has a row per kind and metric: set, image, identity, kind, metric, value.
`kind` is "degraded" (the input), "filtered" (the unsharp mask baseline) or "restored"; a metric
`<name>/<region>` is measured within one region of the face.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..config import Config
from ..data.faces import draw_batch, scale
from ..data.regions import REGIONS
from ..environment import progress
from ..files import atomic_write, sha256
from ..losses.metrics import Metrics
from ..model.enhancer import SplatEnhancer
from ..training.checkpoint import digest
from .test_sets import CANDIDATES, Batch, TestSets, UnsharpMask, read_restored

KINDS = {"degraded": "input", "filtered": "unsharp mask", "restored": "restored"}
HIGHER_IS_BETTER = ("psnr", "ssim", "identity")  # of all others, lower
SHOWN = {"random": 3, "best": 2, "worst": 3}  # pictures of each set that are kept to look at
PACKAGES = ("torch", "diffusers", "peft", "lpips", "stlpips-pytorch", "numpy")
VERSION = 2  # raised when the same pictures give other values


@dataclass(frozen=True)
class Evaluation:
    """All that was measured of an enhancer; `table` has a row per picture, kind and metric."""

    table: pd.DataFrame
    config: Config
    step: int
    weights: str  # digest of the trained tensors
    baseline: UnsharpMask
    device: str
    history: Sequence[Mapping[str, Any]] = ()  # the records of the training
    absent: Mapping[str, str] = field(default_factory=dict)  # metric that is not there → why
    # set → "random", "best", "worst" → image → kind, "clean" and "changed" → picture (C, H, W)
    shown: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Tensor]]]] = field(
        default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """The content of `metrics.json`: plain numbers, all of them finite."""
        sets = {name: summarise(rows) for name, rows in self.table.groupby("set", sort=False)}
        effects = {name: sets.pop(name)["gain"] for name in list(sets)
                   if name.startswith("effect ")}
        return {"config": asdict(self.config), "seed": self.config.seed, "step": self.step,
                "weights": self.weights, "base": self.config.pretrained_model_name_or_path,
                "versions": {name: metadata.version(name) for name in PACKAGES},
                "device": self.device, "baseline": asdict(self.baseline),
                "absent": dict(self.absent), "sets": sets, "effects": effects}

    def overview(self) -> pd.DataFrame:
        """A row of texts per set: distances, gain, PSNR, SSIM, shares that got worse."""
        table, ranking = {}, self.table["metric"].iloc[0]
        for name, of_set in self.summary()["sets"].items():
            shares = [of_set["share_worse"].get(metric) for metric in (ranking, "psnr", "ssim")]
            table[name.replace("_", " ")] = {
                "pictures": str(of_set["n"]),
                **{label: f"{of_set[kind][ranking]['mean']:.3f}" for kind, label in KINDS.items()},
                "gain [95 % interval]": format_gain(of_set, "gain", ranking, interval=True),
                "over unsharp mask": format_gain(of_set, "gain_over_filtered", ranking),
                "PSNR": format_gain(of_set, "gain", "psnr"),
                "SSIM": format_gain(of_set, "gain", "ssim"),
                f"worse by {ranking} / PSNR / SSIM": " / ".join(
                    "–" if share is None else f"{100 * share:.0f} %" for share in shares)}
        return pd.DataFrame.from_dict(table, orient="index").rename_axis(columns=f"{ranking} ↓")

    def write(self, folder: Path) -> dict[str, Any]:
        """Write `metrics.json` and `metrics.csv` (metrics side by side); returns the former."""
        summary = self.summary()
        folder.mkdir(parents=True, exist_ok=True)
        wide = self.table.pivot_table(index=["set", "image", "identity", "kind"], columns="metric",
                                      values="value", sort=False)
        atomic_write(folder / "metrics.csv", wide.to_csv(float_format="%.6g").encode())
        text = json.dumps(summary, indent=1, allow_nan=False) + "\n"
        atomic_write(folder / "metrics.json", text.encode())
        return summary


def evaluate(model: SplatEnhancer, test_sets: TestSets, metrics: Metrics, *,
             baseline: UnsharpMask | None = None, folder: Path | None = None, step: int = 0,
             history: Sequence[Mapping[str, Any]] = ()) -> Evaluation:
    """Measure an enhancer on all test sets, beside the input and the baseline.

    Args:
        model: the enhancer.
        test_sets: what is restored.
        metrics: what is measured; the first one ranks.
        baseline: the unsharp mask; None chooses it on training faces.
        folder: keeps one CSV per set: an interrupted evaluation goes on there.
        step, history: of the training, for the record.
    """
    device, weights = test_sets.device, digest(model.trained_state())
    baseline = baseline or choose_baseline(test_sets, metrics)
    key = json.dumps([VERSION, weights, asdict(baseline), metrics.names, test_sets.recipe])
    tables, shown = [], {}
    for name in progress(list(test_sets), desc="Test sets", unit="set"):
        path = folder and folder / f"{name.replace(' ', '_')}-{sha256(key.encode())[:12]}.csv"
        if path and path.is_file():
            rows = pd.read_csv(path, dtype=str, keep_default_na=False).astype({"value": float})
        else:
            rows = measure_set(name, test_sets[name], lambda batch: model.enhance(batch.degraded),
                               metrics, baseline)
            if path:
                path.parent.mkdir(parents=True, exist_ok=True)
                atomic_write(path, rows.to_csv(index=False, na_rep="nan").encode())
        tables.append(rows)
        if not name.startswith("effect "):
            shown[name] = _restore_shown(model, test_sets[name], choose_shown(rows), baseline)
    return Evaluation(
        pd.concat(tables, ignore_index=True), test_sets.config, step, weights, baseline,
        torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        history, dict(metrics.absent), shown)


def choose_baseline(test_sets: TestSets, metrics: Metrics, samples: int = 3) -> UnsharpMask:
    """The unsharp mask that leaves the smallest distance on training pairs of each kind."""
    drawn = draw_batch(test_sets.faces, seed=test_sets.config.seed, step=0, batch=samples)
    distances = np.zeros(len(CANDIDATES))
    for degraded, clean in test_sets.pairs.draw_each(*drawn, test_sets.device).values():
        measured = metrics.each({str(mask): mask(degraded) for mask in CANDIDATES}, clean)
        distances += [sum(measured[str(mask)][metrics.names[0]]) for mask in CANDIDATES]
    return CANDIDATES[int(distances.argmin())]


def compare(folder: Path, test_sets: TestSets, metrics: Metrics,
            baseline: UnsharpMask) -> pd.DataFrame:
    """Measure what another tool restored: `<folder>/<set>/<image>.png`, named by `write_sets`.

    A set without a folder is left out. Returns a table as in `Evaluation`.
    """
    return pd.concat([
        measure_set(name, test_sets[name], lambda batch, name=name: read_restored(
            folder / name, batch), metrics, baseline)
        for name in test_sets if (folder / name).is_dir()], ignore_index=True)


def measure_set(name: str, batches: Iterable[Batch], restore: Callable[[Batch], Tensor],
                metrics: Metrics, baseline: UnsharpMask) -> pd.DataFrame:
    """Measure one set; `restore` makes (B, 3, H, W) in [0, 1] of a batch.

    Returns:
        Rows of `Evaluation.table`.
    """
    rows = []
    for batch in batches:
        images = {"degraded": batch.degraded, "filtered": baseline(batch.degraded),
                  "restored": restore(batch)}
        images = {kind: scale(part, batch.clean.shape[-1]) for kind, part in images.items()}
        measured = metrics.each(images, batch.clean, regions=batch.regions, labels=REGIONS)
        rows += [(name, image, batch.identities[i], kind, metric, values[i])
                 for i, image in enumerate(batch.names)
                 for kind, by_metric in measured.items() for metric, values in by_metric.items()]
    return pd.DataFrame(rows, columns=["set", "image", "identity", "kind", "metric", "value"])


def choose_shown(rows: pd.DataFrame) -> dict[str, list[str]]:
    """Which images of a set are shown: the worst of all, the best, and some others at random."""
    ranking = rows["metric"].iloc[0]
    values = rows[rows["metric"] == ranking].pivot(index="image", columns="kind", values="value")
    gains = (values["degraded"] - values["restored"]).sort_values(kind="stable")
    order = list(gains.index)  # the worst first
    worst = order[:SHOWN["worst"]]
    best = order[len(worst):][::-1][:SHOWN["best"]]
    rest = sorted(set(order) - {*worst, *best},
                  key=lambda image: hashlib.sha256(image.encode()).digest())
    return {"random": rest[:SHOWN["random"]], "best": best, "worst": worst}


def summarise(rows: pd.DataFrame) -> dict[str, Any]:
    """One set of `metrics.json`: kinds, gains and shares → metric → numbers.

    Gains are positive where restored is better: the difference for `HIGHER_IS_BETTER`, and for
    distances the decrease in percent of the input's mean, so that the mean gain is the decrease of
    the mean. `gain_filtered` is the baseline's, `gain_over_filtered` what the enhancer gains beyond
    it, `share_worse` the share of pictures whose own value got worse. Values that are not finite
    are left out: a picture that equals its original has no PSNR.
    """
    wide = rows.pivot(index=["image", "identity"], columns=["kind", "metric"], values="value")
    identities = wide.index.get_level_values("identity").to_numpy()
    parts: dict[str, dict[str, Any]] = {part: {} for part in (
        *KINDS, "gain", "gain_filtered", "gain_over_filtered", "share_worse")}
    for metric in rows["metric"].unique():
        values = {kind: wide[kind, metric].to_numpy(float) for kind in KINDS}
        values["gain"] = gain(metric, values["degraded"], values["restored"])
        values["gain_filtered"] = gain(metric, values["degraded"], values["filtered"])
        values["gain_over_filtered"] = values["gain"] - values["gain_filtered"]
        for part, of_images in values.items():
            if np.isfinite(of_images).any():
                parts[part][metric] = describe(of_images, identities)
        if metric in parts["gain"]:
            defined = values["gain"][np.isfinite(values["gain"])]
            parts["share_worse"][metric] = float((defined < 0).mean())
    return {"n": len(wide), "identities": len(set(identities)), **parts}


def gain(metric: str, degraded: np.ndarray, restored: np.ndarray) -> np.ndarray:
    """The improvement of each picture (see `summarise`), NaN where it is not defined."""
    with np.errstate(invalid="ignore", divide="ignore"):
        if metric in HIGHER_IS_BETTER:
            better = restored - degraded
        else:
            both = np.isfinite(degraded) & np.isfinite(restored)
            better = 100 * (degraded - restored) / (degraded[both].mean() if both.any() else np.nan)
    return np.where(np.isfinite(better), better, np.nan)


def describe(values: np.ndarray, identities: np.ndarray) -> dict[str, Any]:
    """`mean`, `median`, `std` and `ci95` of the finite values.

    The interval of the mean is a percentile bootstrap over identities (Efron 1979) with a fixed
    seed: pictures of one person say less than as many of different people.
    """
    finite = np.isfinite(values)
    values, (_, owner) = values[finite], np.unique(identities[finite], return_inverse=True)
    sums, counts = np.bincount(owner, values), np.bincount(owner)
    drawn = np.random.default_rng(0).integers(len(sums), size=(2_000, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    return {"mean": float(values.mean()), "median": float(np.median(values)),
            "std": float(values.std()), "ci95": np.percentile(means, (2.5, 97.5)).tolist()}


def format_gain(of_set: Mapping[str, Any], part: str, metric: str, *,
                interval: bool = False) -> str:
    """A mean gain as text; where nothing was degraded, the value that came out."""
    digits, unit = {"psnr": (2, " dB"), "ssim": (3, "")}.get(metric, (1, " %"))
    if metric not in of_set[part]:
        restored = of_set["restored"].get(metric)
        return f"restored: {restored['mean']:.3g}{unit}" if unit == " dB" and restored else "–"
    described = of_set[part][metric]
    mean, *ends = (f"{value:+.{digits}f}" for value in (described["mean"], *described["ci95"]))
    return f"{mean}{unit}" + (f" [{', '.join(ends)}]" if interval else "")


def _restore_shown(model: SplatEnhancer, batches: Iterable[Batch], chosen: Mapping[str, list[str]],
                   baseline: UnsharpMask) -> dict[str, dict[str, dict[str, Tensor]]]:
    """The pictures that are shown, restored again: the table keeps numbers only."""
    pictures, wanted = {}, {image for images in chosen.values() for image in images}
    for batch in batches:
        rows = [i for i, image in enumerate(batch.names) if image in wanted]
        if rows:
            degraded = batch.degraded[rows]
            restored, changed = model.enhance_with_mask(degraded)
            parts = {"degraded": degraded, "filtered": baseline(degraded), "restored": restored,
                     "clean": batch.clean[rows], "changed": changed}
            for place, row in enumerate(rows):
                pictures[batch.names[row]] = {name: part[place].float().cpu()
                                              for name, part in parts.items()}
    return {reason: {image: pictures[image] for image in images}
            for reason, images in chosen.items()}
