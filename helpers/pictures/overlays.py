"""What is laid over a picture: where it was repaired, in a colour that no face has."""

from __future__ import annotations

import torch
from torch import Tensor

MASK_COLOR = (0.00, 0.45, 0.70)  # no skin, no hair and few backgrounds are blue


def repaired(restored: Tensor, mask: Tensor) -> Tensor:
    """Pictures (B, 3, H, W), the bluer the more the network took its own: mask (B, 1, H, W)."""
    return tint(restored, mask_overlay(mask[:, 0]))


def mask_overlay(mask: Tensor) -> Tensor:
    """A mask (B, H, W) in [0, 1] as RGBA (B, 4, H, W), for `tint`: the more, the bluer."""
    alpha = 0.6 * mask.cpu()[:, None]
    return torch.cat([alpha.new_tensor(MASK_COLOR).view(1, 3, 1, 1).expand(
        len(alpha), 3, *alpha.shape[2:]), alpha], 1)


def tint(images: Tensor, overlay: Tensor) -> Tensor:
    """Lay RGBA (B, 4, H, W) over new copies of images (B, 3, H, W), on the CPU."""
    return images.cpu().lerp(overlay[:, :3], overlay[:, 3:])
