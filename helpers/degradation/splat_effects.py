"""The splat stage: a photograph re-rendered as Gaussians, with what fits of real avatars get wrong.

Too few Gaussians, too large, stretched to needles, lost, misplaced, thin at the silhouette, there
twice, of wrong colour: each by its own amount, each with its own random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ..gaussians.describe import GRID, LIMIT, Gaussians, describe, sample_at
from ..gaussians.filters import constant, resize
from ..gaussians.rasterizer import rasterize
from ..gaussians.rng import SeededRandom
from .effects import Amounts

DEFECTS = ("sparsity", "oversize", "needles", "holes", "floaters", "translucency", "doubling",
           "color_error")
FEWEST = 1_000  # Gaussians at sparsity 1; at 0 it is LIMIT
MATTES = ((1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.0, 0.8, 0.1))  # behind a head


def resplat(image: Tensor, regions: Tensor, amounts: Amounts, rng: SeededRandom) -> Tensor:
    """Re-render pictures as degraded Gaussians; what is not region 0 has the silhouette.

    What the photograph has beyond the Gaussians' reach is lost with sparsity and oversize only, so
    that every amount makes its own kind of defect, and fades to nothing.
    """
    size = image.shape[2:]
    gaussians = start = describe(image, gaussian_count(amounts.on_cpu["sparsity"]), rng)
    defects = _Defects(image, regions, amounts, rng)
    for defect in (defects.enlarge, defects.miscolor, defects.thin, defects.lose, defects.stretch,
                   defects.misplace, defects.double):
        gaussians = defect(gaussians)
    backdrop = F.interpolate(defects.coarse, size=size, mode="bicubic").clamp(0, 1)
    veil = resize(defects.veil, size)
    drawn, _ = rasterize(gaussians.splats(*size), *size,
                         background=backdrop.lerp(defects.matte, veil))
    if (torch.maximum(amounts.on_cpu["sparsity"], amounts.on_cpu["oversize"]) < 0.5).any():
        kept = (1 - 2 * torch.maximum(amounts["sparsity"], amounts["oversize"])).clamp(min=0)
        plain, _ = rasterize(start.splats(*size), *size, background=backdrop)
        drawn += kept * (1 - veil) * (image - plain)
    return drawn


def gaussian_count(sparsity: Tensor) -> Tensor:
    """How many Gaussians a picture gets at a sparsity in [0, 1]: int64, geometric."""
    return (LIMIT * (FEWEST / LIMIT) ** sparsity).round().long()


class _Defects:
    """Each defect, on Gaussians; where it strikes is drawn before, as maps (B, C, GRID, GRID)."""

    def __init__(self, image: Tensor, regions: Tensor, amounts: Amounts,
                 rng: SeededRandom) -> None:
        self.rng, self.amounts = rng, {name: amounts[name].flatten(1) for name in DEFECTS}
        self.count = gaussian_count(self.amounts["sparsity"])
        head = resize((regions > 0).float()[:, None], (GRID, GRID))
        self.inside = _smooth(head, 3)  # 0.5 on the outline
        self.wide = _smooth(_smooth(self.inside, 7), 7)  # the same, over a twentieth of the side
        rim = _smooth(self.inside, 3)
        self.blotches, self.patch, hole, thin = rng.field(6, 9, (GRID, GRID)).split((3, 1, 1, 1), 1)
        hole = hole + 4 * self.inside * (1 - self.inside) + 1.5 * self.wide
        self.hole = torch.sigmoid(6 * (hole + 1.2 * amounts["holes"] - 3.7)) \
            * (2 * amounts["holes"]).clamp(max=1)
        self.thin_rim = amounts["translucency"] * 4 * rim * (1 - rim) * torch.sigmoid(3 * thin + 2)
        # How much matte covers what lies behind: the photograph out of focus. That is made in two
        # steps, as CUDA cannot shrink 1,536 px or more to 16 at once
        self.veil = (self.hole + self.thin_rim * (0.3 + 0.7 * self.inside)).clamp(max=1)
        self.coarse = resize(resize(image, (GRID, GRID)), (16, 16))
        # The matte (B, 3, 1, 1): of `MATTES`, or the mean of the photograph's own background
        number = rng.uniform(1, 1)
        outside = 1 - resize(self.inside, (16, 16)) + 1e-3
        mean = (self.coarse * outside).sum((2, 3)) / outside.sum((2, 3))
        mattes = constant(MATTES, number).expand(len(number), -1, -1)
        mattes = torch.cat([mattes, mean[:, None]], 1)
        chosen = (number * mattes.shape[1]).long().expand(-1, 1, 3)
        self.matte = mattes.gather(1, chosen)[:, 0, :, None, None]

    def enlarge(self, gaussians: Gaussians) -> Gaussians:
        """Too large, and unevenly so."""
        uneven = _per_gaussian(self.rng.normal, gaussians)
        factor = 1 + (1.2 * (0.6 * uneven).exp() + 0.2) * self.amounts["oversize"]
        return replace(gaussians, scales=gaussians.scales * factor[..., None])

    def miscolor(self, gaussians: Gaussians) -> Gaussians:
        """Wrong colours: a slope over the head, blotches, and a little at each Gaussian."""
        slope = gaussians.positions @ self.rng.normal(2, 3) + self.rng.normal(1, 3)
        blotches = sample_at(self.blotches, gaussians.positions)
        grey = blotches.mean(-1, keepdim=True)
        each = _per_gaussian(self.rng.normal, gaussians, 3)
        error = 0.06 * slope + 0.12 * grey + 0.05 * blotches + 0.04 * each
        factor = 1 + self.amounts["color_error"][..., None] * error
        return replace(gaussians, colors=(gaussians.colors * factor).clamp(0, 1))

    def thin(self, gaussians: Gaussians) -> Gaussians:
        """Translucent and swollen along the silhouette, in patches."""
        amount = sample_at(self.thin_rim, gaussians.positions)[..., 0]
        return replace(gaussians, opacities=gaussians.opacities * (1 - amount) ** 2,
                       scales=gaussians.scales * (1 + 0.7 * amount)[..., None])

    def lose(self, gaussians: Gaussians) -> Gaussians:
        """Missing: most of those in a patch, and a few anywhere."""
        chance = 1.1 * sample_at(self.hole, gaussians.positions)[..., 0]
        chance = chance + 0.05 * self.amounts["holes"]
        kept = _per_gaussian(self.rng.uniform, gaussians) >= chance
        return replace(gaussians, opacities=gaussians.opacities * kept)

    def stretch(self, gaussians: Gaussians) -> Gaussians:
        """Some become needles: long, narrow, faint, askew, too light or dark, in front."""
        even = _per_gaussian(self.rng.uniform, gaussians, 3)
        normal = _per_gaussian(self.rng.normal, gaussians, 2)
        needle = even[..., 0] < 300 * self.amounts["needles"] / self.count
        long = torch.stack([0.008 + 0.03 * even[..., 1] ** 2, 0.001 + 0.0015 * even[..., 2]], -1)
        light = 1 + 0.35 * normal[..., :1] * needle[..., None]
        return replace(
            gaussians, scales=torch.where(needle[..., None], long, gaussians.scales),
            angles=gaussians.angles + 0.3 * normal[..., 1] * needle,
            colors=(gaussians.colors * light).clamp(0, 1), depths=gaussians.depths - 4 * needle,
            opacities=gaussians.opacities * (1 - 0.3 * needle))

    def misplace(self, gaussians: Gaussians) -> Gaussians:
        """Some dozens float elsewhere, in front: flecks, half transparent, miscoloured."""
        even = _per_gaussian(self.rng.uniform, gaussians, 4)
        normal = _per_gaussian(self.rng.normal, gaussians, 5)
        floater = even[..., 0] < 80 * self.amounts["floaters"] / self.count
        column = floater[..., None]
        long = 0.004 + 0.012 * even[..., 1:2]
        fleck = torch.cat([long, long * (0.15 + 0.35 * even[..., 2:3])], -1)
        return Gaussians(
            gaussians.positions + 0.2 * normal[..., :2] * column,
            torch.where(column, fleck, gaussians.scales),
            gaussians.angles + normal[..., 2] * floater,
            (gaussians.colors * (1 + 0.25 * normal[..., 2:] * column)).clamp(0, 1),
            gaussians.opacities * (1 - (0.2 + 0.6 * even[..., 3]) * floater),
            gaussians.depths - 6 * floater)

    def double(self, gaussians: Gaussians) -> Gaussians:
        """The rim of the head once more, moved outwards: a translucent flap beside the face."""
        turn, reach = self.rng.uniform(2)[:, :, None].unbind(1)
        side = 2 * math.pi * turn
        direction = F.normalize(torch.cat([side.cos(), 0.5 * side.sin()], 1), dim=1)  # sideways
        wide = F.pad(self.wide, (1, 1, 1, 1), mode="replicate")
        falls = torch.cat([wide[:, :, 1:-1, :-2] - wide[:, :, 1:-1, 2:],
                           wide[:, :, :-2, 1:-1] - wide[:, :, 2:, 1:-1]], 1)
        outward = F.normalize(sample_at(falls, gaussians.positions), dim=-1)
        facing = (outward @ direction[:, :, None])[..., 0]
        maps = torch.cat([self.inside, self.wide, self.patch], 1)
        inside, wide_inside, patch = sample_at(maps, gaussians.positions).unbind(-1)
        amount = self.amounts["doubling"]
        rim = (inside > 0.6) & (wide_inside < 0.85) & (facing > 0.3) & (patch > 0.5 - 1.5 * amount)
        return gaussians + replace(
            gaussians, depths=gaussians.depths - 1,
            positions=gaussians.positions + ((0.06 + 0.08 * reach) * direction)[:, None],
            opacities=gaussians.opacities * rim * (2 * amount).clamp(max=1))


def _per_gaussian(draw: Callable[..., Tensor], gaussians: Gaussians, *shape: int) -> Tensor:
    """One number (or several) per Gaussian; as many are drawn for few as for many."""
    return draw(LIMIT, *shape)[:, :gaussians.positions.shape[1]]


def _smooth(maps: Tensor, radius: int) -> Tensor:
    return F.avg_pool2d(maps, 2 * radius + 1, 1, radius, count_include_pad=False)
