"""Training: one visible loop, a generator that yields a record per step.

Everything random in step n follows from (seed, n), so a checkpoint needs no generator state and a
resumed run takes the very steps an uninterrupted one would have taken.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from . import checkpoint as checkpoints
from .checkpoint import Checkpoint
from .config import Config, OptimConfig
from .data import Faces, draw_batch
from .degrade import degrade, draw_amounts
from .losses import EnhancerLoss
from .model import SplatEnhancer

MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW
SCALE_FLOOR = 1.0  # a loss scale below this means that gradients are broken, not merely large


@dataclass(frozen=True)
class Record:
    """What one step did."""

    step: int  # 1 after the first step
    losses: dict[str, float]  # unweighted terms and "total"
    learning_rate: float
    gradient_norm: float
    skipped: bool  # a loss or gradient was not finite: nothing was learned from this step
    seconds: float
    images_per_s: float
    peak_gib: float  # of GPU memory, 0 on a CPU


class Trainer:
    """The state that a checkpoint keeps: fp32 masters, AdamW, loss scale, step and history.

    Args:
        config: of the run.
        model: whose trained tensors are learned; its working copies may be of half precision.
    """

    def __init__(self, config: Config, model: SplatEnhancer) -> None:
        self.config, self.model, self.step = config, model, 0
        self.history: list[dict] = []
        self.working = model.trainable()
        self.masters = {name: p if p.dtype == torch.float32 else p.detach().float().requires_grad_()
                        for name, p in self.working.items()}
        self.optimiser = torch.optim.AdamW(
            self.masters.values(), lr=config.optim.learning_rate,
            weight_decay=config.optim.weight_decay)
        device = next(iter(self.working.values())).device.type
        half = any(p.dtype == torch.float16 for p in self.working.values())
        self.scaler = torch.amp.GradScaler(device, enabled=half)

    def checkpoint(self) -> Checkpoint:
        """The state as CPU tensors."""
        tensors = {f"model/{name}": p.detach() for name, p in self.masters.items()}
        for name, p in self.masters.items():
            moments = self.optimiser.state.get(p, {})
            tensors |= {f"{k}/{name}": moments[k] for k in MOMENTS if k in moments}
        updates = [state["step"] for state in self.optimiser.state.values()]
        tensors["updates"] = updates[0] if updates else torch.zeros(())
        tensors = {name: t.cpu().contiguous() for name, t in tensors.items()}
        return Checkpoint(self.step, self.config, tensors, self.scaler.state_dict(), self.history)

    def restore(self, saved: Checkpoint) -> None:
        """Take over a checkpoint; ValueError if it belongs to other settings."""
        checkpoints.refuse_other_run(saved, self.config)
        own = {k.removeprefix("model/"): t for k, t in saved.tensors.items() if k[:6] == "model/"}
        self.model.load_trained(own)
        self.optimiser.state.clear()
        for name, p in self.masters.items():
            p.data.copy_(own[name])
            if f"exp_avg/{name}" in saved.tensors:
                moments = {k: saved.tensors[f"{k}/{name}"].to(p.device, copy=True)
                           for k in MOMENTS}
                self.optimiser.state[p] = {"step": saved.tensors["updates"].clone()} | moments
        self.scaler.load_state_dict(saved.loss_scale or self.scaler.state_dict())
        self.step, self.history = saved.step, list(saved.history)

    def update(self, loss: Tensor) -> tuple[float, bool]:
        """Backward, unscale, clip, step: returns the gradient's norm and whether it was skipped."""
        for p in self.working.values():
            p.grad = None
        self.scaler.scale(loss).backward()
        for name, p in self.working.items():
            self.masters[name].grad = p.grad.float()
        self.scaler.unscale_(self.optimiser)
        norm = float(torch.nn.utils.clip_grad_norm_(self.masters.values(),
                                                    self.config.optim.clip_norm))
        if finite := math.isfinite(norm):
            self.scaler.step(self.optimiser)
        self.scaler.update()
        with torch.no_grad():
            for name, p in self.working.items():
                if p is not self.masters[name]:
                    p.copy_(self.masters[name])
        return norm, not finite


def learning_rate_at(step: int, optim: OptimConfig) -> float:
    """Learning rate of step 1, 2, …: linear warm-up, then cosine decay to a tenth."""
    warm = min(1.0, step / max(1, optim.warmup_steps))
    done = min(1.0, step / optim.steps)
    return optim.learning_rate * warm * (0.55 + 0.45 * math.cos(math.pi * done))


