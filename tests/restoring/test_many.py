"""Files of every kind of pixels, done once, named where they fail; killed, doubled, full disks."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.commands import ROOT
from helpers.machine import Stopped
from helpers.model import SplatEnhancer
from helpers.pictures import read_picture
from helpers.restoring import RestoreConfig, find, restore_all, zipped
from helpers.restoring.marks import Mark
from helpers.restoring.pictures import restore_picture
from helpers.restoring.report import Report
from helpers.storage import held, whole
from tests.pictures.files import every_kind, pixels, saved

on_linux = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")


def run(model, what, settings=None, **options):
    """The outcomes by the names of their files."""
    found = restore_all(model, find(what, output=options.get("output"), say=None), settings,
                        progress=None, **options)
    return {one.input.relative.as_posix(): one for one in found}


def result(one) -> np.ndarray:
    with Image.open(one.files[0]) as image:
        return np.asarray(image)


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every file: what was written anew has others."""
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns)
            for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path):
    """A picture with alpha, one in ink, a turned one, 16 bits, and a file that is none."""
    kinds = every_kind()
    for name in ("rgba.png", "ink.jpg", "turned.jpg"):
        (tmp_path / name).write_bytes(kinds[name])
    deep = pixels(1).astype(np.uint16) * 257
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "deep.png").write_bytes(saved(Image.fromarray(deep[..., 0]), "PNG"))
    (tmp_path / "broken.png").write_bytes(kinds["rgb.png"][:60])
    return tmp_path


def test_every_kind_is_restored_beside_itself_as_the_model_does_and_a_broken_one_is_named(
        enhancer, folder):
    found = run(enhancer, folder)
    assert [name for name, one in found.items() if one.error] == ["broken.png"]
    assert found["broken.png"].error.startswith("broken.png: ") and not found["broken.png"].files
    for name, one in found.items():
        if not one.error:
            picture = read_picture(folder / name)
            assert one.files == ((folder / name).with_name(f"{Path(name).stem}_restored.png"),)
            expected = enhancer.enhance(picture.rgb[None])[0].mul(255).round()
            made = torch.from_numpy(result(one).copy()).permute(2, 0, 1)
            assert (made[:3] - expected).abs().max() <= 1  # merged LoRA rounds otherwise
            assert (expected / 255 - picture.rgb).abs().max() > 0.02  # it did something
    alpha = np.asarray(Image.open(folder / "rgba.png"))[..., 3]
    assert np.array_equal(result(found["rgba.png"])[..., 3], alpha)
    assert result(found["turned.jpg"]).shape[:2] == pixels().shape[1::-1]


def test_what_is_done_is_skipped_and_what_changed_is_done_again_in_its_place(enhancer, folder):
    run(enhancer, folder)
    before = state(folder)
    again = run(enhancer, folder)
    assert state(folder) == before
    assert {name for name, one in again.items() if one.skipped} == {
        "rgba.png", "ink.jpg", "turned.jpg", "sub/deep.png"}
    assert all(one.files for one in again.values() if one.skipped)

    (folder / "ink.jpg").write_bytes(every_kind()["grey.jpg"])  # rendered again
    os.utime(folder / "rgba.png", (1, 1))  # copied, without its time
    (folder / "turned_restored.png").unlink()
    found = run(enhancer, folder)
    assert {name for name, one in found.items() if not one.skipped} == {
        "ink.jpg", "turned.jpg", "broken.png"}
    assert len(state(folder)) == len(before)
    assert result(found["ink.jpg"]).shape == pixels().shape

    half = run(enhancer, folder, RestoreConfig(strength=0.5, overlay=True))
    assert not any(one.skipped for one in half.values())
    assert [path.name for path in half["rgba.png"].files] == [
        "rgba_restored.png", "rgba_overlay_restored.png"]
    skip = enhancer.skips[0].weight
    kept, now = skip.data.clone(), RestoreConfig(strength=0.5)
    assert run(enhancer, folder, now)["rgba.png"].skipped  # without the overlay, it is there
    try:
        skip.data.add_(1e-3)  # other weights
        assert not run(enhancer, folder, now)["rgba.png"].skipped
    finally:
        skip.data.copy_(kept)


