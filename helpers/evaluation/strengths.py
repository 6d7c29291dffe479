"""How the gain depends on the damage: five strengths of all of it, and each effect alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from ..config import Config, DegradeConfig
from ..degradation import AMOUNTS, STAGES, degrade
from ..distances import Metrics
from ..faces import REGIONS, Faces
from ..machine import Bar
from .batch import Batch, as_bytes
from .filters import Filter
from .measuring import Restore, measure
from .result import Result
from .rows import Rows
from .sets import HELD_OUT_SEED

STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)


def damages(settings: DegradeConfig) -> dict[str, DegradeConfig]:
    """What is measured, by name: the run's damage by its strength, then each effect in full."""
    found = {f"strength {s:g}": replace(settings, strength=s) for s in STRENGTHS}
    none = replace(settings, strength=1.0, **dict.fromkeys(AMOUNTS, 0.0))
    for stage in STAGES:
        parts = [stage.amounts] if stage.amounts == REGIONS else [(n,) for n in stage.amounts]
        for names in parts:
            label = stage.name if len(names) > 1 else names[0]
            found[label] = replace(none, **dict.fromkeys(names, 1.0))
    return found


def measure_strengths(config: Config, faces: Faces, restore: Restore, metrics: Metrics, *,
                      device: torch.device | str = "cpu", cheap: Filter | None = None,
                      rows: Rows | None = None,
                      progress: Callable[..., Iterator] | None = Bar) -> dict[str, Result]:
    """Measure the first `data.strength_images` held-out faces under each of `damages`.

    Args:
        config: of the run.
        faces: prepared.
        restore, metrics, cheap, rows: as for `measure`.
        device: where pictures are made and restored.
        progress: wraps the loop as `tqdm` does; None shows nothing.
    """
    count = min(config.data.strength_images, len(faces.test))
    clean, regions = (x.to(device) for x in faces.load("test", range(count)))
    seeds, keys = torch.arange(count) + HELD_OUT_SEED, list(faces.test["key"][:count])
    names, wanted = [f"{i:04d}" for i in range(count)], damages(config.degrade)
    found = {}
    for name in progress(wanted, desc="By strength", unit="damage", delay=2) if progress \
            else wanted:
        degraded = as_bytes(degrade(clean, regions, wanted[name], seeds))
        batch = Batch(clean, degraded, keys, names)
        found[name] = measure(f"by strength, {name}", restore, [batch], metrics, cheap=cheap,
                              rows=rows).result
    return found
