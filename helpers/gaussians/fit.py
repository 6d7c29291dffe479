"""Pictures fitted by 2D Gaussians that are too few and stopped too early: degraded as renders are.

No artefact is painted on. There are two recipes. Pairs to train on come from `underfit`: a
poor description, fitted for part of a schedule, seen on part of the pixels, and then disturbed. A
test set of degradations that training has not seen comes from `fit_splats`: round specks without
colour before the mean colour, moved several times faster, all pixels seen, nothing disturbed.

Sources: Wu et al. (DIFIX3D+, 2025), stopped at 25 to 75 % of the schedule; Wu et al. (GenFusion,
2025), a random patch; Yang et al. (GaussianObject, 2024), dropped, and scaled by 0.6 to 0.8; HuFix,
up to 30 % of the pixels masked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import SimpleNamespace as Recipe

import torch
from torch import Tensor

from .describe import Gaussians, describe, sample_at
from .rasterizer import drawing_device, rasterize
from .rng import SeededRandom

Values = dict[str, Tensor]  # what is fitted, by the names of RATES; log scales, opacity logits

# Held-out recipe. At 512 px each of 2,000 Gaussians paints 130 pixels: strands and lashes merge
GAUSSIANS = 2_000  # 500 at 128 px
STEPS = 25  # the face is there; needles, specks and blotches are not yet fitted away
# Per step of Adam. Kerbl et al. (2023) move sizes and turns more than positions; all is larger here
# by the 30,000 steps they take to our few, and overshoot: that is where the blotches come from.
RATES = {"positions": 4e-3, "scales": 0.2, "angles": 0.3, "colors": 0.1, "opacities": 0.3}

# Training recipe. Gaussians per pixel of the side: 350 to 2,300 at 128 px, 1,400 to 9,200 at 512
COUNT_PER_PX = (2.75, 18.0)
SCHEDULE = 24  # steps of Adam at 128 px; they grow with the root of the side: 48 at 512 px
STOPPED = (0.25, 0.75)  # of the schedule
SEEN = (0.7, 1.0)  # share of the pixels, where blotches of them are hidden
PATCH_SHARE = 0.25  # of the recipes see all pixels for a third of their steps, then a patch only
PATCH_SIDE = (0.5, 0.8)  # of the picture's: 25 to 64 % of the pixels
GOOD_SHARE = 0.2  # of the recipes disturb nothing: some renders are best left alone
SHRINK = (0.6, 0.8)  # factor on Gaussians that are shrunk
TRAINING_RATES = {"positions": 2e-3, "scales": 0.07, "angles": 0.1, "colors": 0.04,
                  "opacities": 0.15}  # times the recipe's own rate
VERSION = 1  # raised whenever a recipe or its render becomes another


def fit_splats(image: Tensor, gaussians: int, steps: int, *, seeds: Tensor) -> Tensor:
    """Fit Gaussians to each picture and stop before they do it justice: the held-out recipe.

    They start as a sparse point cloud does: misplaced, round, small, translucent, greyish, of
    random size and depth, before the picture's mean colour.

    Args:
        image: float32 (B, 3, H, W) in [0, 1]; so are the renders.
        gaussians: how many for each picture, 1 to `describe.LIMIT`.
        steps: how many of Adam; 0 returns the start.
        seeds: int64 (B,); each sample depends on its own seed only.
    """
    def fit(picture: Tensor, seed: int) -> Tensor:
        rng = SeededRandom([seed], "fit", picture.device)
        start = describe(picture, torch.tensor([gaussians]), rng)
        backdrop = picture.mean((2, 3), keepdim=True).expand_as(picture)
        grey = picture.mean((2, 3))[:, None].expand_as(start.colors)
        spacing = 0.4 * start.scales.log().mean(-1, keepdim=True).exp()
        values = {
            "positions": start.positions + 0.05 * rng.normal(gaussians, 2),
            "scales": (spacing.log() + 0.8 * rng.normal(gaussians, 1)).repeat(1, 1, 2),
            "angles": torch.pi * rng.uniform(gaussians), "colors": start.colors.lerp(grey, 0.8),
            "opacities": torch.full_like(start.depths, -1.0)}  # 0.27: translucent
        depths = rng.uniform(gaussians)
        descend(values, depths, picture, backdrop, steps)
        return draw_fit(values, depths, backdrop)

    return _fit_each(image, seeds, fit)


def underfit(image: Tensor, seeds: Tensor) -> Tensor:
    """Fit Gaussians to pictures by the recipes of their seeds, and disturb them: for training."""
    def fit(picture: Tensor, seed: int) -> Tensor:
        recipe = draw_recipe(seed, round(math.sqrt(picture[0, 0].numel())))
        rng = SeededRandom([seed], "fitted", picture.device)
        matte = SeededRandom([seed], "wall", picture.device).uniform(3)[..., None, None]
        backdrop = {"mean": picture.mean((2, 3), keepdim=True), "black": torch.zeros_like(matte),
                    "white": torch.ones_like(matte), "matte": matte}[recipe.backdrop]
        backdrop = backdrop.expand_as(picture)
        values, depths = _start_poor(picture, recipe, rng)
        rates = {name: rate * recipe.rate for name, rate in TRAINING_RATES.items()}
        first, seen = recipe.steps // 3 if recipe.patch else 0, _seen(picture, recipe, rng)
        descend(values, depths, picture, backdrop, first, rates=rates)
        descend(values, depths, picture, backdrop, recipe.steps - first, rates=rates, seen=seen)
        perturb(values, recipe, rng)
        return draw_fit(values, depths, backdrop)

    return _fit_each(image, seeds, fit)


def draw_recipe(seed: int, size_px: int) -> Recipe:
    """All that decides a training fit but the picture, whose area is the square of a size."""
    numbers = iter(SeededRandom([seed], "fitted recipe", "cpu").numbers(20)[0])

    def between(low: float, high: float) -> float:
        return low + (high - low) * next(numbers)

    few, many = COUNT_PER_PX
    count = size_px * few * (many / few) ** next(numbers)
    steps = SCHEDULE * (size_px / 128) ** 0.5 * between(*STOPPED)
    patched, kind = next(numbers) < PATCH_SHARE, next(numbers)
    seen, side = between(*SEEN), between(*PATCH_SIDE)
    strength = 0.0 if next(numbers) < GOOD_SHARE else between(0.3, 1)
    return Recipe(
        gaussians=max(1, round(count)), steps=max(1, round(steps)),
        rate=0.7 * (1.6 / 0.7) ** next(numbers),  # factor on all learning rates
        # At the start: how far the colours are from the picture's, a factor on the sizes, the
        # opacity's logit, and the share of Gaussians that lie anywhere
        grey=between(0.1, 0.7), spread=between(0.7, 1.2), opacity=between(-1, 1.5),
        strays=between(0, 0.08),
        backdrop="mean" if kind < 0.4 else "black" if kind < 0.55 else "white" if kind < 0.7
        else "matte",
        # Share of the pixels that are looked at, or side of the patch as a share of the picture's
        seen=1.0 if patched else seen, patch=side if patched else 0.0,
        # Shares of the Gaussians; the last three in patches
        dropped=strength * between(0, 0.08), shrunk=strength * between(0, 0.5),
        faded=strength * between(0, 0.3), stained=strength * between(0, 0.25),
        shifted=strength * between(0, 0.3), shift=between(0.004, 0.02))  # of the picture's side


def draw_fit(values: Values, depths: Tensor, backdrop: Tensor) -> Tensor:
    """Draw what is being fitted before a backdrop: (B, 3, H, W), differentiable, not clamped."""
    gaussians = Gaussians(values["positions"], values["scales"].exp(), values["angles"],
                          values["colors"], values["opacities"].sigmoid(), depths)
    size = backdrop.shape[2:]
    return rasterize(gaussians.splats(*size), *size, background=backdrop)[0]


@torch.enable_grad()
def descend(values: Values, depths: Tensor, image: Tensor, backdrop: Tensor, steps: int, *,
            rates: Mapping[str, float] = RATES, seen: Tensor | None = None) -> None:
    """Move Gaussians towards pictures by Adam, in place; `seen` (B, 1, H, W) weighs the pixels."""
    optimiser = torch.optim.Adam([{"params": [values[name].requires_grad_()], "lr": rate}
                                  for name, rate in rates.items()], eps=1e-15)
    for _ in range(steps):
        optimiser.zero_grad()
        error = (draw_fit(values, depths, backdrop) - image).abs()
        (error if seen is None else error * seen).mean((1, 2, 3)).sum().backward()
        optimiser.step()


def perturb(values: Values, recipe: Recipe, rng: SeededRandom) -> None:
    """Disturb fitted Gaussians, as many of each kind as the recipe says, in place."""
    positions, count = values["positions"], values["positions"].shape[1]

    def choose(share: float, patchy: float) -> Tensor:
        """A share of the Gaussians (1, N, 1), the more in patches the larger `patchy` is."""
        field = rng.field(1, 6, (64, 64))
        score = patchy * sample_at(field, positions)[..., 0] + rng.normal(count)
        return (score.argsort(dim=1).argsort(dim=1) < round(share * count))[..., None]

    low, high = SHRINK
    shrink = (low + (high - low) * rng.uniform(count, 1)).log()
    values["scales"] += choose(recipe.shrunk, 0.5) * shrink
    values["opacities"] -= (choose(recipe.faded, 2.0)
                            * (0.5 + 1.5 * rng.uniform(count, 1)))[..., 0]
    stain = 0.08 * rng.normal(1, 3) + 0.04 * rng.normal(count, 3)
    values["colors"] += choose(recipe.stained, 2.0) * stain
    angle = 2 * math.pi * rng.uniform(1, 1)
    move = 2 * recipe.shift * torch.cat([angle.cos(), angle.sin()], -1)  # positions span 2
    positions += choose(recipe.shifted, 3.0) * move
    values["opacities"].masked_fill_(choose(recipe.dropped, 1.0)[..., 0], -math.inf)


@torch.no_grad()
def _fit_each(image: Tensor, seeds: Tensor, fit: Callable[[Tensor, int], Tensor]) -> Tensor:
    """One by one on every device, so that each is bit for bit the same alone or in any batch."""
    device = drawing_device(image.device)
    renders = [fit(picture.detach().to(device), seed).clamp(0, 1).to(image.device)
               for picture, seed in zip(image.split(1), seeds.tolist(), strict=True)]
    return torch.cat(renders).contiguous()


def _start_poor(image: Tensor, recipe: Recipe, rng: SeededRandom) -> tuple[Values, Tensor]:
    """A poor description: misplaced, of uneven size, greyish, translucent, in no order of depth."""
    count = recipe.gaussians
    start = describe(image, torch.tensor([count]), rng)
    anywhere = 2 * rng.uniform(count, 2) - 1
    stray = rng.uniform(count, 1) < recipe.strays
    spread = math.log(recipe.spread) + 0.5 * rng.normal(count, 1)
    mean = start.scales.log().mean(-1, keepdim=True)
    grey = image.mean((2, 3))[:, None]
    return {
        "positions": torch.where(stray, anywhere, start.positions + 0.02 * rng.normal(count, 2)),
        "scales": 0.5 * (start.scales.log() + mean) + spread,
        "angles": start.angles + 0.3 * rng.normal(count),
        "colors": start.colors.lerp(grey, recipe.grey) + 0.03 * rng.normal(count, 3),
        "opacities": recipe.opacity + 0.5 * rng.normal(count)}, rng.uniform(count)


def _seen(image: Tensor, recipe: Recipe, rng: SeededRandom) -> Tensor:
    """1 where the fit looks, 0 elsewhere: (1, 1, H, W)."""
    height, width = image.shape[2:]
    field, corner = rng.field(1, 7, (height, width)), rng.numbers(2)[0]
    if recipe.patch:
        tall, wide = (max(1, round(recipe.patch * length)) for length in (height, width))
        top, left = round((height - tall) * corner[0]), round((width - wide) * corner[1])
        patch = torch.zeros_like(field)
        patch[..., top:top + tall, left:left + wide] = 1
        return patch
    place = max(1, round(recipe.seen * field.numel()))
    return (field <= field.flatten().kthvalue(place).values).float()
