"""A small exact Gaussian rasteriser in plain torch: tiles, front-to-back alpha, differentiable.

Gaussians are drawn the way 3D Gaussian Splatting draws them (Kerbl et al. 2023): projected to 2D,
sorted by depth, composited front to back, a contribution below 1/255 left out. Nothing here is
approximate beyond that rule: tiles only skip work that would add zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

MIN_ALPHA = 1 / 255  # below this a contribution is left out, as in 3D Gaussian Splatting
MAX_ALPHA = 0.99  # no Gaussian is ever fully opaque, so gradients reach what lies behind
LOW_PASS_PX2 = 0.3  # variance added to every projected Gaussian: none is thinner than a pixel


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks along its own −z axis, image centre on its axis.

    Args:
        rotation: (3, 3), world to camera (x right, y up, z towards the viewer).
        position: (3,), the camera's place in world units.
        focal_px: focal length in pixels.
        height_px: image height.
        width_px: image width.
    """

    rotation: Tensor
    position: Tensor
    focal_px: float
    height_px: int
    width_px: int


@dataclass(frozen=True)
class Splats:
    """N projected Gaussians, ready to be drawn.

    Args:
        centers: (N, 2), pixel coordinates (x, y); the centre of the first pixel is (0.5, 0.5).
        covariances: (N, 2, 2), px².
        colors: (N, C), any number of channels.
        opacities: (N,), in [0, 1].
        depths: (N,), distance from the viewer; smaller is drawn in front.
    """

    centers: Tensor
    covariances: Tensor
    colors: Tensor
    opacities: Tensor
    depths: Tensor

    def __post_init__(self) -> None:
        n = self.centers.shape[0]
        expected = {"centers": (n, 2), "covariances": (n, 2, 2), "opacities": (n,), "depths": (n,)}
        for name, shape in expected.items():
            got = tuple(getattr(self, name).shape)
            if got != shape:
                raise ValueError(f"splats.{name}: expected shape {shape}, got {got}")
        if self.colors.ndim != 2 or self.colors.shape[0] != n:
            raise ValueError(f"splats.colors: expected ({n}, C), got {tuple(self.colors.shape)}")

    def __getitem__(self, index: Tensor) -> Splats:
        return Splats(self.centers[index], self.covariances[index], self.colors[index],
                      self.opacities[index], self.depths[index])


def project(means: Tensor, covariances: Tensor, colors: Tensor, opacities: Tensor,
            camera: Camera) -> Splats:
    """Project 3D Gaussians to the image plane by the local affine (EWA) approximation.

    Args:
        means: (N, 3), world units.
        covariances: (N, 3, 3), world units².
        colors: (N, C).
        opacities: (N,), in [0, 1].
        camera: where from.

    Returns:
        The splats in front of the camera; those behind it are left out.

    Source: Zwicker et al., EWA Splatting (2002); low-pass as in Kerbl et al. (2023).
    """
    local = (means - camera.position) @ camera.rotation.T  # (N, 3)
    ahead = -local[:, 2] > 1e-3
    local, covariances = local[ahead], covariances[ahead]
    depth = -local[:, 2]
    scale = camera.focal_px / depth
    jacobian = torch.zeros(len(depth), 2, 3, dtype=means.dtype, device=means.device)
    jacobian[:, 0, 0], jacobian[:, 0, 2] = scale, scale * local[:, 0] / depth
    jacobian[:, 1, 1], jacobian[:, 1, 2] = -scale, -scale * local[:, 1] / depth
    to_image = jacobian @ camera.rotation  # (N, 2, 3)
    flat = to_image @ covariances @ to_image.transpose(1, 2)
    low_pass = LOW_PASS_PX2 * torch.eye(2, dtype=means.dtype, device=means.device)
    x = camera.width_px / 2 + scale * local[:, 0]
    y = camera.height_px / 2 - scale * local[:, 1]
    return Splats(torch.stack([x, y], 1), flat + low_pass, colors[ahead], opacities[ahead], depth)


