"""The splat stage: a photograph re-rendered as Gaussians, with what fits of real avatars get wrong.

Too few Gaussians, too large, stretched to needles, lost, misplaced, thin at the silhouette, there
twice, of wrong colour: each by its own amount, each with its own random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..splats import GRID, LIMIT, Draws, Gaussians, describe, rasterise, sample_at
from ..splats.filters import constant, resize
from .effects import Amounts

DEFECTS = ("sparsity", "oversize", "needles", "holes", "floaters", "translucency", "doubling",
           "color_error")
FEWEST = 1_000  # Gaussians at sparsity 1; at 0 it is LIMIT
MATTES = ((1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.0, 0.8, 0.1))  # behind a head


def resplat(image: Tensor, regions: Tensor, amounts: Amounts, draws: Draws) -> Tensor:
    """Re-render pictures as damaged Gaussians.

    What the photograph has beyond the Gaussians' reach is lost with sparsity and oversize only, so
    that every amount does its own kind of damage, and fades to nothing.

    Args:
        image: (B, 3, H, W) in [0, 1].
        regions: uint8 (B, H, W); what is not 0 has the silhouette.
        amounts: each of `DEFECTS`, (B, 1, 1, 1) in [0, 1].
        draws: of this stage.

    Returns:
        (B, 3, H, W).
    """
    size = image.shape[2:]
    share = {name: amounts[name].flatten(1) for name in DEFECTS}
    found = start = describe(image, gaussian_count(amounts.known["sparsity"]), draws)
    ground = _Ground(image, regions, amounts, draws)
    for damage in (enlarge, miscolor, thin, lose, stretch, misplace, double):
        found = damage(found, share, ground, draws)
    backdrop, veil = ground.backdrop(size)
    drawn, _ = rasterise(found.splats(*size), *size, background=backdrop.lerp(ground.matte, veil))
    if (torch.maximum(amounts.known["sparsity"], amounts.known["oversize"]) < 0.5).any():
        kept = (1 - 2 * torch.maximum(amounts["sparsity"], amounts["oversize"])).clamp(min=0)
        plain, _ = rasterise(start.splats(*size), *size, background=backdrop)
        drawn += kept * (1 - veil) * (image - plain)
    return drawn


def gaussian_count(sparsity: Tensor) -> Tensor:
    """How many Gaussians a picture gets at a sparsity in [0, 1]: int64, geometric."""
    return (LIMIT * (FEWEST / LIMIT) ** sparsity).round().long()


class _Ground:
    """Where damage strikes, as maps (B, C, GRID, GRID), and what lies behind the Gaussians.

    Args:
        image, regions, amounts, draws: of `resplat`.
    """

    def __init__(self, image: Tensor, regions: Tensor, amounts: Amounts, draws: Draws) -> None:
        head = resize((regions > 0).float()[:, None], (GRID, GRID))
        self.inside = _smooth(head, 3)  # 0.5 on the outline
        self.wide = _smooth(_smooth(self.inside, 7), 7)  # the same, over a twentieth of the side
        rim = _smooth(self.inside, 3)
        patches = draws.field(6, 9, (GRID, GRID))
        self.blotches, self.patch = patches[:, :3], patches[:, 3:4]
        hole = patches[:, 4:5] + 4 * self.inside * (1 - self.inside) + 1.5 * self.wide
        self.hole = torch.sigmoid(6 * (hole + 1.2 * amounts["holes"] - 3.7)) \
            * (2 * amounts["holes"]).clamp(max=1)
        self.thin = amounts["translucency"] * 4 * rim * (1 - rim) \
            * torch.sigmoid(3 * patches[:, 5:] + 2)
        # In two steps: CUDA cannot shrink 1,536 px or more to 16 at once
        self.coarse = resize(resize(image, (GRID, GRID)), (16, 16))
        self.matte = self._matte(draws.uniform(1, 1))

    def _matte(self, dice: Tensor) -> Tensor:
        # One colour (B, 3, 1, 1): of `MATTES`, or the mean of the photograph's own background.
        outside = 1 - resize(self.inside, (16, 16)) + 1e-3
        mean = (self.coarse * outside).sum((2, 3)) / outside.sum((2, 3))
        mattes = constant(MATTES, dice).expand(len(dice), -1, -1)
        mattes = torch.cat([mattes, mean[:, None]], 1)
        chosen = (dice * mattes.shape[1]).long().expand(-1, 1, 3)
        return mattes.gather(1, chosen)[:, 0, :, None, None]

    def backdrop(self, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The photograph out of focus (B, 3, H, W), and how much matte veils it (B, 1, H, W)."""
        veil = (self.hole + self.thin * (0.3 + 0.7 * self.inside)).clamp(max=1)
        coarse = F.interpolate(self.coarse, size=size, mode="bicubic").clamp(0, 1)
        return coarse, resize(veil, size)


def enlarge(found: Gaussians, share: Amounts, ground: _Ground, draws: Draws) -> Gaussians:
    """Too large, and unevenly so."""
    uneven = _each(draws.normal, found)
    factor = 1 + (1.2 * (0.6 * uneven).exp() + 0.2) * share["oversize"]
    return replace(found, lengths=found.lengths * factor[..., None])


