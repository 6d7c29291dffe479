"""The one form in which pictures are passed on, and the one check of it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import refused

REMEDIES = {True: "divide bytes by 255", False: "map it to [0, 1] first, as (x + 1) / 2"}


def check_images(images: Tensor, name: str = "images", *, smallest_px: int = 1,
                 beyond: float = 0.0) -> None:
    """Raise ValueError unless it is a batch of pictures: floats (B, 3, H, W), finite, in [0, 1].

    Args:
        name: in the error.
        smallest_px: the shortest side that is of use.
        beyond: how far outside [0, 1] values may lie, for what is clamped afterwards.
    """
    shape = tuple(getattr(images, "shape", ()))
    fits = len(shape) == 4 and shape[1] == 3 and shape[0] > 0 and min(shape[2:]) >= smallest_px
    if not fits or not images.is_floating_point():
        raise refused(name, f"floats (B, 3, H, W), sides of {smallest_px} px or more",
                      (getattr(images, "dtype", type(images).__name__), shape),
                      "convert them to RGB floats in [0, 1]")
    if images.is_meta:  # without content, to count what a step takes
        return
    low, high = torch.stack(images.detach().aminmax()).tolist()  # NaN, if one value is
    if not (low >= -beyond and high <= 1 + beyond):
        broken = not -1e30 < low <= high < 1e30
        raise refused(name, "finite values in [0, 1]", f"values from {low:g} to {high:g}",
                      "look for a broken picture, or broken weights" if broken
                      else REMEDIES[high > 2])
