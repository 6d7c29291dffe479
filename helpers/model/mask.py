"""The repair mask: per pixel, how much of its own the network wants."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, pad, silu

WIDTH = 32
SCALE = 4  # the mask is judged at a quarter of the size, and has no hard edges
START = -1.0  # logit before training: 0.27
DETAIL_PX = (3, 7, 15)  # detail finer than this, from lashes to locks
FAINTEST = 1e-5  # energy, in squared brightness: below it all is flat


class RepairMask(nn.Module):
    """Judges by how much detail there is, of what size, in the input, the output and their change.

    A blurred or blotchy render has less fine detail than its restoration, a good one has more: what
    a small network would take long to find is given to it. Each place sees some 36 pixels around
    it, and is told the mean of the picture, for one pixel cannot tell a good render from a bad one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3 * len(DETAIL_PX) + 6, WIDTH, 1)
        self.near = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.picture = nn.Linear(WIDTH, WIDTH)
        self.far = nn.Conv2d(WIDTH, WIDTH, 3, padding=2, dilation=2)
        self.mix = nn.Conv2d(WIDTH, WIDTH // 2, 3, padding=1)
        self.last = nn.Conv2d(WIDTH // 2, 1, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.constant_(self.last.bias, START)

    def forward(self, degraded: Tensor, decoded: Tensor) -> Tensor:
        """Weigh the decoder's picture against the input.

        Args:
            degraded, decoded: (B, 3, H, W), about [0, 1], sides multiples of 4 and 16 or more;
                neither receives a gradient: the decoder is not to please the mask.

        Returns:
            (B, 1, H, W) float32 in [0, 1]: 0 keeps the input, 1 takes the decoder's picture.
        """
        degraded, decoded = degraded.detach().float(), decoded.detach().float()
        seen = [*map(detail, (degraded, decoded, decoded - degraded)), degraded, decoded]
        small = avg_pool2d(torch.cat(seen, 1), SCALE).to(self.first.weight.dtype)
        hidden = silu(self.first(small))
        whole = self.picture(hidden.mean((2, 3)))[:, :, None, None]
        hidden = silu(self.far(silu(self.near(hidden) + whole)))
        logit = self.last(silu(self.mix(hidden))).float()
        return interpolate(logit, scale_factor=SCALE, mode="bilinear").sigmoid()


def detail(images: Tensor) -> Tensor:
    """Logarithm of the energy of detail finer than DETAIL_PX around each pixel, about -2.3 to 3.5.

    Args:
        images: (B, 3, H, W) float32.

    Returns:
        (B, 3, H, W): a channel for each size.
    """
    grey = images.mean(1, keepdim=True)
    energies = [_mean((grey - _mean(grey, side)) ** 2, 5) for side in DETAIL_PX]
    return (torch.log(torch.cat(energies, 1) + FAINTEST) + 7) / 2


def _mean(images: Tensor, side_px: int) -> Tensor:
    return avg_pool2d(pad(images, (side_px // 2,) * 4, mode="reflect"), side_px, 1)
