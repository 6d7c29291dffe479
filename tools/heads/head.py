"""The skin of a procedural head: its shape, its paint and its region map, as surface Gaussians.

A direction from the head's centre is written as longitude `a` (0 = straight ahead, positive to the
viewer's right) and latitude `b`, both in radians. Shape is a radius per direction, paint is a
colour per direction; the head is about two units tall.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

REGIONS = ("background", "skin", "eyes", "nose", "mouth", "hair")  # the values of a region map
BACKGROUND, SKIN, EYES, NOSE, MOUTH, HAIR = range(len(REGIONS))

NOSE_TIP = -0.2  # latitude; the other landmarks of the face
EYE_LINE = 0.1


@dataclass(frozen=True)
class Face:
    """What makes one face: proportions in radians or as a share of the head, colours in [0, 1]."""

    width: float  # half width of the skull
    jaw: float  # how much the jaw narrows
    chin: float
    cheeks: float
    nose_length: float
    nose_width: float
    nose_height: float
    eye_gap: float  # longitude of the eyes
    eye_width: float
    eye_open: float
    eye_tilt: float
    gaze: tuple[float, float]
    mouth_line: float  # latitude
    mouth_width: float
    lip_fullness: float
    mouth_open: float
    smile: float
    stubble: float
    freckles: float
    skin: Tensor  # (3,)
    lips: Tensor  # (3,)
    iris: Tensor  # (3,)
    hair: Tensor  # (3,)
    hairline: float  # latitude above the forehead; larger is higher


@dataclass(frozen=True)
class Cloud:
    """N Gaussians before lighting: means (N, 3), axes (N, 3, 3) in columns with their standard
    deviations as lengths, normals (N, 3), colors (N, 3), gloss (N,), labels (N,) uint8."""

    means: Tensor
    axes: Tensor
    normals: Tensor
    colors: Tensor
    gloss: Tensor
    labels: Tensor

    def __getitem__(self, index: Tensor) -> Cloud:
        """Some of the Gaussians, by their numbers."""
        return Cloud(*(getattr(self, name).index_select(0, index)
                       for name in Cloud.__dataclass_fields__))

    @staticmethod
    def join(clouds: list[Cloud]) -> Cloud:
        """One cloud of several."""
        fields = Cloud.__dataclass_fields__
        return Cloud(*(torch.cat([getattr(c, name) for c in clouds]) for name in fields))


def direction(a: Tensor, b: Tensor) -> Tensor:
    """Longitude and latitude to unit vectors (..., 3)."""
    return torch.stack([a.sin() * b.cos(), b.sin(), a.cos() * b.cos()], -1)


def angles(points: Tensor) -> tuple[Tensor, Tensor]:
    """Points (..., 3) to longitude and latitude."""
    unit = torch.nn.functional.normalize(points, dim=-1)
    return torch.atan2(unit[..., 0], unit[..., 2]), torch.asin(unit[..., 1].clamp(-1, 1))


def bump(a: Tensor, b: Tensor, at: tuple[float, float], size: tuple[float, float]) -> Tensor:
    """A Gaussian bump of height 1 in longitude and latitude."""
    return torch.exp(-(((a - at[0]) / size[0]) ** 2) - ((b - at[1]) / size[1]) ** 2)


def smooth(x: Tensor, low: float, high: float) -> Tensor:
    """Smooth step from 0 at `low` to 1 at `high` (or down, where `low` is above `high`)."""
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def skull_radius(face: Face, unit: Tensor) -> Tensor:
    """Distance of the bare skull's surface along unit vectors (..., 3)."""
    x, y, z = unit.unbind(-1)
    narrow = 1 - face.jaw * smooth(y, 0.05, -0.95)
    front = torch.where(z > 0, 0.86 - 0.06 * smooth(y, -0.2, -0.9), torch.full_like(z, 0.95))
    power = 2.35  # a little fuller than an ellipsoid
    return ((x / (face.width * narrow)).abs() ** power + y.abs() ** power
            + (z / front).abs() ** power) ** (-1 / power)


