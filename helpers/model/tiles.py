"""Restoration in overlapping tiles: memory depends on the tile, not on the picture."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import refused
from ..pictures import LARGEST_PIXELS, check_images

TILE_PX = 768  # cut, a picture has tiles of 512 to 768: SD-Turbo was trained at 512
OVERLAP_PX = 128  # of neighbours, at least
MARGIN_PX = 16  # what a tile's own padding spoils most, and is not used

Piece = tuple[slice, Tensor]  # where a tile lies along one axis, and its weight there


@torch.no_grad()
def enhance_tiled(restore: Callable[[Tensor], Tensor], images: Tensor, *, tile_px: int,
                  overlap_px: int, multiple: int, margin_px: int = 0, batch: int = 1,
                  channels: int = 3, device: torch.device | str | None = None,
                  report: Callable[[int, int], object] | None = None) -> Tensor:
    """Restore images of any size, cut into equal tiles where they are larger than one.

    Neighbours are blended by a cosine ramp of `overlap_px` − 2·`margin_px` in the middle of their
    overlap; at the border of the picture a tile has its full weight. Tiles lie on a grid of
    `multiple`, so that a network that halves its input sees the same pixels together in each.

    Args:
        restore: maps (b, 3, h, w) to (b, channels, h, w); h and w at most `tile_px`.
        images: (B, 3, H, W) in [0, 1], 67 million pixels each at most; padded to `multiple` here.
        tile_px: largest side of a tile, a multiple of `multiple`; smaller ones are used if as few.
        overlap_px: of neighbouring tiles, at least; at most half a tile.
        multiple: the sides of what `restore` sees are multiples of this.
        margin_px: rim of a tile that gets no weight, except at the border of the picture.
        batch: how many tiles, of any of the images, are restored at a time.
        channels: of what `restore` returns.
        device: where `restore` wants its tiles; None: where the images are. The whole pictures
            stay where they are, so a small memory restores large ones.
        report: told how many tiles are done, and how many there are.

    Returns:
        (B, channels, H, W) float32, not clamped.

    Raises:
        ValueError: an image out of range, or a result of another shape.
    """
    check_images(images)
    if images[0, 0].numel() > LARGEST_PIXELS:
        raise refused("images", f"{LARGEST_PIXELS:,} pixels each at most", tuple(images.shape),
                      "cut or scale them down")
    height, width = images.shape[-2:]
    padded = pad_to_multiple(images, multiple)  # (B, 3, H', W')
    axes = [_cut(side, *place_tiles(side, tile_px, overlap_px, multiple),
                 ramp_px=overlap_px - 2 * margin_px) for side in padded.shape[-2:]]
    places = list(itertools.product(*axes, range(len(images))))
    result = padded.new_zeros(len(images), channels, *padded.shape[-2:], dtype=torch.float32)
    for i in range(0, len(places), batch):
        _add_restored(restore, padded, places[i:i + batch], result, device or padded.device)
        if report:
            report(min(i + batch, len(places)), len(places))
    return result[..., :height, :width]


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Extend (B, C, H, W) right and down, mirrored where it is large enough, else repeated."""
    height, width = images.shape[-2:]
    right, bottom = -width % multiple, -height % multiple
    mode = "reflect" if right < width and bottom < height else "replicate"
    return F.pad(images, (0, right, 0, bottom), mode=mode)


def place_tiles(length_px: int, tile_px: int, overlap_px: int, multiple: int,
                ) -> tuple[int, list[int]]:
    """Cover one axis evenly by as few tiles as possible, and these as small as possible.

    Args:
        length_px, tile_px: multiples of `multiple`, as are all results.

    Returns:
        Side of each tile in px, and where each starts; the last one ends at `length_px`.
    """
    length, largest, overlap = (math.ceil(px / multiple)
                                for px in (length_px, tile_px, overlap_px))
    if length <= largest:
        return length_px, [0]
    count = math.ceil((length - overlap) / (largest - overlap))
    side = math.ceil((length + (count - 1) * overlap) / count)
    starts = [i * (length - side) // (count - 1) for i in range(count)]
    return side * multiple, [start * multiple for start in starts]


def tiled_pixels(height_px: int, width_px: int, **options: int) -> tuple[int, int]:
    """How many tiles `enhance_tiled` makes of a picture, and how many pixels all of them have.

    Args:
        options: `tile_px`, `overlap_px` and `multiple` of `place_tiles`.
    """
    multiple = options["multiple"]
    down, across = (place_tiles(side + -side % multiple, **options)
                    for side in (height_px, width_px))
    tiles = len(down[1]) * len(across[1])
    return tiles, tiles * down[0] * across[0]


def _cut(length_px: int, side_px: int, starts: list[int], *, ramp_px: int) -> list[Piece]:
    """One piece per tile along an axis; at each pixel their weights sum to 1."""
    pixels = torch.arange(length_px, dtype=torch.float64) + 0.5
    begun = torch.ones_like(pixels)  # 0 before a tile's ramp, 1 after it
    pieces = []
    for start, following in itertools.zip_longest(starts, starts[1:]):
        ended = torch.zeros_like(pixels)
        if following is not None:
            middle = (start + side_px + following) / 2
            share = ((pixels - middle) / ramp_px + 0.5).clamp(0, 1)
            ended = (1 - torch.cos(math.pi * share)) / 2
        own = slice(start, start + side_px)
        pieces.append((own, (begun - ended)[own].float()))
        begun = ended
    return pieces


def _add_restored(restore: Callable[[Tensor], Tensor], padded: Tensor,
                  places: list[tuple[Piece, Piece, int]], result: Tensor,
                  device: torch.device | str) -> None:
    tiles = torch.stack([padded[image, :, rows, columns]
                         for (rows, _), (columns, _), image in places])  # (b, 3, h, w)
    restored = restore(tiles.to(device)).to(result.device)
    expected = (len(tiles), result.shape[1], *tiles.shape[2:])
    if restored.shape != expected:
        raise refused("restore", f"a result of shape {expected}", tuple(restored.shape),
                      "keep the size of what it is given")
    for tile, ((rows, down), (columns, across), image) in zip(restored, places, strict=True):
        weight = down.to(result.device)[:, None] * across.to(result.device)  # (h, w)
        result[image, :, rows, columns] += tile.float() * weight
