"""The enhancer in three lines of anybody's code.

    from helpers import load, restore
    model = load("results/demo/enhancer")  # or a name on the hub
    restored = restore(model, "render.png")
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..errors import refused
from ..machine import detect
from ..model import SplatEnhancer
from ..model import load as load_export
from ..pictures import read_picture, to_image

Picture = TypeVar("Picture", Image.Image, Tensor, NDArray[np.generic])


def load(name: str | Path, *, device: torch.device | str | None = None) -> SplatEnhancer:
    """Build an exported enhancer; see `helpers.model.load`.

    Args:
        name: its folder, or "owner/name" on the hub.
        device: None takes the GPU where there is one that works.
    """
    return load_export(name, device=device or detect().device)


def restore(model: SplatEnhancer, picture: Picture | str | Path | list, strength: float = 1.0,
            ) -> Picture | list:
    """Restore whatever holds a picture; what comes back is of the same kind and size.

    Args:
        model: from `load`.
        picture: a PIL image or a path (of either comes an upright 8-bit sRGB image, RGB or RGBA);
            a tensor (C, H, W) or (B, C, H, W); an array (H, W, C) or (B, H, W, C); or a list of
            these. C is 3, or 4 with alpha, which is kept. Floats in [0, 1], or bytes.
        strength: 0 returns the input, 1 the restoration, a linear blend between them.

    Raises:
        ValueError: something else, or a picture that cannot be read, with its name.
    """
    if isinstance(picture, list | tuple):
        with model.merged() if len(picture) > 1 else nullcontext():
            return [restore(model, one, strength) for one in picture]
    if isinstance(picture, str | Path | Image.Image):
        read = read_picture(picture)
        return to_image(model.enhance(read.rgb[None], strength)[0], read.alpha)
    if isinstance(picture, np.ndarray):
        if picture.dtype.kind not in "uif":
            raise refused("picture", "an array of numbers", str(picture.dtype), "convert it")
        values = torch.from_numpy(picture.astype(picture.dtype.newbyteorder("=")))  # a copy
        if values.ndim not in (3, 4) or values.shape[-1] not in (3, 4):
            raise refused("picture", "an array (H, W, 3 or 4), or a batch of them", picture.shape,
                          "put the colours last")
        return _restored(model, values.movedim(-1, -3), strength).movedim(-3, -1).numpy()
    if isinstance(picture, Tensor):
        return _restored(model, picture, strength)
    raise refused("picture", "a path, a PIL image, a tensor, an array, or a list of them",
                  type(picture).__name__, "convert it")


def _restored(model: SplatEnhancer, images: Tensor, strength: float) -> Tensor:
    batch = images[None] if images.ndim == 3 else images
    if batch.ndim != 4 or batch.shape[1] not in (3, 4):
        raise refused("picture", "a tensor (3 or 4, H, W), or a batch of them",
                      tuple(images.shape), "put the colours first")
    whole = images.dtype == torch.uint8
    values = batch.float() / 255 if whole else batch  # (B, C, H, W)
    restored = torch.cat([model.enhance(values[:, :3], strength).to(values), values[:, 3:]], 1)
    restored = restored.mul(255).round() if whole else restored
    return restored.to(images.dtype).view_as(images)
