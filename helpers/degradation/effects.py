"""The defects of a Gaussian-splat render, each as a function of images, amounts and draws.

Every effect takes `image` (B, 3, H, W), `regions` (B, H, W) uint8, `amounts`, each (B, 1, 1, 1) in
[0, 1] on the image's device, and `draws`; it returns a new image. Lengths are shares of the image
side and random fields are drawn on grids of fixed size: a seed looks alike at 128 and 512 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..faces import REGIONS
from ..splats import FIELD_SIZE, Draws
from ..splats.filters import (
    blur,
    constant,
    feather,
    gradient,
    join,
    luma,
    mix_into,
    pixel_grid,
    polar,
    resize,
    sample,
    shift_each,
    short_side,
    shrink_to_peaks,
    smear,
    strands,
)

BLUR = (0.012, 0.004, 0.008, 0.010, 0.008, 0.003)  # Gaussian width at amount 1, share of the side
SMEAR = (0.0, 0.0, 0.7, 0.3, 0.7, 0.8)  # weight at amount 1 of the smear along edges and strands
DETAIL_SIZE = 256  # masks, smears and blotches are computed at about this side; nobody sees it


class Amounts(dict[str, Tensor]):
    """The amounts of a batch by name, each (B, 1, 1, 1) in [0, 1] on the image's device.

    Args:
        known: the same on the CPU, each (B,); kept, for what is decided without asking a GPU.
        device: of the image.
    """

    def __init__(self, known: Mapping[str, Tensor], device: torch.device | str) -> None:
        there = torch.stack([*known.values()]).to(device)  # all in one upload
        super().__init__(zip(known, there[..., None, None, None], strict=True))
        self.known = known


def blur_regions(image: Tensor, regions: Tensor, amounts: Amounts, draws: Draws) -> Tensor:
    """Smear and blur each region by its own amount, patchily.

    The maps of width and weight carry the feathered masks, so outside them nothing changes.
    """
    size, factor = image.shape[2:], _detail_factor(image)
    coarse = regions[:, ::factor, ::factor]
    own = torch.cat([amounts[name] for name in REGIONS], 1).flatten(1)  # (B, regions)
    patches = vary(coarse, amounts["variation"], draws)
    width, weight = (feather(patches * _look_up(own * constant(full, own), coarse))
                     for full in (BLUR, SMEAR))
    smeared = resize(smear(resize(image, coarse.shape[1:]), length=0.04), size)
    smeared = mix_into(smeared, image, resize(weight.clamp_(max=1), size))
    widest = max(full * float(amounts.known[name].max())
                 for name, full in zip(REGIONS, BLUR, strict=True))
    return blur(smeared, resize(width * short_side(image), size), widest * short_side(image))


def vary(regions: Tensor, contrast: Tensor, draws: Draws) -> Tensor:
    """The patchy mask (B, 1, H, W) in [1 - contrast, 1], every region with its own pattern.

    One field per region, turned, and stretched 2.5 times.
    """
    noise = draws.normal(len(REGIONS), 1, 16, 16).flatten(0, 1)
    angle = math.pi * draws.uniform(len(REGIONS)).flatten()
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    turn = torch.stack([0.35 * cos, 0.35 * sin, zero, -0.9 * sin, 0.9 * cos, zero], 1)
    place = F.affine_grid(turn.view(-1, 2, 3), [len(turn), 1, FIELD_SIZE, FIELD_SIZE],
                          align_corners=False).permute(0, 3, 1, 2)
    fields = torch.sigmoid(4 * sample(noise, place)).view(-1, len(REGIONS), FIELD_SIZE, FIELD_SIZE)
    own = resize(fields, regions.shape[1:]).gather(1, regions[:, None].long())
    return 1 - contrast * (1 - own)


def warp(image: Tensor, regions: Tensor, amounts: Amounts, draws: Draws) -> Tensor:
    """Move the picture along a smooth flow, as misplaced Gaussians do."""
    drawn = [draws.field(2, cells, (FIELD_SIZE, FIELD_SIZE)) for cells in (5, 12)]
    flow = resize(0.02 * amounts["warp"] * (drawn[0] + 0.4 * drawn[1]), image.shape[2:])
    return sample(image, flow.add_(pixel_grid(image.shape[2:], image.device)))


def blur_surface(image: Tensor, regions: Tensor, amounts: Amounts, draws: Draws) -> Tensor:
    """Bilateral blur over two rings of taps: flattens texture, keeps edges.

    Source: Tomasi and Manduchi 1998, with 1 / (1 + d²) in place of the Gaussian range kernel.
    """
    height, width = image.shape[2:]
    reach = max(2, round(0.012 * short_side(image)))
    padded = F.pad(image, [reach] * 4, mode="replicate")
    grey, padded_grey = luma(image), luma(padded)
    total, weights = image.clone(), torch.ones_like(grey)
    rings = [(reach, k / 8) for k in range(8)] + [(reach / 2, k / 4) for k in range(4)]
    for dy, dx in (polar(radius, angle) for radius, angle in rings):
        top, left = reach - dy, reach - dx
        place = (..., slice(top, top + height), slice(left, left + width))
        weight = (padded_grey[place] - grey).mul_(12).square_().add_(1).reciprocal_()
        total.addcmul_(padded[place], weight)
        weights += weight
    return mix_into(total.div_(weights), image, amounts["surface_blur"])


def drift_brightness(image: Tensor, regions: Tensor, amounts: Amounts, draws: Draws) -> Tensor:
    """Exposure error, lighter or darker, uneven over the picture."""
    draw = 2 * draws.uniform(1, 1, 1) - 1
    overall = (0.3 + 0.7 * draw.abs()).copysign(draw)  # never 0
    uneven = draws.field(1, 3, image.shape[2:]).mul_(0.5)
    return image * uneven.add_(overall).mul_(0.35 * amounts["brightness"]).add_(1)


def jitter_color(image: Tensor, regions: Tensor, amounts: Amounts, draws: Draws) -> Tensor:
    """Gain error of each channel, uneven as view-dependent colour is."""
    overall = draws.normal(3, 1, 1)
    uneven = draws.field(3, 5, image.shape[2:]).mul_(0.5)
    return uneven.add_(overall).mul_(0.12 * amounts["color_jitter"]).add_(1).mul_(image)


def desaturate(image: Tensor, regions: Tensor, amounts: Amounts, draws: Draws) -> Tensor:
    """Mix in the grey picture."""
    return image.lerp(luma(image), amounts["desaturation"])


def blur_all(image: Tensor, regions: Tensor, amounts: Amounts, draws: Draws) -> Tensor:
    """Blur the whole picture evenly."""
    full = 0.006 * short_side(image)
    return blur(image, full * amounts["blur"], full * float(amounts.known["blur"].max()))


def lose_resolution(image: Tensor, regions: Tensor, amounts: Amounts, draws: Draws) -> Tensor:
    """Shrink the picture, to 96 pixels or half its side at amount 1, and interpolate it back."""
    size, side = image.shape[2:], short_side(image)
    least = min(96, side / 2) / side
    scales = [least ** amount for amount in amounts.known["downscale"].tolist()]
    small = [[max(1, round(length * scale)) for length in size] for scale in scales]
    return join([resize(resize(own, few), size)
                 for own, few in zip(image.split(1), small, strict=True)])


def add_blocks(image: Tensor, regions: Tensor, amounts: Amounts, draws: Draws) -> Tensor:
    """Patches of irregular cells of constant colour along edges: footprints of few Gaussians."""
    amount, size = amounts["blocks"], (DETAIL_SIZE, DETAIL_SIZE)
    along = strands(resize(luma(image), size))
    across = torch.stack([-along[:, 1], along[:, 0]], 1)
    jitter = draws.field(2, 48, size)
    place = pixel_grid(size, image.device) + 0.05 * jitter[:, :1] * along
    place = place.add_(0.012 * jitter[:, 1:] * across)
    blotches = sample(resize(image, (64, 64)), place, mode="nearest")
    patches = draws.field(1, 9, image.shape[2:]).mul_(3).add_(4 * amount - 1).sigmoid_()
    weight = patches.mul_(1 - (1 - amount) ** 3)
    return mix_into(resize(blotches, image.shape[2:]), image, weight)


def add_ghost(image: Tensor, regions: Tensor, amounts: Amounts, draws: Draws) -> Tensor:
    """A translucent second contour beside strong edges and the silhouette."""
    size = image.shape[2:]
    offsets = [polar((0.018 + 0.02 * reach) * short_side(image), angle)
               for angle, reach in draws.numbers(2)]
    offsets = [(dy if dy or dx else 1, dx) for dy, dx in offsets]
    silhouette = gradient((regions[:, None] > 0).float())
    edges = gradient(luma(image)).mul_(4).add_(silhouette, alpha=2)
    near = shrink_to_peaks(shift_each(edges, offsets), _detail_factor(image))
    near = resize(feather(feather(near)).clamp_(max=1), size)
    weight = draws.field(1, 6, size).mul_(3).add_(2).sigmoid_().mul_(near)
    return image.lerp(shift_each(image, offsets), weight.mul_(0.8 * amounts["ghosting"]))


def add_noise(image: Tensor, regions: Tensor, amounts: Amounts, draws: Draws) -> Tensor:
    """Grain of a fixed size relative to the picture, mostly grey."""
    grain = draws.normal(4, DETAIL_SIZE, DETAIL_SIZE)
    grain = resize(grain[:, :3] + grain[:, 3:], image.shape[2:])
    return grain.mul_(0.035 * amounts["noise"]).add_(image)


def _detail_factor(image: Tensor) -> int:
    return max(1, short_side(image) // DETAIL_SIZE)


def _look_up(table: Tensor, regions: Tensor) -> Tensor:
    # Each pixel's entry (B, 1, H, W) of its sample's table (B, regions).
    return table.gather(1, regions.flatten(1).long()).view_as(regions)[:, None]
