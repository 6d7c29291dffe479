"""The repair mask: per pixel, how much of its own the network wants."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, silu

WIDTH = 16  # channels of every layer: what it judges is simple
START = 2.0  # logit of the mask before training: 0.88, so that the decoder is heard and learns


class RepairMask(nn.Module):
    """Sees the input at every scale the encoder has, and judges it from the coarsest down.

    A pixel alone cannot tell a good render from a bad one: at an eighth of the size each place sees
    most of a face, and the mean over the picture is told to all of them.

    Args:
        widths: channels of the VAE's blocks, from the image inwards.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.deep = nn.Conv2d(widths[-1] + 3, WIDTH, 3, padding=1)
        self.whole = nn.Conv2d(WIDTH, WIDTH, 1)
        sources = [widths[0], *widths[:-1]][::-1]  # as of the skips, deepest first
        self.laterals = nn.ModuleList(nn.Conv2d(width, WIDTH, 1) for width in sources)
        self.mixes = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, padding=1) for _ in sources)
        self.last = nn.ModuleList([nn.Conv2d(WIDTH + 9, WIDTH, 3, padding=1),
                                   nn.Conv2d(WIDTH, 1, 3, padding=1)])
        nn.init.zeros_(self.last[1].weight)
        nn.init.constant_(self.last[1].bias, START)

    def forward(self, degraded: Tensor, decoded: Tensor, deepest: Tensor,
                features: Sequence[Tensor]) -> Tensor:
        """Weigh the decoder's picture against the input.

        Args:
            degraded, decoded: (B, 3, H, W), about [0, 1].
            deepest: (B, C, H/8, W/8), what the encoder ends with.
            features: what enters the encoder's blocks, from the image inwards.

        Returns:
            (B, 1, H, W) float32 in [0, 1]: 0 keeps the input, 1 takes the decoder's picture.
        """
        dtype = self.deep.weight.dtype
        change = (decoded - degraded).abs()
        coarse = avg_pool2d(change, degraded.shape[-1] // deepest.shape[-1])
        hidden = self.deep(torch.cat([deepest.to(dtype), coarse.to(dtype)], 1))
        hidden = silu(hidden + self.whole(hidden.mean((2, 3), keepdim=True)))
        for lateral, mix, feature in zip(self.laterals, self.mixes, features[::-1], strict=True):
            if hidden.shape[-2:] != feature.shape[-2:]:
                hidden = interpolate(hidden, scale_factor=2.0, mode="nearest")
            hidden = silu(mix(hidden + lateral(feature)))
        seen = [hidden, *(x.to(dtype) for x in (degraded, decoded, change))]
        logit = self.last[1](silu(self.last[0](torch.cat(seen, 1))))
        return logit.float().sigmoid()
