"""Restoration in overlapping tiles: memory depends on the tile, not on the picture."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

TILE_PX = 768  # cut, a picture has tiles of 512 to 768: SD-Turbo was trained at 512
OVERLAP_PX = 128  # of neighbours, at least
MARGIN_PX = 16  # what a tile's own padding spoils most, and is not used


@torch.no_grad()
def restore_in_tiles(restore: Callable[[Tensor], Tensor], images: Tensor, *, multiple: int,
                     tile_px: int = TILE_PX, overlap_px: int = OVERLAP_PX,
                     margin_px: int = MARGIN_PX, device: torch.device | str | None = None,
                     progress: Callable[[int, int], object] | None = None) -> Tensor:
    """Restore images of any size, cut into equal tiles that are blended where they overlap.

    Args:
        restore: maps (B, 3, h, w) to the same shape; h and w at most `tile_px`.
        images: (B, 3, H, W); so is the float32 that is returned, where they are, not clamped.
        multiple: of the grid that tiles lie on: what a network halves together stays together.
        tile_px: largest side of a tile, a multiple of `multiple`; smaller ones are used if as few.
        overlap_px: of neighbouring tiles, at least; at most half a tile.
        margin_px: rim of a tile that is not used, except at the border of the picture.
        device: where `restore` wants its tiles; None: where the images are.
    """
    height, width = images.shape[2:]
    padded = pad_to_multiple(images, multiple)
    axes = [place_tiles(side, tile_px, overlap_px, multiple) for side in padded.shape[2:]]
    total = torch.zeros_like(padded, dtype=torch.float32)
    weights = total.new_zeros(padded.shape[2:])
    tiles = list(itertools.product(*(_weighted(*axis, overlap_px, margin_px) for axis in axes)))
    for done, ((rows, down), (columns, across)) in enumerate(tiles, start=1):
        weight = (down[:, None] * across).to(total.device)
        restored = restore(padded[..., rows, columns].to(device or padded.device))
        total[..., rows, columns] += weight * restored.to(total)
        weights[rows, columns] += weight
        if progress:
            progress(done, len(tiles))
    return (total / weights)[..., :height, :width]


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Extend (B, C, H, W) right and down, mirrored where it is large enough, else repeated."""
    height, width = images.shape[2:]
    right, bottom = -width % multiple, -height % multiple
    mode = "reflect" if right < width and bottom < height else "replicate"
    return F.pad(images, (0, right, 0, bottom), mode=mode)


def place_tiles(length_px: int, tile_px: int, overlap_px: int, multiple: int,
                ) -> tuple[int, list[int]]:
    """Side and starts of as few and as small tiles as possible that cover one axis evenly."""
    length, largest, overlap = (math.ceil(px / multiple)
                                for px in (length_px, tile_px, overlap_px))
    if length <= largest:
        return length_px, [0]
    count = math.ceil((length - overlap) / (largest - overlap))
    side = math.ceil((length + (count - 1) * overlap) / count)
    starts = [i * (length - side) // (count - 1) for i in range(count)]
    return side * multiple, [start * multiple for start in starts]


def _weighted(side_px: int, starts: list[int], overlap_px: int, margin_px: int,
              ) -> list[tuple[slice, Tensor]]:
    """Where each tile lies along an axis, and its weights: cosine ramps between neighbours."""
    ramp = ((torch.arange(side_px) + 0.5 - margin_px) / (overlap_px - 2 * margin_px)).clamp(0, 1)
    ramp = (1 - torch.cos(math.pi * ramp)) / 2
    flat = torch.ones(side_px)
    return [(slice(start, start + side_px), (flat if start == starts[0] else ramp)
             * (flat if start == starts[-1] else ramp.flip(0))) for start in starts]
