"""Hair as strands: chains of elongated Gaussians that grow from the scalp, fall and lie on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .head import (
    EYE_LINE,
    HAIR,
    SKIN,
    Cloud,
    Face,
    angles,
    direction,
    face_radius,
    fibonacci,
    hairline,
    skull_radius,
)


@dataclass(frozen=True)
class Hairstyle:
    """How hair falls: lengths in head units, everything else from 0 (none) to about 1."""

    length: float
    lift: float  # how far above the scalp it lies
    part: float  # longitude of the parting
    swept_back: float  # 0 combed down and aside, 1 combed backwards
    curl: float
    gravity: float
    strands: int


def hair_cloud(face: Face, style: Hairstyle, generator: torch.Generator, thickness: float = 1.0,
               contrast: float = 0.45) -> Cloud:
    """Strands of Gaussians over the scalp of `face`, of a relative thickness and varied tint."""
    segments = 6 + int(8 * min(style.length, 1.5))
    roots = _roots(face, style, generator)
    path = _grow(face, style, roots, segments, generator)  # (S, K + 1, 3)
    means, along = (path[:, 1:] + path[:, :-1]) / 2, path[:, 1:] - path[:, :-1]
    tangent = normalize(along, dim=-1)
    outward = normalize(means * torch.tensor([1.0, 0.6, 1.0]), dim=-1)
    side = normalize(torch.cross(tangent, outward, dim=-1), dim=-1)
    normal = torch.cross(side, tangent, dim=-1)
    taper = torch.linspace(1, 0.55, segments)[None, :, None]
    thick = 0.024 * thickness * taper * torch.ones_like(along[..., :1])
    axes = torch.stack([0.55 * along, side * thick, normal * thick], -1)
    tint = 1 + contrast * (torch.rand(len(roots), 1, 1, generator=generator) - 0.5)
    shade = torch.linspace(0.75, 1.12, segments)[None, :, None] * tint
    colors = (face.hair * shade).clamp(0, 1)
    length = along.norm(dim=-1)
    whole = length < 2 * length.median()  # a strand pushed round the face leaves a gap, no bridge
    count = int(whole.sum())
    return Cloud(means[whole], axes[whole], normal[whole], colors[whole],
                 torch.full((count,), 0.35), torch.full((count,), HAIR, dtype=torch.uint8))


def brow_cloud(face: Face, thickness: float, arch: float, generator: torch.Generator,
               fineness: float = 1.0) -> Cloud:
    """Both eyebrows as short, slanted Gaussians (they count as skin in the region map)."""
    per_side = int(90 * thickness)
    t = torch.rand(2 * per_side, generator=generator)  # 0 at the nose, 1 at the temple
    side = torch.cat([torch.ones(per_side), -torch.ones(per_side)])
    width = 0.06 * fineness * thickness * (1.15 - t)
    across = (torch.rand(t.shape, generator=generator) - 0.5) * width
    a = side * (face.eye_gap - 0.19 + 0.36 * t)
    b = EYE_LINE + 0.185 + arch * (0.09 * torch.sin(2.4 * t) - 0.04 * t) + across
    unit = direction(a, b)
    means = unit * (face_radius(face, unit) + 0.006)[:, None]
    ahead = direction(a + side * 0.03, b + 0.022 * (1 - 1.5 * t))
    along = normalize(ahead * face_radius(face, ahead)[:, None] - means, dim=-1)
    flank = normalize(torch.cross(along, unit, dim=-1), dim=-1)
    axes = torch.stack([0.028 * along, 0.008 * fineness * flank, 0.004 * unit], -1)
    shade = 0.5 + 0.25 * torch.rand(len(t), 1, generator=generator)
    labels = torch.full(t.shape, SKIN, dtype=torch.uint8)
    return Cloud(means, axes, unit, face.hair * shade, torch.zeros_like(t), labels)


def beard_cloud(face: Face, length: float, count: int, generator: torch.Generator) -> Cloud:
    """Short hair on the jaw, the chin and the upper lip (skin in the region map)."""
    a, b = torch.rand(2, 4 * count, generator=generator) * torch.tensor([[2.4], [0.85]]) \
        - torch.tensor([[1.2], [1.08]])
    lips = ((a / (face.mouth_width + 0.04)).abs() < 1) & ((b - face.mouth_line).abs() < 0.1)
    cheek = b > -0.28 - 0.12 * torch.cos(2.6 * a)
    a, b = (value[~lips & ~cheek][:count] for value in (a, b))
    unit = direction(a, b)
    means = unit * (face_radius(face, unit) + 0.2 * length)[:, None]
    down = torch.tensor([0.0, -1.0, 0.35]) + 0.5 * torch.randn(len(a), 3, generator=generator)
    along = normalize(down - 0.8 * (down * unit).sum(1, keepdim=True) * unit, dim=1)
    flank = normalize(torch.cross(along, unit, dim=-1), dim=-1)
    axes = torch.stack([0.4 * length * along, 0.008 * flank, 0.005 * unit], -1)
    shade = 0.4 + 0.8 * torch.rand(len(a), 1, generator=generator)
    labels = torch.full(a.shape, SKIN, dtype=torch.uint8)
    return Cloud(means, axes, unit, (face.hair * shade).clamp(0, 1), torch.zeros_like(a), labels)


def _roots(face: Face, style: Hairstyle, generator: torch.Generator) -> Tensor:
    """Unit vectors (S, 3) spread over the scalp."""
    unit = fibonacci(3 * style.strands)
    unit = normalize(unit + 0.03 * torch.randn(unit.shape, generator=generator), dim=-1)
    a, b = angles(unit)
    return unit[b > hairline(face, a) + 0.02]


def _grow(face: Face, style: Hairstyle, roots: Tensor, segments: int,
          generator: torch.Generator) -> Tensor:
    """Strands as polylines (S, K + 1, 3): combed, pulled down, curled, kept out of the head."""
    count = len(roots)
    vary = torch.rand(count, 4, generator=generator)
    lift = style.lift * (0.35 + 0.9 * vary[:, 0]) + 0.02
    point = roots * (skull_radius(face, roots) * 1.01)[:, None]
    heading = normalize(_comb(style, roots) + 0.2 * roots
                        + 0.15 * torch.randn(count, 3, generator=generator), dim=-1)
    step = style.length * (0.75 + 0.4 * vary[:, 1:2]) / segments
    phase, path = 6.28 * vary[:, 2:4], [point]
    down = torch.tensor([0.0, -1.0, 0.0])
    for k in range(segments):
        wave = torch.stack([torch.sin(phase[:, 0] + 1.3 * k), torch.cos(phase[:, 1] + 1.1 * k),
                            torch.sin(phase[:, 1] + 1.7 * k)], -1)
        heading = normalize(heading + style.gravity * down + style.curl * wave, dim=-1)
        point = _outside_head(face, point + heading * step, lift)
        heading = normalize(point - path[-1], dim=-1)
        path.append(point)
    return torch.stack(path, 1)


def _comb(style: Hairstyle, roots: Tensor) -> Tensor:
    """Where each strand is combed to, in the tangent plane (S, 3)."""
    a, _ = angles(roots)
    away = torch.sign(torch.sin(a - style.part) + 1e-3)
    aside = torch.stack([away, -0.5 * torch.ones_like(a), 0.3 * torch.ones_like(a)], -1)
    back = torch.tensor([0.0, 0.45, -1.0]).expand_as(roots)
    wanted = aside * (1 - style.swept_back) + back * style.swept_back
    return normalize(wanted - (wanted * roots).sum(-1, keepdim=True) * roots, dim=-1)


def _outside_head(face: Face, point: Tensor, lift: Tensor) -> Tensor:
    """Push points out of the head, and strands that hang into the face to its sides."""
    a, b = angles(point)
    limit = 0.62 + 0.25 * torch.sigmoid(8 * (0.1 - b))
    hanging = (b < hairline(face, a) - 0.05) & (a.abs() < limit)
    a = torch.where(hanging, torch.where(a >= 0, limit, -limit), a)
    unit = torch.where(hanging[:, None], direction(a, b), normalize(point, dim=-1))
    floor = skull_radius(face, unit) * (1 + lift)
    neck = point[:, 1] < -0.75  # below the head there is a neck, much slimmer, to hang over
    far = torch.where(neck, point.norm(dim=-1), torch.maximum(point.norm(dim=-1), floor))
    return unit * far[:, None]
