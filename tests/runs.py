"""Short runs of the real loop, and what they have learned."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import torch

from helpers.checkpoints import checkpoint as checkpoints
from helpers.config import Config
from helpers.degradation.pipeline import AMOUNTS
from helpers.training.loop import train

# Damage that is drawn at random and takes no time
QUICK = {f"degrade.{name}": 0.0 for name in AMOUNTS if name not in ("warp", "noise")} | {
    "pairs.drawn": 1.0, "pairs.fitted": 0.0, "pairs.rendered": 0.0,
    "optim.batch": 1, "optim.steps": 6, "run.save_every_steps": 2}
WALL_CLOCK = ("seconds", "images_per_s")  # of a record: the only part that may differ


def run(config: Config, build, faces, folder: Path, steps: int | None = None, *, loss=None,
        dtype: torch.dtype = torch.float32, **options):
    """Train a fresh model for some steps (all that are left); returns it, and the records."""
    model, own_loss = build(dtype)
    records = list(islice(train(config, model, faces, loss or own_loss, folder=folder, **options),
                          steps))
    return model, records


def states_differ(one: Path, other: Path, name: str = checkpoints.LATEST) -> list[str]:
    """What is not equal, bit for bit, in the files of two runs."""
    a, b = checkpoints.load(one / name), checkpoints.load(other / name)
    parts = [part for part in ("step", "config", "loss_scale")
             if getattr(a, part) != getattr(b, part)]
    histories = [[{k: v for k, v in record.items() if k not in WALL_CLOCK}
                  for record in state.history] for state in (a, b)]
    parts += ["history"] if str(histories[0]) != str(histories[1]) else []  # NaN equals NaN
    return parts + [tensor for tensor in a.tensors.keys() | b.tensors.keys()
                    if not torch.equal(a.tensors[tensor], b.tensors[tensor])]
