"""A small exact Gaussian rasterizer in plain torch: tiles, front-to-back alpha, differentiable.

Gaussians are drawn as 3D Gaussian Splatting draws them (Kerbl et al. 2023): projected to 2D, sorted
by depth, composited front to back, a contribution below 1/255 left out. Nothing else is
approximate: tiles only skip work that would add zero. Exponents are formed in float64, where even a
needle longer than the image loses nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn.functional import embedding, pad, threshold

from .filters import constant

MIN_ALPHA = 1 / 255  # below this a contribution is left out, as in 3D Gaussian Splatting
MAX_ALPHA = 0.99  # no Gaussian is ever fully opaque, so gradients reach what lies behind
LOW_PASS_PX2 = 0.3  # variance added to every projected Gaussian: none is thinner than a pixel
TILE_PX = 8  # side of the tiles
# (Tile, Gaussian, pixel) products held at once: what fits the cache; few kernel launches
CHUNK_ELEMENTS = {"cpu": 250_000, "cuda": 8_000_000}


@dataclass(frozen=True)
class Camera:
    """A pinhole camera that looks along its own −z axis, image centre on its axis."""

    rotation: Tensor  # (3, 3), world to camera (x right, y up, z towards the viewer)
    position: Tensor  # (3,), the camera's place in world units
    focal_px: float
    height_px: int
    width_px: int


@dataclass(frozen=True)
class Splats:
    """N projected Gaussians, or a batch of B such samples (opacity 0 is padding)."""

    centers: Tensor  # ([B,] N, 2), px (x, y); the centre of the first pixel is (0.5, 0.5)
    covariances: Tensor  # ([B,] N, 2, 2), px²
    colors: Tensor  # ([B,] N, C), any number of channels
    opacities: Tensor  # ([B,] N), in [0, 1]
    depths: Tensor  # ([B,] N), distance from the viewer; smaller is drawn in front

    def __getitem__(self, index: Tensor | slice | int) -> Splats:
        return Splats(*(getattr(self, entry.name)[index] for entry in fields(self)))


def drawing_device(device: torch.device) -> torch.device:
    """Where to draw what lies on a device: there on CUDA, else on the CPU (MPS has no float64)."""
    return device if device.type == "cuda" else torch.device("cpu")


def project(means: Tensor, covariances: Tensor, colors: Tensor, opacities: Tensor,
            camera: Camera) -> Splats:
    """Project 3D Gaussians to the image plane by the local affine (EWA) approximation.

    Those behind the camera are left out. Means are (N, 3), covariances (N, 3, 3), in world units,
    colours (N, C) and opacities (N,).

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


