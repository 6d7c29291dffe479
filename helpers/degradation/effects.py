"""The defects of a Gaussian-splat render, each as a function of images, amounts and random numbers.

Every effect takes `image` (B, 3, H, W), `regions` (B, H, W) uint8, `amounts`, each (B, 1, 1, 1) in
[0, 1] on the image's device, and `rng`; it returns a new image. Lengths are shares of the image
side and random fields are drawn on grids of fixed size: a seed looks alike at 128 and 512 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..gaussians.filters import blur, constant, luma, pixel_grid, resize, sample, short_side
from ..gaussians.rng import FIELD_SIZE, SeededRandom

REGIONS = ("background", "skin", "eyes", "nose", "mouth", "hair")  # by their numbers in a map
BLUR = (0.012, 0.004, 0.008, 0.010, 0.008, 0.003)  # Gaussian width at amount 1, share of the side
SMEAR = (0.0, 0.0, 0.7, 0.3, 0.7, 0.8)  # weight at amount 1 of the smear along edges and strands
DETAIL_SIZE = 256  # masks, smears and blotches are computed at about this side; nobody sees it
STRANDS_SIZE = 64  # the side on which the directions of edges are averaged


class Amounts(dict[str, Tensor]):
    """The amounts of a batch by name, each (B, 1, 1, 1) in [0, 1] on the image's device.

    `on_cpu` has the same, each (B,), for what is decided without waiting for a GPU.
    """

    def __init__(self, on_cpu: Mapping[str, Tensor], device: torch.device | str) -> None:
        values = torch.stack([*on_cpu.values()]).to(device)  # all in one upload
        super().__init__(zip(on_cpu, values[..., None, None, None], strict=True))
        self.on_cpu = on_cpu


def blur_regions(image: Tensor, regions: Tensor, amounts: Amounts, rng: SeededRandom) -> Tensor:
    """Smear and blur each region by its own amount, patchily, and nothing outside."""
    size, factor = image.shape[2:], _detail_factor(image)
    coarse = regions[:, ::factor, ::factor]
    table = torch.cat([amounts[name] for name in REGIONS], 1).flatten(1)  # (B, regions)
    patches = vary(coarse, amounts["variation"], rng)
    width, weight = (
        feather(patches * (table * constant(full, table)).gather(1, coarse.flatten(1).long())
                .view_as(coarse)[:, None]) for full in (BLUR, SMEAR))
    smeared = resize(smear(resize(image, coarse.shape[1:]), length=0.04), size)
    smeared = image.lerp(smeared, resize(weight.clamp_(max=1), size))
    widest = max(full * float(amounts.on_cpu[name].max())
                 for name, full in zip(REGIONS, BLUR, strict=True))
    return blur(smeared, resize(width * short_side(image), size), widest * short_side(image))


def vary(regions: Tensor, contrast: Tensor, rng: SeededRandom) -> Tensor:
    """The patchy mask (B, 1, H, W) in [1 - contrast, 1], every region with its own pattern."""
    noise = rng.normal(len(REGIONS), 1, 16, 16).flatten(0, 1)
    angle = math.pi * rng.uniform(len(REGIONS)).flatten()
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    turn = torch.stack([0.35 * cos, 0.35 * sin, zero, -0.9 * sin, 0.9 * cos, zero], 1)
    grid = F.affine_grid(turn.view(-1, 2, 3), [len(turn), 1, FIELD_SIZE, FIELD_SIZE],
                         align_corners=False).permute(0, 3, 1, 2)
    fields = torch.sigmoid(4 * sample(noise, grid)).view(-1, len(REGIONS), FIELD_SIZE, FIELD_SIZE)
    pattern = resize(fields, regions.shape[1:]).gather(1, regions[:, None].long())
    return 1 - contrast * (1 - pattern)


def warp(image: Tensor, regions: Tensor, amounts: Amounts, rng: SeededRandom) -> Tensor:
    """Move the picture along a smooth flow, as misplaced Gaussians do."""
    coarse, fine = (rng.field(2, cells, (FIELD_SIZE, FIELD_SIZE)) for cells in (5, 12))
    flow = resize(0.02 * amounts["warp"] * (coarse + 0.4 * fine), image.shape[2:])
    return sample(image, flow.add_(pixel_grid(image.shape[2:], image.device)))


def blur_surface(image: Tensor, regions: Tensor, amounts: Amounts, rng: SeededRandom) -> Tensor:
    """Bilateral blur over two rings of taps: flattens texture, keeps edges.

    Source: Tomasi and Manduchi 1998, with 1 / (1 + d²) in place of the Gaussian range kernel.
    """
    height, width = image.shape[2:]
    reach = max(2, round(0.012 * short_side(image)))
    padded = F.pad(image, [reach] * 4, mode="replicate")
    grey, padded_grey = luma(image), luma(padded)
    total, weights = image.clone(), torch.ones_like(grey)
    rings = [(reach, k / 8) for k in range(8)] + [(reach / 2, k / 4) for k in range(4)]
    for dy, dx in (_polar(radius, angle) for radius, angle in rings):
        top, left = reach - dy, reach - dx
        window = (..., slice(top, top + height), slice(left, left + width))
        weight = (padded_grey[window] - grey).mul_(12).square_().add_(1).reciprocal_()
        total.addcmul_(padded[window], weight)
        weights += weight
    return image.lerp(total.div_(weights), amounts["surface_blur"])


def drift_brightness(image: Tensor, regions: Tensor, amounts: Amounts, rng: SeededRandom) -> Tensor:
    """Exposure error, lighter or darker, uneven over the picture."""
    number = 2 * rng.uniform(1, 1, 1) - 1
    overall = (0.3 + 0.7 * number.abs()).copysign(number)  # never 0
    uneven = rng.field(1, 3, image.shape[2:]).mul_(0.5)
    return image * uneven.add_(overall).mul_(0.35 * amounts["brightness"]).add_(1)


def jitter_color(image: Tensor, regions: Tensor, amounts: Amounts, rng: SeededRandom) -> Tensor:
    """Gain error of each channel, uneven as view-dependent colour is."""
    overall = rng.normal(3, 1, 1)
    uneven = rng.field(3, 5, image.shape[2:]).mul_(0.5)
    return uneven.add_(overall).mul_(0.12 * amounts["color_jitter"]).add_(1).mul_(image)


def desaturate(image: Tensor, regions: Tensor, amounts: Amounts, rng: SeededRandom) -> Tensor:
    """Mix in the grey picture."""
    return image.lerp(luma(image), amounts["desaturation"])


def blur_all(image: Tensor, regions: Tensor, amounts: Amounts, rng: SeededRandom) -> Tensor:
    """Blur the whole picture evenly."""
    full = 0.006 * short_side(image)
    return blur(image, full * amounts["blur"], full * float(amounts.on_cpu["blur"].max()))


def lose_resolution(image: Tensor, regions: Tensor, amounts: Amounts, rng: SeededRandom) -> Tensor:
    """Shrink the picture, to 96 pixels or half its side at amount 1, and interpolate it back."""
    size, side = image.shape[2:], short_side(image)
    least, restored = min(96, side / 2) / side, []
    for part, amount in zip(image.split(1), amounts.on_cpu["downscale"].tolist(), strict=True):
        small = [max(1, round(length * least ** amount)) for length in size]
        restored.append(resize(resize(part, small), size))
    return torch.cat(restored)


def add_blocks(image: Tensor, regions: Tensor, amounts: Amounts, rng: SeededRandom) -> Tensor:
    """Patches of irregular cells of constant colour along edges: footprints of few Gaussians."""
    amount, size = amounts["blocks"], (DETAIL_SIZE, DETAIL_SIZE)
    along = strands(resize(luma(image), size))
    across = torch.stack([-along[:, 1], along[:, 0]], 1)
    jitter = rng.field(2, 48, size)
    positions = pixel_grid(size, image.device) + 0.05 * jitter[:, :1] * along
    positions = positions.add_(0.012 * jitter[:, 1:] * across)
    blotches = sample(resize(image, (64, 64)), positions, mode="nearest")
    patches = rng.field(1, 9, image.shape[2:]).mul_(3).add_(4 * amount - 1).sigmoid_()
    weight = patches.mul_(1 - (1 - amount) ** 3)
    return image.lerp(resize(blotches, image.shape[2:]), weight)


def add_ghost(image: Tensor, regions: Tensor, amounts: Amounts, rng: SeededRandom) -> Tensor:
    """A translucent second contour beside strong edges and the silhouette."""
    size = image.shape[2:]
    offsets = [_polar((0.018 + 0.02 * reach) * short_side(image), angle)
               for angle, reach in rng.numbers(2)]
    offsets = [(dy if dy or dx else 1, dx) for dy, dx in offsets]
    silhouette = _gradient((regions[:, None] > 0).float())
    edges = _gradient(luma(image)).mul_(4).add_(silhouette, alpha=2)
    near = F.max_pool2d(shift_each(edges, offsets), _detail_factor(image), ceil_mode=True)
    near = resize(feather(feather(near)).clamp_(max=1), size)
    weight = rng.field(1, 6, size).mul_(3).add_(2).sigmoid_().mul_(near)
    return image.lerp(shift_each(image, offsets), weight.mul_(0.8 * amounts["ghosting"]))


def add_noise(image: Tensor, regions: Tensor, amounts: Amounts, rng: SeededRandom) -> Tensor:
    """Grain of a fixed size relative to the picture, mostly grey."""
    grain = rng.normal(4, DETAIL_SIZE, DETAIL_SIZE)
    grain = resize(grain[:, :3] + grain[:, 3:], image.shape[2:])
    return grain.mul_(0.035 * amounts["noise"]).add_(image)


def smear(image: Tensor, length: float) -> Tensor:
    """Average along edges and strands, as long Gaussians do; the length a share of half a side."""
    shares = constant((-1.0, -0.67, -0.33, 0.33, 0.67, 1.0), image)
    step = strands(luma(image)) * length
    positions = pixel_grid(image.shape[2:], image.device) + shares.view(-1, 1, 1, 1, 1) * step
    copies = image.expand(len(shares), *image.shape).flatten(0, 1)  # sampled at once, in parallel
    taps = sample(copies, positions.flatten(0, 1)).unflatten(0, (len(shares), -1))
    return taps.sum(0).add_(image).div_(len(shares) + 1)


def strands(grey: Tensor) -> Tensor:
    """Unit vectors (B, 2, H, W) along the edges: the weak axis of the smoothed structure tensor."""
    gx = _shift(grey, 0, -1) - _shift(grey, 0, 1)
    gy = _shift(grey, -1, 0) - _shift(grey, 1, 0)
    tensor = resize(torch.cat([gx * gx - gy * gy, 2 * gx * gy], 1), (STRANDS_SIZE, STRANDS_SIZE))
    double = resize(tensor, grey.shape[2:])
    angle = 0.5 * torch.atan2(double[:, 1], double[:, 0]) + math.pi / 2
    return torch.stack([angle.cos(), angle.sin()], 1)


def feather(mask: Tensor) -> Tensor:
    """Soften a mask by a box of compact support: exact 0 stays 0 a few pixels out."""
    radius = max(1, round(short_side(mask) / 128))

    def add(maps: Tensor) -> Tensor:
        padded, side = F.pad(maps, [radius] * 4), 2 * radius + 1
        return padded.unfold(3, side, 1).sum(-1).unfold(2, side, 1).sum(-1)
    return add(mask).div_(add(torch.ones_like(mask[:1, :1])))


def shift_each(image: Tensor, offsets: list[tuple[int, int]]) -> Tensor:
    """Shift each sample down and right by its own (dy, dx); the border repeats."""
    return torch.cat([_shift(part, *offset)
                      for part, offset in zip(image.split(1), offsets, strict=True)])


def _shift(image: Tensor, dy: int, dx: int) -> Tensor:
    height, width = image.shape[2:]
    padded = F.pad(image, (max(dx, 0), max(-dx, 0), max(dy, 0), max(-dy, 0)), mode="replicate")
    top, left = max(-dy, 0), max(-dx, 0)
    return padded[:, :, top:top + height, left:left + width]


def _gradient(image: Tensor) -> Tensor:
    """Sum of the absolute differences to the left and the upper neighbour."""
    total = torch.zeros_like(image)
    total[..., 1:] += (image[..., 1:] - image[..., :-1]).abs_()
    total[..., 1:, :] += (image[..., 1:, :] - image[..., :-1, :]).abs_()
    return total


def _polar(radius: float, turns: float) -> tuple[int, int]:
    """The offset (dy, dx) in whole pixels at a radius, and a direction in turns."""
    angle = 2 * math.pi * turns
    return round(radius * math.sin(angle)), round(radius * math.cos(angle))


def _detail_factor(image: Tensor) -> int:
    return max(1, short_side(image) // DETAIL_SIZE)
