"""The repair mask: per pixel, whether the decoder's picture is closer to the truth than the input.

A base loses more detail than a good render lacks, so what goes through it comes out worse. The mask
keeps the input where that is so. It learns beside the decoder, not through it: see `mask_loss`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, silu

from ..distances import detail

WIDTH = 24
SCALE = 4  # judged at a quarter of the size: the mask has no hard edges
START = -0.5  # logit before training: the input is kept, nearly
DECIDED = 4.0  # factor on the logit: half a decision blends two pictures to a blurred third
LEAN = -0.15  # on the logit, towards keeping: of what was tried on validation heads, the most
# repair that costs 0.25 dB or less inside the arc; 0.1 more gains 1 % there and costs 0.04 dB


class RepairMask(nn.Module):
    """Judges by how much detail of what size there is in the input, the output and their change.

    A blurred or blotchy render has less fine detail than its restoration, a good one has more. What
    a network of convolutions would take thousands of steps to find is given to this one, so three
    1×1 layers learn in hundreds. Each place is also told the means of the picture, for a spot alone
    cannot tell a good render from a bad one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(22, WIDTH, 1)
        self.second = nn.Conv2d(WIDTH, WIDTH, 1)
        self.last = nn.Conv2d(WIDTH, 1, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.constant_(self.last.bias, START)

    def forward(self, degraded: Tensor, decoded: Tensor) -> Tensor:
        """Weigh the decoder's picture against the input.

        Args:
            degraded, decoded: (B, 3, H, W), about [0, 1], sides multiples of 4 and 16 or more;
                neither receives a gradient: the decoder is not to please the mask.

        Returns:
            (B, 1, H, W) float32, the logit of the chance that the decoder's picture is closer.
        """
        degraded, decoded = degraded.detach().float(), decoded.detach().float()
        change, before = decoded - degraded, detail(degraded)
        seen = torch.cat([before, 3 * (detail(decoded) - before), detail(change),
                          10 * change.mean(1, keepdim=True), degraded], 1)  # (B, 13, H, W)
        small = avg_pool2d(seen, SCALE)
        whole = small[:, :9].mean((2, 3), keepdim=True).expand(-1, -1, *small.shape[2:])
        hidden = torch.cat([small, whole], 1).to(self.first.weight.dtype)
        logit = self.last(silu(self.second(silu(self.first(hidden))))).float()
        return interpolate(logit, scale_factor=SCALE, mode="bilinear")


def decide(logit: Tensor) -> Tensor:
    """The mask (B, 1, H, W) in [0, 1] of a logit: 0 keeps the input, 1 takes the decoder's."""
    return (DECIDED * (logit + LEAN)).sigmoid()