def miscolor(found: Gaussians, share: Amounts, ground: _Ground, draws: Draws) -> Gaussians:
    """Wrong colours: a slope over the head, blotches, and a little at each Gaussian."""
    slope = found.places @ draws.normal(2, 3) + draws.normal(1, 3)
    blotches = sample_at(ground.blotches, found.places)
    grey = blotches.mean(-1, keepdim=True)
    error = 0.06 * slope + 0.12 * grey + 0.05 * blotches + 0.04 * _each(draws.normal, found, 3)
    return replace(found, colors=(found.colors * (1 + share["color_error"][..., None] * error))
                   .clamp(0, 1))


def thin(found: Gaussians, share: Amounts, ground: _Ground, draws: Draws) -> Gaussians:
    """Translucent and swollen along the silhouette, in patches."""
    much = sample_at(ground.thin, found.places)[..., 0]
    return replace(found, opacities=found.opacities * (1 - much) ** 2,
                   lengths=found.lengths * (1 + 0.7 * much)[..., None])


def lose(found: Gaussians, share: Amounts, ground: _Ground, draws: Draws) -> Gaussians:
    """Missing: most of those in a patch, and a few anywhere."""
    chance = 1.1 * sample_at(ground.hole, found.places)[..., 0] + 0.05 * share["holes"]
    return replace(found, opacities=found.opacities * (_each(draws.uniform, found) >= chance))


def stretch(found: Gaussians, share: Amounts, ground: _Ground, draws: Draws) -> Gaussians:
    """Some become needles: long, narrow, faint, askew, too light or dark, in front."""
    dice, bell = _each(draws.uniform, found, 3), _each(draws.normal, found, 2)
    needle = dice[..., 0] < 300 * share["needles"] / gaussian_count(share["sparsity"])
    long = torch.stack([0.008 + 0.03 * dice[..., 1] ** 2, 0.001 + 0.0015 * dice[..., 2]], -1)
    light = 1 + 0.35 * bell[..., :1] * needle[..., None]
    return replace(
        found, lengths=torch.where(needle[..., None], long, found.lengths),
        angles=found.angles + 0.3 * bell[..., 1] * needle, depths=found.depths - 4 * needle,
        colors=(found.colors * light).clamp(0, 1), opacities=found.opacities * (1 - 0.3 * needle))


def misplace(found: Gaussians, share: Amounts, ground: _Ground, draws: Draws) -> Gaussians:
    """Some dozens float elsewhere, in front: flecks, half transparent, miscoloured."""
    dice, bell = _each(draws.uniform, found, 4), _each(draws.normal, found, 5)
    floater = dice[..., 0] < 80 * share["floaters"] / gaussian_count(share["sparsity"])
    many = floater[..., None]
    long = 0.004 + 0.012 * dice[..., 1:2]
    fleck = torch.cat([long, long * (0.15 + 0.35 * dice[..., 2:3])], -1)
    return Gaussians(
        found.places + 0.2 * bell[..., :2] * many, torch.where(many, fleck, found.lengths),
        found.angles + bell[..., 2] * floater,
        (found.colors * (1 + 0.25 * bell[..., 2:] * many)).clamp(0, 1),
        found.opacities * (1 - (0.2 + 0.6 * dice[..., 3]) * floater), found.depths - 6 * floater)


def double(found: Gaussians, share: Amounts, ground: _Ground, draws: Draws) -> Gaussians:
    """The rim of the head once more, moved outwards: a translucent flap beside the face."""
    turn, reach = (draws.uniform(2)[:, :, None]).unbind(1)
    side = 2 * math.pi * turn
    direction = F.normalize(torch.cat([side.cos(), 0.5 * side.sin()], 1), dim=1)  # rather sideways
    wide = F.pad(ground.wide, (1, 1, 1, 1), mode="replicate")
    falls = torch.cat([wide[:, :, 1:-1, :-2] - wide[:, :, 1:-1, 2:],
                       wide[:, :, :-2, 1:-1] - wide[:, :, 2:, 1:-1]], 1)
    outward = F.normalize(sample_at(falls, found.places), dim=-1)
    facing = (outward @ direction[:, :, None])[..., 0]
    inside, wide_inside, patch = sample_at(
        torch.cat([ground.inside, ground.wide, ground.patch], 1), found.places).unbind(-1)
    rim = (inside > 0.6) & (wide_inside < 0.85) & (facing > 0.3) \
        & (patch > 0.5 - 1.5 * share["doubling"])
    copy = replace(
        found, places=found.places + ((0.06 + 0.08 * reach) * direction)[:, None],
        opacities=found.opacities * rim * (2 * share["doubling"]).clamp(max=1),
        depths=found.depths - 1)
    return found + copy


def _each(kind, found: Gaussians, *shape: int) -> Tensor:
    # One number (or several) per Gaussian; as many are drawn for few as for many.
    return kind(LIMIT, *shape)[:, :found.places.shape[1]]


def _smooth(maps: Tensor, radius: int) -> Tensor:
    return F.avg_pool2d(maps, 2 * radius + 1, 1, radius, count_include_pad=False)
