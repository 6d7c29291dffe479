"""Short runs of the real loop, and what they have learned."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch

from helpers import checkpoints
from helpers.config import Config
from helpers.degradation.pipeline import AMOUNTS
from helpers.training.loop import train

GOLDEN = Path(__file__).parent / "fixtures" / "golden" / "base"
PROMPT = torch.zeros(1, 77, 32)  # embedded, for that base
# Six steps of one 64-pixel avatar on a random base, without VGG; of the damage, what takes no time
TINY = {f"degrade.{name}": 0.0 for name in AMOUNTS if name not in ("warp", "noise")} | {
    "data.size_px": 64, "data.train_images": 6, "data.test_images": 2, "model.base": str(GOLDEN),
    "pairs.drawn": 1.0, "pairs.fitted": 0.0, "pairs.rendered": 0.0,
    "loss.lpips": 0.0, "loss.gram": 0.0, "optim.batch": 1, "optim.steps": 6,
    "optim.learning_rate": 1e-3, "optim.skip_rate": 1.0, "optim.warmup_steps": 2,
    "run.name": "test", "run.save_every_steps": 2}
WALL_CLOCK = ("seconds", "images_per_s")  # of a record: the only part that may differ


def run(config: Config, build, faces, folder: Path, steps: int | None = None, *, loss=None,
        dtype: torch.dtype = torch.float32, **options):
    """Train a fresh model for some steps (all that are left); returns it, and the records."""
    model, own_loss = build(dtype, config.run.seed)
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


def saved_step(*folders: Path) -> int | None:
    """The step that a run in these folders goes on from."""
    found, _ = checkpoints.newest(folders)
    return found and found.step


def wait_for(reached: Callable[[], object], longest_s: float = 20) -> None:
    """For another thread or process."""
    until = time.monotonic() + longest_s
    while not reached() and time.monotonic() < until:
        time.sleep(0.01)
    assert reached()
