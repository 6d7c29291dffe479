"""The trained tensors of a network: handed out, taken over from a run, given back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import Config
from ..errors import refused


@dataclass(frozen=True)
class Learned:
    """Which run the trained tensors of a model are from, and after which step."""

    config: Config
    step: int


class TrainedPart(nn.Module):
    """A network of which a part is trained: what that part holds, and which run it is from.

    Attributes:
        learned: the run that its trained tensors are of; None before any, or if loaded by hand.
        start: what it held before its first run; None before that.
    """

    learned: Learned | None = None
    start: dict[str, Tensor] | None = None

    def trainable(self) -> dict[str, nn.Parameter]:
        """The trained working copies by name, sorted."""
        return {n: p for n, p in sorted(self.named_parameters()) if p.requires_grad}

    def trained_state(self) -> dict[str, Tensor]:
        """Independent fp32 copies of the trained tensors, on the CPU."""
        return {name: parameter.detach().to("cpu", torch.float32, copy=True)
                for name, parameter in self.trainable().items()}

    def take_over(self, tensors: Mapping[str, Tensor], learned: Learned) -> None:
        """Load what a run has learned; raises as `load_trained` does. `forget` goes back."""
        self.keep_start()
        start = self.start
        self.load_trained(tensors)
        self.start, self.learned = start, learned

    def keep_start(self) -> None:
        """Keep what the model holds before its first run, for a run that starts anew."""
        if self.start is None:
            self.start = self.trained_state()

    def forget(self) -> Learned | None:
        """Go back to what the model held before its first run; returns what was forgotten."""
        before, start = self.learned, self.start
        if before is not None:
            self.load_trained(start)
            self.start = start
        return before

    @torch.no_grad()
    def load_trained(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy trained tensors in: all of them, or none if one does not fit. A run starts there.

        Args:
            tensors: what `trained_state` returned, any float dtype.

        Raises:
            ValueError: unknown names, other shapes, missing names, or values that are not finite,
                or not once they are of the model's dtype.
        """
        self.refuse_other_tensors(tensors)
        for name, own in self.trainable().items():
            own.copy_(tensors[name])
        self.learned = self.start = None

    def refuse_other_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise what `load_trained` would raise, without loading."""
        own = self.trainable()
        shared = own.keys() & tensors.keys()
        faults = {"missing": own.keys() - shared, "unexpected": tensors.keys() - shared,
                  "other shape": [n for n in shared if own[n].shape != tensors[n].shape],
                  "not finite": [n for n in shared
                                 if not tensors[n].to(own[n].dtype).isfinite().all()]}
        if any(faults.values()):
            found = "; ".join(f"{len(v)} {k} {sorted(v)[:3]}" for k, v in faults.items() if v)
            raise refused("tensors", f"the {len(own)} trained tensors of this model, finite", found,
                          "use the base and the LoRA ranks they were trained with")
