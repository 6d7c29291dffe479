"""Less flicker: what the enhancer changes is blended with the last frame's change, along the flow.

The change (restored − input) is carried, never the picture: where nothing was changed nothing is
blended, and what does not move as the flow says, as after a cut, keeps its own change.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..gaussians.filters import resize
from ..gaussians.scene import carry

FLOW_PX = 160  # longest side on which flow is estimated: the change is smooth, and time is short
ROUND_TRIP_PX = 1.0  # on that grid: forward and backward flow that disagree by more are not used
# How badly the carried input may fit, of [0, 1], before the change is dropped. On a validation head
# whose restoration added 0.31 of flicker, 0.06 and half of the change took 0.17 of it away for
# 5.0 % of stlpips_alex, 0.012 and 0.85 of the change 0.15 for 1.7 %
MAX_MISFIT = 0.015
CUT_MISFIT = 0.1  # mean misfit from which a frame shows something else than the one before


class Smoother:
    """Frames one after the other, each with less flicker than it came with.

    Args:
        temporal: share of the last change that stays, from 0 (each frame as it is) to 1.
    """

    def __init__(self, temporal: float) -> None:
        self.temporal = temporal
        self.before: Tensor | None = None  # the last input (1, 3, H, W)
        self.change = torch.zeros(())  # what was made of it, minus it

    def __call__(self, degraded: Tensor, restored: Tensor,
                 flow: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """The restored frame (1, 3, H, W), smoothed.

        Args:
            degraded, restored: (1, 3, H, W) in [0, 1].
            flow: where its pixels were in the last frame (1, 2, H, W), in pixels, and whether they
                were seen (1, 1, H, W), if that is known; estimated otherwise.
        """
        if not self.temporal:
            return restored
        change, before = restored - degraded, self.before
        if before is not None:
            moved, seen = flow or estimate_flow(degraded, before)
            misfit = (degraded - carry(before, moved)).abs().mean(1, keepdim=True)
            misfit = F.avg_pool2d(misfit, 3, 1, 1, count_include_pad=False)
            if misfit.mean() < CUT_MISFIT:
                weight = self.temporal * seen * torch.exp(-(misfit / MAX_MISFIT).square())
                change = change + weight * (carry(self.change, moved, "bicubic") - change)
        self.before, self.change = degraded, change
        return (degraded + change).clamp(0, 1)


def estimate_flow(image: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """Where each pixel of a frame (1, 3, H, W) was in the one before, as `flow_between` gives it.

    Pixels from outside, or whose way there and back does not end where it began, count as unseen.

    Source: Zach, Pock and Bischof (2007), TV-L1, as in scikit-image, with few iterations.
    """
    try:
        from skimage.registration import optical_flow_tvl1
    except ImportError as error:
        raise ValueError("temporal: expected the package scikit-image, got none; run `pip install "
                         "scikit-image`, or set temporal to 0") from error
    height, width = image.shape[2:]
    shrink = min(1.0, FLOW_PX / max(height, width))
    small = [max(8, round(side * shrink)) for side in (height, width)]
    grey = [resize(frame, small).mean(1)[0].cpu().numpy() for frame in (image, before)]
    there, back = (torch.from_numpy(  # scikit-image has rows before columns
        optical_flow_tvl1(*pair, num_warp=3, num_iter=5)).float().flip(0)[None]
        for pair in (grey, grey[::-1]))
    gap = (there + carry(back, there)).norm(dim=1, keepdim=True)
    ys, xs = (torch.arange(side).float() for side in small)
    ends = there + torch.stack(torch.meshgrid(xs, ys, indexing="xy"))
    inside = (ends >= 0) & (ends <= torch.tensor([small[1], small[0]]).view(1, 2, 1, 1) - 1)
    seen = ((gap < ROUND_TRIP_PX) & inside.all(1, keepdim=True)).float()
    scale = torch.tensor([width / small[1], height / small[0]]).view(1, 2, 1, 1)
    return tuple(F.interpolate(part, (height, width), mode="bilinear").to(image)
                 for part in (there * scale, seen))
