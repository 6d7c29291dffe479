"""What grids and sliders share: regions and masks as colours, pictures as bytes."""

from __future__ import annotations

import io
from collections.abc import Mapping

import torch
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from .regions import REGIONS

PALETTE = torch.tensor([  # one colour per region, distinguishable without red and green
    [0.25, 0.25, 0.28], [0.94, 0.80, 0.62], [0.00, 0.45, 0.70], [0.90, 0.62, 0.00],
    [0.80, 0.47, 0.65], [0.35, 0.22, 0.12]])
MASK_COLOR = (0.00, 0.45, 0.70)  # no skin, no hair and few backgrounds are blue


def common_length(entries: Mapping[str, Tensor]) -> int:
    """How many images each entry has, where all have equally many; else ValueError."""
    counts = {name: len(images) for name, images in entries.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ValueError(f"grid: expected entries of one length above 0, got {counts}; "
                         "pass equally many images of each")
    return next(iter(counts.values()))


def color_regions(regions: Tensor) -> Tensor:
    """Region maps (B, H, W) uint8 as colours (B, 3, H, W) in [0, 1]."""
    return PALETTE[regions.long().cpu()].permute(0, 3, 1, 2)


def region_legend() -> str:
    """The colours of the regions as a line of HTML, readable on light and dark."""
    swatches = ["rgb({}, {}, {})".format(*color) for color in (255 * PALETTE).int().tolist()]
    return " ".join(f'<span style="background: {swatch}">&emsp;</span> {name}'
                    for name, swatch in zip(REGIONS, swatches, strict=True))


def region_overlay(regions: Tensor) -> Tensor:
    """Region maps (B, H, W) uint8 as RGBA (B, 4, H, W), for `tint`."""
    colors = color_regions(regions)
    return torch.cat([colors, torch.full_like(colors[:, :1], 0.45)], 1)


def mask_overlay(mask: Tensor) -> Tensor:
    """A mask (B, H, W) in [0, 1] as RGBA (B, 4, H, W), for `tint`: the more, the bluer."""
    alpha = 0.6 * mask.cpu()[:, None]
    return torch.cat([alpha.new_tensor(MASK_COLOR).view(1, 3, 1, 1).expand(
        len(alpha), 3, *alpha.shape[2:]), alpha], 1)


def tint(images: Tensor, overlay: Tensor) -> Tensor:
    """Lay RGBA (B, 4, H, W) over new copies of images (B, 3, H, W), on the CPU."""
    return images.cpu().lerp(overlay[:, :3], overlay[:, 3:])


def to_bytes(image: Tensor, kind: str) -> bytes:
    """One image (3, H, W) in [0, 1] as "PNG" or "JPEG", each value at the nearest byte."""
    pixels = image.detach().float().cpu().clamp(0, 1).mul(255)
    buffer = io.BytesIO()  # of floats, to_pil_image drops the rest instead of rounding
    to_pil_image(pixels.round().to(torch.uint8)).save(buffer, kind, quality=90)
    return buffer.getvalue()
