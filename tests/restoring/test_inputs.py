"""What is found in files, folders and patterns, what is left out, and in how much memory."""

import os
import tracemalloc
from pathlib import Path

import pytest

from helpers.restoring import count, find, kind_of
from helpers.restoring.inputs import KINDS
from helpers.splats import read_ply


def fill(folder: Path, *names: str) -> Path:
    """Empty files of these names."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def names(what, **options) -> list[str]:
    """Where the results of what is found would lie, in the order in which it is found."""
    return [one.relative.as_posix() for one in find(what, say=None, **options)]


def test_a_folder_is_walked_by_name_without_results_hidden_files_links_and_other_kinds(
        tmp_path, capsys):
    folder = fill(tmp_path / "in", "b.PNG", "a.jpg", "z.ply", "m.mov", "sub/c.tif", "._b.png",
                  ".cache/x.png", "a_restored.png", "a_restored_2.png", "z_restored/0.png",
                  "notes.txt", "raw.heic", "out/a.png", "restored.png")
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    (folder / "gone.webp").symlink_to(folder / "nowhere")
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.png")
    found = list(find(folder, output=folder / "out"))
    assert [one.relative.as_posix() for one in found] == [
        "a.jpg", "b.PNG", "gone.webp", "m.mov", "restored.png", "z.ply", "sub/c.tif"]
    assert [one.kind for one in found][3:6] == ["video", "picture", "splat"]
    said = capsys.readouterr().out
    assert "3 results of ours" in said and "2 files of other kinds" in said
    assert "1 linked folders" in said
    assert count(folder, folder / "out") == 7 and count(folder) == 8
    assert not capsys.readouterr().out


def test_files_patterns_and_lists_keep_their_tree(tmp_path):
    fill(tmp_path, "one/x.png", "two/x.png", "two/x_restored.png", "two/deep/y.jpg", "r[1].png")
    assert names(tmp_path / "one" / "x.png") == ["x.png"]
    assert names(str(tmp_path / "t*" / "**" / "*.jpg")) == ["y.jpg"]
    assert names([tmp_path / "one" / "x.png", str(tmp_path / "two" / "*.png")]) == [
        "one/x.png", "two/x.png"]  # a shell's *.png names the results, too
    assert names([str(tmp_path / "one"), tmp_path / "two"]) == [
        "one/x.png", "two/x.png", "two/deep/y.jpg"]
    assert names(tmp_path / "two" / "x_restored.png") == ["x_restored.png"]  # named by itself
    assert names(str(tmp_path / "r[1].png")) == ["r[1].png"]
    assert names(fill(tmp_path, "odd.xyz") / "odd.xyz") == ["odd.xyz"]  # its content will tell


@pytest.mark.parametrize(("files", "said"), [
    ([], "got 'an empty folder'"), (["a_restored.png"], "got '1 results of ours"),
    (["b.txt", "c.heic"], "got '2 files of other kinds'")])
def test_a_folder_with_nothing_to_restore_is_refused_and_says_what_is_in_it(tmp_path, files, said):
    with pytest.raises(ValueError, match=r"expected pictures, videos or splats \(\.jpg") as told:
        list(find(fill(tmp_path, *files)))
    assert said in str(told.value)
    with pytest.raises(ValueError, match=r"no\.png: expected a file, a folder, or a pattern"):
        list(find([tmp_path / "no.png"]))


def test_a_folder_that_cannot_be_opened_is_a_problem_of_its_own(tmp_path, monkeypatch):
    fill(tmp_path, "a.png", "shut/b.png")
    scandir = os.scandir

    def refusing(path):  # root opens everything
        if Path(path).name == "shut":
            raise PermissionError(13, "Permission denied")
        return scandir(path)
    monkeypatch.setattr(os, "scandir", refusing)
    found = list(find(tmp_path))
    assert [one.relative.name for one in found] == ["a.png", "shut"]
    assert "cannot be opened (Permission denied)" in found[1].problem


def test_ten_times_the_files_are_begun_at_once_in_the_memory_of_their_names(tmp_path):
    def peak(files: int) -> int:
        folder = tmp_path / str(files)
        folder.mkdir()
        for number in range(files):
            (folder / f"{number:06}.png").touch()
        tracemalloc.start()
        assert sum(1 for _ in find(folder)) == files
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    few, many = peak(300), peak(3_000)
    assert (many - few) / 2_700 < 100  # bytes a file: its name; 100,000 of them take 10 MB


def test_a_kind_is_told_by_the_suffix():
    assert [kind_of(name) for name in ("a.JPEG", "b.mp4", "c.ply", "d.txt", "e")] == [
        "picture", "video", "splat", None, None]
    assert len({suffix for suffixes in KINDS.values() for suffix in suffixes}) == 14


def test_results_stay_in_their_folder_whatever_way_an_input_is_named(tmp_path, monkeypatch):
    fill(tmp_path, "other/a.png", "here/in/b.png")
    monkeypatch.chdir(tmp_path / "here")
    assert names(["../other/a.png", "in/b.png"]) == ["other/a.png", "here/in/b.png"]
    assert names(["../other/*.png", "in/../in"]) == ["other/a.png", "here/in/b.png"]
    assert names("in/..") == ["in/b.png"]


def test_what_is_named_twice_is_found_once(tmp_path):
    def found(*what):
        return sorted(one.path.relative_to(tmp_path).as_posix() for one in find(what, say=None))

    fill(tmp_path, "a.png", "sub/b.png", "sub/deep/c.png", "sub/.hidden/d.png")
    every = ["a.png", "sub/b.png", "sub/deep/c.png"]
    assert found(str(tmp_path / "**")) == every
    assert found(tmp_path, tmp_path / "a.png", tmp_path / "sub", tmp_path) == every
    assert found(tmp_path, tmp_path / "sub" / ".hidden") == sorted([*every, "sub/.hidden/d.png"])


def test_a_name_that_begins_like_a_home_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(fill(tmp_path, "~nobody.png"))
    assert names("~nobody.png") == ["~nobody.png"]


@pytest.mark.parametrize("name", ["a.splat", "a.ksplat", "a.SPZ"])
def test_a_compressed_splat_that_is_named_is_known_and_one_in_a_folder_is_left_out(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x00" * 64)
    (tmp_path / "b.ply").write_bytes(b"ply\n")
    assert [one.kind for one in find(tmp_path / name)] == ["splat"]
    assert [one.path.name for one in find(tmp_path, say=None)] == ["b.ply"]
    with pytest.raises(ValueError, match=r"export .*\.ply"):
        read_ply(tmp_path / name)
