"""A perceptual distance as a map over the picture, and its mean within each region of a face."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .perceptual import lpips_cells


@torch.no_grad()
def distance_map(network: nn.Module, images: Tensor, clean: Tensor) -> Tensor:
    """Where a network sees a difference, (B, H, W); its mean is the distance of the whole picture.

    Each tap has fewer cells than there are pixels: what a cell adds is laid over the part of the
    picture that is its share. The interpolated map of the `lpips` package has another mean.

    Args:
        network: from `load_lpips` or `load_stlpips`.
        images: (K · B, 3, H, W) in [0, 1]: K different pictures of each truth, kind after kind.
        clean: (B, 3, H, W) in [0, 1]; the network sees it once.
    """
    size, kinds = images.shape[2:], len(images) // len(clean)
    ours, theirs = (network.scaling_layer(2 * x - 1) for x in (images, clean))
    total = images.new_zeros(len(images), 1, *size)
    for number, head in enumerate(network.lins, start=1):
        block = getattr(network.net, f"slice{number}")
        ours, theirs = block(ours), block(theirs)
        total += spread(lpips_cells(head, ours, theirs.repeat(kinds, 1, 1, 1)), size)
    same = (images == clean.repeat(kinds, 1, 1, 1)).flatten(1).all(1)
    return total[:, 0].masked_fill(same.view(-1, 1, 1), 0)  # not 1e-15, as sums in another order


def region_means(maps: Tensor, regions: Tensor, count: int) -> Tensor:
    """The mean of maps (B, H, W) within each region, (B, count); NaN where there is none of it.

    Weighted by the areas of the regions, their mean is that of the whole map.

    Args:
        regions: uint8 (B, H, W), numbers below `count`.
    """
    inside = torch.nn.functional.one_hot(regions.long(), count).to(torch.float64)  # (B, H, W, R)
    return torch.einsum("bhw,bhwr->br", maps.double(), inside) / inside.sum((1, 2))


def spread(cells: Tensor, size: tuple[int, int]) -> Tensor:
    """Lay cells (B, C, h, w) over a picture of a size, each over the same area: the mean stays."""
    rows, columns = (_overlap(pixels, parts).to(cells)
                     for pixels, parts in zip(size, cells.shape[2:], strict=True))
    return rows @ cells @ columns.T


def _overlap(pixels: int, parts: int) -> Tensor:
    """How much of each pixel lies in each of some equal parts of a line: (pixels, parts)."""
    ends = [torch.arange(n + 1, dtype=torch.float64) / n for n in (pixels, parts)]
    low = torch.maximum(ends[0][:-1, None], ends[1][None, :-1])
    high = torch.minimum(ends[0][1:, None], ends[1][None, 1:])
    return (high - low).clamp(min=0) * pixels
