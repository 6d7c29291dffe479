"""Files: atomic writes, timeouts, archives to and from Drive, users' paths."""

import os
import tarfile
import time
from pathlib import Path

import pytest

from splat_enhancer import files
from splat_enhancer.files import atomic_write, pack, sha256, unpack, user_path, with_timeout


def test_failed_write_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = atomic_write(tmp_path / "new" / "a.txt", b"old")

    def fail(_):
        raise OSError("full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="full"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"


def test_link_is_followed_and_folders_of_a_drive_that_is_gone_are_not_made(tmp_path):
    atomic_write(tmp_path / "target.txt", b"old")
    (tmp_path / "link.txt").symlink_to(tmp_path / "target.txt")
    atomic_write(tmp_path / "link.txt", b"new")
    assert (tmp_path / "target.txt").read_bytes() == b"new" and (tmp_path / "link.txt").is_symlink()
    with pytest.raises(FileNotFoundError):
        atomic_write(tmp_path / "drive" / "MyDrive" / "runs" / "a.txt", b"")
    assert not (tmp_path / "drive").exists()


def test_hanging_call_is_left_and_errors_pass():
    with pytest.raises(TimeoutError, match=r"no answer within 0.05 s"):
        with_timeout(0.05, time.sleep, 1)
    assert with_timeout(5, max, 2, 3) == 3
    with pytest.raises(ZeroDivisionError):
        with_timeout(5, divmod, 1, 0)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "here" / "faces"
    folder.mkdir(parents=True)
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(os.urandom(3_000))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_archive_brings_back_every_byte_and_leaves_nothing_else(folder, tmp_path):
    archive, there = tmp_path / "drive" / "faces.tar", tmp_path / "there" / "faces"
    there.parent.mkdir()
    with pytest.raises(FileNotFoundError):
        unpack(archive, there)
    pack(folder, archive)
    unpack(archive, there)
    assert contents(there) == contents(folder)
    for made in (folder.parent, there.parent):
        assert [path.name for path in made.iterdir()] == ["faces"]
    assert [path.name for path in archive.parent.iterdir()] == ["faces.tar"]


@pytest.mark.parametrize("damage", [
    lambda content: b"", lambda content: content[:-1], lambda content: content[:500],
    lambda content: b"\1" + content[1:]])
def test_damaged_archive_is_refused_and_no_folder_appears(folder, tmp_path, damage):
    archive = tmp_path / "faces.tar"
    pack(folder, archive)
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(ValueError, match=r"faces\.tar: expected a complete archive"):
        unpack(archive, tmp_path / "faces")
    assert not (tmp_path / "faces").exists()


def test_copy_that_reads_back_differently_replaces_nothing(folder, tmp_path, monkeypatch):
    pack(folder, archive := tmp_path / "faces.tar")
    before = archive.read_bytes()
    monkeypatch.setattr(files.Path, "write_bytes", lambda path, _: path.write_text("short"))
    with pytest.raises(OSError, match="read back"):
        pack(folder, archive)
    assert archive.read_bytes() == before


def test_archive_cannot_write_outside_its_folder(tmp_path):
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("../../evil"))
    content = (tmp_path / "evil.tar").read_bytes()
    (tmp_path / "evil.tar").write_bytes(content + bytes.fromhex(sha256(content)))
    (tmp_path / "a").mkdir()
    with pytest.raises(tarfile.FilterError, match="outside the destination"):
        unpack(tmp_path / "evil.tar", tmp_path / "a" / "b")
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("text", ['"{}"', "'{}'", "  {}\n", "“{}”", "\"'{}'\"", "{}"])
def test_path_is_read_as_people_paste_it(text, tmp_path):
    assert user_path(text.format(tmp_path / "a [1] b.png")) == tmp_path / "a [1] b.png"


def test_tilde_is_the_home_folder_unless_it_begins_a_file_name(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/a.png") == user_path(Path("~/a.png")) == user_path(' "~/a.png" ') == \
        tmp_path / "a.png"
    assert user_path("~nobody.png") == Path("~nobody.png") and user_path("it's") == Path("it's")