def rasterize(splats: Splats, height_px: int, width_px: int, *,
              background: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Draw splats over a background, exactly and differentiably.

    Degenerate or non-finite ones are left out; the background is ([B,] C, H, W), or None for zeros.

    Returns:
        image: ([B,] C, H, W), and alpha: ([B,] H, W), how much of each pixel the splats cover.
    """
    *batch, count, channels = splats.colors.shape
    shape = (*batch, channels, height_px, width_px)
    if background is not None and tuple(background.shape) != shape:
        raise ValueError(f"background: expected {shape}, got {tuple(background.shape)}")
    rows, columns, images = -(-height_px // TILE_PX), -(-width_px // TILE_PX), math.prod(batch)
    image = torch.arange(images, device=splats.depths.device).repeat_interleave(count)
    if batch:
        splats = Splats(*(getattr(splats, entry.name).flatten(0, 1) for entry in fields(splats)))
    splats, image = _visible(splats, image)
    owner, tile = _intersect_tiles(splats, image, height_px, width_px)
    exponents, colors = _exponents(splats), pad(splats.colors, (0, 0, 1, 0))
    order, drawn = [tile[:0]], [colors.new_zeros(0, channels + 1, TILE_PX**2)]
    for tiles, members in _tile_groups(owner, tile, images * rows * columns):
        corners = torch.stack([tiles % columns, tiles // columns % rows], 1) * TILE_PX
        order.append(tiles)
        with torch.autocast(tile.device.type, enabled=False):  # the blend is a matrix product
            drawn.append(_composite(exponents, colors, corners, members))
    canvas = torch.cat(drawn).index_select(0, torch.cat(order).argsort())
    canvas = canvas.view(images, rows, columns, channels + 1, TILE_PX, TILE_PX)
    canvas = canvas.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)[..., :height_px, :width_px]
    canvas = canvas.unflatten(0, batch) if batch else canvas[0]
    picture, light = canvas[..., :-1, :, :], canvas[..., -1:, :, :]
    return (picture if background is None else picture + light * background), 1 - light.squeeze(-3)


def _visible(splats: Splats, image: Tensor) -> tuple[Splats, Tensor]:
    """Sort by depth; leave out what is faint, degenerate or not finite."""
    with torch.no_grad():
        a, b, c = _variances(splats)
        good = (splats.opacities > MIN_ALPHA) & (a * c - b * b > 1e-12) & (a > 0) & (c > 0)
        for value in (a * c, splats.opacities, splats.depths, splats.centers, splats.colors):
            good &= torch.isfinite(value[:, None].flatten(1)).all(1)
        order = torch.argsort(splats.depths, stable=True)
        order = order[good[order]]
    return splats[order], image[order]


def _variances(splats: Splats) -> tuple[Tensor, Tensor, Tensor]:
    """The covariances' entries xx, xy and yy in float64, each (N,)."""
    xx, xy, _, yy = splats.covariances.double().flatten(1).unbind(1)
    return xx, xy, yy


def _exponents(splats: Splats) -> Tensor:
    """log2(alpha) as a polynomial in 1, x, y, x², xy, y²: (1 + N, 6), the first draws nothing."""
    a, b, c = _variances(splats)
    det = a * c - b * b
    xx, xy, yy = c / det, -b / det, a / det
    x, y = splats.centers.double().unbind(1)
    to_x, to_y = xx * x + xy * y, xy * x + yy * y
    terms = torch.stack([to_x * x + to_y * y, -2 * to_x, -2 * to_y, xx, 2 * xy, yy], 1)
    peak = torch.log2(splats.opacities.double())
    terms = pad(peak[:, None], (0, 5)) - 0.5 / math.log(2) * terms
    return torch.cat([constant(((-math.inf, 0, 0, 0, 0, 0),), terms), terms])


@torch.no_grad()
def _intersect_tiles(splats: Splats, image: Tensor, height_px: int,
                     width_px: int) -> tuple[Tensor, Tensor]:
    """Which Gaussian (M,) reaches which tile (M,): its ellipse's width in each row of tiles."""
    rows, columns = -(-height_px // TILE_PX), -(-width_px // TILE_PX)
    a, b, c = _variances(splats)
    x, y = splats.centers.double().unbind(1)
    reach = 2 * torch.log(splats.opacities.double() / MIN_ALPHA) + 1e-5  # squared Mahalanobis
    half = (c * reach).sqrt()
    top, bottom, tall = _span(y - half, y + half, height_px)
    owner, nth = _enumerate(tall)
    x, y, a, b, c, reach, top, bottom, image = (
        value.index_select(0, owner) for value in (x, y, a, b, c, reach, top, bottom, image))
    row = top // TILE_PX + nth
    low = torch.maximum(top, row * TILE_PX) + 0.5 - y
    high = torch.minimum(bottom, row * TILE_PX + TILE_PX - 1) + 0.5 - y
    sides = []
    for sign in (-1, 1):  # dy: where within the row the ellipse is widest to the left, right
        dy = torch.clamp(sign * b * (reach / a).sqrt(), low, high)
        half = ((a - b * b / c) * (reach - dy * dy / c)).clamp(min=0).sqrt()
        sides.append(x + b / c * dy + sign * half)
    left, _, wide = _span(*sides, width_px)
    strip, nth = _enumerate(wide)
    first = (image * rows + row) * columns + left // TILE_PX
    return owner.index_select(0, strip), first.index_select(0, strip) + nth


def _span(low: Tensor, high: Tensor, size_px: int) -> tuple[Tensor, Tensor, Tensor]:
    """First and last pixel whose centre lies between, and how many tiles they touch."""
    first = (low - 0.5).ceil().clamp(0, size_px).long()
    last = (high - 0.5).floor().clamp(-1, size_px - 1).long()
    return first, last, torch.where(first > last, 0, last // TILE_PX - first // TILE_PX + 1)


def _enumerate(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Each index as often as it counts, and numbered: [2, 1] to [0, 0, 1] and [0, 1, 0]."""
    owner = torch.repeat_interleave(counts)
    starts = (counts.cumsum(0) - counts).index_select(0, owner)
    return owner, torch.arange(len(owner), device=counts.device) - starts


def _tile_groups(owner: Tensor, tile: Tensor, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield all tiles in groups (T,), with their Gaussians plus one, front to back (T, 1 + K).

    0 stands for none: in front of all others, and behind the last one of a shorter list.
    """
    tile, by_tile = torch.sort(tile, stable=True)  # stable: depth order survives inside a tile
    owner = pad(owner.index_select(0, by_tile) + 1, (0, 1))
    starts = torch.searchsorted(tile, torch.arange(count + 1, device=tile.device))
    starts, counts = starts[:-1], starts.diff()
    order = torch.argsort(counts, descending=True)
    sizes, start, limit = counts[order].tolist(), 0, CHUNK_ELEMENTS[tile.device.type] // TILE_PX**2
    while start < count:
        group = order[start:start + max(1, limit // (sizes[start] + 1))]
        slot = torch.arange(-1, sizes[start], device=tile.device)
        used = (slot >= 0) & (slot < counts[group, None])
        yield group, owner.take(torch.where(used, starts[group, None] + slot, len(tile)))
        start += len(group)


def _composite(exponents: Tensor, colors: Tensor, corners: Tensor, members: Tensor) -> Tensor:
    """Blend each tile's Gaussians front to back: (T, C + 1, P), last the light left over."""
    inside = torch.arange(TILE_PX**2, device=members.device)
    x = (corners[:, :1] + inside % TILE_PX + 0.5).double()  # (T, P)
    y = (corners[:, 1:] + inside // TILE_PX + 0.5).double()
    powers = torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y], 1)
    exponent = (embedding(members, exponents) @ powers).to(colors.dtype)  # (T, 1 + K, P)
    # Clamped on both sides: exp2 takes many times longer where it underflows
    alpha = exponent.clamp_(math.log2(MIN_ALPHA) - 1, math.log2(MAX_ALPHA)).exp2_()
    alpha = threshold(alpha, MIN_ALPHA, 0.0)
    through = (1 - alpha).cumprod(1)
    image = embedding(members[:, 1:], colors).mT @ (alpha[:, 1:] * through[:, :-1])
    return torch.cat([image, through[:, -1:]], 1)
