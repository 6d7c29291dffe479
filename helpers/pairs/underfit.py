"""A photograph fitted by too few Gaussians, stopped early, then perturbed: damage to learn from.

No damage is painted on. The photograph is described by alpha-composited 2D Gaussians as a poor
reconstruction has them, these are fitted for part of a schedule, seen on part of the pixels, and
what was found is disturbed. All of it follows from the photograph and a seed.

Sources: Wu et al. (DIFIX3D+, 2025), stopped at 25 to 75 % of the schedule; Wu et al. (GenFusion,
2025), a random patch; Yang et al. (GaussianObject, 2024), dropped, and scaled by 0.6 to 0.8; HuFix,
up to 30 % of the pixels masked. `splats.fit_splats` is another recipe, for tests only: it starts
from round specks without colour before the mean colour, moves several times faster, sees all
pixels, and disturbs nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import refused
from ..splats import Draws, descend, describe, draw_fit, drawing_device, sample_at

# Gaussians per pixel of the side: 350 to 2,300 at 128 px, 1,400 to 9,200 at 512 px
COUNT_PER_PX = (2.75, 18.0)
SCHEDULE = 24  # steps of Adam at 128 px; they grow with the root of the side: 48 at 512 px
STOPPED = (0.25, 0.75)  # of the schedule
SEEN = (0.7, 1.0)  # share of the pixels, where blotches of them are hidden
PATCH_SHARE = 0.25  # of the recipes see all pixels for a third of their steps, then a patch only
PATCH_SIDE = (0.5, 0.8)  # of the picture's: 25 to 64 % of the pixels
GOOD_SHARE = 0.2  # of the recipes disturb nothing: some renders are best left alone
SCALE = (0.6, 0.8)  # of Gaussians that are shrunk
# Per step of Adam, times the recipe's own rate
RATES = {"places": 2e-3, "lengths": 0.07, "angles": 0.1, "colors": 0.04, "opacities": 0.15}
VERSION = 1  # raised whenever a recipe or its render becomes another

Fit = dict[str, Tensor]  # as for `splats.draw_fit`


@dataclass(frozen=True)
class Recipe:
    """All that decides a fit but the photograph: counts, and shares in [0, 1] unless said."""

    gaussians: int
    steps: int  # of Adam
    rate: float  # factor on all learning rates
    grey: float  # how far the colours are from the photograph's at the start
    spread: float  # factor on the sizes at the start
    opacity: float  # at the start, as a logit
    strays: float  # Gaussians that start anywhere
    wall: str  # what stands behind: "mean", "black", "white" or "matte"
    seen: float  # pixels that are looked at; 1 with a patch
    patch: float  # its side as a share of the picture's; 0: none
    dropped: float  # Gaussians that are taken away
    shrunk: float  # Gaussians scaled by SCALE
    faded: float  # Gaussians that become more translucent, in patches
    stained: float  # Gaussians of another colour, in patches
    shifted: float  # Gaussians moved together, in patches
    shift: float  # by how much, as a share of the picture's side


def draw_recipe(seed: int, size_px: int) -> Recipe:
    """The recipe of a seed.

    Args:
        seed: any.
        size_px: side of the picture, or the root of its area.

    Raises:
        ValueError: a picture without pixels.
    """
    if size_px < 1:
        raise refused("size_px", "1 or more", size_px, "pass the side of the picture")
    dice = iter(Draws([seed], "fitted recipe", "cpu").uniform(20)[0].tolist())

    def between(low: float, high: float) -> float:
        return low + (high - low) * next(dice)

    few, many = COUNT_PER_PX
    count = size_px * few * (many / few) ** next(dice)
    steps = SCHEDULE * (size_px / 128) ** 0.5 * between(*STOPPED)
    patched, kind = next(dice) < PATCH_SHARE, next(dice)
    seen, side = between(*SEEN), between(*PATCH_SIDE)
    strength = 0.0 if next(dice) < GOOD_SHARE else between(0.3, 1)
    return Recipe(
        gaussians=max(1, round(count)), steps=max(1, round(steps)),
        rate=0.7 * (1.6 / 0.7) ** next(dice), grey=between(0.1, 0.7), spread=between(0.7, 1.2),
        opacity=between(-1, 1.5), strays=between(0, 0.08),
        wall="mean" if kind < 0.4 else "black" if kind < 0.55 else "white" if kind < 0.7
        else "matte", seen=1.0 if patched else seen, patch=side if patched else 0.0,
        dropped=strength * between(0, 0.08), shrunk=strength * between(0, 0.5),
        faded=strength * between(0, 0.3), stained=strength * between(0, 0.25),
        shifted=strength * between(0, 0.3), shift=between(0.004, 0.02))


@torch.no_grad()
def fit_poorly(image: Tensor, seeds: Tensor) -> Tensor:
    """Fit Gaussians to each photograph by the recipe of its seed, and disturb them.

    One by one on every device, so that each is bit for bit the same alone or in any batch.

    Args:
        image: float32 (B, 3, H, W) in [0, 1].
        seeds: int64 (B,); each sample depends on its own seed only.

    Returns:
        The renders, in [0, 1], of the shape and on the device of `image`.

    Raises:
        ValueError: another shape or dtype, or not one seed per image.
    """
    if image.ndim != 4 or image.shape[1] != 3 or image.dtype != torch.float32 \
            or seeds.shape != image.shape[:1]:
        raise refused("photographs to fit", "float32 (B, 3, H, W) and seeds (B,)",
                      (image.dtype, tuple(image.shape), tuple(seeds.shape)),
                      "pass one seed per image")
    home = drawing_device(image.device)
    rendered = torch.empty_like(image, memory_format=torch.contiguous_format)
    for i, seed in enumerate(seeds.tolist()):
        there = image[i:i + 1].detach().to(home)
        recipe = draw_recipe(seed, round(math.sqrt(there[0, 0].numel())))
        draws, wall = Draws([seed], "fitted", home), _wall(there, recipe, seed)
        values, depths = _start(there, recipe, draws)
        _fit(values, depths, there, wall, recipe, draws)
        perturb(values, recipe, draws)
        rendered[i:i + 1] = draw_fit(values, depths, wall).clamp(0, 1)
    return rendered


def perturb(values: Fit, recipe: Recipe, draws: Draws) -> None:
    """Disturb Gaussians that were found, as many of each kind as the recipe says, in place."""
    colors, places, count = values["colors"], values["places"], values["places"].shape[1]
    lengths, opacities = values["lengths"], values["opacities"]

    def choose(share: float, patchy: float) -> Tensor:
        return _choose(places, share, patchy, draws)[..., None]

    low, high = SCALE
    shrink = (low + (high - low) * draws.uniform(count, 1)).log()
    lengths += choose(recipe.shrunk, 0.5) * shrink
    opacities -= (choose(recipe.faded, 2.0) * (0.5 + 1.5 * draws.uniform(count, 1)))[..., 0]
    stain = 0.08 * draws.normal(1, 3) + 0.04 * draws.normal(count, 3)
    colors += choose(recipe.stained, 2.0) * stain
    angle = 2 * math.pi * draws.uniform(1, 1)
    move = 2 * recipe.shift * torch.cat([angle.cos(), angle.sin()], -1)  # places span 2
    places += choose(recipe.shifted, 3.0) * move
    opacities.masked_fill_(choose(recipe.dropped, 1.0)[..., 0], -math.inf)


def _start(image: Tensor, recipe: Recipe, draws: Draws) -> tuple[Fit, Tensor]:
    """A poor description: misplaced, of uneven size, greyish, translucent, in no order of depth."""
    count = recipe.gaussians
    drawn = describe(image, torch.tensor([count]), draws)
    anywhere = 2 * draws.uniform(count, 2) - 1
    stray = draws.uniform(count, 1) < recipe.strays
    spread = math.log(recipe.spread) + 0.5 * draws.normal(count, 1)
    mean = drawn.lengths.log().mean(-1, keepdim=True)
    values = {
        "places": torch.where(stray, anywhere, drawn.places + 0.02 * draws.normal(count, 2)),
        "lengths": 0.5 * (drawn.lengths.log() + mean) + spread,
        "angles": drawn.angles + 0.3 * draws.normal(count),
        "colors": drawn.colors.lerp(image.mean((2, 3))[:, None], recipe.grey)
        + 0.03 * draws.normal(count, 3),
        "opacities": recipe.opacity + 0.5 * draws.normal(count),
    }
    return {name: value.requires_grad_() for name, value in values.items()}, draws.uniform(count)


def _fit(values: Fit, depths: Tensor, image: Tensor, wall: Tensor, recipe: Recipe,
         draws: Draws) -> None:
    rates = {name: rate * recipe.rate for name, rate in RATES.items()}
    first = recipe.steps // 3 if recipe.patch else 0
    seen = _seen(image, recipe, draws)
    descend(values, depths, image, wall, first, rates=rates)
    descend(values, depths, image, wall, recipe.steps - first, rates=rates, seen=seen)


def _seen(image: Tensor, recipe: Recipe, draws: Draws) -> Tensor:
    """1 where the fit looks, 0 elsewhere: (1, 1, H, W)."""
    height, width = image.shape[2:]
    field, corner = draws.field(1, 7, (height, width)), draws.uniform(2)[0].tolist()
    if recipe.patch:
        tall, wide = (max(1, round(recipe.patch * length)) for length in (height, width))
        top, left = (round((length - side) * place) for length, side, place in
                     zip((height, width), (tall, wide), corner, strict=True))
        patch = torch.zeros_like(field)
        patch[..., top:top + tall, left:left + wide] = 1
        return patch
    return (field <= _bound(field, recipe.seen)).float()


def _wall(image: Tensor, recipe: Recipe, seed: int) -> Tensor:
    matte = Draws([seed], "wall", image.device).uniform(3)[..., None, None]
    colour = {"mean": image.mean((2, 3), keepdim=True), "black": torch.zeros_like(matte),
              "white": torch.ones_like(matte), "matte": matte}[recipe.wall]
    return colour.expand_as(image)


def _choose(places: Tensor, share: float, patchy: float, draws: Draws) -> Tensor:
    """A share of the Gaussians (1, N), the more in patches the larger `patchy` is."""
    field = draws.field(1, 6, (64, 64))
    score = patchy * sample_at(field, places)[..., 0] + draws.normal(places.shape[1])
    order = score.argsort(dim=1).argsort(dim=1)
    return order < round(share * places.shape[1])


def _bound(field: Tensor, share: float) -> Tensor:
    """What a share of the values does not exceed."""
    place = max(1, round(share * field.numel()))
    return field.flatten().kthvalue(place).values
