"""Comparisons: degraded, restored, clean and where it repaired, above a detail of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from io import BytesIO

import torch
from IPython.display import HTML, display
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import interpolate

from ..evaluation import SHOWN, Evaluation, Measured, Shown, pick
from ..faces import REGIONS
from ..pictures import repaired
from .pictures import to_tag

TITLES = ("degraded", "restored", "clean", "repaired")
FEW = {"random": 2, "best": 1, "worst": 1}  # in the notebook
DETAIL = 0.36  # side of the detail, as a share of the picture's
DETAILS = ("eyes", "mouth")  # whichever was damaged more
GAP_PX, LINE_PX, FONT_PX = 3, 17, 13


def comparisons(name: str, evaluation: Evaluation, tile_px: int = 256,
                counts: Mapping[str, int] = SHOWN) -> Iterator[tuple[str, Tensor]]:
    """Each shown image of a set with its caption, random ones first, then best, then worst.

    Args:
        name: of the set.
        evaluation: from `evaluate_run`.
        tile_px: the largest side of one picture.
        counts: how many of each kind, at most as many as in SHOWN.

    Yields:
        What it is, and two rows of four pictures as uint8 (3, H, W): degraded, restored, clean and
        where it repaired, and a detail of each, enlarged.
    """
    measured = evaluation.measured[name]
    for kind, images in pick(measured.result).items():
        for image in images[:counts[kind]]:
            yield caption(kind, image, measured, evaluation), block(measured.pictures[image],
                                                                    tile_px)


def caption(kind: str, image: str, measured: Measured, evaluation: Evaluation) -> str:
    """Why it is shown, which it is, and its figures before and after."""
    result, texts = measured.result, []
    place = result.called.index(image)
    for metric, unit in ((evaluation.metrics[0], ""), ("psnr", " dB")):
        digits = 3 if not unit else 1
        before, cheap, after = (getattr(result, part)[metric][place]
                                for part in ("degraded", "filtered", "restored"))
        texts.append(f"{metric} {before:.{digits}f} → {after:.{digits}f}{unit} "
                     f"(filter {cheap:.{digits}f})")
    return f"{kind} · {image} · " + " · ".join(texts)


def block(shown: Shown, tile_px: int) -> Tensor:
    """Two rows of four pictures, uint8 (3, H, W)."""
    pictures = [x.float().div(255) for x in (shown.degraded, shown.restored, shown.clean)]
    mask = torch.zeros(pictures[0].shape[1:]) if shown.mask is None else shown.mask.float().div(255)
    pictures.append(repaired(pictures[1][None], mask[None, None])[0])
    top, left, side = _detail(shown)
    details = [x[:, top:top + side, left:left + side] for x in pictures]
    size = [min(tile_px, length) for length in pictures[0].shape[1:]]
    rows = [_joined([_scaled(x, size) for x in row], 2) for row in (pictures, details)]
    return _joined(rows, 1).mul(255).round().byte()


def show_sheet(name: str, evaluation: Evaluation) -> None:
    """Display some comparisons of a set inline, as JPEG and on one screen."""
    jpeg = sheet(name, evaluation, 128, counts=FEW, kind="JPEG")
    display(HTML(to_tag(jpeg, f"{name}: degraded, restored, clean and where it repaired, above a "
                              "detail of each")))


def sheet(name: str, evaluation: Evaluation, tile_px: int = 256, *,
          counts: Mapping[str, int] = SHOWN, kind: str = "PNG") -> bytes:
    """The comparisons of a set as one picture, in two columns, with their captions."""
    found = list(comparisons(name, evaluation, tile_px, counts))
    height, width = found[0][1].shape[1:]
    cell = height + 2 * LINE_PX + 12
    font = ImageFont.load_default(size=FONT_PX)
    rows = -(-len(found) // 2)
    page = Image.new("RGB", (2 * width + 3 * 12, LINE_PX + 12 + rows * cell), "white")
    draw = ImageDraw.Draw(page)
    draw.text((12, 6), f"{name}: {evaluation.weights.run}, step {evaluation.weights.step}",
              "black", font)
    for place, (text, picture) in enumerate(found):
        left, top = 12 + (place % 2) * (width + 12), LINE_PX + 12 + (place // 2) * cell
        text = text.replace("→", "to")  # the font has no arrow
        draw.text((left, top), _fitting(draw, text, width, font), "black", font)
        for column, title in enumerate(TITLES):
            draw.text((left + column * (width + GAP_PX) // 4, top + LINE_PX), title, "#555", font)
        page.paste(Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()),
                   (left, top + 2 * LINE_PX))
    buffer = BytesIO()
    page.save(buffer, kind, quality=88)
    return buffer.getvalue()


def _fitting(draw: ImageDraw.ImageDraw, text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    while draw.textlength(text, font) > width and " · " in text:
        text = text.rpartition(" · ")[0]
    return text


def _detail(shown: Shown) -> tuple[int, int, int]:
    """Top, left and side of the square around the eyes or the mouth; else in the middle."""
    height, width = shown.clean.shape[1:]
    side = round(DETAIL * min(height, width))
    center = height / 2, width / 2
    if shown.regions is not None:
        error = (shown.degraded.float() - shown.clean.float()).abs().mean(0)
        inside = {name: shown.regions == REGIONS.index(name) for name in DETAILS}
        damage = {name: float(error[one].mean()) for name, one in inside.items() if one.any()}
        if damage:
            places = inside[max(damage, key=damage.get)].nonzero().float()
            center = places.mean(0).tolist()
    top, left = (max(0, min(round(c - side / 2), length - side))
                 for c, length in zip(center, (height, width), strict=True))
    return top, left, side


def _scaled(image: Tensor, size: list[int]) -> Tensor:
    if list(image.shape[1:]) == size:
        return image
    mode = "area" if image.shape[1] > size[0] else "bicubic"
    return interpolate(image[None], size, mode=mode)[0].clamp(0, 1)


def _joined(images: list[Tensor], dim: int) -> Tensor:
    """Side by side along a dimension, a white gap between."""
    shape = list(images[0].shape)
    shape[dim] = GAP_PX
    parts = [part for image in images for part in (torch.ones(shape), image)][1:]
    return torch.cat(parts, dim)