def face_radius(face: Face, unit: Tensor) -> Tensor:
    """Distance of the skin along unit vectors (..., 3): skull, nose, sockets, lips and chin."""
    a, b = angles(unit)
    mirrored, tip, mouth = a.abs(), NOSE_TIP - face.nose_length, face.mouth_line
    ridge = smooth(b, 0.26, tip + 0.03) * smooth(b, tip - 0.075, tip + 0.02)
    width = 0.085 + 0.06 * face.nose_width * smooth(b, 0.1, tip)
    relief = face.nose_height * (0.06 + 0.14 * smooth(b, 0.2, tip)) * ridge \
        * torch.exp(-((a / width) ** 2))
    wing = (0.115 * face.nose_width + 0.02, tip)
    relief = relief + 0.045 * face.nose_height * bump(mirrored, b, wing, (0.05, 0.055))
    relief = relief - 0.055 * bump(mirrored, b, (face.eye_gap, EYE_LINE), (0.2, 0.12))
    relief = relief + 0.025 * bump(mirrored, b, (face.eye_gap, EYE_LINE - 0.005), (0.14, 0.07))
    relief = relief + 0.03 * bump(mirrored, b, (0.3, 0.31), (0.3, 0.08))
    relief = relief + face.cheeks * bump(mirrored, b, (0.52, -0.12), (0.26, 0.2))
    relief = relief - 0.03 * bump(mirrored, b, (0.75, -0.42), (0.2, 0.22))
    lips = bump(a, b, (0, mouth + 0.04), (0.2, 0.045)) \
        + 1.15 * bump(a, b, (0, mouth - 0.05), (0.17, 0.05))
    relief = relief + 0.03 * face.lip_fullness * lips + 0.02 * bump(a, b, (0, mouth), (0.32, 0.16))
    relief = relief - 0.025 * bump(a, b, (0, mouth - 0.16), (0.2, 0.06))
    relief = relief + face.chin * bump(a, b, (0, mouth - 0.36), (0.22, 0.16))
    return skull_radius(face, unit) * (1 + relief)


def hairline(face: Face, a: Tensor) -> Tensor:
    """Latitude above which the scalp carries hair, by longitude."""
    side = a.abs()
    forehead = face.hairline + 0.12 * torch.cos(3.2 * side)
    temple = smooth(side, 0.62, 1.25)
    back = smooth(side, 1.35, 1.75)
    return forehead * (1 - temple) + temple * (-0.05 - 0.55 * back)


def head_cloud(face: Face, spacing: float, generator: torch.Generator,
               size: float = 0.62, overlap: float = 0.0) -> Cloud:
    """The painted head as flat Gaussians on its surface.

    Args:
        face: what it looks like.
        spacing: distance of neighbouring Gaussians on the cheeks, in head units; the eyes and the
            mouth are drawn more finely.
        generator: the source of all randomness.
        size: standard deviation of a Gaussian as a share of that distance.
        overlap: of the finer parts with what surrounds them, as a share of that distance.
    """
    a, b, pitch = _sample_directions(face, spacing, generator, overlap)
    unit = direction(a, b)
    means = unit * face_radius(face, unit)[:, None]
    normals, axes = _tangent_frame(lambda d: face_radius(face, d), unit, size * pitch)
    colors, gloss, labels = _paint(face, a, b, generator)
    return Cloud(means, axes, normals, colors, gloss, labels)


def ellipsoid_cloud(center: Tensor, radii: Tensor, spacing: float, color: Tensor,
                    label: int) -> Cloud:
    """A plain ellipsoid (neck, ears, shoulders) as flat Gaussians; center and radii are (3,)."""
    count = int(12.6 * float(radii.prod()) ** (2 / 3) / spacing**2)
    unit = torch.nn.functional.normalize(fibonacci(count) / radii, dim=-1)  # denser where flat
    means = center + unit * radii
    length = torch.full((count,), 0.75 * spacing)
    normals, axes = _tangent_frame(lambda d: ((d / radii) ** 2).sum(-1).rsqrt(),
                                   torch.nn.functional.normalize(unit * radii, dim=-1), length)
    labels = torch.full((count,), label, dtype=torch.uint8)
    return Cloud(means, axes, normals, color.expand(count, 3).clone(), torch.zeros(count), labels)


def fibonacci(count: int) -> Tensor:
    """`count` evenly spread unit vectors (count, 3)."""
    i = torch.arange(count, dtype=torch.float64) + 0.5
    y = 1 - 2 * i / count
    turn = i * 2.399963229728653  # the golden angle
    ring = (1 - y * y).sqrt()
    return torch.stack([ring * turn.cos(), y, ring * turn.sin()], 1).float()


def _sample_directions(face: Face, spacing: float, generator: torch.Generator,
                       overlap: float) -> tuple[Tensor, Tensor, Tensor]:
    """Directions (a, b) and their pitch: a coarse sphere, a finer face, fine eyes and mouth."""
    eye = (face.eye_gap, EYE_LINE)
    patches = [  # centre, half extent, spacing; earlier ones win
        (eye, (0.2, 0.12), 0.42 * spacing), ((-eye[0], eye[1]), (0.2, 0.12), 0.42 * spacing),
        ((0.0, face.mouth_line), (0.32, 0.17), 0.55 * spacing),
        ((0.0, NOSE_TIP), (0.24, 0.2), 0.6 * spacing), ((0.0, -0.2), (0.85, 0.85), spacing),
    ]
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for n, (at, half, pitch) in enumerate(patches):
        grid = [torch.arange(c - h, c + h, pitch) for c, h in zip(at, half, strict=True)]
        a, b = (g.flatten() for g in torch.meshgrid(*grid, indexing="ij"))
        jitter = 0.5 * pitch * (torch.rand(2, len(a), generator=generator) - 0.5)
        found.append(_outside(a + jitter[0], b + jitter[1], patches[:n], pitch, overlap))
    a, b = angles(fibonacci(int(12.6 / (1.7 * spacing) ** 2)))
    found.append(_outside(a, b, patches, 1.7 * spacing, overlap))
    a, b, pitch = (torch.cat(parts) for parts in zip(*found, strict=True))
    return a, b, pitch


