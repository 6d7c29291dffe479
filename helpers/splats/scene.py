"""A scene of 3D Gaussians as 3D Gaussian Splatting trains it, and how it is seen by a camera."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ..errors import refused
from .rasteriser import Camera, project, rasterise

LARGEST_DEGREE = 3  # of the harmonics that 3D Gaussian Splatting trains
BASE = 0.5 / math.sqrt(math.pi)  # the harmonic of degree 0
FIRST = math.sqrt(0.75 / math.pi)  # the factor of degree 1


@dataclass(frozen=True)
class Scene:
    """N Gaussians in world units, in the parametrisation they are trained in."""

    means: Tensor  # (N, 3)
    lengths: Tensor  # (N, 3), logarithms of the standard deviations along the own axes
    turns: Tensor  # (N, 4), quaternions w, x, y, z of the own axes; any length but 0
    opacities: Tensor  # (N,), logits
    harmonics: Tensor  # (N, (degree + 1)², 3), of the colours by direction; 0.5 is added to them

    def __post_init__(self) -> None:
        count = len(self.means)
        squares = [(degree + 1) ** 2 for degree in range(LARGEST_DEGREE + 1)]
        terms = self.harmonics.shape[1] if self.harmonics.ndim == 3 else 0
        shapes = {"means": (count, 3), "lengths": (count, 3), "turns": (count, 4),
                  "opacities": (count,), "harmonics": (count, terms, 3)}
        for name, shape in shapes.items():
            if tuple(getattr(self, name).shape) != shape:
                raise refused(f"scene.{name}", f"shape {shape}", tuple(getattr(self, name).shape),
                              "give one row for each Gaussian")
        if terms not in squares:
            raise refused("scene.harmonics", f"one of {squares} terms", terms,
                          "use those of a degree from 0 to 3")

    def __len__(self) -> int:
        return len(self.means)

    def __getitem__(self, index: Tensor | slice) -> Scene:
        return Scene(*(getattr(self, entry.name)[index] for entry in fields(self)))

    def colors_from(self, position: Tensor) -> Tensor:
        """Colours (N, 3), 0 or more, as seen from a place (3,)."""
        basis = harmonics(normalize(self.means - position, dim=1), self.harmonics.shape[1])
        return ((basis[:, None] @ self.harmonics)[:, 0] + 0.5).clamp(min=0)


@dataclass(frozen=True)
class View:
    """A scene as a camera sees it."""

    camera: Camera
    picture: Tensor  # (3, H, W) in [0, 1]
    alpha: Tensor  # (H, W) in [0, 1], how much the Gaussians cover
    depth: Tensor  # (H, W), their mean distance along the camera's axis; 0 where there are none


@torch.no_grad()
def draw(scene: Scene, camera: Camera, backdrop: Tensor) -> View:
    """Draw a scene before a backdrop (3, H, W) in [0, 1], of the camera's size."""
    axes = rotations(scene.turns) * scene.lengths.exp()[:, None]
    depths = (camera.position - scene.means) @ camera.rotation[2]
    seen = torch.cat([scene.colors_from(camera.position), depths[:, None]], 1)
    splats = project(scene.means, axes @ axes.mT, seen, scene.opacities.sigmoid(), camera)
    drawn, alpha = rasterise(splats, camera.height_px, camera.width_px)
    picture = (drawn[:3] + (1 - alpha) * backdrop).clamp(0, 1)
    return View(camera, picture, alpha, drawn[3] / alpha.clamp(min=1e-6))


def harmonics(directions: Tensor, terms: int) -> Tensor:
    """Real spherical harmonics (N, terms) of unit vectors (N, 3), with Condon and Shortley's sign.

    Source: the order and the signs are those of Kerbl et al. (2023), 3D Gaussian Splatting.
    """
    x, y, z = directions.unbind(1)
    xx, yy, zz = x * x, y * y, z * z
    second, third = math.sqrt(3.75 / math.pi), math.sqrt(35 / 32 / math.pi)
    fifth, axial = math.sqrt(21 / 32 / math.pi), math.sqrt(7 / 16 / math.pi)
    cubic = math.sqrt(26.25 / math.pi)
    basis = [torch.full_like(x, BASE),
             -FIRST * y, FIRST * z, -FIRST * x,
             second * x * y, -second * y * z, math.sqrt(5 / 16 / math.pi) * (2 * zz - xx - yy),
             -second * x * z, second / 2 * (xx - yy),
             -third * y * (3 * xx - yy), cubic * x * y * z, -fifth * y * (4 * zz - xx - yy),
             axial * z * (2 * zz - 3 * xx - 3 * yy), -fifth * x * (4 * zz - xx - yy),
             cubic / 2 * z * (xx - yy), -third * x * (xx - 3 * yy)]
    return torch.stack(basis[:terms], 1)


def rotations(turns: Tensor) -> Tensor:
    """Quaternions (N, 4), of any length, to rotation matrices (N, 3, 3)."""
    w, x, y, z = normalize(turns, dim=1).unbind(1)
    rows = [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]
    return torch.stack(rows, 1).unflatten(1, (3, 3))
