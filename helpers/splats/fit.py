"""Damage not seen in training: a picture fitted by too few Gaussians, stopped too early.

Wu et al. (DIFIX3D+, 2025) make training pairs by underfitting a reconstruction; here the same
pairs, from one picture instead of a scene, are for evaluation only: what is trained on is fitted by
another recipe (`pairs/underfit.py`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .draws import Draws
from .gaussians import Gaussians, describe
from .rasteriser import drawing_device, rasterise

GAUSSIANS = 2_000  # at 512 px each paints 130 pixels: strands and lashes merge; 500 at 128 px
STEPS = 25  # the face is there; needles, specks and blotches are not yet fitted away
# Per step of Adam. Kerbl et al. (2023) give sizes and turns more than places; all are larger here
# by the 30,000 steps they take to our few, and overshoot: that is where the blotches come from.
RATES = {"places": 4e-3, "lengths": 0.2, "angles": 0.3, "colors": 0.1, "opacities": 0.3}

Fit = dict[str, Tensor]  # what is learned, by the names of RATES


@torch.enable_grad()
def fit_splats(image: Tensor, gaussians: int, steps: int, *, seeds: Tensor) -> Tensor:
    """Fit Gaussians to each picture by gradient descent, and stop before they do it justice.

    They start as a sparse point cloud does: misplaced, round, small, translucent, greyish, of
    random size and depth, before a wall of the picture's mean colour. Adam minimises the mean
    absolute difference. On CUDA all at once; else one by one on the CPU, bit for bit the same
    alone or in any batch.

    Args:
        image: float32 (B, 3, H, W) in [0, 1].
        gaussians: how many for each picture, 1 to `gaussians.LIMIT`.
        steps: how many of Adam; 0 returns the start.
        seeds: int64 (B,); each sample depends on its own seed only.

    Returns:
        The render, in [0, 1], of the shape and on the device of `image`.
    """
    home = drawing_device(image.device)
    size = 1 if home.type == "cpu" else len(image)
    fitted = torch.empty_like(image, memory_format=torch.contiguous_format)
    for own in (slice(i, i + size) for i in range(0, len(image), size)):
        there = image[own].detach().to(home, copy=True)
        fitted[own] = _fit(there, gaussians, steps, seeds[own].tolist())
    return fitted


def draw_fit(values: Fit, depths: Tensor, wall: Tensor) -> Tensor:
    """Draw what is being fitted before a wall: (B, 3, H, W), differentiable, not clamped.

    Args:
        values: name in `RATES` → (B, N, ...); lengths as logarithms, opacities as logits.
        depths: (B, N), smaller is in front.
        wall: (B, 3, H, W).
    """
    lengths, opacities = values["lengths"].exp(), values["opacities"].sigmoid()
    found = Gaussians(values["places"], lengths, values["angles"], values["colors"], opacities,
                      depths)
    return rasterise(found.splats(*wall.shape[2:]), *wall.shape[2:], background=wall)[0]


@torch.enable_grad()
def descend(values: Fit, depths: Tensor, image: Tensor, wall: Tensor, steps: int, *,
            rates: Mapping[str, float] = RATES, seen: Tensor | None = None) -> None:
    """Move Gaussians towards pictures by Adam, which minimises the mean absolute difference.

    Args:
        values: as for `draw_fit`, leaves that require gradients; changed in place.
        depths, wall: as for `draw_fit`.
        image: (B, 3, H, W) in [0, 1].
        steps: how many; 0 leaves the values as they are.
        rates: learning rates by name.
        seen: (B, 1, H, W), what each pixel weighs; None: all the same.
    """
    optimiser = torch.optim.Adam([{"params": [values[name]], "lr": rate}
                                  for name, rate in rates.items()], eps=1e-15)
    for _ in range(steps):
        optimiser.zero_grad()
        error = (draw_fit(values, depths, wall) - image).abs()
        loss = (error if seen is None else error * seen).mean((1, 2, 3)).sum()
        loss.backward()
        optimiser.step()


def _fit(image: Tensor, count: int, steps: int, seeds: list[int]) -> Tensor:
    values, depths = _start(image, count, seeds)
    wall = image.mean((2, 3), keepdim=True).expand_as(image)
    descend(values, depths, image, wall, steps)
    with torch.no_grad():
        return draw_fit(values, depths, wall).clamp(0, 1)


def _start(image: Tensor, count: int, seeds: list[int]) -> tuple[Fit, Tensor]:
    """What is learned, name → (B, N, ...), lengths as logarithms and opacities as logits."""
    draws = Draws(seeds, "fit", image.device)
    with torch.no_grad():
        drawn = describe(image, torch.full((len(image),), count), draws)
        grey = image.mean((2, 3))[:, None].expand_as(drawn.colors)
        spacing = 0.4 * drawn.lengths.log().mean(-1, keepdim=True).exp()
        values = {
            "places": drawn.places + 0.05 * draws.normal(count, 2),
            "lengths": (spacing.log() + 0.8 * draws.normal(count, 1)).repeat(1, 1, 2),
            "angles": torch.pi * draws.uniform(count),
            "colors": drawn.colors.lerp(grey, 0.8),
            "opacities": torch.full_like(drawn.depths, -1.0),  # 0.27: translucent
        }
    return {name: v.requires_grad_() for name, v in values.items()}, draws.uniform(count)