def _outside(a: Tensor, b: Tensor, patches: list, pitch: float,
             overlap: float) -> tuple[Tensor, Tensor, Tensor]:
    keep, rim = torch.ones_like(a, dtype=torch.bool), overlap * pitch
    for at, half, _ in patches:
        keep &= ((a - at[0]).abs() > half[0] - rim) | ((b - at[1]).abs() > half[1] - rim)
    return a[keep], b[keep], torch.full((int(keep.sum()),), pitch)


def _tangent_frame(radius, unit: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
    """Normals (N, 3) of the surface unit·radius(unit), and flat axes (N, 3, 3) lying in it."""
    up = torch.tensor([0.0, 1.0, 0.01]).expand_as(unit)
    e1 = torch.nn.functional.normalize(torch.cross(up, unit, dim=-1), dim=-1)
    e2 = torch.cross(unit, e1, dim=-1)
    step = 0.02

    def slope(e: Tensor) -> Tensor:
        ends = [torch.nn.functional.normalize(unit + s * step * e, dim=-1) for s in (1, -1)]
        return torch.sub(*(end * radius(end)[:, None] for end in ends))

    t1, t2 = slope(e1), slope(e2)
    normals = torch.nn.functional.normalize(torch.cross(t1, t2, dim=-1), dim=-1)
    t1 = torch.nn.functional.normalize(t1, dim=-1)
    t2 = torch.cross(normals, t1, dim=-1)
    axes = torch.stack([t1, t2, 0.2 * normals], -1) * length[:, None, None]
    return normals, axes


def _paint(face: Face, a: Tensor, b: Tensor,
           generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Albedo (N, 3), gloss (N,) and region labels (N,) by direction."""
    color = _skin_color(face, a, b, generator)
    gloss = 0.12 + 0.25 * bump(a, b, (0, NOSE_TIP), (0.08, 0.2)) \
        + 0.15 * bump(a, b, (0, 0.5), (0.3, 0.2))
    labels = torch.full(a.shape, SKIN, dtype=torch.uint8)
    tip = NOSE_TIP - face.nose_length
    half_width = 0.1 + 0.1 * face.nose_width * smooth(b, 0.1, tip)
    nose = (a.abs() < half_width) & (b < 0.14) & (b > tip - 0.085)
    labels[nose] = NOSE
    for side in (-1, 1):
        color, gloss, labels = _paint_eye(face, side, a, b, color, gloss, labels)
    color, gloss, labels = _paint_mouth(face, a, b, color, gloss, labels)
    scalp = smooth(b - hairline(face, a), -0.02, 0.05)[:, None]
    labels[scalp[:, 0] > 0.5] = HAIR
    return color * (1 - scalp) + 0.45 * face.hair * scalp, gloss * (1 - scalp[:, 0]), labels


def _skin_color(face: Face, a: Tensor, b: Tensor, generator: torch.Generator) -> Tensor:
    side, mouth = a.abs(), face.mouth_line
    red = torch.tensor([1.06, 0.84, 0.82])
    flush = 0.7 * bump(side, b, (0.5, -0.17), (0.22, 0.16)) \
        + 0.5 * bump(a, b, (0, NOSE_TIP), (0.1, 0.1))
    color = face.skin * (1 + flush[:, None] * (red - 1))
    shade = 0.30 * bump(side, b, (face.eye_gap - 0.06, EYE_LINE + 0.02), (0.17, 0.1))
    shade = shade + 0.35 * bump(a, b, (0, NOSE_TIP - face.nose_length - 0.085), (0.14, 0.03))
    shade = shade + 0.20 * bump(a, b, (0, mouth - 0.15), (0.16, 0.035))
    shade = shade + 0.12 * bump(side, b, (0.26, -0.28), (0.05, 0.12))  # the fold beside the nose
    nostril = bump(side, b, (0.055 + 0.02 * face.nose_width, NOSE_TIP - face.nose_length - 0.055),
                   (0.028, 0.018))
    beard = smooth(b, -0.2, -0.42) * smooth(side, 1.15, 0.8) \
        * (1 - bump(a, b, (0, mouth), (0.24, 0.09)))
    grain = torch.rand(a.shape, generator=generator)
    shade = shade + face.stubble * beard * (0.25 + 0.5 * grain)
    spots = (grain > 1 - 0.09 * face.freckles) * bump(side, b, (0.3, -0.1), (0.35, 0.14))
    color = color * (1 - 0.28 * spots[:, None] * torch.tensor([0.6, 1.0, 1.2]))
    return color * (1 - shade.clamp(0, 0.8)[:, None]) * (1 - 0.8 * nostril[:, None])


def _paint_eye(face: Face, side: int, a: Tensor, b: Tensor, color: Tensor, gloss: Tensor,
               labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    u = side * a - face.eye_gap  # outwards
    v = b - EYE_LINE - face.eye_tilt * u
    arch = (1 - (u / face.eye_width) ** 2).clamp(min=0)
    upper, lower = face.eye_open * 0.072 * arch.sqrt() * arch**0.2, -0.045 * face.eye_open * arch
    inside = (smooth(v - upper, 0.008, -0.004) * smooth(v - lower, -0.008, 0.004) * (arch > 0))
    gaze_u, gaze_v = side * face.gaze[0], face.gaze[1]
    far = ((u - gaze_u) ** 2 + (v - 0.008 - gaze_v) ** 2).sqrt()
    white = torch.tensor([0.93, 0.92, 0.91]) * (1 - 0.35 * smooth(far, 0.05, 0.16))[:, None]
    ring = face.iris * (0.55 + 0.9 * smooth(far, 0.062, 0.02))[:, None]
    eye = white + (ring - white) * smooth(far, 0.068, 0.06)[:, None]
    eye = eye * (1 - 0.95 * smooth(far, 0.032, 0.025))[:, None]
    eye = eye * (1 - 0.45 * smooth(upper - v, 0.035, 0.0))[:, None]  # shadow of the lid
    flat = torch.zeros_like(v)
    lash = bump(flat, v - upper, (0, 0.004), (1, 0.013)) * (arch > 0.02) \
        + 0.45 * bump(flat, v - lower, (0, -0.004), (1, 0.008)) * (arch > 0.15)
    crease = 0.35 * bump(flat, v - upper, (0, 0.045), (1, 0.014)) * smooth(arch, 0.0, 0.5)
    color = color * (1 - crease[:, None]) * (1 - inside[:, None]) + eye * inside[:, None]
    color = color * (1 - 0.85 * lash.clamp(max=1)[:, None])
    glint = bump(u, v, (gaze_u - 0.02 * side, gaze_v + 0.032), (0.014, 0.014)) * inside
    color = color + (1 - color) * glint[:, None]
    labels = labels.clone()
    labels[(arch > 0) & (v < upper + 0.02) & (v > lower - 0.015)] = EYES
    return color, gloss * (1 - inside) + 0.1 * inside, labels


def _paint_mouth(face: Face, a: Tensor, b: Tensor, color: Tensor, gloss: Tensor,
                 labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    u = a / face.mouth_width
    across = (1 - u**2).clamp(min=0)
    v = b - face.mouth_line - face.smile * (0.07 * u**2 - 0.03)
    bow = 1 - 0.25 * torch.exp(-((u / 0.16) ** 2))
    half_open = 0.075 * face.mouth_open * across**0.8
    top = half_open + 0.062 * face.lip_fullness * across**0.7 * bow
    bottom = -half_open - 0.078 * face.lip_fullness * across**0.6
    lips = smooth(v - top, 0.012, -0.01) * smooth(v - bottom, -0.014, 0.01) * (across > 0)
    opening = smooth(v.abs() - half_open, 0.004, -0.008) * (half_open > 0.006)
    seam = torch.exp(-(((v.abs() - half_open) / 0.009) ** 2)) * smooth(across, 0.0, 0.1)
    shade = torch.where(v > 0, 0.82, 1.0) + 0.1 * torch.sin(70 * a)  # fine vertical folds
    color = color + (face.lips * shade[:, None] - color) * (0.9 * lips)[:, None]
    gap = 0.06 * torch.cos(a / 0.055 * 3.14159) ** 8  # between two teeth
    teeth = torch.tensor([0.95, 0.93, 0.87]) * (0.92 - 0.25 * u**2 - gap)[:, None]
    dark = torch.tensor([0.22, 0.06, 0.07]).expand_as(color)
    inner = torch.where((v > -0.25 * half_open)[:, None], teeth, dark)
    color = color * (1 - 0.55 * seam[:, None])
    color = color + (inner - color) * opening[:, None]
    labels = labels.clone()
    labels[(lips > 0.4) | (opening > 0.4)] = MOUTH
    return color, gloss + 0.25 * lips * (1 - opening), labels
