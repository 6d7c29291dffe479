"""What grids and sliders share: regions and masks as colours, pictures as bytes and HTML."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.transforms.functional import to_pil_image

from ..faces import REGIONS

PALETTE = torch.tensor([  # one colour per region, distinguishable without red and green
    [0.25, 0.25, 0.28], [0.94, 0.80, 0.62], [0.00, 0.45, 0.70], [0.90, 0.62, 0.00],
    [0.80, 0.47, 0.65], [0.35, 0.22, 0.12]])
COMPARED_PX = 768  # compared images are sent no larger: a notebook keeps them
COMPARED_SIDE = 420  # CSS pixels of their longer side: two fit side by side, and on one screen
DIVIDER = """<style>
.divided { display: inline-grid; position: relative; max-width: 100%; --at: 50% }
.divided > * { grid-area: 1 / 1 }
.divided > img + img { clip-path: inset(0 0 0 var(--at)) }
.divided > i { width: 2px; margin-left: calc(var(--at) - 1px); background: white;
               box-shadow: 0 0 2px black; z-index: 1 }
.divided > input { z-index: 2; margin: 0 -8px; width: calc(100% + 16px); cursor: ew-resize;
                   background: none; appearance: none; -webkit-appearance: none }
</style>"""


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


def to_bytes(image: Tensor, kind: str) -> bytes:
    """One image (3, H, W) in [0, 1] as "PNG" or "JPEG", each value at the nearest byte."""
    pixels = image.detach().float().cpu().clamp(0, 1).mul(255)
    buffer = io.BytesIO()  # of floats, to_pil_image drops the rest instead of rounding
    to_pil_image(pixels.round().to(torch.uint8)).save(buffer, kind, quality=90)
    return buffer.getvalue()


def to_tag(picture: bytes, alt: str, *, size: tuple[int, int] | None = None,
           kind: str = "jpeg") -> str:
    """A picture as HTML, with a text for those who cannot see it.

    HTML, because JupyterLab does not pass on the text that belongs to a bare picture.

    Args:
        picture: its bytes.
        alt: what it shows.
        size: width and height on the page in CSS pixels; None for the picture's own.
        kind: "jpeg" or "png".
    """
    place = 'width="{}" height="{}" '.format(*size) if size else ""
    return (f'<img alt="{html.escape(alt)}" {place}style="max-width: 100%; height: auto" '
            f'decoding="sync" src="data:image/{kind};base64,{base64.b64encode(picture).decode()}">')


def divided(before: Tensor, after: Tensor) -> str:
    """One image over another with a divider to drag, by pointer or arrow keys, as HTML.

    Where a page drops style and script, the two stand side by side.

    Args:
        before, after: (3, H, W) in [0, 1], of one size: left and right of the divider.
    """
    first, second = (shown(image, name)
                     for name, image in (("input", before), ("restored", after)))
    # JupyterLab would take the arrow keys for itself; it may have those with Ctrl
    return (f'{DIVIDER}<div class="divided">{first} {second}<i></i>'
            '<input type="range" step="any" aria-label="from input to restored" '
            """oninput="this.parentNode.style.setProperty('--at', this.value + '%')" """
            'onkeydown="event.ctrlKey || event.metaKey || event.stopPropagation()"></div>'
            "<div>left input, right restored: drag over the picture, or use the arrow keys</div>")


def shown(image: Tensor, alt: str) -> str:
    """An image (3, H, W) in [0, 1] as HTML, in the size of compared ones."""
    size = _fitted(image.shape[1:], COMPARED_SIDE)
    return to_tag(to_bytes(_shrunk(image), "JPEG"), alt, size=size)


def _shrunk(image: Tensor) -> Tensor:
    if max(image.shape) <= COMPARED_PX:
        return image
    width, height = _fitted(image.shape[1:], COMPARED_PX)
    return interpolate(image[None].float(), (height, width), mode="area")[0]


def _fitted(size: torch.Size, side: int) -> tuple[int, int]:
    """Width and height of (H, W) when its longer side is `side`."""
    height, width = (max(1, round(length * side / max(size))) for length in size)
    return width, height
