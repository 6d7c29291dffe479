"""The shipped heads: small, whole, of identities nobody else uses, and rebuilt by their command."""

import dataclasses
import os
from itertools import combinations

import pytest
import torch

from helpers.config import DataConfig
from helpers.faces.sources import FIRST_TEST_AVATAR
from helpers.pairs import fits
from helpers.pairs.fits import HEAD_SETS, HEADS, Fit, load_fits, read_fits, write_fits, write_head
from helpers.pairs.recipes import draw_recipe
from helpers.pairs.reconstruct import render
from helpers.pairs.rendered import render_pair
from helpers.splats import draw, orbit, read_ply
from helpers.storage import DamagedFile, read_sealed
from tests import fit_heads, tiny_base


def decibels(first, second):
    return -10 * torch.log10((first - second).square().mean())


@pytest.fixture
def file(fit, tmp_path):
    """Two heads in a file; the second has fewer Gaussians."""
    fewer = {name: value[:300] for name, value in fit.values.items()}
    write_fits(tmp_path / "two.safetensors", [fit, Fit(fit.recipe, fewer)])
    return tmp_path / "two.safetensors"


def test_a_read_head_looks_as_the_written_one(fit, file):
    whole, fewer = read_fits(file)
    assert whole.recipe == fit.recipe and len(fewer.values["means"]) == 300
    for seed in (1, 2):
        assert decibels(*(render_pair(one, seed)[0] for one in (fit, whole))) > 45


def test_writing_what_was_read_keeps_every_byte_of_the_gaussians(file, tmp_path):
    write_fits(tmp_path / "again", read_fits(file))
    first, again = (read_sealed(path)[0] for path in (file, tmp_path / "again"))
    assert all(torch.equal(again[name], first[name]) for name in (*fits.HALVES, *fits.BYTES))
    torch.testing.assert_close(again["ranges"], first["ranges"])


def test_a_damaged_file_is_named(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    for broken in (bytes(content), b"", bytes(content[:-100])):
        file.write_bytes(broken)
        with pytest.raises(DamagedFile, match=r"two\.safetensors"):
            read_fits(file)


def test_a_shipped_set_that_is_missing_or_damaged_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(fits, "HEADS", tmp_path)
    for content in (None, b"no heads"):
        if content:
            (tmp_path / "test.safetensors").write_bytes(content)
        with pytest.raises(DamagedFile, match=r"test heads: .*test\.safetensors.*fit_heads`"):
            load_fits("test")


def test_an_unknown_set_is_refused():
    with pytest.raises(ValueError, match="set of heads: expected one of train, validation, test"):
        load_fits("all")


def test_the_sets_share_no_identity_with_each_other_or_with_any_other_avatars():
    others = [range(DataConfig().train_images), range(30_000),  # what DataConfig allows
              range(FIRST_TEST_AVATAR, FIRST_TEST_AVATAR + 2_000),
              range(tiny_base.FIRST_IDENTITY, tiny_base.FIRST_IDENTITY + 100_000)]
    for first, second in combinations(HEAD_SETS.values(), 2):
        assert not set(first) & set(second)
    for own in HEAD_SETS.values():
        assert not any(set(own) & set(other) for other in others)
    assert len(HEAD_SETS["test"]) >= 32


@pytest.mark.parametrize("name", HEAD_SETS)
def test_the_shipped_sets_are_whole_and_follow_their_recipes(name):
    shipped = load_fits(name)
    assert [fit.recipe for fit in shipped] == [draw_recipe(seed) for seed in HEAD_SETS[name]]
    for fit in shipped:
        assert all(torch.isfinite(value).all() for value in fit.values.values())
        assert len(fit.values["means"]) <= fit.recipe.gaussians


def test_all_shipped_heads_take_8_mb_at_most():
    assert sum(path.stat().st_size for path in HEADS.iterdir()) <= 8_000_000


def test_the_command_makes_a_head_once_and_again_if_its_file_is_damaged(recipe, tmp_path,
                                                                       monkeypatch):
    made = []
    monkeypatch.setattr(fit_heads, "reconstruct",
                        lambda own: made.append(own) or _anything(own.gaussians))
    first = fit_heads.fitted(recipe, tmp_path)
    assert fit_heads.fitted(recipe, tmp_path).recipe == first.recipe and made == [recipe]
    other = dataclasses.replace(recipe, steps=41)
    assert fit_heads.fitted(other, tmp_path).recipe == other and made == [recipe, other]
    path = tmp_path / f"{recipe.identity}.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert fit_heads.fitted(other, tmp_path).recipe == other and made == [recipe, other, other]


def test_a_rebuilt_head_is_what_its_file_holds(recipe, fit, tmp_path):
    rebuilt = fit_heads.fitted(recipe, tmp_path)
    assert decibels(*(render_pair(one, 1)[0] for one in (fit, rebuilt))) > 45


@pytest.mark.skipif("REBUILD_HEADS" not in os.environ,
                    reason="takes 10 s, and another kind of processor makes another fit")
def test_a_shipped_head_is_rebuilt(tmp_path):
    shipped = load_fits("validation")[0]
    rebuilt = fit_heads.fitted(shipped.recipe, tmp_path)
    assert decibels(*(render_pair(one, 1)[0] for one in (shipped, rebuilt))) > 45


def _anything(count):
    shapes = {"means": (3,), "lengths": (3,), "turns": (4,), "colors": (3,), "slopes": (3, 3),
              "opacities": ()}
    return {name: torch.rand(count, *shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("identity", [700_003, 300_000])
def test_a_head_written_as_ply_looks_the_same_from_anywhere(tmp_path, identity):
    """Turned by half a turn, as the scene is, a camera sees what the fit's own renderer draws."""
    path = write_head(tmp_path / "head.ply", identity)
    scene, notes = read_ply(path)
    fit = next(f for name in HEAD_SETS for f in load_fits(name) if f.recipe.identity == identity)
    half_turn = torch.diag(torch.tensor([1.0, -1.0, -1.0]))
    assert notes == () and len(scene) == len(fit.values["means"])
    for camera in orbit(scene, views=3, size_px=64, arc_deg=80, elevation_deg=12):
        wall = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
        same = dataclasses.replace(camera, rotation=camera.rotation @ half_turn,
                                   position=half_turn @ camera.position)
        direct = render(fit.values, same, wall).clamp(0, 1)
        seen = draw(scene, camera, wall).picture
        assert decibels(seen, direct) > 80  # rounding may move an alpha over the least that counts
        torch.testing.assert_close(seen, direct, atol=2 / 255, rtol=0)
    assert direct.std() > 0.1


def test_an_unknown_head_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(ValueError, match="got 7; ") as caught:
        write_head(tmp_path / "head.ply", 7)
    assert "700000 to 700007" in str(caught.value) and not list(tmp_path.iterdir())
