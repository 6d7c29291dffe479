"""What a pair is, and what all sources of pairs have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ..faces import derive_number

KINDS = ("drawn", "fitted", "rendered", "own")  # where a pair can come from


class PairSource(Protocol):
    """Gives pairs of one kind.

    Attributes:
        kind: one of KINDS.
    """

    kind: str

    def __len__(self) -> int:
        """How many photographs or heads the training pairs are of."""

    def draw(self, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """Draw training pairs, each by its own seed alone.

        Args:
            seeds: int64 (B,), 0 or more.

        Returns:
            degraded and clean, each float32 (B, 3, H, W) in [0, 1], on the CPU.
        """


class RenderedSource:
    """Pairs of 3D fits: a fit by its seed, and a view of it by the same seed.

    Args:
        fits: of the training heads.
        render_pair: `(fit, seed, inside=None, size_px=...) -> (degraded, clean, regions)`, the
            pictures (3, H, W) in [0, 1]; `inside` None leaves the place of the view to the seed.
        size_px: side of the pictures.
    """

    kind = "rendered"

    def __init__(self, fits: Sequence[Any], render_pair: Callable[..., tuple[Tensor, ...]],
                 size_px: int) -> None:
        self.fits, self.render_pair, self.size_px = fits, render_pair, size_px

    def __len__(self) -> int:
        return len(self.fits)

    def draw(self, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """See `PairSource.draw`."""
        pairs = [self.render_pair(self.fits[which], seed, inside=None, size_px=self.size_px)[:2]
                 for which, seed in zip(pick(seeds, len(self), self.kind), seeds.tolist(),
                                        strict=True)]
        degraded, clean = (torch.stack(side) for side in zip(*pairs, strict=True))
        return degraded, clean


def pick(seeds: Tensor, count: int, kind: str) -> list[int]:
    """For each seed one of `count` things, all with the same chance."""
    return [derive_number(kind, seed) % count for seed in seeds.tolist()]
