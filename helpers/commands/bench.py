"""How fast this machine is at what a user waits for."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from .. import checkpoints
from ..config import DegradeConfig, preset
from ..degradation import degrade
from ..faces.avatars import render_avatar
from ..machine import choose_preset, workspace
from ..model import SplatEnhancer
from ..training import Trainer
from .command import Command
from .enhance import chosen_model
from .runs import Precision, machine_with


@dataclass(frozen=True, kw_only=True)
class Bench(Command):
    """Measure restoring, degrading and exporting on this machine: medians after a warm-up."""

    size_px: int = 512  # side of the pictures
    batch: int = 1  # pictures at a time
    rounds: int = 5  # of which the median is told
    model: str = ""  # as for enhance; none: the newest, else an untrained one of the preset
    work_dir: Path | None = None  # as for enhance
    mixed_precision: Precision = "auto"  # as for enhance

    def run(self) -> dict[str, Any]:
        """Measure and print."""
        machine = machine_with(self.mixed_precision)
        config = preset(choose_preset("auto", machine)[0])
        try:
            model, origin = chosen_model(self.model, machine, workspace(machine, self.work_dir))
        except ValueError:
            if self.model:
                raise
            model, origin = SplatEnhancer.from_pretrained(
                config.model, device=machine.device, dtype=machine.dtype), "an untrained one"
        clean, regions = (part[None].expand(self.batch, *part.shape).to(machine.device)
                          for part in render_avatar(7, self.size_px))
        seeds = torch.arange(self.batch)
        with model.merged():
            restoring = self._seconds(lambda: model.enhance(clean))
        degrading = self._seconds(lambda: degrade(clean, regions, DegradeConfig(), seeds))
        found = {"model": origin, "device": machine.gpu or "CPU", "size_px": self.size_px,
                 "batch": self.batch, "enhance_images_per_s": self.batch / restoring,
                 "degrade_images_per_s": self.batch / degrading}
        trainer = Trainer(replace(config, model=model.config), model)
        for master in trainer.masters.values():
            master.grad = torch.zeros_like(master)
        trainer.optimiser.step()  # only then has AdamW what is saved, too
        with TemporaryDirectory() as folder:
            found["checkpoint_save_s"] = self._seconds(
                lambda: checkpoints.save(trainer.checkpoint(), Path(folder)))
        for name, value in found.items():
            print(f"{name:24}{value:.3g}" if isinstance(value, float) else f"{name:24}{value}")
        return found

    def _seconds(self, work: Callable[[], object]) -> float:
        times = []
        for _ in range(self.rounds + 1):
            started = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        return statistics.median(times[1:])
