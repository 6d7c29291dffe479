"""Random numbers that follow from a sample's seed alone, whatever its batch and device."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

FIELD_SIZE = 64  # smooth random fields are drawn on this grid, whatever the size of the picture


class Draws:
    """Random numbers of one stage: sample b's follow from (seeds[b], stage) alone.

    Each is drawn on the CPU, by the sample's own generator, so that every device sees the same.

    Args:
        seeds: one per sample.
        stage: a name; other stages draw other numbers.
        device: where the numbers are needed.
    """

    def __init__(self, seeds: Sequence[int], stage: str, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self._generators = [_generator(seed, stage) for seed in seeds]

    def uniform(self, *shape: int) -> Tensor:
        """Numbers (B, *shape) in [0, 1)."""
        return self._draw(torch.rand, shape)

    def numbers(self, count: int) -> list[list[float]]:
        """What `uniform` would draw, as numbers: they need not go to the device and back."""
        return self._drawn(torch.rand, (count,)).tolist()

    def normal(self, *shape: int) -> Tensor:
        """Numbers (B, *shape) of mean 0 and deviation 1."""
        return self._draw(torch.randn, shape)

    def field(self, channels: int, cells: int, size: Sequence[int]) -> Tensor:
        """A smooth random field (B, channels, *size) with `cells` bumps along a side."""
        noise = self.normal(channels, 1, cells, cells).flatten(0, 1)
        fine = F.interpolate(noise, (FIELD_SIZE, FIELD_SIZE), mode="bicubic")
        fine = F.interpolate(fine, tuple(size), mode="bilinear", antialias=min(size) < FIELD_SIZE)
        return fine.view(-1, channels, *size)

    def _draw(self, kind: Callable[..., Tensor], shape: Sequence[int]) -> Tensor:
        return self._drawn(kind, shape).to(self.device)

    def _drawn(self, kind: Callable[..., Tensor], shape: Sequence[int]) -> Tensor:
        return torch.stack([kind(shape, generator=own) for own in self._generators])


def _generator(seed: int, stage: str) -> Generator:
    digest = hashlib.blake2b(f"{seed}/{stage}".encode(), digest_size=8).digest()
    return Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
