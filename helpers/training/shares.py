"""How hard each term of the loss pulls at the picture: looked at before training, not after."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import Config
from ..distances import TERM_NAMES, EnhancerLoss
from ..faces import Faces, draw_batch
from ..model import SplatEnhancer
from ..pairs import Sources
from .loop import training_batch

IDLE = 1e-3  # a term with a smaller share does nothing
SCALES = (2.0**16, 2.0**8, 1.0)  # of the loss: in half precision a small gradient would be 0


@dataclass(frozen=True)
class Shares:
    """The norm of each term's gradient at the restored pictures, its weight included.

    Printed, it is one line of shares; a term that does nothing is told.
    """

    norms: dict[str, float]

    def of(self, term: str) -> float:
        """A term's part of the sum, 0 to 1."""
        total = sum(self.norms.values())
        return self.norms[term] / total if total else 0.0

    def __str__(self) -> str:
        idle = [term for term in self.norms if self.of(term) < IDLE]
        line = "gradient: " + ", ".join(f"{TERM_NAMES[term]} {100 * self.of(term):.3g} %"
                                        for term in self.norms)
        return "; ".join([line, *(f"{TERM_NAMES[term]} does nothing: raise loss.{term}, or set it "
                                  "to 0" for term in idle)])


def gradient_shares(config: Config, model: SplatEnhancer, loss: EnhancerLoss, faces: Faces,
                    sources: Sources | None = None) -> Shares:
    """Measure the terms on the first batch that training will see, with the model as it is.

    The mask's own term is left out: it moves the mask alone.

    Args:
        config, model, loss, faces, sources: as for `train`.
    """
    drawn = draw_batch(faces, seed=config.run.seed, step=0, batch=config.optim.batch)
    device = next(model.parameters()).device
    clean, degraded, mask = training_batch(config, drawn, device, sources)
    with torch.no_grad():
        decoded = model(degraded, mask, parts=True).decoded
    decoded.requires_grad_()
    terms = loss(decoded, clean, view_seed=config.run.seed)
    return Shares({name: _norm(getattr(config.loss, name) * value, decoded)
                   for name, value in terms.items() if name != "total"})


def _norm(term: Tensor, pictures: Tensor) -> float:
    """Of a term's gradient, at the largest scale that half precision can hold."""
    for scale in SCALES:
        slope, = torch.autograd.grad(scale * term, pictures, retain_graph=True)
        if slope.isfinite().all():
            break
    return float(slope.norm()) / scale
