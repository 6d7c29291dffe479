"""The test sets: the same whatever is measured, of what no training saw."""

from __future__ import annotations

import pytest
import torch

from helpers.config import Config
from helpers.evaluation import HeldOut
from helpers.pairs import HEAD_SETS, load_fits


@pytest.fixture
def build(config: Config, faces, tmp_path, monkeypatch):
    """A function that makes all sets at 64 pixels, of the first two test heads."""
    fits = load_fits("test")[:2]
    monkeypatch.setattr("helpers.evaluation.sets.load_fits", lambda name: fits)
    return lambda **changes: HeldOut(config.with_(changes), faces, device="cpu", folder=tmp_path)


def test_true_renders_come_first_and_every_set_is_the_same_each_time(build):
    held_out = build()
    assert list(held_out) == ["rendered_outside", "rendered_inside", "fitted", "drawn", "clean"]
    for name in held_out:
        for (clean, degraded, who), (c, d, w) in zip(held_out[name], held_out[name], strict=True):
            assert torch.equal(clean, c) and torch.equal(degraded, d) and who == w
            assert clean.shape == degraded.shape and len(who) == len(clean)
            assert torch.equal(clean, degraded) == (name == "clean")


def test_each_test_head_is_seen_from_as_many_views_as_asked(build):
    outside = list(build(**{"data.rendered_views": 3})["rendered_outside"])
    assert [len(clean) for clean, _, _ in outside] == [3, 3]
    assert [who for _, _, names in outside for who in set(names)] == [
        f"head {identity}" for identity in HEAD_SETS["test"][:2]]


def test_no_head_is_in_two_sets_and_none_is_a_face_of_the_run():
    heads = [set(identities) for identities in HEAD_SETS.values()]
    assert sum(map(len, heads)) == len(set.union(*heads)) and len(HEAD_SETS["test"]) >= 32
    assert not set.union(*heads) & ({*range(30_000)} | {*range(1_000_000, 1_002_000)})
