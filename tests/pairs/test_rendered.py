"""Pairs: reproducible, their truth exact, their views where they were asked for."""

import dataclasses

import pytest
import torch

from helpers.faces.avatars import Head
from helpers.pairs import rendered
from helpers.pairs.fits import Fit
from helpers.pairs.reconstruct import fitted_backdrop, render
from helpers.pairs.rendered import BEYOND_DEG, RenderedPairs, draw_view, render_pair

SEEDS = range(60)


@pytest.fixture
def pairs(fit, monkeypatch):
    """A source of two heads."""
    other = Fit(dataclasses.replace(fit.recipe, identity=6), fit.values)
    monkeypatch.setattr(rendered, "load_fits", {"train": [fit, other]}.get)
    return RenderedPairs(64)


def test_the_same_fit_and_seed_give_the_same_bits_whatever_the_global_generator_does(fit):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, again, other = render_pair(fit, 7), render_pair(fit, 7), render_pair(fit, 8)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_pair_keeps_its_contracts(fit):
    degraded, clean, regions = render_pair(fit, 3, size_px=96)
    for image in (degraded, clean):
        assert image.shape == (3, 96, 96) and image.dtype is torch.float32
        assert image.min() >= 0 and image.max() <= 1 and not image.requires_grad
    assert regions.shape == (96, 96) and regions.dtype is torch.uint8 and regions.max() <= 5


def test_truth_and_fit_are_drawn_from_one_place_before_one_backdrop(fit):
    view = draw_view(fit, 4)
    degraded, clean, regions = render_pair(fit, 4)
    truth = Head.of(fit.recipe.identity, 64).render(view.camera, view.backdrop)
    assert torch.equal(clean, truth[0]) and torch.equal(regions, truth[1])
    assert torch.equal(degraded, render(fit.values, view.camera, view.backdrop).clamp(0, 1))
    empty = (clean == view.backdrop).all(0)  # the head is nowhere near: both show the backdrop
    assert empty.any() and (regions[empty] == 0).all()


def test_the_degraded_picture_shows_the_same_head(fit):
    for seed in range(6):
        degraded, clean, _ = render_pair(fit, seed, inside=True)
        other = render_pair(fit, seed + 100, inside=True)[1]
        assert 0.003 < (degraded - clean).abs().mean() < (degraded - other).abs().mean()


def test_views_lie_inside_the_arc_or_just_beyond_it_as_asked(fit):
    arc = fit.recipe.arc_deg
    assert all(abs(draw_view(fit, seed, inside=True).yaw_deg) <= arc for seed in SEEDS)
    beyond = [abs(draw_view(fit, seed, inside=False).yaw_deg) - arc for seed in SEEDS]
    assert BEYOND_DEG[0] <= min(beyond) < max(beyond) <= BEYOND_DEG[1]
    drawn = [draw_view(fit, seed) for seed in SEEDS]
    assert all(view.inside == (abs(view.yaw_deg) <= arc) for view in drawn)
    assert 0.25 < sum(view.inside for view in drawn) / len(drawn) < 0.75
    assert min(view.yaw_deg for view in drawn) < -arc and max(view.yaw_deg for view in drawn) > arc


def test_backdrops_differ_between_views_yet_often_are_those_of_the_fit(fit):
    own = fitted_backdrop(fit.recipe, 0, 64)
    behind = [draw_view(fit, seed).backdrop for seed in SEEDS]
    assert 0.4 < sum(torch.equal(one, own) for one in behind) / len(behind) < 0.8
    others = [one for one in behind if not torch.equal(one, own)]
    assert not any(torch.equal(others[0], one) for one in others[1:])


def test_a_source_draws_each_pair_by_its_own_seed_from_all_heads(fit, pairs):
    assert len(pairs) == 2 and pairs.kind == "rendered"
    degraded, clean = pairs.draw(torch.tensor([4, 9]))
    assert degraded.shape == clean.shape == (2, 3, 64, 64)
    assert torch.equal(pairs.draw(torch.tensor([9]))[0][0], degraded[1])
    of_heads = [render_pair(one, 4, size_px=64)[0] for one in pairs.fits]
    assert any(torch.equal(degraded[0], one) for one in of_heads)
    assert {n for seed in SEEDS for n in rendered.pick(torch.tensor([seed]), 2, "rendered")} \
        == {0, 1}
