"""What makes surfaces less smooth: pores, folds, blotches of skin, weave of clothes, pictures."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import grid_sample, normalize

from .head import SKIN, Cloud, angles

if TYPE_CHECKING:
    from .person import Rng


def noise(points: Tensor, cells: float, generator: torch.Generator) -> Tensor:
    """Smooth noise (N,) of deviation about 1 at points (N, 3), with so many bumps per unit."""
    grid = torch.randn(1, 1, 24, 24, 24, generator=generator)  # repeats beyond its size
    place = (points * (cells / 24) + 40.5) % 1 * 2 - 1
    folded = place.abs() * 2 - 1  # mirrored, so that it has no seam
    value = grid_sample(grid, folded[None, None, None], mode="bilinear",
                        padding_mode="reflection", align_corners=True)
    return 1.6 * value.flatten()


def skin_detail(cloud: Cloud, rng: Rng) -> Cloud:
    """Blotches, pores, moles and folds on a cloud's skin; also tilts its normals a little."""
    generator = rng.generator
    fine, rough = rng.geometric(0.004, 0.035), rng.geometric(0.015, 0.08)
    points, a, b = cloud.means, *angles(cloud.means)
    blotches = noise(points, 7, generator) + 0.6 * noise(points, 15, generator)
    pores = noise(points, 34, generator) + noise(points, 60, generator)
    grain = torch.randn(len(points), generator=generator)
    folds = torch.sin(b * rng.between(55, 80) + 2 * noise(points, 3, generator)) \
        * ((b > 0.3) & (a.abs() < 0.9)) * rng.between(0, 0.09)  # of the forehead
    crows = torch.sin(b * 70 + 8 * a.abs()) * torch.exp(-(((a.abs() - 0.66) / 0.1) ** 2)
                                                        - ((b - 0.08) / 0.12) ** 2)
    shade = 1 + rough * 0.5 * blotches + fine * (0.8 * pores + 0.2 * grain) + folds \
        + rng.between(0, 0.1) * crows
    red = rough * noise(points, 6, generator)
    tint = torch.stack([1 + 0.3 * red, 1 - 0.6 * red, 1 - 0.5 * red], 1)
    moles = noise(points, 22, generator) > rng.between(3.2, 4.6)
    shade = torch.where(moles, 0.55 * shade, shade)
    is_skin = (cloud.labels == SKIN)[:, None]
    colors = torch.where(is_skin, cloud.colors * shade[:, None] * tint,
                         cloud.colors * (1 + 0.4 * (shade[:, None] - 1)))
    tilt = torch.stack([noise(points, 20, generator) for _ in range(3)], 1)
    normals = normalize(cloud.normals + rng.between(0.02, 0.14) * tilt, dim=1)
    return replace(cloud, colors=colors.clamp(0, 1), normals=normals)


def weave(cloud: Cloud, rng: Rng) -> Cloud:
    """Stripes, checks or creases in a cloud's colours."""
    points, generator = cloud.means, rng.generator
    pitch = rng.between(12, 70)
    angle = torch.randn(3, generator=generator)
    stripes = torch.sin(pitch * (points @ normalize(angle, dim=0)))
    if rng.chance(0.4):
        stripes = stripes * torch.sin(pitch * points[:, 0])
    amount = rng.between(0, 0.5) if rng.chance(0.5) else 0.0
    shade = 1 + amount * stripes.sign() * stripes.abs().sqrt() \
        + 0.12 * noise(points, 5, generator) + 0.08 * noise(points, 30, generator)
    tilt = torch.stack([noise(points, 5, generator) for _ in range(3)], 1)
    return replace(cloud, colors=(cloud.colors * shade[:, None]).clamp(0, 1),
                   normals=normalize(cloud.normals + 0.25 * tilt, dim=1))


def cover(cloud: Cloud, file: str, rng: Rng) -> Cloud:
    """A head in the colours of a square of a picture, wrapped around it and mirrored at the rim."""
    picture, d = Image.open(file).convert("RGB"), rng.between
    most = min(picture.size)
    length = most * min(1.0, 200 / most) ** d(0, 1)
    left, top = (d(0, side - length) for side in picture.size)
    pixels = np.asarray(picture.resize((256, 256), Image.Resampling.BOX,
                                       (left, top, left + length, top + length)))
    texture = torch.tensor(pixels).permute(2, 0, 1)[None].float() / 255
    place = torch.stack([angles(cloud.means)[0] / 2, -cloud.means[:, 1] / 1.5], 1)
    colors = grid_sample(texture, place[None, None], mode="bilinear", align_corners=False,
                         padding_mode="reflection")[0, :, 0].T
    return replace(cloud, colors=cloud.colors.lerp(colors * d(0.9, 1.3), d(0.5, 1)))