def training_batch(config: Config, faces: Faces, step: int,
                   device: torch.device | str) -> tuple[Tensor, Tensor, Tensor]:
    """Clean and degraded images (B, 3, H, W) in [0, 1] and the skip mask (B,) of a step."""
    clean, regions, seeds = draw_batch(faces, seed=config.run.seed, step=step,
                                       batch=config.optim.batch)
    clean, regions = clean.to(device), regions.to(device)
    amounts = draw_amounts(config.degrade, seeds)
    degraded = degrade(clean, regions, config.degrade, seeds, amounts=amounts)
    dice = torch.Generator().manual_seed(int(seeds[0]))
    keep = torch.rand(len(seeds), generator=dice) >= config.model.skip_dropout
    return clean, degraded, keep.float().to(device)


def train(config: Config, model: SplatEnhancer, faces: Faces, loss: EnhancerLoss, *, folder: Path,
          drive: Path | None = None) -> Iterator[Record]:
    """Train from where the run stands to `config.optim.steps`, saving on the way.

    A stop (the Stop button, Ctrl-C, SIGTERM) finishes the step, saves, and then raises
    KeyboardInterrupt. Calling again goes on from the last save.

    Args:
        config: of the run.
        model: on its device; changed in place.
        faces: prepared data.
        loss: on the model's device.
        folder: where this run saves.
        drive: a folder that gets a copy of every save, or None.

    Yields:
        One Record per step.

    Raises:
        ValueError: the folder holds a run with settings that cannot be mixed with these.
        FloatingPointError: the loss scale collapsed.
    """
    device = next(model.parameters()).device
    trainer = resume(config, model, folder=folder, drive=drive)
    saved_step = trainer.step
    model.train()
    with _stop_requests() as stop:
        try:
            while trainer.step < config.optim.steps and not stop.is_set():
                started = time.perf_counter()
                rate = learning_rate_at(trainer.step + 1, config.optim)
                for group in trainer.optimiser.param_groups:
                    group["lr"] = rate

                clean, degraded, skip_mask = training_batch(config, faces, trainer.step, device)
                restored = model(degraded, skip_mask)
                losses = loss(restored, clean, view_seed=config.run.seed + trainer.step)
                norm, skipped = trainer.update(losses["total"])

                trainer.step += 1
                seconds = time.perf_counter() - started
                terms = {name: float(value.detach()) for name, value in losses.items()}
                record = Record(trainer.step, terms, rate, norm, skipped, seconds,
                                len(clean) / seconds, _peak_gib(device))
                trainer.history.append(asdict(record))
                _refuse_collapse(trainer)
                if trainer.step % config.run.save_every_steps == 0:
                    _save(trainer, folder, drive)
                    saved_step = trainer.step
                yield record
        finally:
            if trainer.step > saved_step:
                _save(trainer, folder, drive)
        if stop.is_set():
            raise KeyboardInterrupt(f"stopped after step {trainer.step}, saved in {folder}")


def resume(config: Config, model: SplatEnhancer, *, folder: Path,
           drive: Path | None = None) -> Trainer:
    """Load the newest good checkpoint of a run into the model, if there is one, and say so."""
    trainer = Trainer(config, model)
    saved, passed_over = checkpoints.newest([folder] + ([drive] if drive else []))
    for line in passed_over:
        print("Passed over", line)
    if saved:
        trainer.restore(saved)
        rest = config.optim.steps - saved.step
        print(f"Run {config.run.name!r} goes on after step {saved.step}: {rest} to go." if rest > 0
              else f"Run {config.run.name!r} is finished ({saved.step} steps); "
                   "raise optim.steps to go on.")
    return trainer


def _save(trainer: Trainer, folder: Path, drive: Path | None) -> None:
    file = checkpoints.save(trainer.checkpoint(), folder)
    if drive and (problem := checkpoints.publish(file, drive)):
        print(problem)


@contextmanager
def _stop_requests() -> Iterator[threading.Event]:
    """Turn SIGINT and SIGTERM into an event, so that a step is never cut in half."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals reach the main thread only
        return
    before = {s: signal.signal(s, lambda *_: stop.set()) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _refuse_collapse(trainer: Trainer) -> None:
    if trainer.scaler.is_enabled() and trainer.scaler.get_scale() < SCALE_FLOOR:
        raise FloatingPointError(
            f"loss scale: expected {SCALE_FLOOR} or more, got {trainer.scaler.get_scale()}: the "
            "gradients are not finite at any scale; lower optim.learning_rate, or look for broken "
            "images")


def _peak_gib(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0
