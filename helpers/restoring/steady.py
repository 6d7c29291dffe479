"""Less flicker: what the enhancer changes is blended with the last frame's change, along the flow.

The change (output − input) is carried, never the picture: where nothing was changed nothing is
blended, and what moves otherwise than the flow says keeps its own change. A cut starts anew.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..splats import carry
from ..splats.filters import luma, resize

FLOW_PX = 160  # longest side on which flow is estimated: the change is smooth, and time is short
ROUND_TRIP_PX = 1.0  # on that grid: forward and backward flow that disagree by more are not used
# How badly the carried input may fit, of [0, 1], before the change is dropped. On a validation head
# whose restoration added 0.31 of flicker, 0.06 and half of the change took 0.17 of it away for
# 5.0 % of stlpips_alex, 0.012 and 0.85 of the change 0.15 for 1.7 %
RESIDUAL = 0.015
CUT_PX, BLOCK_PX, REACH_PX = 64, 16, 16  # longest side, blocks, how far around they are looked for
# Share of the blocks' contrast that fits nowhere. Of 58 cuts between photographs and heads the
# least was 0.55; of 158 pans by 14 to 18 %, zooms by 1.2 and turns by 15° the most was 0.47
CUT_MISFIT = 0.5


class Steadier:
    """Frames one after the other, each with less flicker than it came with.

    Args:
        steady: share of the last change, from 0 (each frame as it is, bit for bit) to 1.
    """

    def __init__(self, steady: float) -> None:
        self.steady = steady
        self.before: Tensor | None = None  # the last input (1, 3, H, W)
        self.change: Tensor | None = None  # what was made of it, minus it

    def __call__(self, degraded: Tensor, restored: Tensor,
                 flow: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """The restored frame (1, 3, H, W), steadied.

        Args:
            degraded, restored: (1, 3, H, W) in [0, 1].
            flow: where its pixels were in the last frame (1, 2, H, W), in pixels, and whether they
                were seen (1, 1, H, W), if that is known; estimated otherwise.
        """
        if not self.steady:
            return restored
        change, before = restored - degraded, self.before
        if before is not None and (flow is not None or not is_cut(degraded, before)):
            moved, seen = flow or estimate_flow(degraded, before)
            misfit = (degraded - carry(before, moved)).abs().mean(1, keepdim=True)
            misfit = F.avg_pool2d(misfit, 3, 1, 1, count_include_pad=False)
            weight = self.steady * seen * torch.exp(-(misfit / RESIDUAL).square())
            change = change + weight * (carry(self.change, moved, "bicubic") - change)
        self.before, self.change = degraded, change
        return (degraded + change).clamp(0, 1)


def estimate_flow(now: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """Where each pixel of a frame (1, 3, H, W) was in the one before, as `flow_between` gives it.

    Pixels from outside, or whose way there and back does not end where it began, count as unseen.

    Source: Zach, Pock and Bischof (2007), TV-L1, as in scikit-image, with few iterations.
    """
    from skimage.registration import optical_flow_tvl1

    height, width = now.shape[2:]
    scale = min(1.0, FLOW_PX / max(height, width))
    small = [max(8, round(side * scale)) for side in (height, width)]
    grey = [resize(luma(frame), small)[0, 0].cpu().numpy() for frame in (now, before)]

    def along(one: int, other: int) -> Tensor:  # skimage: rows before columns
        found = optical_flow_tvl1(grey[one], grey[other], num_warp=3, num_iter=5)
        return torch.from_numpy(found).float().flip(0)[None]

    there, back = along(0, 1), along(1, 0)
    gap = (there + carry(back, there)).norm(dim=1, keepdim=True)
    ys, xs = (torch.arange(side).float() for side in small)
    ends = there + torch.stack(torch.meshgrid(xs, ys, indexing="xy"))
    inside = (ends >= 0) & (ends <= torch.tensor([small[1], small[0]]).view(1, 2, 1, 1) - 1)
    seen = ((gap < ROUND_TRIP_PX) & inside.all(1, keepdim=True)).float()
    full = torch.tensor([width / small[1], height / small[0]]).view(1, 2, 1, 1)
    moved = F.interpolate(there * full, (height, width), mode="bilinear")
    return moved.to(now), F.interpolate(seen, (height, width), mode="bilinear").to(now)


def is_cut(now: Tensor, before: Tensor) -> bool:
    """Whether a frame (1, 3, H, W) shows something else than the one before.

    Each block of the small picture is looked for around its place in the other one, at any
    brightness and contrast; after a cut most are not found. A pan of a fifth of the frame, a head
    that turns by 15° or a flash leaves them where they can be. Two heads at the same place before
    the same plain wall may pass for one: then the misfit of the flow alone keeps them apart.
    """
    return misfit_of_blocks(now, before) > CUT_MISFIT


def misfit_of_blocks(now: Tensor, before: Tensor) -> float:
    """How badly the blocks of a frame fit any place nearby in the other: from 0 to 1."""
    longest = max(now.shape[2:])
    size = [max(1, round(CUT_PX * side / longest / BLOCK_PX)) * BLOCK_PX for side in now.shape[2:]]
    small = [resize(frame, size) for frame in (now, before)]
    blocks = F.unfold(small[0], BLOCK_PX, stride=BLOCK_PX)[0].T  # (N, 3 · pixels)
    places = F.unfold(F.pad(small[1], [REACH_PX] * 4, mode="replicate"), BLOCK_PX)[0].T
    places = _contrasts(places).unflatten(0, (size[0] + 2 * REACH_PX - BLOCK_PX + 1, -1))
    reach, columns, misfit, total = 2 * REACH_PX + 1, size[1] // BLOCK_PX, 0.0, 1e-3
    for n, block in enumerate(_contrasts(blocks)):
        row, column = n // columns * BLOCK_PX, n % columns * BLOCK_PX
        near = places[row:row + reach, column:column + reach].flatten(0, 1)
        fit = (near @ block).clamp(min=0).square() / (near.square().sum(1) + 1e-8)
        power = float(block @ block)
        misfit += max(0.0, power - float(fit.max())) ** 0.5
        total += power ** 0.5
    return misfit / total


def _contrasts(blocks: Tensor) -> Tensor:
    """Blocks (N, 3 · pixels), each of their colours without its mean."""
    colors = blocks.unflatten(1, (3, -1))
    return (colors - colors.mean(2, keepdim=True)).flatten(1)
