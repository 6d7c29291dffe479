"""Procedural people: an identity is a seed; the same seed gives the same head, hair and light.

No photograph of anybody is involved. Plain heads are those of the embedded data set; wide ones vary
more: finer skin and hair, beards, cropped hair, patterned clothes, harder light.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, normalize, one_hot

from splat_enhancer.gaussians.rasterizer import Camera

from .hair import Hairstyle, beard_cloud, brow_cloud, hair_cloud
from .head import BACKGROUND, REGIONS, SKIN, Cloud, Face, ellipsoid_cloud, head_cloud
from .rasterizer import rasterize
from .surface import cover, skin_detail, weave

SKINS = [(0.96, 0.80, 0.70), (0.93, 0.73, 0.60), (0.86, 0.64, 0.50), (0.74, 0.52, 0.38),
         (0.58, 0.39, 0.28), (0.42, 0.28, 0.21), (0.32, 0.21, 0.16)]
HAIRS = [(0.07, 0.06, 0.06), (0.15, 0.10, 0.07), (0.28, 0.17, 0.10), (0.42, 0.25, 0.13),
         (0.66, 0.49, 0.28), (0.82, 0.68, 0.44), (0.56, 0.24, 0.11), (0.62, 0.61, 0.60)]
WIDE_SPACING = 0.0145  # of the Gaussians of wide heads: for pictures of up to 256 px
IRISES = [(0.25, 0.14, 0.07), (0.36, 0.22, 0.10), (0.35, 0.40, 0.20), (0.28, 0.46, 0.62),
          (0.42, 0.50, 0.54)]


class Rng:
    """Random numbers of one identity and stage, each a plain call on one generator."""

    def __init__(self, seed: int, stage: str = "") -> None:
        if stage:
            digest = hashlib.blake2b(f"{seed}/{stage}".encode(), digest_size=8).digest()
            seed = int.from_bytes(digest, "big") >> 1
        self.generator = torch.Generator().manual_seed(seed)

    def between(self, low: float, high: float) -> float:
        """A number, all of the range equally likely."""
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def geometric(self, low: float, high: float) -> float:
        """A number, all factors of the range equally likely."""
        return low * (high / low) ** self.between(0, 1)

    def chance(self, share: float) -> bool:
        """True in this share of the calls."""
        return self.between(0, 1) < share

    def color(self, palette: list[tuple[float, float, float]], spread: float) -> Tensor:
        """A colour (3,) between two neighbours of a palette."""
        place = self.between(0, len(palette) - 1)
        low, mix = min(int(place), len(palette) - 2), place - min(int(place), len(palette) - 2)
        blend = torch.lerp(torch.tensor(palette[low]), torch.tensor(palette[low + 1]), mix)
        return (blend + spread * (torch.rand(3, generator=self.generator) - 0.5)).clamp(0.02, 0.98)


@dataclass(frozen=True)
class Light:
    """A warm key light, from a direction fixed in the world; a cool fill goes with it."""

    direction: Tensor  # (3,), unit, towards the light
    tint: Tensor  # (3,), around 1
    power: float
    fill: float = 0.34

    def shade(self, cloud: Cloud, camera: Camera) -> Tensor:
        """Colours (N, 3) under the key light, the fill and a soft gloss."""
        view = normalize(camera.position - cloud.means, dim=-1)
        wrap = 0.25  # light bleeds a little past the terminator, as through skin
        lambert = (((cloud.normals @ self.direction) + wrap) / (1 + wrap)).clamp(min=0)[:, None]
        sky = (0.5 + 0.5 * cloud.normals[:, 1:2]) * 0.16 + self.fill
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

    def render(self, camera: Camera, backdrop: Tensor,
               supersampling: int = 1) -> tuple[Tensor, Tensor, Tensor]:
        """Draw the head before a backdrop.

        Args:
            camera: from where; its size is the picture's.
            backdrop: (3, H, W) in [0, 1].
            supersampling: the picture is drawn this many times larger and averaged.

        Returns:
            image: (3, H, W), float32 in [0, 1]; regions: (H, W), uint8, indices of REGIONS;
            matte: (H, W), float32 in [0, 1], what the head and its clothes cover.
        """
        fine = Camera(camera.rotation, camera.position, camera.focal_px * supersampling,
                      camera.height_px * supersampling, camera.width_px * supersampling)
        facing = ((self.cloud.means - camera.position) * self.cloud.normals).sum(-1) < 0.05
        cloud = self.cloud[facing.nonzero()[:, 0]]
        labels = one_hot(cloud.labels.long(), len(REGIONS)).float()
        lit = torch.cat([self.light.shade(cloud, camera), labels], 1)
        behind = torch.zeros(3 + len(REGIONS), fine.height_px, fine.width_px)
        behind[3 + BACKGROUND] = 1.0
        drawn, light = rasterize(cloud.means, cloud.axes, lit, torch.full_like(cloud.gloss, 0.95),
                                 fine, behind)
        drawn = avg_pool2d(torch.cat([drawn, light[None]])[None], supersampling)[0]
        image = drawn[:3] + drawn[-1] * backdrop
        return image.clamp(0, 1), drawn[3:-1].argmax(0).to(torch.uint8), 1 - drawn[-1]


def plain_picture(seed: int, size_px: int) -> tuple[Tensor, Tensor, Tensor]:
    """Picture, regions and matte of a plain head, from a camera and before a wall of its own."""
    rng = Rng(seed)
    cloud, camera = _person(rng, size_px), _camera(rng, size_px)
    return Head(cloud, _light(rng)).render(camera, studio_wall(rng, size_px))


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


def studio_wall(rng: Rng, size_px: int) -> Tensor:
    """A soft two-colour studio wall with a glow behind the head (3, size, size)."""
    grey = rng.between(0.15, 0.8)
    first = grey + 0.28 * (torch.rand(3, generator=rng.generator) - 0.5)
    second = (first + 0.3 * (torch.rand(3, generator=rng.generator) - 0.5)).clamp(0.05, 0.95)
    angle, glow = rng.between(0, 6.28), rng.between(0.0, 0.25)
    line = (torch.arange(size_px) + 0.5) / size_px - 0.5
    y, x = torch.meshgrid(line, line, indexing="ij")
    mix = (0.5 + x * math.cos(angle) + y * math.sin(angle)).clamp(0, 1)
    wall = first[:, None, None] * (1 - mix) + second[:, None, None] * mix
    return (wall + glow * torch.exp(-5 * (x**2 + (y + 0.1) ** 2))).clamp(0, 1)


def wide_head(seed: int, movement: float = 0.0, picture: str = "") -> Head:
    """A head of the wide variety.

    Args:
        seed: the identity.
        movement: 0 to 1, how far eyes, lids and mouth moved since the first picture was taken.
        picture: a file that gives the colours, for texture that no painted head has.
    """
    rng = Rng(seed, "wide")
    d = rng.between
    face, style = _face(rng), _hairstyle(rng)
    face = replace(face, stubble=d(0.3, 1.0) if rng.chance(0.45) else 0.0,
                   hair=face.hair * d(0.6, 1.1))
    moved = replace(face, eye_open=face.eye_open * (1 - movement * d(0.0, 0.75)),
                    gaze=(face.gaze[0] + movement * d(-0.07, 0.07),
                          face.gaze[1] + movement * d(-0.02, 0.02)),
                    mouth_open=max(0.0, face.mouth_open + movement * d(-0.5, 0.4)),
                    smile=face.smile + movement * d(-0.5, 0.5))
    if rng.chance(0.5):  # cropped
        style = Hairstyle(d(0.06, 0.3), d(0.02, 0.09), style.part, d(0.3, 1.0), d(0, 0.3), 0.05,
                          strands=3_000)
    else:
        style = replace(style, strands=int(1.6 * style.strands))
    spacing = WIDE_SPACING
    neck, pitch = d(0.36, 0.46), 1.6 * spacing
    parts = [
        skin_detail(head_cloud(moved, spacing, rng.generator, 0.55, 0.7), rng),
        skin_detail(_oval((0, -1, -0.22), (neck, 0.85, neck), pitch, 0.9 * face.skin), rng),
        weave(_oval((0, d(-2.3, -2.05), -0.3), (1.45, 0.78, 0.62), pitch, _cloth(rng),
                    BACKGROUND), rng),
        brow_cloud(face, 2 * d(0.7, 1.5), d(0.4, 1.2), rng.generator, 0.6),
    ]
    if rng.chance(0.5):  # a collar
        parts.append(weave(_oval((0, d(-1.6, -1.4), -0.22), (neck + 0.1, d(0.15, 0.3), neck + 0.1),
                                 pitch, _cloth(rng), BACKGROUND), rng))
    parts += [skin_detail(ear, rng) for ear in _ears(face, spacing)]
    if rng.chance(0.3):
        parts.append(beard_cloud(face, d(0.03, 0.12), int(d(1_500, 5_000)), rng.generator))
    if not rng.chance(0.05):
        parts.append(hair_cloud(face, style, rng.generator, d(0.5, 0.8), d(0.3, 0.75)))
    ahead = normalize(torch.tensor([d(-1.0, 1.0), d(0.0, 0.9), 1.0]), dim=0)
    warm, fill = d(-0.1, 0.14), d(0.2, 0.5)
    tint = torch.tensor([1 + warm, 1.0, 1 - warm])
    light, cloud = Light(ahead, tint, d(0.95, 1.2) - fill, fill), Cloud.join(parts)
    return Head(cover(cloud, picture, Rng(seed, "cover")) if picture else cloud, light)


def _cloth(rng: Rng) -> Tensor:
    grey = torch.rand(1, generator=rng.generator).expand(3)
    color = torch.rand(3, generator=rng.generator)
    return (grey.lerp(color, rng.between(0, 1)) * 0.85 + 0.05)


def _face(rng: Rng) -> Face:
    d = rng.between
    skin = rng.color(SKINS, 0.04)
    open_mouth = d(0.25, 0.9) if rng.chance(0.4) else 0.0
    return Face(
        width=d(0.69, 0.77), jaw=d(0.08, 0.28), chin=d(0.0, 0.06), cheeks=d(0.0, 0.05),
        nose_length=d(-0.02, 0.05), nose_width=d(0.7, 1.25), nose_height=d(0.75, 1.15),
        eye_gap=d(0.355, 0.40), eye_width=d(0.145, 0.18), eye_open=d(0.7, 1.15),
        eye_tilt=d(-0.05, 0.16), gaze=(d(-0.045, 0.045), d(-0.012, 0.012)),
        mouth_line=d(-0.52, -0.47), mouth_width=d(0.25, 0.32), lip_fullness=d(0.6, 1.15),
        mouth_open=open_mouth, smile=d(-0.3, 1.0),
        stubble=d(0.2, 0.9) if rng.chance(0.25) else 0.0,
        freckles=d(0.3, 1.0) if rng.chance(0.25) else 0.0, skin=skin,
        lips=(0.72 * skin + 0.28 * torch.tensor([d(0.6, 0.95), 0.12, d(0.15, 0.3)])) * d(0.8, 1.0),
        iris=rng.color(IRISES, 0.05), hair=rng.color(HAIRS, 0.04), hairline=d(0.50, 0.68),
    )


def _hairstyle(rng: Rng) -> Hairstyle:
    d = rng.between
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


def _person(rng: Rng, size_px: int) -> Cloud:
    face, style = _face(rng), _hairstyle(rng)
    spacing = 0.023 * min(1.0, 128 / size_px)
    neck, cloth = rng.between(0.36, 0.44), torch.rand(3, generator=rng.generator) * 0.7 + 0.1
    parts = [
        head_cloud(face, spacing, rng.generator),
        _oval((0, -1, -0.22), (neck, 0.85, neck), 1.6 * spacing, 0.88 * face.skin),
        _oval((0, -2.15, -0.3), (1.45, 0.78, 0.62), 2.5 * spacing, cloth, BACKGROUND),
        brow_cloud(face, rng.between(0.7, 1.5), rng.between(0.4, 1.2), rng.generator),
        *_ears(face, spacing),
    ]
    if not rng.chance(0.06):
        parts.append(hair_cloud(face, style, rng.generator))
    return Cloud.join(parts)


def _oval(center: tuple, radii: tuple, spacing: float, color: Tensor, label: int = SKIN) -> Cloud:
    return ellipsoid_cloud(torch.tensor(center), torch.tensor(radii), spacing, color, label)


def _ears(face: Face, spacing: float) -> list[Cloud]:
    return [_oval((side * face.width * 0.99, 0, -0.1), (0.07, 0.19, 0.12), 1.2 * spacing,
                  0.95 * face.skin) for side in (-1.0, 1.0)]


def _camera(rng: Rng, size_px: int) -> Camera:
    yaw, pitch = rng.between(-0.5, 0.5), rng.between(-0.16, 0.2)
    roll = rng.between(-0.07, 0.07)
    target = rng.between(-0.06, 0.06), rng.between(-0.2, -0.06)
    return look_at_head(yaw, pitch, roll, size_px=size_px, target=target,
                        frame=rng.between(2.4, 2.75))


def _light(rng: Rng) -> Light:
    ahead = normalize(torch.tensor([rng.between(-0.9, 0.9), rng.between(0.15, 0.9), 1.0]), dim=0)
    warm, power = rng.between(-0.08, 0.12), rng.between(0.5, 0.75)
    return Light(ahead, torch.tensor([1 + warm, 1.0, 1 - warm]), power)


