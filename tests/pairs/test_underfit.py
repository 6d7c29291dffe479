"""Photographs fitted too little: by seed, between bounds, and disturbed as the recipe says."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from helpers.faces.avatars import render_avatar
from helpers.pairs import underfit
from helpers.pairs.underfit import draw_recipe, fit_poorly, perturb
from helpers.splats import Draws
from helpers.splats.fit import RATES, fit_splats

FACES = torch.stack([render_avatar(seed, 32)[0].clamp(0, 1) for seed in range(3)])
SEEDS = torch.tensor([5, 6, 7])
RECIPES = [draw_recipe(seed, 128) for seed in range(600)]
QUIET = dict.fromkeys(("dropped", "shrunk", "faded", "stained", "shifted"), 0.0)


def values_of(count=400):
    draws = Draws([3], "test", "cpu")
    return {"places": 2 * draws.uniform(count, 2) - 1, "lengths": draws.normal(count, 2),
            "angles": draws.uniform(count), "colors": draws.uniform(count, 3),
            "opacities": draws.normal(count)}


def perturbed(seed=0, **changes):
    before, after = values_of(), values_of()
    recipe = dataclasses.replace(RECIPES[0], **QUIET | changes)
    perturb(after, recipe, Draws([seed], "perturbed", "cpu"))
    return before, after, recipe


def test_a_render_follows_from_photograph_and_seed_alone():
    clean = FACES.clone().requires_grad_()
    state = torch.get_rng_state()
    together = fit_poorly(clean, SEEDS)
    alone = [fit_poorly(FACES[i:i + 1], SEEDS[i:i + 1]) for i in (2, 0, 1)]
    assert torch.equal(together[[2, 0, 1]], torch.cat(alone))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(clean, FACES) and clean.grad is None and not together.requires_grad
    assert not torch.equal(together, fit_poorly(FACES, SEEDS + 1))


@pytest.mark.parametrize("image", [torch.zeros(1, 3, 16, 40), torch.ones(1, 3, 40, 16),
                                   torch.rand(1, 3, 1, 1), FACES[:1].flip(-1).mT])
def test_renders_are_float_pictures_of_the_same_shape_in_range(image):
    for seed in range(4):
        found = fit_poorly(image, torch.tensor([seed]))
        assert found.shape == image.shape and found.dtype == torch.float32
        assert found.is_contiguous() and found.min() >= 0 and found.max() <= 1


def test_renders_are_poor_yet_closer_than_the_mean_colour():
    found = fit_poorly(FACES, SEEDS)
    mean = FACES.mean((2, 3), keepdim=True).expand_as(FACES)
    assert 0.01 < float(F.l1_loss(found, FACES)) < 0.7 * float(F.l1_loss(mean, FACES))


def test_recipes_keep_their_bounds_and_fill_them():
    counts = torch.tensor([float(r.gaussians) for r in RECIPES])
    low, high = (128 * bound for bound in underfit.COUNT_PER_PX)
    assert counts.min() >= low - 1 and counts.max() <= high + 1
    place = (counts / low).log() / torch.tensor(high / low).log()  # log-uniform: flat in [0, 1]
    assert abs(place.mean() - 0.5) < 0.05 and abs(place.std() - 12**-0.5) < 0.03
    steps = {r.steps for r in RECIPES}
    assert min(steps) == underfit.SCHEDULE / 4 and max(steps) == 0.75 * underfit.SCHEDULE
    seen = [r.seen for r in RECIPES if not r.patch]
    assert 0.7 <= min(seen) < 0.72 and 0.98 < max(seen) <= 1
    sides = [r.patch for r in RECIPES if r.patch]
    assert abs(len(sides) / len(RECIPES) - underfit.PATCH_SHARE) < 0.05
    assert min(sides) >= 0.5 and max(sides) <= 0.8
    good = [r for r in RECIPES if not any(getattr(r, name) for name in QUIET)]
    assert abs(len(good) / len(RECIPES) - underfit.GOOD_SHARE) < 0.05
    assert {r.wall for r in RECIPES} == {"mean", "black", "white", "matte"}


def test_a_recipe_is_not_that_of_the_test_set():
    """That one moves Gaussians faster than any recipe here."""
    assert all(1.6 * rate < RATES[name] for name, rate in underfit.RATES.items())
    assert underfit.RATES.keys() == RATES.keys()
    recipe = draw_recipe(5, 32)
    tested = fit_splats(FACES[:1], recipe.gaussians, recipe.steps, seeds=SEEDS[:1])
    assert F.l1_loss(tested, fit_poorly(FACES[:1], SEEDS[:1])) > 0.01


def test_the_share_of_hidden_pixels_is_the_recipes():
    picture = torch.zeros(1, 3, 60, 100)
    for recipe in RECIPES[:20]:
        seen = underfit._seen(picture, recipe, Draws([1], "seen", "cpu"))
        share = recipe.patch**2 if recipe.patch else recipe.seen
        assert seen.shape == (1, 1, 60, 100) and set(seen.unique().tolist()) <= {0.0, 1.0}
        assert abs(float(seen.mean()) - share) < 0.015


def test_hidden_pixels_are_fitted_worse():
    image = FACES[:1]
    recipe = dataclasses.replace(RECIPES[0], gaussians=200, steps=12, patch=0.0, seen=0.7, rate=1.6,
                                 strays=0.0, grey=0.7)
    values, depths = underfit._start(image, recipe, Draws([2], "fitted", "cpu"))
    seen = underfit._seen(image, recipe, Draws([9], "seen", "cpu"))
    wall = underfit._wall(image, recipe, 0)
    before = (underfit.draw_fit(values, depths, wall) - image).abs().detach()
    underfit._fit(values, depths, image, wall, recipe, Draws([9], "seen", "cpu"))
    left = (underfit.draw_fit(values, depths, wall) - image).abs().detach() / before.mean()
    inside, outside = (float((left * part).sum() / part.sum()) for part in (seen, 1 - seen))
    was = [float((before / before.mean() * part).sum() / part.sum()) for part in (seen, 1 - seen)]
    assert inside / was[0] < 0.85 * outside / was[1]


def test_without_shares_nothing_is_disturbed():
    before, after, _ = perturbed()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_each_disturbance_touches_the_share_it_should_and_nothing_else(share):
    touched = {"dropped": "opacities", "shrunk": "lengths", "faded": "opacities",
               "stained": "colors", "shifted": "places"}
    for kind, name in touched.items():
        before, after, _ = perturbed(**{kind: share})
        changed = (before[name] != after[name]).flatten(2) if name not in ("opacities", "angles") \
            else (before[name] != after[name])[..., None]
        assert int(changed.any(-1).sum()) == share * 400, kind
        assert all(torch.equal(before[other], after[other]) for other in before if other != name)


def test_disturbances_are_as_large_as_named():
    before, after, _ = perturbed(dropped=0.2)
    gone = before["opacities"] != after["opacities"]
    assert (after["opacities"][gone].sigmoid() == 0).all()
    before, after, _ = perturbed(shrunk=1.0)
    factors = (after["lengths"] - before["lengths"]).exp()
    assert factors.min() > 0.6 - 1e-4 and factors.max() < 0.8 + 1e-4
    assert abs(float(factors.mean()) - 0.7) < 0.02
    before, after, _ = perturbed(faded=1.0)
    assert (after["opacities"] < before["opacities"]).all()
    before, after, recipe = perturbed(shifted=1.0)
    moves = after["places"] - before["places"]
    assert torch.allclose(moves, moves[:, :1].expand_as(moves), atol=1e-6)
    assert float(moves[0, 0].norm()) == pytest.approx(2 * recipe.shift, rel=1e-3)


def test_disturbances_lie_in_patches():
    """The neighbours of a Gaussian that is shifted are shifted too, more often than by chance."""
    before, after, _ = perturbed(shifted=0.3)
    moved = (before["places"] != after["places"]).any(-1)[0]
    near = torch.cdist(before["places"], before["places"])[0].topk(5, largest=False).indices[:, 1:]
    assert float(moved[near][moved].float().mean()) > 0.45


@pytest.mark.parametrize(("image", "seeds"), [
    (FACES[0], SEEDS[:1]), (FACES.double(), SEEDS), (FACES, SEEDS[:2]), (FACES[:, :1], SEEDS)])
def test_what_is_no_batch_of_photographs_is_refused(image, seeds):
    with pytest.raises(ValueError, match="photographs to fit: expected"):
        fit_poorly(image, seeds)
    with pytest.raises(ValueError, match="size_px: expected 1 or more"):
        draw_recipe(0, 0)
