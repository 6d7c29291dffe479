"""A trained scene from its file to restored views and a turntable; a user's own views are kept."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from videos import Brighter, Sharper, decibels, need_ffmpeg, read_video

from splat_enhancer.enhance.restore import RestoreConfig, find, restore_all, zip_results
from splat_enhancer.environment import Stopped
from splat_enhancer.gaussians.ply import read_ply, write_ply
from splat_enhancer.gaussians.scene import Scene, draw, orbit
from splat_enhancer.images import read_image

need_ffmpeg()
CONFIG = {"views": 5, "view_px": 64, "arc_deg": 60.0, "elevation_deg": 0.0, "backdrop": "grey"}


@pytest.fixture
def head(tmp_path):
    """A coloured shell of Gaussians."""
    rng = torch.Generator().manual_seed(0)
    means = torch.nn.functional.normalize(torch.randn(500, 3, generator=rng), dim=1)
    turns = torch.tensor([1.0, 0, 0, 0]).expand(500, 4)
    return write_ply(tmp_path / "head.ply", Scene(
        means, torch.full((500, 3), math.log(0.08)), turns, torch.full((500,), 4.0),
        1.5 * means[:, None]))


def restore(path, model, **settings):
    outcome, = restore_all(model, find(path, say=None), RestoreConfig(**CONFIG | settings),
                           progress=None)
    assert not outcome.error
    return outcome


def refusal(path):
    outcome, = restore_all(Brighter(), find(path, say=None), RestoreConfig(**CONFIG), progress=None)
    return outcome.error


def test_views_are_drawn_restored_and_shown_as_a_turntable(head):
    outcome = restore(head, model := Sharper())
    files = outcome.files
    assert model.calls == 5 and files[0] == head.parent / "head_restored.mp4"
    assert sorted(files[1:]) == sorted((head.parent / "head_restored").iterdir())
    assert len(files) == 11 and files[1].name == "view_000_restored.png"
    cameras = orbit(read_ply(head)[0], views=5, size_px=64, arc_deg=60.0, elevation_deg=0.0)
    renders, restored = ([read_image(file)[0] for file in files[first::2]] for first in (2, 1))
    for camera, render, picture in zip(cameras, renders, restored, strict=True):
        view = draw(read_ply(head)[0], camera, torch.full((3, 64, 64), 0.5)).picture
        assert (view - render).abs().max() <= 0.51 / 255
        assert (Sharper().enhance(view[None])[0] - picture).abs().max() <= 0.51 / 255
    clip = read_video(files[0])
    assert clip.seconds == pytest.approx([n / 8 for n in range(5)]) 
    assert clip.length_s == pytest.approx(0.625, abs=0.01)
    known = torch.stack(restored).mul(255).permute(0, 2, 3, 1).numpy()
    assert decibels(clip.frames, known) > 30 and 0 < outcome.repaired < 1
    assert float((renders[0] - renders[4]).abs().mean()) > 0.02
    assert not list(head.parent.glob(".*"))


def test_what_was_stopped_goes_on_and_ends_the_same_and_is_skipped_afterwards(head):
    class Stopping(Sharper):
        def enhance_with_mask(self, *arguments):
            if self.calls == 3:
                raise Stopped("now")
            return super().enhance_with_mask(*arguments)

    with pytest.raises(Stopped):
        restore(head, Stopping())
    assert not list(head.parent.glob("*.mp4"))
    files = restore(head, model := Sharper()).files
    assert model.calls == 2 and restore(head, model).skipped
    files[2].unlink()
    assert restore(head, model).files == files and model.calls == 3 and files[2].exists()
    other = head.parent / "other"
    other.mkdir()
    again = restore(head.rename(other / "head.ply"), Sharper()).files
    assert np.array_equal(read_video(files[0]).frames, read_video(again[0]).frames)


def test_fewer_views_leave_none_of_the_earlier_ones(head):
    for views in (3, 2):
        outcome = restore(head, Brighter(9), views=views)
        assert {*outcome.files[1:]} == {*(head.parent / "head_restored").iterdir()}
    archive = zip_results([outcome], head.parent / "all.zip")
    assert archive.stat().st_size > sum(file.stat().st_size for file in outcome.files)


def test_a_users_own_views_are_kept_and_others_lie_beside_them(head):
    folder = head.parent / "head_restored"
    folder.mkdir()
    own = folder / "view_000_render.png"
    Image.new("RGB", (8, 8), "red").save(own)
    content = own.read_bytes()
    for skipped in (False, True):
        outcome = restore(head, Brighter(9))
        assert own.read_bytes() == content and list(folder.iterdir()) == [own]
        assert outcome.files[0].name == "head_restored_2.mp4" and outcome.skipped == skipped
        assert outcome.files[1].parent.name == "head_restored_2"
        assert "called head_restored: it is kept" in outcome.notes[0]
    own.rename(folder / "notes.png")  # any other file of the user's
    (folder / "notes.png").rename(folder.parent / "mine.png")
    assert restore(head, Brighter(9)).files[0].name == "head_restored.mp4"  # it is empty now
    (folder.parent / "mine.png").rename(folder / "mine.png")
    assert restore(head, Brighter(9)).skipped and (folder / "mine.png").exists()


def test_a_scene_looks_the_same_in_any_unit(head):
    scene, files = read_ply(head)[0], restore(head, Brighter(9), temporal=0.0).files
    for name, scale in (("small.ply", 1e-5), ("large.ply", 1e20)):
        other = write_ply(head.parent / name, replace(
            scene, means=scene.means * scale, log_scales=scene.log_scales + math.log(scale)))
        for file, same in zip(files[1:3], restore(other, Brighter(9), temporal=0.0).files[1:3],
                              strict=True):
            assert (read_image(file)[0] - read_image(same)[0]).abs().mean() < 2e-3


def test_what_cannot_be_shown_is_refused_by_name(head):
    scene = read_ply(head)[0]
    gone = replace(scene, opacity_logits=torch.full_like(scene.opacity_logits, -30.0))
    none = write_ply(head.parent / "none.ply", gone)
    assert refusal(none).startswith("none.ply: expected Gaussians that can be seen, got ")
    cut = head.parent / "cut.ply"
    cut.write_bytes(head.read_bytes()[:-9])
    assert "cut.ply: " in refusal(cut) and "cut off" in refusal(cut)
    (head.parent / "a.splat").write_bytes(b"\0" * 64)
    assert "a.splat: expected a .ply file of Gaussians" in refusal(head.parent / "a.splat")
    assert not list(head.parent.glob("*_restored.mp4"))
