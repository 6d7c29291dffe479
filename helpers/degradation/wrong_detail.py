"""Detail that is wrong rather than lacking, painted on single pictures.

A splat of few photographs keeps most of the finest detail from a new view, a third of it in the
wrong place, with little blur. Tuned by `tools/detail_table.py` on true renders of real heads.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from ..gaussians.filters import blur, constant, pixel_grid, resize, sample, short_side
from ..gaussians.rng import SeededRandom

REFERENCE_PX = 128  # lengths in pixels are those at this size; they grow with the picture
FLOATERS = 32  # at most
BACKDROPS = (0.45, 0.57, 0.8)  # up to these shares: white, black, any colour; above: its own


@torch.no_grad()
def wrong_detail(clean: Tensor, matte: Tensor | None, seeds: Tensor | list[int], *,
                 amount: Tensor | float | None = None) -> tuple[Tensor, Tensor]:
    """Draw a backdrop for each picture, and degrade it as a splat of few photographs is.

    Args:
        clean: (B, 3, H, W) float32 in [0, 1].
        matte: (B, [1,] H, W) in [0, 1], where the head is; None: everywhere, no new backdrop.
        seeds: B numbers; each sample depends on its own alone.
        amount: 0 (nothing) to 1 (most), one number or (B,); None: drawn for each sample.

    Returns:
        clean before its backdrop, and degraded: both (B, 3, H, W) in [0, 1].
    """
    seeds = [int(seed) for seed in seeds]
    matte = None if matte is None else matte.to(clean).reshape(-1, 1, *clean.shape[2:])
    rng = SeededRandom(seeds, "wrong detail", clean.device)
    draw = [value.view(-1, 1, 1, 1) for value in rng.uniform(24).unbind(1)]
    clean, backdrop = _before_backdrop(clean, matte, draw[0], rng)
    inside = torch.ones_like(clean[:, :1]) if matte is None else matte
    level = draw[1] ** 0.7 if amount is None else \
        torch.as_tensor(amount).to(clean).view(-1, 1, 1, 1).expand_as(draw[1])
    degraded = _displace(clean, 0.8 * level.sqrt() * (0.2 + draw[2]), (22, 9), rng)
    degraded = _swap_texture(degraded, 0.7 * level * draw[3] * _patches(clean, 7, 0.1, rng), rng)
    for length_px, cells, place in ((5.0, 5, draw[4]), (2.5, 12, draw[5])):  # ghosts
        ghost = _displace(degraded, length_px, (cells,), rng)
        degraded = _overlay(degraded, ghost, 0.6 * level * place * _patches(clean, 6, 0.9, rng))
    through = backdrop if matte is not None else blur(clean, _width(clean, 8.0))
    degraded = degraded.lerp(through, 0.4 * level * draw[6] * _patches(clean, 5, 0.8, rng) * inside)
    color = 0.5 * rng.field(3, 6, clean.shape[2:]) + rng.field(1, 5, clean.shape[2:]) \
        * (1 + 0.5 * constant((1.0, -0.5, -0.5), clean)[:, None, None])  # pink and grey
    degraded = degraded + 0.08 * level * draw[7] * color * _patches(clean, 5, 0.3, rng) * inside
    width = 2 * round(3 * short_side(clean) / REFERENCE_PX) + 1
    edge = max_pool2d(inside, width, 1, width // 2) + max_pool2d(-inside, width, 1, width // 2)
    ragged = _displace(degraded, 0.5 + 2.5 * draw[8], (24,), rng)
    degraded = degraded.lerp(ragged, (edge * level * draw[9] * 1.5).clamp(max=1))
    degraded = _add_floaters(degraded, clean, level * draw[10], rng)
    soft = blur(degraded, _width(clean, 1.0) * (0.4 + 0.8 * draw[11]))
    soft_share = level * draw[12] * (draw[13] < 0.4) * _patches(clean, 4, 0.6, rng)
    return clean, degraded.lerp(soft, soft_share).clamp(0, 1)


def _before_backdrop(clean: Tensor, matte: Tensor | None, kind: Tensor,
                     rng: SeededRandom) -> tuple[Tensor, Tensor]:
    """The pictures before white, black, a colour or what they have, and that backdrop."""
    color = rng.uniform(3, 1, 1).to(clean)
    color = torch.where(kind < BACKDROPS[0], torch.ones_like(color),
                        torch.where(kind < BACKDROPS[1], torch.zeros_like(color), color))
    if matte is None:
        return clean, clean
    own = kind >= BACKDROPS[2]
    backdrop = torch.where(own, clean, color.expand_as(clean))
    clean = torch.where(own, clean, color + matte * (clean - color))
    weight = 1 - matte
    mean = (clean * weight).sum((2, 3), True) / weight.sum((2, 3), True).clamp(min=1)
    return clean, torch.where(own, mean.expand_as(clean), backdrop)


def _displace(image: Tensor, length_px: Tensor | float, cells: tuple[int, ...],
              rng: SeededRandom) -> Tensor:
    """Move every place by a smooth random field of a deviation in pixels at REFERENCE_PX."""
    size = image.shape[2:]
    flow = sum(rng.field(2, count, size) for count in cells) / math.sqrt(len(cells))
    place = pixel_grid(size, image.device) + flow * length_px * (2 / REFERENCE_PX)
    return sample(image, place, "bicubic").clamp(0, 1)


def _overlay(image: Tensor, ghost: Tensor, weight: Tensor) -> Tensor:
    """Mix two pictures by weights, and keep the contrast that their average would lose."""
    mixed = image.lerp(ghost, weight)
    low = blur(mixed, _width(image, 3.0))
    return low + (mixed - low) / (weight**2 + (1 - weight) ** 2).sqrt()


def _swap_texture(image: Tensor, share: Tensor, rng: SeededRandom) -> Tensor:
    """Exchange a share of the finest detail for noise of the same local amplitude."""
    fine = image - blur(image, _width(image, 1.2))
    strength = blur(fine.square().mean(1, keepdim=True), _width(image, 3.0)).clamp(min=0).sqrt()
    noise = resize(rng.normal(1, REFERENCE_PX, REFERENCE_PX), image.shape[2:]).to(image)
    return image + ((1 - share**2).sqrt() - 1) * fine + share * strength * noise


def _add_floaters(image: Tensor, clean: Tensor, level: Tensor, rng: SeededRandom) -> Tensor:
    """Paint floaters and needles of the picture's own colours."""
    x, y = pixel_grid(image.shape[2:], image.device).split(1, 1)
    draws = rng.uniform(FLOATERS, 8)
    colors = sample(clean, 2 * draws[:, :, None, 6:8].permute(0, 3, 1, 2) - 1)[..., 0]
    colors = (colors + 0.15 * rng.normal(FLOATERS, 3).mT).clamp(0, 1)  # (B, 3, FLOATERS)
    for number in range(FLOATERS):
        at_x, at_y, turn, long, wide, strength, *_ = (
            value.view(-1, 1, 1, 1) for value in draws[:, number].unbind(1))
        cos, sin = (6.2832 * turn).cos(), (6.2832 * turn).sin()
        dx, dy = x - (2 * at_x - 1), y - (2 * at_y - 1)
        along = (dx * cos + dy * sin) / (0.012 + 0.09 * long**2)
        across = (dy * cos - dx * sin) / (0.012 + 0.04 * wide**2)
        opacity = (0.1 + 0.6 * strength) * (number < FLOATERS * level)
        image = image.lerp(colors[:, :, number, None, None],
                           opacity * torch.exp(-0.5 * (along**2 + across**2)))
    return image


def _patches(image: Tensor, cells: int, threshold: float, rng: SeededRandom) -> Tensor:
    """Weights (B, 1, H, W), near 1 in some patches and near 0 between them."""
    return (3 * (rng.field(1, cells, image.shape[2:]) - threshold)).sigmoid()


def _width(image: Tensor, sigma_px: float) -> Tensor:
    """The width of a blur for each sample (B, 1, 1, 1), in pixels of REFERENCE_PX."""
    return torch.full_like(image[:, :1, :1, :1], sigma_px * short_side(image) / REFERENCE_PX)
