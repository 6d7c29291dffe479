"""One picture restored: a file, or whatever holds a picture in memory."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..images import ORIENTATION, from_bytes, orientation, read_image, to_bytes, to_pil, write_png
from .inputs import MARK
from .settings import RestoreConfig

if TYPE_CHECKING:
    from ..model.enhancer import SplatEnhancer

BLUE = torch.tensor([0.0, 0.45, 0.7])[:, None, None]  # no skin, no hair and few backgrounds are
Picture = TypeVar("Picture", Image.Image, Tensor, NDArray[np.generic])


def restore(model: SplatEnhancer, picture: Picture | str | Path | list, strength: float = 1.0,
            ) -> Picture | list:
    """Restore whatever holds a picture; what comes back is of the same kind and size.

    Args:
        model: from `load`.
        picture: a PIL image or a path (of either comes an upright 8-bit sRGB image, RGB or RGBA);
            a tensor (C, H, W) or (B, C, H, W); an array (H, W, C) or (B, H, W, C); or a list of
            these. C is 3, or 4 with alpha, which is kept. Floats in [0, 1], or bytes.
        strength: 0 returns the input, 1 the restored picture, a linear blend between them.

    Raises:
        ValueError: something else, or a picture that cannot be read, with its name.
    """
    if isinstance(picture, list | tuple):
        return [restore(model, one, strength) for one in picture]
    if isinstance(picture, str | Path | Image.Image):
        if isinstance(picture, str | Path) and not Path(picture).is_file():
            raise ValueError(f"{picture}: expected a picture, got no such file; check the path")
        rgb, alpha = read_image(_content(picture) if isinstance(picture, Image.Image) else picture)
        return to_pil(model.enhance(rgb[None], strength)[0], alpha)
    is_array = isinstance(picture, np.ndarray)
    if is_array and picture.dtype.kind in "uf":
        picture = torch.from_numpy(picture.astype(picture.dtype.newbyteorder("=")))  # a copy
    if not isinstance(picture, Tensor):
        kind = f"an array of {picture.dtype}" if is_array else type(picture).__name__
        raise ValueError("picture: expected a path, a PIL image, a tensor or array of floats or "
                         f"bytes, or a list of them, got {kind}")
    channels, order = (-1, "H, W, C") if is_array else (-3, "C, H, W")
    if picture.ndim not in (3, 4) or picture.shape[channels] not in (3, 4):
        raise ValueError(f"picture: expected ({order}) or a batch of them, C 3 or 4, got "
                         f"{tuple(picture.shape)}")
    images = picture.movedim(channels, -3)
    batch = images[None] if images.ndim == 3 else images  # (B, C, H, W)
    values = from_bytes(batch) if batch.dtype == torch.uint8 else batch
    restored = torch.cat([model.enhance(values[:, :3], strength).to(values), values[:, 3:]], 1)
    restored = to_bytes(restored) if batch.dtype == torch.uint8 else restored
    restored = restored.reshape(images.shape).movedim(-3, channels)
    return restored.numpy() if is_array else restored


def restore_picture(model: SplatEnhancer, source: Path, target: Path, overlay: Path,
                    settings: RestoreConfig, text: dict[str, str], *,
                    tag: Callable[[float], str], tick: Callable[[int, int], None],
                    notes: list[str]) -> tuple[float, tuple[int, int]]:
    """Restore a picture file to an 8-bit sRGB PNG; alpha is kept.

    Args:
        overlay: written where the settings want it: where it was repaired, in blue.
        text: also kept in the PNG.
        model, source, target, settings, tag, tick, notes: as for `restore_video`.
    """
    rgb, alpha = read_image(source, notes=notes)
    restored, amount = (part[0].cpu() for part in
                        model.enhance_with_mask(rgb[None], settings.strength, tick))
    weight = torch.ones_like(amount) if alpha is None else alpha + 1e-6
    repaired = float((amount * weight).sum() / weight.sum())  # of what can be seen
    text = {MARK: tag(repaired)} | text
    overlay.unlink(missing_ok=True)  # of an earlier result
    if settings.overlay:
        write_png(overlay, torch.lerp(restored, BLUE, 0.6 * amount), alpha, text)
    write_png(target, restored, alpha, text)
    return repaired, (rgb.shape[2], rgb.shape[1])


def _content(image: Image.Image) -> bytes:
    """A PIL image as a file, for the one reader of pictures; colours and orientation are kept."""
    exif, content = Image.Exif(), BytesIO()
    exif[ORIENTATION] = orientation(image)
    image = image.convert("RGBA") if image.mode in ("RGBa", "La", "PA") else image
    kind = "TIFF" if image.mode in ("CMYK", "F", "LAB", "YCbCr") else "PNG"
    image.save(content, kind, exif=exif, icc_profile=image.info.get("icc_profile"))
    return content.getvalue()
