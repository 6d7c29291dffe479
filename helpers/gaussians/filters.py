"""Deterministic image operations on batches (B, C, H, W); lengths are pixels unless stated."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def constant(values: tuple, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A small tensor of fixed numbers, of the device (and dtype) of another."""
    return torch.tensor(values, dtype=dtype or like.dtype, device=like.device)


def short_side(image: Tensor) -> int:
    """The smaller of height and width: what lengths given as shares refer to."""
    return min(image.shape[-2:])


def resize(image: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolate (B, C, H, W) to `size`, averaging where it shrinks; of this size: itself."""
    before, size = tuple(image.shape[2:]), tuple(size)
    if before == size:
        return image
    shrinks = size[0] < before[0] or size[1] < before[1]
    planes = image.reshape(-1, 1, *before)  # torch enlarges three channels slower than three images
    planes = F.interpolate(planes, size, mode="bilinear", antialias=shrinks)
    return planes.view(*image.shape[:2], *size)


def pixel_grid(size: Sequence[int], device: torch.device | str) -> Tensor:
    """Where each pixel lies for `sample`: (1, 2, H, W), x before y, in (-1, 1)."""
    ys, xs = ((torch.arange(n, device=device) * 2 + 1) / n - 1 for n in size)
    return torch.stack(torch.meshgrid(xs, ys, indexing="xy"))[None]


def sample(image: Tensor, positions: Tensor, mode: str = "bilinear") -> Tensor:
    """Look up images at positions (B, 2, h, w) as of `pixel_grid`; outside, they are mirrored."""
    return F.grid_sample(image, positions.permute(0, 2, 3, 1), mode, padding_mode="reflection",
                         align_corners=False)


def luma(image: Tensor) -> Tensor:
    """Grey (B, 1, H, W) of RGB (B, 3, H, W), by ITU-R BT.601."""
    red, green, blue = image.split(1, 1)
    return red.mul(0.299).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def blur(image: Tensor, sigma_px: Tensor, largest_px: float | None = None) -> Tensor:
    """Blur each pixel by a width of its own, in the manner of a Gaussian.

    A pyramid, collapsed: any width costs the same, and no sharp picture shines through. Halving and
    interpolating back has a variance of about 0.9 px², each further octave 4 times that.

    Args:
        sigma_px: (B, 1, H, W), or (B, 1, 1, 1) for one width all over.
        largest_px: what no width exceeds, if that is known; else a GPU is waited for.
    """
    largest_px = float(sigma_px.max()) if largest_px is None else 1.001 * largest_px  # rounding
    octaves = sigma_px.square().mul_(3 / 0.9).add_(1).log2_().mul_(0.5)
    return _collapse(image, octaves, 0.5 * math.log2(3 / 0.9 * largest_px**2 + 1))


def _collapse(image: Tensor, octaves: Tensor, most: float) -> Tensor:
    if most <= 0 or short_side(image) < 2:
        return image
    half = [math.ceil(length / 2) for length in image.shape[2:]]
    rest = (octaves - 1).clamp_(min=0)
    if octaves.shape[2:] == image.shape[2:]:
        rest = resize(rest, half)
    coarse = resize(_collapse(resize(image, half), rest, most - 1), image.shape[2:])
    return torch.lerp(image, coarse, octaves.clamp(max=1), out=coarse)
