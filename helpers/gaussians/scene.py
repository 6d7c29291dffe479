"""Scenes of 3D Gaussians, cameras around them, what they see, how pixels move between views."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .filters import pixel_grid, sample
from .rasterizer import Camera, project, rasterize

SH_C0 = 0.5 / math.sqrt(math.pi)  # the spherical harmonic of degree 0
SH_C1 = math.sqrt(0.75 / math.pi)  # the factor of degree 1
# Which way is up, and where the viewer of azimuth 0 stands. COLMAP, and so most trained scenes,
# has y downwards and looks along z; graphics tools have y or z upwards
AXES = {"-y": ((0, -1, 0), (0, 0, -1)), "y": ((0, 1, 0), (0, 0, 1)), "z": ((0, 0, 1), (0, -1, 0)),
        "-z": ((0, 0, -1), (0, 1, 0)), "x": ((1, 0, 0), (0, 0, 1)), "-x": ((-1, 0, 0), (0, 0, 1))}
CONTENT_SHARE, MARGIN = 0.9, 1.3  # of the opacity within a radius; of it that a picture shows
MIN_COVER = 0.5  # alpha from which a pixel moves with the scene, not with the backdrop
DEPTH_TOLERANCE = 0.03  # share by which a surface may lie behind what is seen, and still be that


@dataclass(frozen=True)
class Scene:
    """N Gaussians in world units, in the parametrisation they are trained in."""

    means: Tensor  # (N, 3)
    log_scales: Tensor  # (N, 3), logarithms of the standard deviations along the own axes
    quaternions: Tensor  # (N, 4), w, x, y, z, of the own axes; any length but 0
    opacity_logits: Tensor  # (N,)
    harmonics: Tensor  # (N, (degree + 1)², 3), of the colours by direction, less 0.5; degree 0 to 3

    def __len__(self) -> int:
        return len(self.means)

    def __getitem__(self, index: Tensor | slice) -> Scene:
        return Scene(*(getattr(self, entry.name)[index] for entry in fields(self)))


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
    axes = rotations(scene.quaternions) * scene.log_scales.exp()[:, None]
    depths = (camera.position - scene.means) @ camera.rotation[2]
    basis = harmonics(normalize(scene.means - camera.position, dim=1), scene.harmonics.shape[1])
    colors = ((basis[:, None] @ scene.harmonics)[:, 0] + 0.5).clamp(min=0)
    colors = torch.cat([colors, depths[:, None]], 1)
    splats = project(scene.means, axes @ axes.mT, colors, scene.opacity_logits.sigmoid(), camera)
    drawn, alpha = rasterize(splats, camera.height_px, camera.width_px)
    picture = (drawn[:3] + (1 - alpha) * backdrop).clamp(0, 1)
    return View(camera, picture, alpha, drawn[3] / alpha.clamp(min=1e-6))


def frame(scene: Scene) -> tuple[Tensor, float]:
    """Centre (3,) and radius of what a scene shows: strays, however far, do not move them."""
    weights = scene.opacity_logits.sigmoid()
    centre = torch.stack([_quantile(axis, weights, 0.5) for axis in scene.means.unbind(1)])
    distances = (scene.means - centre).double().norm(dim=1)
    widths = scene.log_scales.amax(1).double().exp()  # of one Gaussian, or of some at one place
    radius = max(_quantile(distances, weights, CONTENT_SHARE), _quantile(widths, weights, 0.5),
                 torch.tensor(1e-30))
    return centre, float(radius)


def framed(scene: Scene) -> Scene:
    """The same scene about 0 with radius 1: no camera is too near in units however small."""
    centre, radius = frame(scene)
    return replace(scene, means=(scene.means - centre) / radius,
                   log_scales=scene.log_scales - math.log(radius))


def orbit(scene: Scene, *, views: int, size_px: int, up: str = "-y", arc_deg: float = 360.0,
          elevation_deg: float = 5.0, fov_deg: float = 40.0) -> list[Camera]:
    """Cameras on a circle around a scene, from left to right, that look at its centre.

    Their pictures are square; `up` is one of AXES; the middle of an arc below 360° is in front.
    """
    centre, radius = frame(scene)
    steps = views if arc_deg == 360 else max(1, views - 1)
    distance = MARGIN * radius / math.sin(math.radians(fov_deg) / 2)
    focal_px = size_px / 2 / math.tan(math.radians(fov_deg) / 2)
    above, front = (torch.tensor(axis, dtype=centre.dtype) for axis in AXES[up])
    rise, cameras = math.radians(elevation_deg), []
    for view in range(views):
        turn = math.radians(arc_deg * (view / steps - 0.5 * (views > 1)))
        level = math.cos(turn) * front + math.sin(turn) * torch.linalg.cross(above, front)
        back = math.cos(rise) * level + math.sin(rise) * above  # from the centre to the camera
        right = torch.linalg.cross(above, level)
        rotation = torch.stack([right, torch.linalg.cross(back, right), back])
        cameras.append(Camera(rotation, centre + distance * back, focal_px, size_px, size_px))
    return cameras


def flow_between(view: View, earlier: View) -> tuple[Tensor, Tensor]:
    """Where each pixel of a view was in another view of the same scene, and whether it was seen.

    A pixel moves as the mean depth of its Gaussians says; before a plain backdrop it stays.
    Returned are the displacement (1, 2, H, W) in pixels, x before y, and 0 or 1 (1, 1, H, W).
    """
    camera, (height, width) = view.camera, view.alpha.shape
    column, row = torch.arange(width) + 0.5, (torch.arange(height) + 0.5)[:, None]
    x = (column - width / 2) / camera.focal_px * view.depth
    y = (height / 2 - row) / camera.focal_px * view.depth
    world = torch.stack([x, y, -view.depth], -1) @ camera.rotation + camera.position  # (H, W, 3)
    camera = earlier.camera
    local = (world - camera.position) @ camera.rotation.T
    ahead = (-local[..., 2]).clamp(min=1e-6)
    x = camera.width_px / 2 + camera.focal_px * local[..., 0] / ahead
    y = camera.height_px / 2 - camera.focal_px * local[..., 1] / ahead
    covered = view.alpha > MIN_COVER
    flow = torch.stack([x - column, y - row]) * covered
    depth, alpha = carry(torch.stack([earlier.depth, earlier.alpha])[None], flow[None])[0]
    same_surface = ((ahead - depth).abs() < DEPTH_TOLERANCE * ahead) & (alpha > MIN_COVER)
    visible = torch.where(covered, same_surface, alpha < MIN_COVER)
    visible &= (column + flow[0] - width / 2).abs() < width / 2
    visible &= (row + flow[1] - height / 2).abs() < height / 2
    return flow[None], visible.float()[None, None]


def carry(image: Tensor, flow: Tensor, mode: str = "bilinear") -> Tensor:
    """Look up (B, C, H, W) where each pixel was: its place plus a flow (B, 2, H, W) in pixels."""
    size = torch.tensor([image.shape[3], image.shape[2]], device=flow.device).view(1, 2, 1, 1)
    grid = pixel_grid(image.shape[2:], flow.device)
    return sample(image, grid + 2 * flow / size, mode)


def harmonics(directions: Tensor, terms: int) -> Tensor:
    """Real spherical harmonics (N, terms) of unit vectors (N, 3), with Condon and Shortley's sign.

    Source: the order and the signs are those of Kerbl et al. (2023), 3D Gaussian Splatting.
    """
    x, y, z = directions.unbind(1)
    xx, yy, zz = x * x, y * y, z * z
    second, third = math.sqrt(3.75 / math.pi), math.sqrt(35 / 32 / math.pi)
    fifth, axial = math.sqrt(21 / 32 / math.pi), math.sqrt(7 / 16 / math.pi)
    cubic = math.sqrt(26.25 / math.pi)
    basis = [torch.full_like(x, SH_C0),
             -SH_C1 * y, SH_C1 * z, -SH_C1 * x,
             second * x * y, -second * y * z, math.sqrt(5 / 16 / math.pi) * (2 * zz - xx - yy),
             -second * x * z, second / 2 * (xx - yy),
             -third * y * (3 * xx - yy), cubic * x * y * z, -fifth * y * (4 * zz - xx - yy),
             axial * z * (2 * zz - 3 * xx - 3 * yy), -fifth * x * (4 * zz - xx - yy),
             cubic / 2 * z * (xx - yy), -third * x * (xx - 3 * yy)]
    return torch.stack(basis[:terms], 1)


def rotations(quaternions: Tensor) -> Tensor:
    """Quaternions (N, 4), of any length, to rotation matrices (N, 3, 3)."""
    w, x, y, z = normalize(quaternions, dim=1).unbind(1)
    rows = [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)]
    return torch.stack(rows, 1).unflatten(1, (3, 3))


def _quantile(values: Tensor, weights: Tensor, share: float) -> Tensor:
    ordered, order = values.sort()
    reached = weights[order].double().cumsum(0)
    return ordered[torch.searchsorted(reached, share * reached[-1]).clamp(max=len(values) - 1)]
