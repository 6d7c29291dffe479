"""Pairs of several kinds: shares kept, everything by seed, the same after a resume."""

import dataclasses
from collections import Counter

import pytest
import torch
from PIL import Image

from helpers.config import PairsConfig
from helpers.degradation import degrade, draw_amounts
from helpers.faces import draw_batch, load_batches
from helpers.pairs import (
    KINDS,
    RenderedPairs,
    draw_kinds,
    draw_pairs,
    fitted,
    prepare_pairs,
    shares,
    trained_on,
)
from helpers.training.loop import training_batch

SEEDS = torch.tensor([draw * 7_919 + 1 for draw in range(4_000)])


def noisy(image, seeds):
    return (image * 0.5).clamp(0, 1)


@pytest.fixture
def mixed(config, tmp_path):
    """A config of all four kinds."""
    for number, side in enumerate(("renders", "photos")):
        (tmp_path / "mine" / side).mkdir(parents=True)
        for n in range(5):
            Image.new("RGB", (70, 70), (40 * n, 90 * number, 7)).save(
                tmp_path / "mine" / side / f"{n}.png")
    return config.with_({"pairs.drawn": 0.25, "pairs.fitted": 0.25, "pairs.rendered": 0.25,
                         "pairs.own_share": 0.25, "pairs.own": str(tmp_path / "mine"),
                         "pairs.fitted_faces": 4, "optim.batch": 4})


@pytest.fixture
def sources(mixed, faces, tmp_path, monkeypatch):
    monkeypatch.setattr(fitted, "fit_poorly", noisy)
    return prepare_pairs(mixed, faces, tmp_path / "data", progress=None)


def batches(config, sources, faces, numbers, workers=0):
    drawn = load_batches(faces, numbers, seed=3, batch=4, workers=workers)
    return [draw_pairs(config, sources, one, "cpu") for one in drawn]


def test_shares_are_relative_to_their_sum():
    found = shares(PairsConfig(drawn=0.2, fitted=0.2, rendered=0.0, own_share=0.4, own="mine"))
    assert found == {"drawn": 0.25, "fitted": 0.25, "rendered": 0.0, "own": 0.5}
    with pytest.raises(ValueError, match=r"pairs\.own: expected a folder"):
        shares(PairsConfig(own_share=0.4))


@pytest.mark.parametrize("weights", [(0.4, 0.2, 0.4, 0.0), (0.5, 0.5, 0, 0), (0.1, 0.2, 0.3, 0.4),
                                     (1, 0, 0, 0), (0, 0, 0, 0.3)])
def test_kinds_come_in_their_shares_and_by_their_seeds(weights):
    settings = PairsConfig(*weights[:3], own_share=weights[3], own="mine")
    kinds = draw_kinds(settings, SEEDS)
    counted = Counter(kinds)
    for kind, weight in zip(KINDS, weights, strict=True):
        share = weight / sum(weights)
        assert abs(counted[kind] / len(SEEDS) - share) <= 4 * (share * (1 - share) / 4_000)**0.5
    assert draw_kinds(settings, SEEDS.flip(0)) == kinds[::-1]


def test_drawn_pairs_alone_are_what_they_were_before_there_were_others(config, faces):
    drawn = draw_batch(faces, seed=0, step=0, batch=3)
    clean, degraded, kinds = draw_pairs(config, {}, drawn, "cpu")
    amounts = draw_amounts(config.degrade, drawn[2])
    assert kinds == ["drawn"] * 3 and torch.equal(clean, drawn[0])
    assert torch.equal(degraded, degrade(*drawn[:2], config.degrade, drawn[2], amounts=amounts))


def test_each_pair_comes_from_where_its_kind_says(mixed, sources, faces):
    seen = Counter()
    for number in range(12):
        drawn = draw_batch(faces, seed=3, step=number, batch=4)
        clean, degraded, kinds = draw_pairs(mixed, sources, drawn, "cpu")
        seen.update(kinds)
        for i, kind in enumerate(kinds):
            seed = drawn[2][i:i + 1]
            if kind == "drawn":
                assert torch.equal(clean[i], drawn[0][i])
            else:
                pair = sources[kind].draw(seed)
                assert torch.equal(degraded[i], pair[0][0]) and torch.equal(clean[i], pair[1][0])
        assert clean.dtype == degraded.dtype == torch.float32
        assert 0 <= min(clean.min(), degraded.min()) <= max(clean.max(), degraded.max()) <= 1
    assert seen.keys() == set(KINDS)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_takes_the_same_pairs(mixed, sources, faces, workers, tmp_path):
    whole = batches(mixed, sources, faces, range(6))
    again = prepare_pairs(mixed, faces, tmp_path / "data", progress=None)
    resumed = batches(mixed, again, faces, range(3, 6), workers)
    assert {kind for batch in whole[3:] for kind in batch[2]} == set(KINDS)
    for before, after in zip(whole[3:], resumed, strict=True):
        assert all(torch.equal(*sides) for sides in zip(before[:2], after[:2], strict=True))
        assert before[2] == after[2]


def test_the_training_batch_has_them(mixed, sources, faces):
    drawn = draw_batch(faces, seed=3, step=1, batch=4)
    clean, degraded, keep = training_batch(mixed, drawn, "cpu", sources)
    expected = draw_pairs(mixed, sources, drawn, "cpu")
    assert torch.equal(clean, expected[0]) and torch.equal(degraded, expected[1])
    assert keep.shape == (4,)


def test_only_wanted_sources_are_made(config, mixed, faces, tmp_path, capsys):
    assert prepare_pairs(config, faces, tmp_path / "data", progress=None) == {}
    assert not (tmp_path / "data").exists()
    measured = mixed.with_({"pairs.own_share": 0.0, "pairs.fitted": 0.0, "pairs.rendered": 0.0})
    assert prepare_pairs(measured, faces, tmp_path / "data", progress=None).keys() == {"own"}
    assert "own ones are named but have no share" in capsys.readouterr().out
    both = prepare_pairs(mixed.with_({"pairs.fitted": 0.0}), faces, tmp_path / "data",
                         progress=None)
    assert both.keys() == {"own", "rendered"} and "share" not in capsys.readouterr().out


def test_a_missing_source_and_one_of_another_size_are_refused(mixed, sources, faces):
    drawn = draw_batch(faces, seed=3, step=1, batch=4)
    only = mixed.with_({"pairs.drawn": 0.0, "pairs.fitted": 0.0, "pairs.own_share": 0.0})
    with pytest.raises(ValueError, match=r"sources: expected one of rendered pairs"):
        draw_pairs(only, {}, drawn, "cpu")
    rendered = RenderedPairs(32)
    with pytest.raises(ValueError, match=r"rendered pairs: expected pictures of shape \(3, 64, 64"):
        draw_pairs(only, {"rendered": rendered}, drawn, "cpu")


def test_what_was_trained_on_names_own_photographs_only_where_they_are_trained_on(
        mixed, sources, faces):
    assert trained_on(faces, {}, dataclasses.replace(mixed.pairs, own_share=0.0)) \
        == trained_on(faces, sources, dataclasses.replace(mixed.pairs, own_share=0.0)) \
        == faces.trained_on
    assert trained_on(faces, sources, mixed.pairs) \
        == f"{faces.trained_on}, {sources['own'].trained_on}"
