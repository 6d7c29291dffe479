"""The embedded data set: procedural heads made of 3D Gaussians, lit and drawn by `splat.py`.

An identity is a seed. The same seed gives the same picture and the same region map, whatever else
is drawn; no photograph of anybody is involved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import refused
from ..splats import Camera, project, rasterise
from .hair import Hairstyle, brow_cloud, hair_cloud
from .head import Cloud, Face, ellipsoid_cloud, head_cloud
from .regions import BACKGROUND, REGIONS, SKIN

_SKINS = [(0.96, 0.80, 0.70), (0.93, 0.73, 0.60), (0.86, 0.64, 0.50), (0.74, 0.52, 0.38),
          (0.58, 0.39, 0.28), (0.42, 0.28, 0.21), (0.32, 0.21, 0.16)]
_HAIRS = [(0.07, 0.06, 0.06), (0.15, 0.10, 0.07), (0.28, 0.17, 0.10), (0.42, 0.25, 0.13),
          (0.66, 0.49, 0.28), (0.82, 0.68, 0.44), (0.56, 0.24, 0.11), (0.62, 0.61, 0.60)]
_IRISES = [(0.25, 0.14, 0.07), (0.36, 0.22, 0.10), (0.35, 0.40, 0.20), (0.28, 0.46, 0.62),
           (0.42, 0.50, 0.54)]


class _Dice:
    """Random draws of one identity, each a plain call on one generator."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def chance(self, share: float) -> bool:
        return self.between(0, 1) < share

    def color(self, palette: list[tuple[float, float, float]], spread: float) -> Tensor:
        place = self.between(0, len(palette) - 1)
        low, mix = min(int(place), len(palette) - 2), place - min(int(place), len(palette) - 2)
        blend = torch.lerp(torch.tensor(palette[low]), torch.tensor(palette[low + 1]), mix)
        return (blend + spread * (torch.rand(3, generator=self.generator) - 0.5)).clamp(0.02, 0.98)


def render_avatar(seed: int, size_px: int) -> tuple[Tensor, Tensor]:
    """Render the head of one identity.

    Args:
        seed: the identity; equal seeds give equal pictures.
        size_px: side of the square image, in pixels.

    Returns:
        image: (3, size, size), float32 in [0, 1]; regions: (size, size), uint8, indices of REGIONS.

    Raises:
        ValueError: the seed is negative or the size below 16.
    """
    _refuse_misfit(seed, size_px)
    dice = _Dice(seed)
    cloud = _person(dice, size_px)
    camera = _camera(dice, size_px)
    head = Head(cloud, _light(dice))
    return head.render(camera, _backdrop(dice, size_px))


@dataclass(frozen=True)
class Light:
    """A warm key light, from a direction fixed in the world; a cool fill goes with it."""

    direction: Tensor  # (3,), unit, towards the light
    tint: Tensor  # (3,), around 1
    power: float

    def shade(self, cloud: Cloud, camera: Camera) -> Tensor:
        """Colours (N, 3) under the key light, the fill and a soft gloss."""
        view = normalize(camera.position - cloud.means, dim=-1)
        wrap = 0.25  # light bleeds a little past the terminator, as through skin
        lambert = (((cloud.normals @ self.direction) + wrap) / (1 + wrap)).clamp(min=0)[:, None]
        sky = (0.5 + 0.5 * cloud.normals[:, 1:2]) * 0.16 + 0.34
        under_chin = 1 - 0.45 * torch.exp(-(((cloud.means[:, 1:2] + 1.05) / 0.22) ** 2)) \
            * (cloud.means[:, 2:3] < 0.35)
        half = normalize(view + self.direction, dim=-1)
        mirrored = (cloud.normals * half).sum(-1, keepdim=True).clamp(min=0) ** 24
        gloss = cloud.gloss[:, None] * mirrored
        lit = cloud.colors * (sky + self.power * lambert * self.tint) * under_chin
        return (lit + 0.5 * gloss).clamp(0, 1)


