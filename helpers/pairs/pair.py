"""What a pair is, and what all sources of pairs have in common."""

from __future__ import annotations

from typing import Protocol

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


def pick(seeds: Tensor, count: int, kind: str) -> list[int]:
    """For each seed one of `count` things, all with the same chance."""
    return [derive_number(kind, seed) % count for seed in seeds.tolist()]
