"""A trained scene from its file to restored views and a turntable; interrupted, it goes on."""

import math
from dataclasses import replace
from zipfile import ZipFile

import pytest
import torch

from helpers.machine import Stopped
from helpers.pairs import write_head
from helpers.pictures import read_picture
from helpers.restoring import RestoreConfig, find, restore_all, zipped
from helpers.restoring.marks import Mark
from helpers.restoring.report import Report
from helpers.restoring.splat import restore_splat
from helpers.splats import draw, orbit, read_ply, write_ply

pytest.importorskip("av")
from tests.restoring.films import read_film
from tests.restoring.test_video import Sharper, decibels

CONFIG = RestoreConfig(views=5, view_px=64, arc_deg=60.0, elevation_deg=0.0, backdrop="grey")


@pytest.fixture
def head(tmp_path):
    return write_head(tmp_path / "head.ply", 700_001)


def restore(path, model, report=None, config=CONFIG):
    return restore_splat(model, path, path.parent, config, report or Report(),
                         mark=Mark.of(path, str(config.steady)))


def test_views_are_drawn_restored_and_shown_as_a_film(head):
    files = restore(head, model := Sharper())
    assert model.calls == 5 and files[0] == head.parent / "head_restored.mp4"
    assert sorted(files[1:]) == sorted((head.parent / "head_restored").iterdir())
    assert len(files) == 11 and files[1].name == "view_000_restored.png"
    scene, _ = read_ply(head)
    cameras = orbit(scene, views=5, size_px=64, arc_deg=60.0, elevation_deg=0.0)
    renders, restored = ([read_picture(file).rgb for file in files[first::2]] for first in (2, 1))
    for camera, render, picture in zip(cameras, renders, restored, strict=True):
        view = draw(scene, camera, torch.full((3, 64, 64), 0.5)).picture
        assert (view - render).abs().max() <= 0.51 / 255
        assert (Sharper().enhance(view[None])[0] - picture).abs().max() <= 0.51 / 255
    film = read_film(files[0])
    assert film.rate == 8 and film.frames.shape == (5, 3, 64, 64)
    assert decibels(film.frames, torch.stack(restored)) > 30
    assert float((renders[0] - renders[4]).abs().mean()) > 0.02
    assert not list(head.parent.glob(".*"))


def test_what_was_interrupted_goes_on_and_ends_the_same(head, tmp_path):
    class Impatient(Report):
        def __call__(self, done, total):
            if done == 3:
                raise Stopped("now")

    with pytest.raises(Stopped):
        restore(head, Sharper(), Impatient())
    assert not list(tmp_path.glob("*.mp4"))
    files = restore(head, model := Sharper())
    assert model.calls == 2
    (tmp_path / "other").mkdir()
    again = restore(write_head(tmp_path / "other" / "head.ply", 700_001), Sharper())
    first, second = read_film(files[0]), read_film(again[0])
    assert all((a == b).all() for a, b in zip(first.planes, second.planes, strict=True))


def test_a_scene_in_a_folder_is_restored_once_and_damage_is_named(head, enhancer):
    (head.parent / "cut.ply").write_bytes(head.read_bytes()[:-9])
    views, archive = head.parent / "head_restored", head.parent / "zips" / "all.zip"
    for count, skipped in ((3, False), (2, False), (2, True)):
        settings = RestoreConfig(views=count, view_px=64)
        bad, good = zipped(restore_all(enhancer, find(head.parent, say=None), settings,
                                       progress=None), archive)
        assert (good.error, good.skipped) == ("", skipped)
        assert "cut off" in bad.error and not bad.files
        assert good.files[0] == head.parent / "head_restored.mp4" and len(good.files) == 5 + 2 * (
            count == 3)
        assert set(good.files[1:]) == set(views.iterdir())  # none of the orbit of three
        with ZipFile(archive) as whole:
            assert set(whole.namelist()) == {file.relative_to(head.parent).as_posix()
                                             for file in good.files}


@pytest.mark.parametrize("bad", [{"views": 0}, {"view_px": 8}, {"up": "w"}, {"backdrop": "pink"},
                                 {"steady": 1.5}])
def test_settings_of_no_use_are_refused(bad):
    with pytest.raises(ValueError, match=r"expected .*, got .*; "):
        RestoreConfig(**bad)


@pytest.mark.parametrize("scale", [1e-5, 1e20])
def test_a_scene_looks_the_same_in_any_unit(head, scale):
    scene, _ = read_ply(head)
    files = restore(head, Sharper())
    other = write_ply(head.parent / "unit.ply", replace(
        scene, means=scene.means * scale, lengths=scene.lengths + math.log(scale)))
    for file, same in zip(files[1:], restore(other, Sharper())[1:], strict=True):
        assert (read_picture(file).rgb - read_picture(same).rgb).abs().mean() < 2e-3


def test_a_single_gaussian_is_seen_and_invisible_ones_are_refused(head):
    scene = read_ply(head)[0][:1]
    seen = replace(scene, opacities=torch.full_like(scene.opacities, 3.0))
    files = restore(write_ply(head.parent / "one.ply", seen), Sharper())
    assert float(read_picture(files[2]).rgb.std()) > 0.01
    gone = replace(scene, opacities=torch.full_like(scene.opacities, -50.0))
    with pytest.raises(ValueError, match=r"none\.ply: expected Gaussians that can be seen, got "):
        restore(write_ply(head.parent / "none.ply", gone), Sharper())
    assert not list(head.parent.glob("none_*"))


def test_a_view_that_was_removed_is_drawn_again(head):
    files = restore(head, Sharper())
    files[0].unlink()
    files[2].unlink()
    assert all(file.exists() for file in restore(head, Sharper()))