@dataclass(frozen=True)
class Head:
    """A head that can be seen from anywhere, its light staying where it is."""

    cloud: Cloud
    light: Light

    @classmethod
    def of(cls, seed: int, size_px: int) -> Head:
        """The head of an identity, as finely made as pictures of a size need.

        Args:
            seed: the identity.
            size_px: side of the pictures it is for, in pixels.

        Raises:
            ValueError: the seed is negative or the size below 16.
        """
        _refuse_misfit(seed, size_px)
        dice = _Dice(seed)
        return cls(_person(dice, size_px), _light(dice))

    def render(self, camera: Camera, backdrop: Tensor) -> tuple[Tensor, Tensor]:
        """Draw the head before a backdrop.

        Args:
            camera: from where; its size is the picture's.
            backdrop: (3, H, W) in [0, 1].

        Returns:
            image: (3, H, W), float32 in [0, 1]; regions: (H, W), uint8, indices of REGIONS.
        """
        cloud = self.cloud
        facing = ((cloud.means - camera.position) * cloud.normals).sum(-1) < 0.05
        cloud = cloud[facing.nonzero()[:, 0]]
        labels = torch.nn.functional.one_hot(cloud.labels.long(), len(REGIONS)).float()
        lit = torch.cat([self.light.shade(cloud, camera), labels], 1)
        splats = project(cloud.means, cloud.axes @ cloud.axes.mT, lit,
                         torch.full_like(cloud.gloss, 0.95), camera)
        behind = torch.zeros(3 + len(REGIONS), camera.height_px, camera.width_px)
        behind[:3], behind[3 + BACKGROUND] = backdrop, 1.0
        drawn, _ = rasterise(splats, camera.height_px, camera.width_px, background=behind)
        return drawn[:3].clamp(0, 1), drawn[3:].argmax(0).to(torch.uint8)


