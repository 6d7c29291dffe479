"""Image operations without chance, on batches (B, C, H, W); lengths are pixels unless said."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

STRANDS_SIZE = 64  # the side on which the directions of edges are averaged


def constant(values: tuple, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A small tensor of fixed numbers, of the device (and dtype) of another: uploaded once."""
    return _constant(values, dtype or like.dtype, like.device)


@cache
def _constant(values: tuple, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # whoever asked first, gradients may pass by it later
        return torch.tensor(values, dtype=dtype, device=device)


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


def sample(image: Tensor, place: Tensor, mode: str = "bilinear") -> Tensor:
    """Look up (B, C, H, W) at places (B, 2, h, w) as of `pixel_grid`; outside, it is mirrored."""
    return F.grid_sample(image, place.permute(0, 2, 3, 1), mode, padding_mode="reflection",
                         align_corners=False)


def shift(image: Tensor, dy: int, dx: int) -> Tensor:
    """Move the picture down and right by whole pixels; the border repeats."""
    height, width = image.shape[2:]
    padded = F.pad(image, (max(dx, 0), max(-dx, 0), max(dy, 0), max(-dy, 0)), mode="replicate")
    top, left = max(-dy, 0), max(-dx, 0)
    return padded[:, :, top:top + height, left:left + width]


def shift_each(image: Tensor, offsets: Sequence[tuple[int, int]]) -> Tensor:
    """Shift each sample of (B, C, H, W) by its own (dy, dx)."""
    return join([shift(own, *offset)
                 for own, offset in zip(image.split(1), offsets, strict=True)])


def join(samples: Sequence[Tensor]) -> Tensor:
    """Samples (1, …) as one batch, without a copy where there is only one."""
    return torch.cat(samples) if len(samples) > 1 else samples[0]


def mix_into(other: Tensor, image: Tensor, weight: Tensor) -> Tensor:
    """Overwrite `other` by `image`, with `other` mixed in by weights: what lerp does, in place.

    A large tensor that is used again costs a tenth of one that is allocated.
    """
    return torch.lerp(image, other, weight, out=other)


def polar(radius: float, turns: float) -> tuple[int, int]:
    """The offset (dy, dx) in whole pixels at a radius, and a direction in turns."""
    angle = 2 * math.pi * turns
    return round(radius * math.sin(angle)), round(radius * math.cos(angle))


def luma(image: Tensor) -> Tensor:
    """Grey (B, 1, H, W) of RGB (B, 3, H, W), by ITU-R BT.601."""
    red, green, blue = image.split(1, 1)
    return red.mul(0.299).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def gradient(image: Tensor) -> Tensor:
    """Sum of the absolute differences to the left and the upper neighbour, shape of `image`."""
    total = torch.zeros_like(image)
    total[..., 1:] += (image[..., 1:] - image[..., :-1]).abs_()
    total[..., 1:, :] += (image[..., 1:, :] - image[..., :-1, :]).abs_()
    return total


def shrink_to_peaks(image: Tensor, factor: int) -> Tensor:
    """The maximum of every square of `factor` pixels: (B, C, ceil(H / factor), …)."""
    height, width = image.shape[2:]
    padded = F.pad(image, (0, -width % factor, 0, -height % factor), mode="replicate")
    rows = padded.unflatten(2, (-1, factor)).amax(3)
    return rows.unflatten(3, (-1, factor)).amax(4)


def feather(mask: Tensor) -> Tensor:
    """Soften a mask by a box of compact support: exact 0 stays 0 a few pixels out."""
    radius = max(1, round(short_side(mask) / 128))
    return _sum_box(mask, radius).div_(_sum_box(torch.ones_like(mask[:1, :1]), radius))


def blur(image: Tensor, sigma_px: Tensor, most_px: float | None = None) -> Tensor:
    """Blur each pixel by a width of its own, in the manner of a Gaussian.

    A pyramid, collapsed: any width costs the same, and no sharp picture shines through. Halving and
    interpolating back has a variance of about 0.9 px², each further octave 4 times that.

    Args:
        image: (B, C, H, W).
        sigma_px: (B, 1, H, W), or (B, 1, 1, 1) for one width all over.
        most_px: what no width exceeds, if that is known; else a GPU is waited for.
    """
    most_px = float(sigma_px.max()) if most_px is None else 1.001 * most_px  # rounding
    variance = sigma_px.square()
    return _collapse(image, variance.mul_(3 / 0.9).add_(1).log2_().mul_(0.5),
                     0.5 * math.log2(3 / 0.9 * most_px**2 + 1))


def smear(image: Tensor, length: float) -> Tensor:
    """Average along edges and strands, as long Gaussians do; the length a share of half a side."""
    shares = constant((-1.0, -0.67, -0.33, 0.33, 0.67, 1.0), image)
    step = strands(luma(image)) * length
    place = pixel_grid(image.shape[2:], image.device) + shares.view(-1, 1, 1, 1, 1) * step
    copies = image.expand(len(shares), *image.shape).flatten(0, 1)  # sampled at once, in parallel
    taps = sample(copies, place.flatten(0, 1)).unflatten(0, (len(shares), -1))
    return taps.sum(0).add_(image).div_(len(shares) + 1)


def strands(grey: Tensor) -> Tensor:
    """Unit vectors (B, 2, H, W), x before y, along the edges of (B, 1, H, W).

    They are the weak axis of the smoothed structure tensor.
    """
    gx = shift(grey, 0, -1) - shift(grey, 0, 1)
    gy = shift(grey, -1, 0) - shift(grey, 1, 0)
    tensor = resize(torch.cat([gx * gx - gy * gy, 2 * gx * gy], 1), (STRANDS_SIZE, STRANDS_SIZE))
    double = resize(tensor, grey.shape[2:])
    angle = 0.5 * torch.atan2(double[:, 1], double[:, 0]) + math.pi / 2
    return torch.stack([angle.cos(), angle.sin()], 1)


def _collapse(image: Tensor, octaves: Tensor, most: float) -> Tensor:
    if most <= 0 or short_side(image) < 2:
        return image
    half = [math.ceil(length / 2) for length in image.shape[2:]]
    rest = (octaves - 1).clamp_(min=0)
    if octaves.shape[2:] == image.shape[2:]:
        rest = resize(rest, half)
    coarse = _collapse(resize(image, half), rest, most - 1)
    return mix_into(resize(coarse, image.shape[2:]), image, octaves.clamp(max=1))


def _sum_box(image: Tensor, radius: int) -> Tensor:
    padded, side = F.pad(image, [radius] * 4), 2 * radius + 1
    return padded.unfold(3, side, 1).sum(-1).unfold(2, side, 1).sum(-1)
