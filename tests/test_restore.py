"""Files of every kind: restored once, named where they fail, and a user's own never touched."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_config, tiny_model
from videos import Brighter, pattern

from splat_enhancer import images
from splat_enhancer.enhance.inputs import read_mark
from splat_enhancer.enhance.restore import RestoreConfig, find, restore, restore_all, zip_results
from splat_enhancer.environment import Stopped
from splat_enhancer.images import read_image, read_png_text, write_png

ROOT = Path(__file__).resolve().parents[1]


def run(model, what, output=None, share=(0, 1), **settings):
    """The outcomes by the places of their files."""
    outcomes = restore_all(model, find(what, output, say=None), RestoreConfig(**settings),
                           output=output, share=share, progress=None)
    return {outcome.input.relative.as_posix(): outcome for outcome in outcomes}


def names(what, output=None):
    return [item.relative.as_posix() for item in find(what, output, say=None)]


def fill(folder, *files):
    """Empty files of these names."""
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def state(folder):
    """Inode and content of every file: what was written again has another."""
    return {str(path): (path.stat().st_ino, path.read_bytes())
            for path in folder.rglob("*") if path.is_file()}


def values(path):
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture
def folder(tmp_path):
    """A picture with alpha, a turned one, one of 16 bits, one in ink, and a file that is none."""
    alpha = np.full((48, 64, 1), 255, np.uint8)
    alpha[:12] = 0
    Image.fromarray(np.dstack([pattern(), alpha])).save(tmp_path / "rgba.png")
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(pattern()).save(tmp_path / "turned.jpg", exif=exif, quality=98)
    Image.fromarray(pattern()).convert("CMYK").save(tmp_path / "ink.jpg")
    (tmp_path / "sub").mkdir()
    Image.fromarray(pattern()[..., 0].astype(np.uint16) * 257).save(tmp_path / "sub" / "deep.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "rgba.png").read_bytes()[:60])
    return tmp_path


def test_pictures_are_restored_as_the_model_does_and_a_broken_one_is_named(folder):
    model = tiny_model(tiny_config(folder.parent / "faces")).eval()
    found = run(model, folder)
    assert [name for name, one in found.items() if one.error] == ["broken.png"]
    assert found["broken.png"].error.startswith("broken.png: expected ")
    for name in found.keys() - {"broken.png"}:
        source, outcome = folder / name, found[name]
        rgb, alpha = read_image(source)
        assert outcome.files == (source.with_name(f"{source.stem}_restored.png"),)
        restored, changed = model.enhance_with_mask(rgb[None])
        result = torch.from_numpy(values(outcome.files[0]).copy()).permute(2, 0, 1)
        assert (result[:3] - restored[0].mul(255)).abs().max() <= 0.51
        assert alpha is not None or outcome.repaired == pytest.approx(changed.mean().item())
    assert np.array_equal(values(folder / "rgba_restored.png")[..., 3],
                          values(folder / "rgba.png")[..., 3])
    assert values(found["turned.jpg"].files[0]).shape == (64, 48, 3)


def test_what_is_done_is_skipped_and_what_changed_is_done_again_in_its_place(folder):
    run(Brighter(9), folder)
    before, again = state(folder), run(Brighter(9), folder)
    assert state(folder) == before
    assert [name for name, one in again.items() if not one.skipped] == ["broken.png"]
    assert again["rgba.png"].repaired == pytest.approx(1, abs=0.1)  # reported again
    os.utime(folder / "rgba.png", (1, 1))
    Image.fromarray(pattern(1)).save(folder / "ink.jpg")
    (folder / "turned_restored.png").unlink()
    found = run(Brighter(9), folder)
    assert {name for name, one in found.items() if one.skipped} == {"rgba.png", "sub/deep.png"}
    assert len(state(folder)) == len(before)
    both = run(Brighter(9), folder, strength=0.5, overlay=True)["rgba.png"]
    assert [path.name for path in both.files] == ["rgba_restored.png", "rgba_restored_overlay.png"]
    assert run(Brighter(9), folder, strength=0.5)["rgba.png"].skipped
    assert not run(Brighter(7), folder, strength=0.5)["rgba.png"].skipped  # other weights
    assert not (folder / "rgba_restored_overlay.png").exists()
    moved = folder.rename(folder.with_name("moved"))
    assert run(Brighter(7), moved, strength=0.5)["rgba.png"].skipped


def test_results_lie_in_the_same_tree_elsewhere_and_in_one_zip(folder, tmp_path_factory):
    output, before = tmp_path_factory.mktemp("out") / "made" / "here", state(folder)
    outcomes = [*run(Brighter(9), folder, output).values()]
    expected = {"ink_restored.png", "rgba_restored.png", "turned_restored.png",
                "sub/deep_restored.png"}
    assert {path.relative_to(output).as_posix() for path in output.rglob("*.*")} == expected
    assert state(folder) == before
    archive = zip_results(outcomes, output.parent / "all.zip")
    zip_results(outcomes, archive)  # in place of the earlier one
    with ZipFile(archive) as content:
        assert {*content.namelist()} == expected and content.testzip() is None
    (output.parent / "mine.zip").write_bytes(b"my own")
    with pytest.raises(ValueError, match=r"mine\.zip: expected a new name, or an earlier zip"):
        zip_results(outcomes, output.parent / "mine.zip")


def test_a_users_own_file_in_the_way_is_kept_and_said(tmp_path):
    for name in ("a.png", "a.jpg", "my face (1).png"):
        Image.fromarray(pattern()).save(tmp_path / name)
    own = tmp_path / "a_restored.png"
    Image.fromarray(pattern(2)).save(own)
    content = own.read_bytes()
    first = run(Brighter(9), [tmp_path / "a.png", tmp_path / "a.jpg", tmp_path / "my face (1).png"])
    assert {one.files[0].name for one in first.values()} == {
        "a_restored_2.png", "a_restored_3.png", "my face (1)_restored.png"}
    assert "something else is called a_restored: it is kept" in first["a.png"].notes[0]
    assert own.read_bytes() == content
    second = run(Brighter(9), tmp_path)  # the user's file is a picture as any other
    assert second["a_restored.png"].files[0].name == "a_restored_restored.png"
    assert all(second[name].skipped and second[name].files == first[name].files for name in first)


def test_a_strength_chosen_in_before_and_after_outlives_other_settings_and_weights(tmp_path):
    Image.fromarray(pattern()).save(tmp_path / "a.png")
    result = run(Brighter(60), tmp_path)["a.png"].files[0]
    rgb, _ = read_image(tmp_path / "a.png")
    write_png(result, rgb, text=read_png_text(result) | {"chosen_strength": "0.25"})
    chosen = result.read_bytes()
    kept = run(Brighter(60), tmp_path, strength=0.8)["a.png"]
    assert kept.skipped and result.read_bytes() == chosen
    assert "strength 0.25 was chosen in before/after" in kept.notes[0]
    assert not run(Brighter(40), tmp_path)["a.png"].skipped  # other weights, his strength
    assert int(values(result)[30, 50, 2]) - values(tmp_path / "a.png")[30, 50, 2] == 10
    assert run(Brighter(40), tmp_path)["a.png"].skipped
    Image.fromarray(pattern(1)).save(tmp_path / "a.png")  # another picture: no choice was made
    assert int(values(run(Brighter(40), tmp_path)["a.png"].files[0])[30, 50, 2]) - 100 == 40


def test_what_is_far_from_training_and_what_was_hardly_changed_is_said(tmp_path):
    Image.fromarray(pattern()).save(tmp_path / "a.png")
    Image.fromarray(pattern(0, 20, 300)).save(tmp_path / "wide.png")
    first, wide = run(Brighter(), tmp_path).values()
    assert first.repaired == 0 and "next to nothing was repaired (0.0 %)" in first.notes[0]
    assert "300 x 20 px is more than twice the 128 px" in wide.notes[1]
    assert not run(Brighter(), tmp_path, strength=0.0)["a.png"].notes


def test_a_folder_is_walked_without_results_hidden_files_links_and_other_kinds(tmp_path, capsys):
    folder = fill(tmp_path / "in", "b.PNG", "a.jpg", "z.ply", "m.mov", "sub/c.tif", "._b.png",
                  ".cache/x.png", "grandma_restored/1.png", "notes.txt", "raw.heic", "out/a.png",
                  "p.ply.gz")
    write_png(folder / "called_otherwise.png", torch.zeros(3, 8, 8),
              text={"splat-enhancer": '{"of": "x"}'})
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "gone.webp").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe.png")
    found = find(folder, folder / "out")
    assert [item.relative.as_posix() for item in found] == [
        "a.jpg", "b.PNG", "gone.webp", "grandma_restored/1.png", "m.mov", "p.ply.gz", "sub/c.tif",
        "z.ply"]
    assert [item.kind for item in found][4:6] == ["video", "splat"]
    message = capsys.readouterr().out
    assert "1 results of ours" in message and "2 files of other kinds" in message
    assert "1 linked folders" in message


def test_files_patterns_and_lists_keep_their_tree(tmp_path, monkeypatch):
    fill(tmp_path, "one/x.png", "two/x.png", "two/deep/y.jpg", "br [1]/a.png",
         "br [1]/in [2]/b.png", "c1.png", "odd.xyz", " blank.png", "s.SPZ")
    assert names(tmp_path / "one" / "x.png") == ["x.png"]
    assert names(str(tmp_path / "t*" / "**" / "*.jpg")) == ["y.jpg"]
    assert names([tmp_path / "one" / "x.png", str(tmp_path / "two" / "*.png")]) == [
        "one/x.png", "two/x.png"]
    assert names([str(tmp_path / "two"), tmp_path / "two" / "deep"]) == [
        "two/deep/y.jpg", "two/x.png"]
    assert names(str(tmp_path / "br [1]" / "*.png")) == ["a.png"]
    assert names(str(tmp_path / "b*" / "in [2]" / "b.png")) == ["b.png"]
    assert names(str(tmp_path / "c[12].png")) == ["c1.png"]
    assert names(tmp_path / "odd.xyz") == ["odd.xyz"]  # its content will tell
    assert names(str(tmp_path / " blank.png")) == [" blank.png"]
    assert find(tmp_path / "s.SPZ")[0].kind == "splat"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / "one")
    assert names("~/two") == ["deep/y.jpg", "x.png"] and names("../two/x.png") == ["x.png"]


@pytest.mark.parametrize(("files", "message"), [
    ([], "an empty folder"), (["b.txt", "c.heic"], "2 files of other kinds")])
def test_a_folder_with_nothing_to_restore_is_an_error_with_what_is_in_it(tmp_path, files, message):
    with pytest.raises(ValueError, match=r"expected pictures, videos or splats \(\.jpg") as error:
        find(fill(tmp_path, *files))
    assert f"got {message}" in str(error.value)
    with pytest.raises(ValueError, match=r"no\.png: expected a file, a folder, or a pattern"):
        find([tmp_path / "no.png"])


def test_every_error_is_a_sentence_that_names_the_file(tmp_path, folder, monkeypatch):
    with pytest.raises(ValueError, match=r"output_dir: expected a folder, got .*rgba\.png"):
        run(Brighter(), folder, folder / "rgba.png")
    output = tmp_path / "out"
    fill(output, "sub")  # a file where a folder is needed
    error = run(Brighter(), folder, output)["sub/deep.png"].error
    assert error.startswith("deep.png: expected ") and "[Errno" not in error and "exists" in error
    (folder / "gone.png").symlink_to(folder / "nowhere")
    assert "no such file" in run(Brighter(), folder / "gone.png")["gone.png"].error

    def failing(*_):
        raise RuntimeError("odd")
    monkeypatch.setattr(Brighter, "enhance_with_mask", failing)
    assert run(Brighter(), folder / "rgba.png")["rgba.png"].error == "rgba.png: RuntimeError: odd"


def test_a_full_disk_ends_it_and_leaves_nothing_half_written(folder, monkeypatch):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))
    before = state(folder)
    monkeypatch.setattr(images, "atomic_write", full)
    with pytest.raises(OSError, match="No space left"):
        run(Brighter(), folder)
    assert state(folder) == before


def test_a_stop_ends_after_the_file_at_hand(folder):
    outcomes = restore_all(Brighter(9), find(folder, say=None), progress=None)
    next(outcomes)
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(Stopped, match="Stopped after 1 files"):
        next(outcomes)
    assert len(run(Brighter(9), folder)) == 5


def test_processes_share_the_files_and_never_meet_at_one(folder):
    shares = [run(Brighter(9), folder, share=(number, 3)) for number in range(3)]
    assert sorted(name for share in shares for name in share) == sorted(names(folder))
    shutil.copy(folder / "rgba.png", folder / "new.png")
    code = ("import sys, pathlib\nfrom splat_enhancer.enhance.restore import _alone\n"
            "with _alone(pathlib.Path(sys.argv[1])): print(flush=True); input()")
    with subprocess.Popen([sys.executable, "-c", code, folder / "new.png"], cwd=ROOT, text=True,
                          stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        busy = run(Brighter(9), folder)["new.png"]
        assert busy.skipped and busy.notes == ("another process restores it",) and not busy.files
        other.kill()
    assert run(Brighter(9), folder)["new.png"].files


def test_whatever_holds_a_picture_comes_back_as_the_same_kind(folder):
    model, rgba = Brighter(10), values(folder / "rgba.png")
    image = restore(model, str(folder / "rgba.png"))
    assert image.mode == "RGBA" and np.array_equal(np.asarray(image)[..., 3], rgba[..., 3])
    assert restore(model, Image.open(folder / "turned.jpg")).size == (48, 64)
    assert restore(model, Image.open(folder / "ink.jpg")).mode == "RGB"
    assert np.array_equal(restore(model, rgba)[..., 3], rgba[..., 3])
    tensor = torch.from_numpy(rgba[..., :3].copy()).permute(2, 0, 1)
    assert torch.equal(restore(model, tensor), (tensor.int() + 10).clamp(max=255).byte())
    half = restore(model, torch.stack([tensor, tensor]).half() / 255)
    assert half.shape == (2, 3, 48, 64) and half.dtype == torch.float16
    wide = restore(model, (np.float64(rgba[None]) / 255).astype(">f8"))
    assert wide.shape == (1, 48, 64, 4) and wide.dtype == np.float64
    many = restore(model, [folder / "rgba.png", image, tensor], strength=0.0)
    assert [type(part) for part in many] == [Image.Image, Image.Image, torch.Tensor]
    assert torch.equal(many[2], tensor) and restore(model, []) == []


@pytest.mark.parametrize(("wrong", "message"), [
    (torch.zeros(1, 8, 8), r"\(C, H, W\)"), (np.zeros((3, 8, 8)), r"\(H, W, C\)"), (7, "got int"),
    ("no/such.png", "check the path"), (np.zeros((8, 8, 3), object), "an array of object")])
def test_what_is_no_picture_is_an_error(wrong, message):
    with pytest.raises(ValueError, match=message):
        restore(Brighter(), wrong)


@pytest.mark.parametrize("bad", [{"views": 0}, {"view_px": 8}, {"up": "w"}, {"backdrop": "pink"},
                                 {"temporal": 1.5}, {"strength": "1"}, {"fov_deg": float("nan")}])
def test_settings_of_no_use_are_refused(bad):
    with pytest.raises(ValueError, match=rf"^{next(iter(bad))}: expected .*, got "):
        RestoreConfig(**bad)


def test_a_mark_is_read_from_whatever_a_file_holds(tmp_path):
    for name in ("a.png", "a.mp4", "b.txt"):
        (tmp_path / name).write_bytes(b"\0\0\0\x10moovsplat-enhancer {")
        assert read_mark(tmp_path / name) == {}
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x01wide" + (24).to_bytes(8, "big") + b"12345678" +
                                     b"\0\0\0\x25moov splat-enhancer {\"of\": 1}")
    assert read_mark(tmp_path / "a.mp4") == {"of": 1} and read_mark(tmp_path / "none.png") == {}
