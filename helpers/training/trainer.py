"""The state of a training run, and the update that changes it.

Trained are fp32 master weights; where the model works in half precision, it holds copies of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from ..config import Config
from ..distributed import Processes
from ..environment import free_memory
from ..model.enhancer import SplatEnhancer
from .checkpoint import Checkpoint

MASK_FACTOR = 12.0  # on the learning rate of the repair mask: it is small and starts from nothing
SCALE_GROWS_AFTER = 50  # steps without a skip; torch's 2,000 are more than a whole run of `t4`
MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW


class Trainer:
    """What a checkpoint keeps: master weights, AdamW, loss scale, step, history, notes.

    Args:
        config: of the run.
        model: whose trainable tensors are learned.
        trained_on, session, started: as in `Checkpoint`.
    """

    def __init__(self, config: Config, model: SplatEnhancer, *, trained_on: str = "",
                 session: str = "", started: float = 0.0) -> None:
        self.config, self.model, self.step = config, model, 0
        self.trained_on, self.session, self.started = trained_on, session, started
        self.history: list[dict[str, Any]] = []
        self.notes: list[dict[str, Any]] = []
        self.working = model.trainable()
        self.weights = {name: p if p.dtype == torch.float32 else p.detach().float().requires_grad_()
                        for name, p in self.working.items()}
        self.copies = {name: p for name, p in self.working.items() if p is not self.weights[name]}
        factors = {"skips": config.skip_learning_rate_factor, "mask": MASK_FACTOR}
        groups: dict[float, list[Tensor]] = {}
        for name, p in self.weights.items():
            groups.setdefault(factors.get(name.split(".")[0], 1.0), []).append(p)
        device = next(iter(self.working.values())).device
        self.optimiser = torch.optim.AdamW(
            [{"params": params, "factor": factor} for factor, params in groups.items()],
            lr=config.learning_rate, weight_decay=config.adam_weight_decay,
            foreach=True if device.type == "cuda" else None)  # few launches for all tensors
        half = any(p.dtype == torch.float16 for p in self.working.values())
        self.scaler = torch.amp.GradScaler(device.type, enabled=half,
                                           growth_interval=SCALE_GROWS_AFTER)
        self.loss = torch.zeros((), device=device)  # of the step so far
        self.recomputes = config.gradient_checkpointing == "on"
        model.use_gradient_checkpointing(self.recomputes)
        self.drop_gradients()

    def checkpoint(self) -> Checkpoint:
        """The state as CPU tensors, which on a CPU are the trainer's own."""
        tensors = {f"model/{name}": p.detach() for name, p in self.weights.items()}
        for name, p in self.weights.items():
            moments = self.optimiser.state.get(p, {})
            tensors |= {f"{k}/{name}": moments[k] for k in MOMENTS if k in moments}
        updates = [state["step"] for state in self.optimiser.state.values()]
        tensors["updates"] = updates[0].clone() if updates else torch.zeros(())
        tensors = {name: t.cpu().contiguous() for name, t in tensors.items()}
        return Checkpoint(self.step, self.config, tensors, self.scaler.state_dict(), self.history,
                          self.notes, self.trained_on, self.session, self.started)

    def restore(self, saved: Checkpoint) -> None:
        """Take over a checkpoint of this run."""
        trained = saved.trained
        self.model.load_trained(trained)
        self.optimiser.state.clear()
        for name, p in self.weights.items():
            p.data.copy_(trained[name])
            if f"exp_avg/{name}" in saved.tensors:
                moments = {k: saved.tensors[f"{k}/{name}"].to(p.device, copy=True)
                           for k in MOMENTS}
                self.optimiser.state[p] = {"step": saved.tensors["updates"].clone()} | moments
        scale = {k: v for k, v in saved.loss_scale.items() if k in ("scale", "_growth_tracker")}
        self.scaler.load_state_dict(self.scaler.state_dict() | scale)
        self.step, self.history, self.notes = saved.step, list(saved.history), list(saved.notes)

    def set_learning_rate(self, rate: float) -> None:
        """Of the next update; skips and mask have factors of their own on it."""
        for options in self.optimiser.param_groups:
            options["lr"] = rate * options["factor"]

    def backward(self, loss: Tensor, batches: float = 1.0) -> None:
        """Add a batch's gradient, divided by how many batches a step has, to the master weights'.

        The sum is kept in fp32: half precision would round it after every batch.
        """
        weighted = loss / batches
        self.scaler.scale(weighted).backward()
        self.loss = self.loss + weighted.detach()
        self._move_gradients()

    def update(self) -> tuple[float, bool]:
        """Unscale, clip and step, unless the loss or a gradient is not finite.

        Returns:
            The gradient's norm, NaN for a loss that is not finite, and whether it was skipped.
        """
        self.scaler.unscale_(self.optimiser)
        length = torch.nn.utils.clip_grad_norm_(self.weights.values(), self.config.max_grad_norm)
        norm = float(length + 0 * self.loss)  # NaN where the loss is; the GPU is waited for once
        finite = math.isfinite(norm)
        self.step += 1
        if finite:
            self.optimiser.step()  # the scaler's own `step` would only ask once more
        self.scaler.update()
        self._refresh_copies()
        self.drop_gradients()
        return norm, not finite

    def drop_gradients(self) -> None:
        """Begin the step again: what its batches have added so far is forgotten."""
        for p in (*self.weights.values(), *self.copies.values()):
            p.grad = None
        self.loss = torch.zeros_like(self.loss)

    def within_memory(self, group: Processes,
                      work: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Do the work of a step; where it does not fit, once more with gradient checkpointing.

        Of several processes all do the same: where one has no memory, all take the step again.
        """
        while True:
            losses = None
            with suppress(torch.OutOfMemoryError):  # within, the error's frames hold activations
                losses = work()
            if not group.any(losses is None):
                return losses
            self.drop_gradients()
            free_memory()
            if self.recomputes or self.config.gradient_checkpointing == "off":
                break
            self.recomputes = True
            self.model.use_gradient_checkpointing(True)
            print(f"Step {self.step + 1} did not fit in the GPU's memory: from here on with "
                  "gradient checkpointing, which takes a third longer and changes no result.")
        remedy = "" if self.recomputes else "set gradient_checkpointing to 'on', or "
        raise torch.OutOfMemoryError(
            f"GPU memory: expected room for step {self.step + 1}, got out of memory; {remedy}halve "
            "train_batch_size and double gradient_accumulation_steps, then run again: the run goes "
            "on from its last checkpoint")

    def sum_over(self, group: Processes, losses: dict[str, float]) -> dict[str, float]:
        """Give each process the gradients and losses of the whole batch: then all step alike."""
        if group.count == 1:
            return losses
        group.sum_gradients(self.weights.values())
        self.loss = group.sum(self.loss)
        values = group.sum(torch.tensor([*losses.values()], dtype=torch.float64))
        return dict(zip(losses, values.tolist(), strict=True))

    @torch.no_grad()
    def _move_gradients(self) -> None:
        """From half-precision copies to the fp32 weights, in few launches for all."""
        names = [name for name, p in self.copies.items() if p.grad is not None]
        if not names:
            return
        weights = [self.weights[name] for name in names]
        gradients = [torch.empty_like(weight) for weight in weights]
        torch._foreach_copy_(gradients, [self.copies[name].grad for name in names])
        if weights[0].grad is not None:
            torch._foreach_add_(gradients, [weight.grad for weight in weights])
        for name, weight, gradient in zip(names, weights, gradients, strict=True):
            weight.grad, self.copies[name].grad = gradient, None

    @torch.no_grad()
    def _refresh_copies(self) -> None:
        if self.copies:
            torch._foreach_copy_([*self.copies.values()],
                                 [self.weights[name] for name in self.copies])