def rasterise(splats: Splats, height_px: int, width_px: int, *, background: Tensor | None = None,
              tile_px: int = 8, chunk_elements: int = 2_000_000) -> tuple[Tensor, Tensor]:
    """Draw splats over a background, exactly and differentiably.

    Args:
        splats: what to draw, in any order; degenerate or non-finite ones are left out.
        height_px: image height.
        width_px: image width.
        background: (C, H, W), or None for zeros.
        tile_px: side of the square tiles; a matter of speed only.
        chunk_elements: how many (tile, Gaussian, pixel) products are held at once.

    Returns:
        image: (C, H, W), and alpha: (H, W), how much of each pixel the splats cover.

    Raises:
        ValueError: the image or a tile is empty, or the background has another shape.
    """
    if height_px < 1 or width_px < 1 or tile_px < 1:
        raise ValueError("image and tile size: expected 1 px or more, got "
                         f"{height_px} x {width_px} and {tile_px}")
    channels = splats.colors.shape[1]
    shape = (channels, height_px, width_px)
    if background is not None and tuple(background.shape) != shape:
        raise ValueError(f"background: expected {shape}, got {tuple(background.shape)}")
    splats, inverses, spans = _visible(splats, height_px, width_px, tile_px)
    columns, rows = -(-width_px // tile_px), -(-height_px // tile_px)
    like = splats.colors.new_zeros
    painted, light = [like(0, tile_px**2, channels)], [like(0, tile_px**2)]
    order = [torch.zeros(0, dtype=torch.long, device=like(0).device)]
    for tiles, members, used in _tile_groups(spans, columns, rows, tile_px, chunk_elements):
        image, left = _composite(splats, inverses, tiles, members, used, columns, tile_px)
        painted.append(image)
        light.append(left)
        order.append(tiles)
    index = torch.cat(order)
    canvas = like(rows * columns, tile_px**2, channels).index_copy(0, index, torch.cat(painted))
    through = (like(rows * columns, tile_px**2) + 1).index_copy(0, index, torch.cat(light))
    canvas = _from_tiles(canvas, rows, columns, tile_px)[:, :height_px, :width_px]
    through = _from_tiles(through[..., None], rows, columns, tile_px)[0, :height_px, :width_px]
    return (canvas if background is None else canvas + through * background), 1 - through


def _visible(splats: Splats, height_px: int, width_px: int,
             tile_px: int) -> tuple[Splats, Tensor, Tensor]:
    """Keep what touches the image, sorted by depth, with inverse covariances and tile spans."""
    splats = splats[torch.argsort(splats.depths.detach(), stable=True)]
    with torch.no_grad():
        a, b, c = (splats.covariances[:, i, j] for i, j in ((0, 0), (0, 1), (1, 1)))
        reach = 2 * torch.log(splats.opacities / MIN_ALPHA)  # squared Mahalanobis radius
        half = torch.stack([a, c], 1).mul(reach.clamp(min=0)[:, None]).sqrt()
        low, high = splats.centers - half, splats.centers + half
        size = torch.tensor([width_px, height_px], dtype=low.dtype, device=low.device)
        good = (reach > 0) & (a * c - b * b > 1e-12) & (a > 0) & (c > 0)
        good &= torch.isfinite(low).all(1) & torch.isfinite(splats.colors).all(1)
        good &= torch.isfinite(splats.depths)
        good &= (high > 0).all(1) & (low < size).all(1)
        first = (low[good].clamp(min=0) / tile_px).floor().long()
        last = (torch.minimum(high[good], size - 0.5) / tile_px).floor().long()
    splats = splats[good]  # before anything is divided: what is left out has a gradient of zero
    a, b, c = (splats.covariances[:, i, j] for i, j in ((0, 0), (0, 1), (1, 1)))
    inverse = torch.stack([c, -b, a], 1) / (a * c - b * b)[:, None]  # xx, xy, yy
    return splats, inverse, torch.cat([first, last], 1)


def _tile_groups(spans: Tensor, columns: int, rows: int, tile_px: int,
                 chunk_elements: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield groups of tiles with their Gaussians: tiles (T,), members (T, K), used (T, K)."""
    if not len(spans):
        return
    x0, y0, x1, y1 = spans.unbind(1)
    wide, tall = x1 - x0 + 1, y1 - y0 + 1
    per_splat = wide * tall
    owner = torch.repeat_interleave(torch.arange(len(spans), device=spans.device), per_splat)
    nth = torch.arange(len(owner), device=spans.device) - (per_splat.cumsum(0) - per_splat)[owner]
    tile = (y0[owner] + nth // wide[owner]) * columns + x0[owner] + nth % wide[owner]
    tile, by_tile = torch.sort(tile, stable=True)  # stable: depth order survives inside a tile
    owner = owner[by_tile]
    counts = torch.bincount(tile, minlength=rows * columns)
    starts = counts.cumsum(0) - counts
    order = torch.argsort(counts, descending=True)
    sizes = counts[order].tolist()
    at = 0
    while at < len(sizes) and sizes[at]:
        longest = sizes[at]
        group = order[at:at + max(1, chunk_elements // (longest * tile_px**2))]
        group = group[counts[group] > 0]
        slot = torch.arange(longest, device=spans.device)
        used = slot < counts[group, None]
        members = owner[(starts[group, None] + slot).clamp(max=len(owner) - 1)]
        yield group, members, used
        at += len(group)


def _composite(splats: Splats, inverses: Tensor, tiles: Tensor, members: Tensor, used: Tensor,
               columns: int, tile_px: int) -> tuple[Tensor, Tensor]:
    """Blend each tile's Gaussians front to back: image (T, P, C), light left over (T, P)."""
    inside = torch.arange(tile_px**2, device=tiles.device)
    x = (tiles % columns * tile_px)[:, None] + inside % tile_px + 0.5  # (T, P)
    y = (tiles // columns * tile_px)[:, None] + inside // tile_px + 0.5
    center, inverse = splats.centers[members], inverses[members]
    dx = x[:, None, :] - center[..., 0, None]  # (T, K, P)
    dy = y[:, None, :] - center[..., 1, None]
    xx, xy, yy = (inverse[..., i, None] for i in range(3))
    power = (xx * dx + 2 * xy * dy) * dx + yy * dy * dy
    alpha = splats.opacities[members][..., None] * torch.exp(-0.5 * power)
    alpha = torch.where((alpha >= MIN_ALPHA) & used[..., None], alpha, 0.0).clamp(max=MAX_ALPHA)
    through = torch.cumprod(1 - alpha, dim=1)
    weight = alpha * torch.cat([torch.ones_like(through[:, :1]), through[:, :-1]], 1)
    return weight.transpose(1, 2) @ splats.colors[members], through[:, -1]


def _from_tiles(tiles: Tensor, rows: int, columns: int, tile_px: int) -> Tensor:
    """(rows·columns, P, C) to (C, rows·tile, columns·tile)."""
    grid = tiles.view(rows, columns, tile_px, tile_px, -1)
    return grid.permute(4, 0, 2, 1, 3).reshape(-1, rows * tile_px, columns * tile_px)
