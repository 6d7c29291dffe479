"""Cameras around a scene, and how its pixels move from one of them to another: exactly."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import refused
from .filters import pixel_grid, sample
from .rasteriser import Camera
from .scene import Scene, View

# Which way is up, and where the viewer of azimuth 0 stands. COLMAP, and so most trained scenes,
# has y downwards and looks along z; graphics tools have y or z upwards
AXES = {"-y": ((0, -1, 0), (0, 0, -1)), "y": ((0, 1, 0), (0, 0, 1)), "z": ((0, 0, 1), (0, -1, 0)),
        "-z": ((0, 0, -1), (0, 1, 0)), "x": ((1, 0, 0), (0, 0, 1)), "-x": ((-1, 0, 0), (0, 0, 1))}
CONTENT_SHARE, ROOM = 0.9, 1.3  # of the opacity within a radius; of it that a picture shows
COVERED = 0.5  # alpha from which a pixel moves with the scene, not with the backdrop
NEAR = 0.03  # share by which a surface may lie behind what is seen there, and still be that


def frame(scene: Scene) -> tuple[Tensor, float]:
    """Centre (3,) and radius of what a scene shows: strays, however far, do not move them."""
    weights = scene.opacities.sigmoid()
    centre = torch.stack([_quantile(axis, weights, 0.5) for axis in scene.means.unbind(1)])
    far = (scene.means - centre).double().norm(dim=1)
    wide = scene.lengths.amax(1).double().exp()  # of one Gaussian, or of some at one place
    return centre, float(max(_quantile(far, weights, CONTENT_SHARE), _quantile(wide, weights, 0.5),
                             torch.tensor(1e-30)))


def framed(scene: Scene) -> Scene:
    """The same scene about 0 with radius 1: no camera is too near in units however small."""
    centre, radius = frame(scene)
    return replace(scene, means=(scene.means - centre) / radius,
                   lengths=scene.lengths - math.log(radius))


def orbit(scene: Scene, *, views: int, size_px: int, up: str = "-y", arc_deg: float = 360.0,
          elevation_deg: float = 5.0, fov_deg: float = 40.0) -> list[Camera]:
    """Cameras on a circle around a scene, from left to right, that look at its centre.

    Args:
        views: how many.
        size_px: side of their square pictures.
        up: the axis that points upwards, one of AXES.
        arc_deg: part of the circle, its middle in front; 360 is all of it.
        elevation_deg: how far above the centre they stand, below 90.
        fov_deg: angle of view.

    Raises:
        ValueError: an axis or an angle of no use.
    """
    if up not in AXES:
        raise refused("up", f"one of {', '.join(AXES)}", up, "name the axis that points upwards")
    if not (views > 0 and 0 < arc_deg <= 360 and abs(elevation_deg) < 90 and 1 < fov_deg < 150):
        raise refused("orbit", "1 view or more, an arc up to 360°, an elevation below 90° and "
                      "1° to 150° of view", (views, arc_deg, elevation_deg, fov_deg), "change them")
    centre, radius = frame(scene)
    steps = views if arc_deg == 360 else max(1, views - 1)
    azimuths = [arc_deg * (view / steps - 0.5 * (views > 1)) for view in range(views)]
    distance = ROOM * radius / math.sin(math.radians(fov_deg) / 2)
    focal_px = size_px / 2 / math.tan(math.radians(fov_deg) / 2)
    return [_look(centre, distance, azimuth, elevation_deg, up, focal_px, size_px)
            for azimuth in azimuths]


def flow_between(now: View, before: View) -> tuple[Tensor, Tensor]:
    """Where each pixel of a view was in another view of the same scene, and whether it was seen.

    A pixel moves as the mean depth of its Gaussians says; before a plain backdrop it stays.

    Returns:
        Displacement (1, 2, H, W) in pixels, x before y, and visibility (1, 1, H, W), 0 or 1.
    """
    other = before.camera
    local = (_unproject(now) - other.position) @ other.rotation.T  # (H, W, 3)
    ahead = (-local[..., 2]).clamp(min=1e-6)
    x = other.width_px / 2 + other.focal_px * local[..., 0] / ahead
    y = other.height_px / 2 - other.focal_px * local[..., 1] / ahead
    height, width = now.alpha.shape
    own_x, own_y = torch.arange(width) + 0.5, (torch.arange(height) + 0.5)[:, None]
    covered = now.alpha > COVERED
    flow = torch.stack([x - own_x, y - own_y]) * covered
    there = carry(torch.stack([before.depth, before.alpha])[None], flow[None])[0]
    same = torch.where(covered, ((ahead - there[0]).abs() < NEAR * ahead) & (there[1] > COVERED),
                       there[1] < COVERED)
    inside = (own_x + flow[0] - width / 2).abs() < width / 2
    inside &= (own_y + flow[1] - height / 2).abs() < height / 2
    return flow[None], (same & inside).float()[None, None]


def carry(image: Tensor, flow: Tensor, mode: str = "bilinear") -> Tensor:
    """Look up (B, C, H, W) where each pixel was: its place plus a flow (B, 2, H, W) in pixels."""
    size = torch.tensor([image.shape[3], image.shape[2]], device=flow.device).view(1, 2, 1, 1)
    grid = pixel_grid(image.shape[2:], flow.device)
    return sample(image, grid + 2 * flow / size, mode)


def _look(centre: Tensor, distance: float, azimuth_deg: float, elevation_deg: float, up: str,
          focal_px: float, size_px: int) -> Camera:
    above, front = (torch.tensor(axis, dtype=centre.dtype) for axis in AXES[up])
    turn, rise = math.radians(azimuth_deg), math.radians(elevation_deg)
    level = math.cos(turn) * front + math.sin(turn) * torch.linalg.cross(above, front)
    back = math.cos(rise) * level + math.sin(rise) * above  # from the centre to the camera
    right = torch.linalg.cross(above, level)
    rotation = torch.stack([right, torch.linalg.cross(back, right), back])
    return Camera(rotation, centre + distance * back, focal_px, size_px, size_px)


def _unproject(view: View) -> Tensor:
    """The place in the world (H, W, 3) that each pixel shows."""
    camera, (height, width) = view.camera, view.alpha.shape
    x = (torch.arange(width) + 0.5 - width / 2) / camera.focal_px * view.depth
    y = (height / 2 - torch.arange(height)[:, None] - 0.5) / camera.focal_px * view.depth
    return torch.stack([x, y, -view.depth], -1) @ camera.rotation + camera.position


def _quantile(values: Tensor, weights: Tensor, share: float) -> Tensor:
    ordered, order = values.sort()
    reached = weights[order].double().cumsum(0)
    return ordered[torch.searchsorted(reached, share * reached[-1]).clamp(max=len(values) - 1)]