def test_results_lie_in_the_same_tree_within_another_folder_and_in_one_zip(
        enhancer, folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "made" / "here"
    before, zip_file = state(folder), out.parent / "all.zip"
    out.mkdir(parents=True)
    outcomes = list(zipped(restore_all(enhancer, find(folder), output=out, progress=None),
                           zip_file))
    names = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert names == {"ink_restored.png", "rgba_restored.png", "turned_restored.png",
                     "sub/deep_restored.png"}
    assert len(outcomes) == 5 and state(folder) == before
    with ZipFile(zip_file) as whole_zip:
        assert set(whole_zip.namelist()) == names and whole_zip.testzip() is None
    assert {path.name for path in out.parent.iterdir()} == {"here", "all.zip"}


def test_files_that_would_share_a_name_do_not_and_keep_theirs(enhancer, tmp_path):
    kinds = every_kind()
    for name in ("rgb.png", "rgb.jpg", "rgb.bmp"):
        (tmp_path / name).write_bytes(kinds[name])
    own = tmp_path / "rgb_restored.png"
    own.write_bytes(kinds["grey.png"])  # a user's
    first = {name: one.files for name, one in run(enhancer, tmp_path).items()}
    assert len({files[0] for files in first.values()}) == 3
    assert own.read_bytes() == kinds["grey.png"]
    (tmp_path / "rgb.bmp").unlink()
    second = run(enhancer, tmp_path)
    assert all(one.skipped and one.files == first[name] for name, one in second.items())
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert all(one.skipped for one in run(enhancer, moved).values())


def test_a_wide_picture_is_restored_in_tiles_that_are_reported(enhancer, tmp_path):
    wide = tmp_path / "wide.png"
    wide.write_bytes(saved(Image.fromarray(pixels(3, 32, 4000)), "PNG"))
    told = []

    class Telling(Report):
        def __call__(self, done, total):
            told.append((done, total))

    made = restore_picture(enhancer, wide, tmp_path, RestoreConfig(), Telling(),
                           mark=Mark.of(wide, "anybody"))
    assert told == [(i, 7) for i in range(1, 8)]
    with Image.open(*made) as image:
        assert image.size == (4000, 32)


def test_a_full_disk_ends_it_and_leaves_nothing_half_written(enhancer, folder, monkeypatch):
    def pour(content, target):
        target.write_bytes(content[:9])
        raise OSError(errno.ENOSPC, "No space left on device", str(target))
    before = state(folder)
    monkeypatch.setattr(whole, "pour", pour)
    with pytest.raises(OSError, match="No space left"):
        run(enhancer, folder)
    assert state(folder) == before
    monkeypatch.setattr(whole, "pour", lambda *_: (_ for _ in ()).throw(
        PermissionError(errno.EACCES, "Permission denied", "there")))
    assert all("Permission denied" in one.error or name == "broken.png"
               for name, one in run(enhancer, folder).items())  # another folder may be open


def test_a_stop_ends_after_the_file_at_hand(enhancer, folder):
    outcomes = restore_all(enhancer, find(folder, say=None), progress=None)
    next(outcomes)
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(Stopped, match="Stopped after 1 files"):
        next(outcomes)
    assert len(run(enhancer, folder)) == 5


@on_linux
def test_what_another_process_restores_is_left_to_it(enhancer, folder):
    with held(folder / "rgba.png", wait=False) as free:
        assert free
        found = run(enhancer, folder)["rgba.png"]
    assert found.skipped and found.notes == ("another process restores it",)
    assert not (folder / "rgba_restored.png").exists()
    assert run(enhancer, folder)["rgba.png"].files


def test_shares_of_the_work_have_each_file_once(enhancer, folder):
    inputs = list(find(folder, say=None))
    shares = [[one.path for one in restore_all(enhancer, inputs, share=(i, 3), progress=None)]
              for i in range(3)]
    assert sorted(path for share in shares for path in share) == sorted(
        one.path for one in inputs)


def test_two_processes_share_a_folder_and_one_that_is_killed_is_made_up_for(
        enhancer, exported, tmp_path):
    for number in range(24):
        (tmp_path / f"{number:02}.png").write_bytes(
            saved(Image.fromarray(pixels(number, 64, 64)), "PNG"))
    command = [sys.executable, "-m", "helpers", "enhance", str(tmp_path), "--model", str(exported)]
    other = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL,
                             stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while len(list(tmp_path.glob("*_restored.png"))) < 3 and time.monotonic() < until:
        time.sleep(0.01)
    here = []
    for one in restore_all(enhancer, find(tmp_path, say=None), progress=None):
        here.append(one)
        if sum(not done.skipped for done in here) == 3:
            other.kill()
    assert other.wait(60) == -signal.SIGKILL
    before = state(tmp_path)
    assert not any(one.error for one in here) and sum(not one.skipped for one in here) >= 3
    again = run(enhancer, tmp_path)
    assert sum(not one.skipped for one in again.values()) <= 1  # at which it was killed
    after = state(tmp_path)
    assert all(after[path] == there for path, there in before.items())
    expected = {f"{number:02}{end}.png" for number in range(24) for end in ("", "_restored")}
    assert {Path(path).name for path in after} == expected
    assert all(result(one).shape == (64, 64, 3) for one in again.values())


def test_an_overlay_of_another_strength_does_not_stay(enhancer, tmp_path):
    (tmp_path / "a.png").write_bytes(every_kind()["rgb.png"])
    (tmp_path / "b_overlay_restored.png").write_bytes(b"a user's own")
    run(enhancer, tmp_path, RestoreConfig(overlay=True))
    assert (tmp_path / "a_overlay_restored.png").exists()
    (one,) = run(enhancer, tmp_path, RestoreConfig(strength=0.5)).values()
    assert not one.error and not (tmp_path / "a_overlay_restored.png").exists()
    assert (tmp_path / "b_overlay_restored.png").exists()


@on_linux
def test_names_that_are_no_text_are_restored_and_zipped_and_copies_only_once(enhancer, tmp_path):
    folder = tmp_path / os.fsdecode(b"\xff")
    try:
        folder.mkdir()
    except (OSError, UnicodeError):
        pytest.skip("this disk takes names that are text alone")
    for name in ("a.png", "a.PNG"):
        (folder / name).write_bytes(every_kind()["rgb.png"])
    found = restore_all(enhancer, find(tmp_path, say=None), progress=None)
    outcomes = list(zipped(found, tmp_path / "all.zip"))
    assert [one.error for one in outcomes] == ["", ""]
    with ZipFile(tmp_path / "all.zip") as whole:
        assert whole.namelist() == ["\\xff/a_restored.png"]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError("no"),
                                   RuntimeError("odd"), KeyError("odd")])
def test_whatever_goes_wrong_with_one_file_the_others_are_restored(enhancer, tmp_path, monkeypatch,
                                                                   error):
    for name in ("a.png", "b.png", "c.png"):
        (tmp_path / name).write_bytes(every_kind()["rgb.png"])
    enhance, asked = SplatEnhancer.enhance_and_show, []

    def failing(self, *arguments):
        asked.append(1)
        if len(asked) == 2:
            raise error
        return enhance(self, *arguments)

    monkeypatch.setattr(SplatEnhancer, "enhance_and_show", failing)
    one, two, three = restore_all(enhancer, find(tmp_path, say=None), progress=None)
    assert not one.error and not three.error and not two.files
    assert two.error.startswith(f"b.png: {type(error).__name__}: ")