def look_at_head(yaw: float, pitch: float, roll: float = 0.0, *, size_px: int,
                 target: tuple[float, float] = (0.0, -0.12), frame: float = 2.6,
                 distance: float = 5.2) -> Camera:
    """A camera on a sphere around the head.

    Args:
        yaw, pitch, roll: radians; yaw is positive where the camera stands at the viewer's right.
        size_px: side of the square picture, in pixels.
        target: what it looks at: x and y in head units.
        frame: how many head units fill the picture at that place.
        distance: from the target, in head units.
    """
    (cy, sy), (cp, sp), (cr, sr) = ((math.cos(t), math.sin(t)) for t in (yaw, pitch, roll))
    turn = torch.tensor([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
    tilt = torch.tensor([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    lean = torch.tensor([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    rotation = lean @ tilt @ turn
    position = torch.tensor([*target, 0.0]) + rotation.T @ torch.tensor([0.0, 0.0, distance])
    return Camera(rotation, position, size_px * distance / frame, size_px, size_px)


def studio_wall(seed: int, size_px: int) -> Tensor:
    """One of the walls that stand behind the avatars, (3, size, size) in [0, 1].

    Raises:
        ValueError: the seed is negative or the size below 16.
    """
    _refuse_misfit(seed, size_px)
    return _backdrop(_Dice(seed), size_px)


def _refuse_misfit(seed: int, size_px: int) -> None:
    if seed < 0 or size_px < 16:
        raise refused("avatar", "seed >= 0 and size_px >= 16", (seed, size_px), "raise them")


def _face(dice: _Dice) -> Face:
    d = dice.between
    skin = dice.color(_SKINS, 0.04)
    open_mouth = d(0.25, 0.9) if dice.chance(0.4) else 0.0
    return Face(
        width=d(0.69, 0.77), jaw=d(0.08, 0.28), chin=d(0.0, 0.06), cheeks=d(0.0, 0.05),
        nose_length=d(-0.02, 0.05), nose_width=d(0.7, 1.25), nose_height=d(0.75, 1.15),
        eye_gap=d(0.355, 0.40), eye_width=d(0.145, 0.18), eye_open=d(0.7, 1.15),
        eye_tilt=d(-0.05, 0.16), gaze=(d(-0.045, 0.045), d(-0.012, 0.012)),
        mouth_line=d(-0.52, -0.47), mouth_width=d(0.25, 0.32), lip_fullness=d(0.6, 1.15),
        mouth_open=open_mouth, smile=d(-0.3, 1.0),
        stubble=d(0.2, 0.9) if dice.chance(0.25) else 0.0,
        freckles=d(0.3, 1.0) if dice.chance(0.25) else 0.0, skin=skin,
        lips=(0.72 * skin + 0.28 * torch.tensor([d(0.6, 0.95), 0.12, d(0.15, 0.3)])) * d(0.8, 1.0),
        iris=dice.color(_IRISES, 0.05), hair=dice.color(_HAIRS, 0.04), hairline=d(0.50, 0.68),
    )


def _hairstyle(dice: _Dice) -> Hairstyle:
    d = dice.between
    kind = d(0, 1)
    if kind < 0.40:  # short
        return Hairstyle(d(0.2, 0.42), d(0.03, 0.1), d(-0.9, 0.9), d(0.1, 0.9), d(0, 0.12),
                         gravity=0.1, strands=1100)
    if kind < 0.58:  # curly
        return Hairstyle(d(0.4, 0.8), d(0.1, 0.24), d(-0.9, 0.9), d(0, 0.6), d(0.6, 1.0),
                         gravity=0.2, strands=1000)
    if kind < 0.78:  # bob
        return Hairstyle(d(0.9, 1.3), d(0.05, 0.11), d(-0.6, 0.6), d(0, 0.3), d(0.02, 0.15),
                         gravity=0.5, strands=1200)
    return Hairstyle(d(1.7, 2.3), d(0.04, 0.1), d(-0.6, 0.6), d(0, 0.35), d(0.02, 0.2),
                     gravity=0.6, strands=1300)


def _person(dice: _Dice, size_px: int) -> Cloud:
    face, style = _face(dice), _hairstyle(dice)
    spacing = 0.023 * min(1.0, 128 / size_px)
    vector = torch.tensor
    neck, cloth = dice.between(0.36, 0.44), torch.rand(3, generator=dice.generator) * 0.7 + 0.1
    parts = [
        head_cloud(face, spacing, dice.generator),
        ellipsoid_cloud(vector([0.0, -1.0, -0.22]), vector([neck, 0.85, neck]), 1.6 * spacing,
                        0.88 * face.skin, SKIN),
        ellipsoid_cloud(vector([0.0, -2.15, -0.3]), vector([1.45, 0.78, 0.62]), 2.5 * spacing,
                        cloth, BACKGROUND),
        brow_cloud(face, dice.between(0.7, 1.5), dice.between(0.4, 1.2), dice.generator),
    ]
    for side in (-1.0, 1.0):
        parts.append(ellipsoid_cloud(vector([side * face.width * 0.99, 0.0, -0.1]),
                                     vector([0.07, 0.19, 0.12]), 1.2 * spacing,
                                     0.95 * face.skin, SKIN))
    if not dice.chance(0.06):
        parts.append(hair_cloud(face, style, dice.generator))
    return Cloud.join(parts)


def _camera(dice: _Dice, size_px: int) -> Camera:
    yaw, pitch = dice.between(-0.5, 0.5), dice.between(-0.16, 0.2)
    roll = dice.between(-0.07, 0.07)
    target = dice.between(-0.06, 0.06), dice.between(-0.2, -0.06)
    return look_at_head(yaw, pitch, roll, size_px=size_px, target=target,
                        frame=dice.between(2.4, 2.75))


def _light(dice: _Dice) -> Light:
    ahead = normalize(torch.tensor([dice.between(-0.9, 0.9), dice.between(0.15, 0.9), 1.0]), dim=0)
    warm, power = dice.between(-0.08, 0.12), dice.between(0.5, 0.75)
    return Light(ahead, torch.tensor([1 + warm, 1.0, 1 - warm]), power)


def _backdrop(dice: _Dice, size_px: int) -> Tensor:
    """A soft two-colour studio wall with a glow behind the head (3, size, size)."""
    grey = dice.between(0.15, 0.8)
    first = grey + 0.28 * (torch.rand(3, generator=dice.generator) - 0.5)
    second = (first + 0.3 * (torch.rand(3, generator=dice.generator) - 0.5)).clamp(0.05, 0.95)
    angle, glow = dice.between(0, 6.28), dice.between(0.0, 0.25)
    line = (torch.arange(size_px) + 0.5) / size_px - 0.5
    y, x = torch.meshgrid(line, line, indexing="ij")
    mix = (0.5 + x * math.cos(angle) + y * math.sin(angle)).clamp(0, 1)
    wall = first[:, None, None] * (1 - mix) + second[:, None, None] * mix
    return (wall + glow * torch.exp(-5 * (x**2 + (y + 0.1) ** 2))).clamp(0, 1)
