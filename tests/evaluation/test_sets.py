"""The test sets: the same whatever is measured, of what no training saw, made once."""

from __future__ import annotations

import pytest
import torch

from helpers.config import Config
from helpers.degradation import degrade
from helpers.evaluation import HeldOut, batch, held_out_pairs
from helpers.evaluation.batch import as_bytes
from helpers.evaluation.sets import HELD_OUT_SEED
from helpers.pairs import HEAD_SETS, load_fits

NAMES = ["rendered_outside", "rendered_inside", "fitted", "drawn", "drawn_heavy", "clean"]


@pytest.fixture
def build(config: Config, faces, tmp_path, monkeypatch):
    """A function that makes all sets at 64 pixels, of the first two test heads."""
    fits = load_fits("test")[:2]
    monkeypatch.setattr("helpers.evaluation.sets.load_fits", lambda name: fits)
    return lambda **changes: HeldOut(config.with_(changes), faces, device="cpu", folder=tmp_path)


def equal(one: batch.Batch, other: batch.Batch) -> bool:
    return one.images == other.images and one.identities == other.identities and all(
        torch.equal(getattr(one, part), getattr(other, part))
        for part in ("clean", "degraded", "regions"))


def test_true_renders_come_first_and_every_set_is_the_same_each_time(build, monkeypatch):
    held_out = build()
    assert list(held_out) == NAMES
    first = {name: list(held_out[name]) for name in held_out}
    for maker in ("rendered_views", "drawn_pairs", "underfitted_pairs"):  # made once
        monkeypatch.setattr(f"helpers.evaluation.sets.{maker}",
                            lambda *_, **__: pytest.fail("made again"))
    again = build()
    for name, batches in first.items():
        assert sum(map(len, batches)) == held_out.count(name) > 0
        for one, other in zip(batches, again[name], strict=True):
            assert equal(one, other), name
            assert torch.equal(one.clean, one.degraded) == (name == "clean")
            for side in (one.clean, one.degraded):
                assert torch.equal(as_bytes(side), side)  # a file holds just this


def test_other_settings_are_other_sets_and_the_first_ones_stay(build):
    first = list(build()["drawn"])
    other = list(build(**{"degrade.warp": 1.0})["drawn"])
    assert not torch.equal(first[0].degraded, other[0].degraded)
    assert equal(first[0], next(build()["drawn"]))
    assert build().origin != build(**{"degrade.warp": 1.0}).origin


def test_drawn_pairs_are_those_of_training_in_full(config, faces):
    clean, regions = faces.load("test", range(2))
    expected = degrade(clean, regions, config.degrade,
                       torch.arange(2) + HELD_OUT_SEED)
    found = next(held_out_pairs(config, faces, device="cpu"))
    assert torch.equal(found.degraded, as_bytes(expected)) and torch.equal(found.regions, regions)


@pytest.mark.parametrize("damage", [
    lambda file: file.write_bytes(file.read_bytes()[:-20]), lambda file: file.unlink(),
    lambda file: file.write_bytes(b""), lambda file: file.write_bytes(b"\xff{")])
def test_a_kept_batch_that_is_damaged_is_made_again(build, tmp_path, damage):
    first = list(build()["drawn"])
    file, = (tmp_path / "drawn").iterdir()
    damage(file)
    assert equal(first[0], next(build()["drawn"]))
    assert [path.name for path in (tmp_path / "drawn").iterdir()] == [file.name]


def test_each_test_head_is_seen_from_as_many_views_as_asked(build):
    outside = list(build(**{"data.rendered_views": 3})["rendered_outside"])
    who = [name for one in outside for name in one.identities]
    assert who == [f"head {identity}" for identity in HEAD_SETS["test"][:2] for _ in range(3)]
    pictures = torch.cat([one.clean for one in outside])
    assert len({picture.numpy().tobytes() for picture in pictures}) == 6
    assert all(len(one.regions.unique()) >= 4 for one in outside)


def test_no_head_is_in_two_sets_and_none_is_a_face_of_the_run():
    heads = [set(identities) for identities in HEAD_SETS.values()]
    assert sum(map(len, heads)) == len(set.union(*heads)) and len(HEAD_SETS["test"]) >= 32
    assert not set.union(*heads) & ({*range(30_000)} | {*range(1_000_000, 1_002_000)})
