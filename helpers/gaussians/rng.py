"""Random numbers that follow from a sample's seed alone, whatever its batch and device."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

FIELD_SIZE = 64  # smooth random fields are drawn on this grid, whatever the size of the picture


class SeededRandom:
    """Random numbers of one stage: those of sample b follow from (seeds[b], stage) alone.

    Each is drawn on the CPU, by the sample's own generator, so that every device sees the same.
    """

    def __init__(self, seeds: Sequence[int], stage: str, device: torch.device | str) -> None:
        self.device, self._generators = torch.device(device), []
        for seed in seeds:
            digest = hashlib.blake2b(f"{seed}/{stage}".encode(), digest_size=8).digest()
            number = int.from_bytes(digest, "big") >> 1
            self._generators.append(torch.Generator().manual_seed(number))

    def uniform(self, *shape: int) -> Tensor:
        """Numbers (B, *shape) in [0, 1)."""
        return self._draw(torch.rand, shape).to(self.device)

    def numbers(self, count: int) -> list[list[float]]:
        """What `uniform` would draw, as Python numbers: they need no way to the device and back."""
        return self._draw(torch.rand, (count,)).tolist()

    def normal(self, *shape: int) -> Tensor:
        """Numbers (B, *shape) of mean 0 and deviation 1."""
        return self._draw(torch.randn, shape).to(self.device)

    def field(self, channels: int, cells: int, size: Sequence[int]) -> Tensor:
        """A smooth random field (B, channels, *size) with `cells` bumps along a side."""
        noise = self.normal(channels, 1, cells, cells).flatten(0, 1)
        fine = F.interpolate(noise, (FIELD_SIZE, FIELD_SIZE), mode="bicubic")
        fine = F.interpolate(fine, tuple(size), mode="bilinear", antialias=min(size) < FIELD_SIZE)
        return fine.view(-1, channels, *size)

    def _draw(self, kind: Callable[..., Tensor], shape: Sequence[int]) -> Tensor:
        return torch.stack([kind(shape, generator=generator) for generator in self._generators])
