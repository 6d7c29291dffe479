"""One closed copy on Drive, whatever happens to it on the way."""

from __future__ import annotations

import errno
import hashlib
import io
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from threading import Event, Thread

import pytest

from helpers.__main__ import ROOT
from helpers.storage import alone
from helpers.storage import copies as keep
from tests.faulty import faulty

CONTENT = {"faces.arrow": bytes(range(256)) * 20, "prepared.json": b"{}"}


@pytest.fixture
def made(tmp_path):
    """A prepared folder on the first machine, and Drive."""
    folder = tmp_path / "one" / "faces"
    folder.mkdir(parents=True)
    (tmp_path / "drive").mkdir()
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)
    return folder


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_next_machine_takes_back_every_byte_and_nothing_is_copied_twice(made, tmp_path, capsys):
    drive, other = tmp_path / "drive" / "data", tmp_path / "two" / "faces"
    assert not keep.take_back(other, drive)  # before there is anything
    keep.keep(made, drive)
    with faulty(drive / "faces.tar.part", errno=errno.EIO) as faults:
        keep.keep(made, drive)
    assert faults.hits == 0
    assert keep.take_back(other, drive) and read(other) == CONTENT
    assert [p.name for p in drive.iterdir()] == ["faces.tar"]
    beside = {p.name for p in (*made.parent.iterdir(), *other.parent.iterdir())}
    assert beside - {".faces.lock"} == {"faces"}
    assert capsys.readouterr().out.count("\n") == 2  # kept, taken


def test_a_single_file_is_kept_too_and_without_drive_nothing_happens(tmp_path, capsys):
    (tmp_path / "prompt").write_bytes(b"embedded")
    keep.keep(tmp_path / "prompt", None)
    assert not keep.take_back(tmp_path / "other", None) and capsys.readouterr().out == ""
    keep.keep(tmp_path / "prompt", tmp_path / "drive")
    (tmp_path / "prompt").unlink()
    assert keep.take_back(tmp_path / "prompt", tmp_path / "drive")
    assert (tmp_path / "prompt").read_bytes() == b"embedded"


@pytest.mark.parametrize("damage", [
    lambda whole: b"", lambda whole: whole[:-1], lambda whole: b"\0" + whole[1:]])
def test_a_damaged_copy_is_named_not_used_and_made_good_again(made, tmp_path, capsys, damage):
    drive, other = tmp_path / "drive", tmp_path / "two" / "faces"
    keep.keep(made, drive)
    copy = drive / "faces.tar"
    whole = copy.read_bytes()
    copy.write_bytes(damage(whole))
    assert not keep.take_back(other, drive) and not other.exists()
    assert "copy there is damaged); it is made anew" in capsys.readouterr().out
    keep.keep(made, drive)
    assert copy.read_bytes() == whole and [p.name for p in drive.iterdir()] == ["faces.tar"]


@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("after_calls", [0, 1, 2, 3])
def test_drive_that_fails_is_told_and_the_next_call_succeeds(
        made, tmp_path, capsys, number, after_calls):
    drive, other = tmp_path / "drive", tmp_path / "two" / "faces"
    with faulty(drive, errno=number, after_calls=after_calls):
        keep.keep(made, drive)
    assert "makes it anew" in capsys.readouterr().out and not (drive / "faces.tar").exists()
    keep.keep(made, drive)
    with faulty(drive, errno=number, after_calls=min(after_calls, 1)):
        assert not keep.take_back(other, drive)
    assert not other.exists() and keep.take_back(other, drive) and read(other) == CONTENT


def test_drive_that_hangs_is_left_after_a_while(made, tmp_path, capsys):
    hang = Event()
    try:
        with faulty(tmp_path / "drive", hang=hang):
            keep.keep(made, tmp_path / "drive", timeout_s=0.05)
            assert not keep.take_back(tmp_path / "two" / "faces", tmp_path / "drive",
                                      timeout_s=0.05)
    finally:
        hang.set()
    assert capsys.readouterr().out.count("no answer within 0.05 s") == 2


HANGING = """
import sys
from pathlib import Path
from threading import Event
from helpers.storage import alone
from helpers.storage import copies as keep
from tests.faulty import faulty
made, drive = map(Path, sys.argv[2:])
with faulty(drive, hang=Event(), after_calls=1):
    if sys.argv[1] == "keep":
        keep.keep(made, drive)
    with alone(made):
        keep.take_back(made, drive)
"""


@pytest.mark.parametrize("what", ["keep", "take_back"])
def test_what_a_kill_left_is_deleted_but_nothing_of_a_process_that_lives(
        made, tmp_path, capsys, what):
    drive, other = tmp_path / "drive", tmp_path / "two" / "faces"
    if what == "take_back":
        keep.keep(made, drive)
        made = other

    def go_on():
        if what == "keep":
            return keep.keep(made, drive)
        with alone(made):
            return keep.take_back(made, drive)
    (made.parent / f".{made.name}2.copy-others").mkdir(parents=True)
    process = subprocess.Popen([sys.executable, "-c", HANGING, what, made, drive], cwd=ROOT)
    while not (left := list(made.parent.glob(f".{made.name}.copy-*"))):
        assert process.poll() is None
        time.sleep(0.01)
    waiting = Thread(target=go_on)
    waiting.start()
    time.sleep(0.3)
    assert left[0].is_dir()
    if what == "keep":  # a copy is not waited for
        assert not waiting.is_alive() and "another process is at it" in capsys.readouterr().out
        waiting = Thread(target=go_on)
    process.kill()
    process.wait()
    assert left[0].is_dir()
    if what == "keep":
        waiting.start()
    waiting.join(20)
    names = {path.name for path in made.parent.iterdir()} - {".faces.lock"}
    assert names == {"faces", ".faces2.copy-others"}
    made = tmp_path / "three" / "faces"
    assert keep.take_back(made, drive) and read(made) == CONTENT


def test_a_drive_that_is_gone_is_not_replaced_by_a_local_folder(made, tmp_path, capsys):
    keep.keep(made, tmp_path / "gone" / "splat_enhancer" / "data")
    assert not (tmp_path / "gone").exists() and "no copy" in capsys.readouterr().out


def test_a_copy_cannot_write_outside_its_folder(tmp_path, capsys):
    drive, other = tmp_path / "drive", tmp_path / "two" / "faces"
    drive.mkdir()
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        entry = tarfile.TarInfo("../../evil")
        entry.size = 4
        tar.addfile(entry, io.BytesIO(b"evil"))
    content = (tmp_path / "evil.tar").read_bytes()
    (drive / "faces.tar").write_bytes(content + hashlib.sha256(content).digest())
    assert not keep.take_back(other, drive)
    assert not list(tmp_path.rglob("evil")) and "outside" in capsys.readouterr().out
