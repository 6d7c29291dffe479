"""The state of a training run, and the one step that changes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..checkpoints import Checkpoint, refuse_other_run
from ..config import Config
from ..machine import Processes
from ..model import Learned, SplatEnhancer

MASK_FACTOR = 12.0  # on the learning rate of the repair mask: small, and made from nothing
SCALE_GROWS_AFTER = 50  # steps without a skip; torch's 2,000 are more than a whole run of `t4`
MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW


class Trainer:
    """The state that a checkpoint keeps: fp32 masters, AdamW, loss scale, step, history, notes.

    Args:
        config: of the run.
        model: whose trained tensors are learned; its working copies may be of half precision.
        faces: `Faces.trained_on`, perhaps with what older files call it; empty where it does not
            matter.
    """

    def __init__(self, config: Config, model: SplatEnhancer,
                 faces: str | Sequence[str] = "") -> None:
        self.config, self.model, self.step = config, model, 0
        self.faces = (faces,) if isinstance(faces, str) else tuple(faces)
        self.history: list[dict[str, Any]] = []
        self.notes: list[dict[str, Any]] = []
        self.working = model.trainable()
        self.masters = {name: p if p.dtype == torch.float32 else p.detach().float().requires_grad_()
                        for name, p in self.working.items()}
        factors = {"skips": config.optim.skip_rate, "mask": MASK_FACTOR}
        groups: dict[float, list[Tensor]] = {}
        for name, p in self.masters.items():
            groups.setdefault(factors.get(name.split(".")[0], 1.0), []).append(p)
        device = next(iter(self.working.values())).device
        self.optimiser = torch.optim.AdamW(
            [{"params": params, "factor": factor} for factor, params in groups.items()],
            lr=config.optim.learning_rate, weight_decay=config.optim.weight_decay,
            foreach=True if device.type == "cuda" else None)  # few launches for all tensors
        self.halves = {name: p for name, p in self.working.items() if p is not self.masters[name]}
        half = any(p.dtype == torch.float16 for p in self.working.values())
        self.scaler = torch.amp.GradScaler(device.type, enabled=half,
                                           growth_interval=SCALE_GROWS_AFTER)
        self.loss = torch.zeros((), device=device)  # of the step so far
        self.drop_gradients()  # a step that broke off leaves its own in the model

    @property
    def whole(self) -> bool:
        """Whether every step has its record: one that broke off within `update` has none."""
        return len(self.history) == self.step

    def checkpoint(self) -> Checkpoint:
        """The state as CPU tensors."""
        tensors = {f"model/{name}": p.detach() for name, p in self.masters.items()}
        for name, p in self.masters.items():
            moments = self.optimiser.state.get(p, {})
            tensors |= {f"{k}/{name}": moments[k] for k in MOMENTS if k in moments}
        updates = [state["step"] for state in self.optimiser.state.values()]
        tensors["updates"] = updates[0] if updates else torch.zeros(())
        tensors = {name: t.cpu().contiguous() for name, t in tensors.items()}
        return Checkpoint(self.step, self.config, tensors, self.scaler.state_dict(),
                          self.history, self.notes, self.faces[0])

    def restore(self, saved: Checkpoint) -> None:
        """Take over a checkpoint; ValueError if it belongs to other settings or faces."""
        refuse_other_run(saved, self.config, self.faces)
        own = saved.trained
        self.model.take_over(own, Learned(saved.config, saved.step))
        self.optimiser.state.clear()
        for name, p in self.masters.items():
            p.data.copy_(own[name])
            if f"exp_avg/{name}" in saved.tensors:
                moments = {k: saved.tensors[f"{k}/{name}"].to(p.device, copy=True)
                           for k in MOMENTS}
                self.optimiser.state[p] = {"step": saved.tensors["updates"].clone()} | moments
        scale = {k: v for k, v in saved.loss_scale.items() if k in ("scale", "_growth_tracker")}
        self.scaler.load_state_dict(self.scaler.state_dict() | scale)  # its pace is today's
        self.step, self.history, self.notes = saved.step, list(saved.history), list(saved.notes)

    def backward(self, loss: Tensor, part: float = 1.0) -> None:
        """Add the gradient of one batch; a step has `optim.accumulate` of them and takes the mean.

        The sum is kept in fp32: half precision would round it after every batch.

        Args:
            loss: the mean of its pictures.
            part: of the whole batch that these pictures are; other processes have the others.
        """
        share = loss / (self.config.optim.accumulate / part)
        self.scaler.scale(share).backward()
        self.loss = self.loss + share.detach()
        self._move_gradients()

    def add_up(self, team: Processes, means: dict[str, float]) -> dict[str, float]:
        """Give each process the gradients and losses of the whole batch: then all step alike."""
        team.add_up([*(p.grad for p in self.masters.values() if p.grad is not None), self.loss])
        sums = torch.tensor([*means.values()], dtype=torch.float64)
        team.add_up([sums])
        return dict(zip(means, sums.tolist(), strict=True))

    def update(self) -> tuple[float, bool]:
        """Unscale, clip and step with the gradients there are, unless something is not finite.

        Returns:
            The gradient's norm, NaN for a loss that is not finite, and whether it was skipped.
        """
        self.scaler.unscale_(self.optimiser)  # once, after the last batch
        length = torch.nn.utils.clip_grad_norm_(self.masters.values(),
                                                self.config.optim.clip_norm)
        norm = float(length + 0 * self.loss)  # NaN where the loss is; the GPU is waited for once
        finite = math.isfinite(norm)
        self.step += 1
        if finite:
            self.optimiser.step()  # the scaler's own `step` would only ask once more
        self.scaler.update()
        self.model.learned = Learned(self.config, self.step)
        self._refresh_working()
        self.drop_gradients()
        return norm, not finite

    def drop_gradients(self) -> None:
        """Begin the step anew: what its batches have added so far is forgotten."""
        for p in (*self.masters.values(), *self.halves.values()):
            p.grad = None
        self.loss = torch.zeros_like(self.loss)

    @torch.no_grad()
    def _move_gradients(self) -> None:
        """From half-precision working copies to their masters, in few launches for all."""
        moved = {name: p for name, p in self.halves.items() if p.grad is not None}
        if not moved:
            return
        owners = [self.masters[name] for name in moved]
        gradients = [torch.empty_like(master) for master in owners]
        torch._foreach_copy_(gradients, [p.grad for p in moved.values()])
        if owners[0].grad is not None:
            torch._foreach_add_(gradients, [master.grad for master in owners])
        for master, p, gradient in zip(owners, moved.values(), gradients, strict=True):
            master.grad, p.grad = gradient, None

    @torch.no_grad()
    def _refresh_working(self) -> None:
        if self.halves:
            torch._foreach_copy_([*self.halves.values()],
                                 [self.masters[name] for name in self.halves])

