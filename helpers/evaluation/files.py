"""`metrics.json`, what was measured and of what, and `metrics.csv`, a row per image and kind."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..distances import IN_WORDS
from ..errors import refused
from ..machine import versions
from ..storage import write_whole
from .result import KINDS, Result
from .run import Evaluation

PACKAGES = ("torch", "torchvision", "diffusers", "peft", "transformers", "lpips",
            "stlpips-pytorch", "scikit-image", "numpy")
FIELDS = ("config", "seed", "step", "base", "versions", "device", "sets")  # that readers rely on


def write_metrics(folder: Path, evaluation: Evaluation,
                  changed: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Write `metrics.json` and `metrics.csv`, each whole or not at all; returns the first.

    Args:
        folder: of the results; made if need be.
        evaluation: from `evaluate_run`.
        changed: settings that were others when it was measured: field → [in training, since].
    """
    content = describe(evaluation) | ({"changed_since_training": dict(changed)} if changed else {})
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "metrics.csv", to_csv(evaluation.sets).encode())
    write_whole(folder / "metrics.json",
                (json.dumps(content, indent=1, allow_nan=False) + "\n").encode())
    return content


def describe(evaluation: Evaluation) -> dict[str, Any]:
    """The content of `metrics.json`: numbers that are not finite are left out or null."""
    config, weights = evaluation.config, evaluation.weights
    sets = evaluation.sets
    return {
        "config": dataclasses.asdict(config), "seed": config.run.seed, "step": weights.step,
        "weights": {"run": weights.run, "sha256": weights.sha256}, "base": config.model.base,
        "versions": versions(*PACKAGES), "device": evaluation.device,
        "metrics": {name: IN_WORDS.get(name, "") for name in evaluation.metrics},
        "absent": evaluation.absent,
        "filter": {"chosen": str(evaluation.cheap), "on_training_faces": evaluation.candidates},
        "sets": {name: _finite(result.summary()) for name, result in sets.items()},
        "regions": {name: regions for name, result in sets.items()
                    if (regions := result.regions())},
        "strengths": {name: _finite(result.summary())
                      for name, result in evaluation.strengths.items()},
        "seconds": evaluation.seconds}


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


def to_csv(sets: Mapping[str, Result]) -> str:
    """A row per image and kind: set, image, identity, kind, and a column per metric.

    A figure that is not there is an empty field, an infinite one `inf`.
    """
    columns = list(dict.fromkeys(name for result in sets.values() for name in result.degraded))
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["set", "image", "identity", "kind", *columns])
    for name, result in sets.items():
        for i, image in enumerate(result.called):
            for kind in (kind for kind in KINDS if getattr(result, kind)):
                figures = (getattr(result, kind).get(column, [math.nan] * result.n)[i]
                           for column in columns)
                table.writerow([name, image, result.who[i], kind, *(
                    "" if math.isnan(value) else f"{value:.6g}" for value in figures)])
    return text.getvalue()


def _finite(summary: Mapping[str, Any]) -> dict[str, Any]:
    """A summary whose worst case has null where a figure is not finite."""
    worst = summary["worst"]
    return {**summary, "worst": worst and {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in worst.items()}}


def _refuse_constant(constant: str) -> None:
    raise ValueError(constant)
