"""A picture described by anisotropic 2D Gaussians in one shot, without fitting.

They are placed where the picture has detail, sized by how densely they lie, turned along edges and
coloured by the picture at their own scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor

from .filters import constant, luma, resize
from .rasterizer import LOW_PASS_PX2, Splats
from .rng import SeededRandom

GRID = 128  # detail and orientation are looked at on this grid
LIMIT = 24_000  # Gaussians per picture at most
# Multiples of these, mod 1, fill the unit square evenly, however many are taken (Roberts 2018, "The
# unreasonable effectiveness of quasirandom sequences": powers of the root of x³ = x + 1)
QUASIRANDOM = (0.7548776662466927, 0.5698402909980532)
WIDTH = 0.42  # standard deviation over the distance to the next Gaussian
FLOOR = 0.15  # of the mean detail: flat areas get Gaussians too


@dataclass(frozen=True)
class Gaussians:
    """Gaussians on pictures, before they are drawn; scales are shares of the root of the area."""

    positions: Tensor  # (B, N, 2), x and y in [-1, 1] over the picture
    scales: Tensor  # (B, N, 2), standard deviation along and across
    angles: Tensor  # (B, N), of the long axis, from x towards y
    colors: Tensor  # (B, N, 3)
    opacities: Tensor  # (B, N), 0 where there is none
    depths: Tensor  # (B, N), smaller is in front

    def __add__(self, other: Gaussians) -> Gaussians:
        return Gaussians(*(torch.cat([getattr(self, f.name), getattr(other, f.name)], 1)
                           for f in fields(self)))

    def splats(self, height_px: int, width_px: int) -> Splats:
        """The same on a pixel grid, none thinner than a pixel."""
        size = constant((width_px, height_px), self.positions)
        cos, sin = self.angles.cos(), self.angles.sin()
        axes = torch.stack([cos, sin, -sin, cos], -1).unflatten(-1, (2, 2))  # rows: long, short
        axes = axes * (self.scales * math.sqrt(height_px * width_px))[..., None]
        low_pass = LOW_PASS_PX2 * torch.eye(2, device=size.device, dtype=size.dtype)
        return Splats((self.positions + 1) / 2 * size, axes.mT @ axes + low_pass, self.colors,
                      self.opacities, self.depths)


def describe(image: Tensor, counts: Tensor, rng: SeededRandom) -> Gaussians:
    """Describe pictures (B, 3, H, W) by Gaussians.

    Fewer are the first of more, so that a slider of their number moves none. Counts are int64
    (B,) on the CPU, 1 to `LIMIT`; what is beyond a picture's own count has opacity 0.
    """
    most = int(counts.max())
    counts, nth = counts.to(image.device), torch.arange(most, device=image.device)
    tensor = _structure(image)
    magnitude = tensor[:, :1].clamp(min=0).sqrt()
    density = magnitude + FLOOR * magnitude.mean((2, 3), keepdim=True) + 1e-6
    density = density / density.mean((2, 3), keepdim=True)
    start, jitter = rng.uniform(2)[:, None], rng.uniform(LIMIT, 2)[:, :most]
    shares = (nth[:, None] * constant(QUASIRANDOM, nth, torch.float64) + start).remainder(1)
    ground = nth % 8 == 0  # every eighth is large, and lies evenly behind the others
    positions = torch.where(ground[:, None], 2 * shares.float() - 1,
                            _draw_positions(density, shares[..., 0], jitter))

    local, trace, cos, sin = sample_at(torch.cat([density, tensor], 1), positions).unbind(-1)
    width = WIDTH * (counts[:, None] * torch.where(ground, 0.125, 0.875 * local)).rsqrt()
    stretch = (1 + 2 * torch.hypot(cos, sin) / (trace + 1e-5)).sqrt()
    depths = 2 * width.log() + 0.5 * rng.normal(LIMIT)[:, :most]  # small in front, roughly
    return Gaussians(
        positions, torch.stack([width * stretch, width / stretch], -1),
        0.5 * torch.atan2(sin, cos) + math.pi / 2, _color_at(image, positions, width),
        0.95 * (nth < counts[:, None]), depths)


def sample_at(maps: Tensor, positions: Tensor) -> Tensor:
    """Values (B, N, C) of maps (B, C, h, w) at positions (B, N, 2) in [-1, 1]."""
    values = F.grid_sample(maps, positions[:, None], padding_mode="border", align_corners=False)
    return values[:, :, 0].mT


def _structure(image: Tensor) -> Tensor:
    """Smoothed structure tensor (B, 3, GRID, GRID): trace, and anisotropy at double angle."""
    grey = F.pad(resize(luma(image), (2 * GRID, 2 * GRID)), (1, 1, 1, 1), mode="replicate")
    gx = (grey[:, :, 1:-1, 2:] - grey[:, :, 1:-1, :-2]) / 2
    gy = (grey[:, :, 2:, 1:-1] - grey[:, :, :-2, 1:-1]) / 2
    xx, yy = gx * gx, gy * gy
    tensor = resize(torch.cat([xx + yy, xx - yy, 2 * gx * gy], 1), (GRID, GRID))
    return F.avg_pool2d(tensor, 3, 1, 1, count_include_pad=False)


def _draw_positions(density: Tensor, shares: Tensor, jitter: Tensor) -> Tensor:
    """Inverse of the cumulated density (B, 1, GRID, GRID), then a random place in the cell."""
    reached = density.flatten(1).double().cumsum(1)
    cell = torch.searchsorted(reached / reached[:, -1:], shares.contiguous())
    cell = cell.clamp(max=GRID**2 - 1)
    return (torch.stack([cell % GRID, cell // GRID], -1) + jitter) * (2 / GRID) - 1


def _color_at(image: Tensor, positions: Tensor, width: Tensor) -> Tensor:
    """Each Gaussian sees the picture at a third of its own width, between two mip levels."""
    side_px = math.sqrt(image.shape[2] * image.shape[3])
    level = (width * side_px / 3).clamp(1, 16).log2()[..., None]
    total = torch.zeros_like(level)
    for octave in range(5):
        total = total + (1 - (level - octave).abs()).clamp(min=0) * sample_at(image, positions)
        image = resize(image, [max(1, length // 2) for length in image.shape[2:]])
    return total
