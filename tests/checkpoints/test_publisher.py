"""Copies on Drive: compared before they count, whatever Drive does meanwhile."""

from __future__ import annotations

import errno
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest
import torch

from helpers import checkpoints
from helpers.__main__ import ROOT
from helpers.checkpoints import publisher as publishing
from helpers.checkpoints.checkpoint import ASIDE, BEST, LATEST, NAMES, PREVIOUS, Checkpoint
from helpers.checkpoints.claims import OWNER
from helpers.checkpoints.publisher import Publisher, publish
from helpers.config import preset
from tests.faulty import faulty

from .test_checkpoint import DAMAGE, steps_in

PART = LATEST + ".part"


@pytest.fixture
def drive(tmp_path):
    (tmp_path / "drive").mkdir()
    return tmp_path / "drive"


def saved(folder, step, *, best=False):
    tensors = {"model/a": torch.full((5_000,), float(step))}
    return checkpoints.save(Checkpoint(step, preset("demo"), tensors), folder, best=best)


def content_of(folder, step):
    return saved(folder / str(step), step).read_bytes()


def until(condition, timeout_s=20.0):
    """Wait for another thread to get there."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.005)


def submit(publisher, file, **options):
    """Hand a file over and wait until it was tried."""
    publisher.submit(file, **options)
    until(lambda: not publisher._calls.unfinished_tasks)


def test_published_files_are_the_saved_ones_under_fixed_names(tmp_path):
    publisher, local = Publisher(tmp_path / "new" / "drive"), tmp_path / "local"
    for step in (1, 2, 3):
        submit(publisher, saved(local, step, best=step == 2), best=step == 2)
    publisher.close()
    drive = publisher.folder
    assert steps_in(drive) == {LATEST: 3, PREVIOUS: 2, BEST: 2}
    for name in NAMES:
        assert (drive / name).read_bytes() == (local / name).read_bytes()
    told = json.loads((drive / "run.json").read_text())
    assert told["step"] == 3 and {n: f["step"] for n, f in told["files"].items()} == steps_in(drive)
    assert told["files"] == json.loads((local / "run.json").read_text())["files"]


def test_nothing_on_drive_is_deleted_or_replaced(drive, tmp_path):
    """Else each save would put its size into Drive's trash, which counts."""
    owned = set()
    for step in range(1, 9):
        publish(content_of(tmp_path, step), drive / LATEST)
        inodes = {path.stat().st_ino for path in drive.iterdir()}
        assert owned <= inodes
        owned = inodes
    assert steps_in(drive) == {LATEST: 8, PREVIOUS: 7} and len(owned) == 3


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_bad_local_file_never_reaches_drive(drive, tmp_path, damage):
    publish(content_of(tmp_path, 1), drive / LATEST)
    with pytest.raises(ValueError, match="of this machine: expected a whole checkpoint"):
        publish(DAMAGE[damage](content_of(tmp_path, 2)), drive / LATEST)
    assert steps_in(drive) == {LATEST: 1}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_bad_latest_on_drive_is_replaced_and_the_good_previous_stays(drive, tmp_path, damage):
    for step in (1, 2):
        publish(content_of(tmp_path, step), drive / LATEST)
    (drive / LATEST).write_bytes(DAMAGE[damage]((drive / LATEST).read_bytes()))
    publish(content_of(tmp_path, 3), drive / LATEST)
    assert steps_in(drive) == {LATEST: 3, PREVIOUS: 1}


def test_a_copy_that_differs_does_not_count(drive, tmp_path, monkeypatch):
    publish(content_of(tmp_path, 1), drive / LATEST)
    second, flush = content_of(tmp_path, 2), os.fsync

    def corrupting(descriptor):
        flush(descriptor)
        os.pwrite(descriptor, b"\0\1\2\3", 4_000)

    monkeypatch.setattr(os, "fsync", corrupting)
    with pytest.raises(OSError, match="differs from what was written"):
        publish(second, drive / LATEST)
    assert steps_in(drive) == {LATEST: 1}


def test_a_later_state_on_drive_that_this_run_does_not_know_is_kept(drive, tmp_path, capsys):
    publish(content_of(tmp_path, 900), drive / LATEST)
    publisher = Publisher(drive)
    submit(publisher, saved(tmp_path / "local", 100, best=True), best=True)
    publisher.close()
    assert "got step 900" in capsys.readouterr().out and steps_in(drive) == {LATEST: 900}


def test_whichever_call_of_a_publication_fails_drive_keeps_a_whole_state(tmp_path):
    contents = {step: content_of(tmp_path, step) for step in (1, 2, 3, 4)}
    for after_calls in range(100):
        folder = tmp_path / f"drive{after_calls}"
        folder.mkdir()
        for step in (1, 2):
            publish(contents[step], folder / LATEST)
        through = False
        with suppress(OSError), \
                faulty(folder, errno=errno.EIO, after_calls=after_calls) as faults:
            through = publish(contents[3], folder / LATEST) == 3
        assert checkpoints.newest([folder])[0].step >= (3 if through else 2)
        publish(contents[4], folder / LATEST)  # whatever is left behind is no hindrance
        assert steps_in(folder)[LATEST] == 4 and checkpoints.whole_step(folder / PREVIOUS)
        if not faults.hits:
            break
    assert through and not faults.hits and after_calls > 8


MOVES = [{LATEST: 2, PREVIOUS: 1, PART: 3}, {LATEST: 2, "aside": 1, PART: 3},
         {PREVIOUS: 2, "aside": 1, PART: 3}, {LATEST: 3, PREVIOUS: 2, "aside": 1},
         {LATEST: 2, PREVIOUS: 1, PART: None}, {"aside": 2, PREVIOUS: 1, PART: 2}]


@pytest.mark.parametrize("files", MOVES)
def test_a_kill_between_any_two_renames_leaves_a_state_and_no_hindrance(drive, tmp_path, files):
    for name, step in files.items():
        place = drive / (ASIDE if name == "aside" else name)
        place.write_bytes(content_of(tmp_path, step) if step else b"half a fi")
    assert checkpoints.newest([drive])[0].step == files.get(LATEST, 2)
    publish(content_of(tmp_path, 4), drive / LATEST)
    assert steps_in(drive) == {LATEST: 4, PREVIOUS: files.get(LATEST) or files[PREVIOUS]}


@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.EIO, errno.ENOSPC, errno.EDQUOT,
                                    errno.EACCES])
def test_a_drive_that_fails_and_comes_back_is_told_once_each_time(drive, tmp_path, capsys, number):
    publisher, back = Publisher(drive), threading.Event()
    submit(publisher, saved(tmp_path / "local", 1))
    with faulty(drive, errno=number, until=back.is_set) as faults:
        for step in (2, 3, 4):
            submit(publisher, saved(tmp_path / "local", step, best=step == 3), best=step == 3)
        assert steps_in(tmp_path / "local")[LATEST] == 4
        back.set()
        submit(publisher, saved(tmp_path / "local", 5))
    with faulty(drive, errno=number):
        submit(publisher, saved(tmp_path / "local", 6))
    publisher.close()  # tries once more
    told = capsys.readouterr().out.splitlines()
    assert faults.hits >= 3 and len(told) == 4
    assert all(os.strerror(number) in line and "next save tries" in line for line in told[::2])
    assert [f"{drive} is back: step {step} published." for step in (5, 6)] == told[1::2]
    assert steps_in(drive) == {LATEST: 6, PREVIOUS: 5, BEST: 3}


def test_a_full_drive_keeps_what_it_has(drive, tmp_path, capsys):
    publisher = Publisher(drive)
    for step in (1, 2):
        submit(publisher, saved(tmp_path / "local", step))
    with faulty(drive, errno=errno.EDQUOT, after_bytes=9_000) as faults:
        publisher.submit(saved(tmp_path / "local", 3))
        publisher.close()
    told = capsys.readouterr().out
    assert faults.hits and "empty its trash" in told and "expected the last save" in told
    assert steps_in(drive) == {LATEST: 2, PREVIOUS: 1}


def test_a_drive_that_is_unmounted_is_not_replaced_by_a_folder_on_this_disk(tmp_path, capsys):
    drive = tmp_path / "mount" / "run"
    publisher = Publisher(drive)
    (tmp_path / "mount").rename(tmp_path / "gone")
    publisher.submit(saved(tmp_path / "local", 1))
    publisher.close()
    assert "mount Drive again" in capsys.readouterr().out and not (tmp_path / "mount").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names to hang on")
def test_a_drive_that_hangs_delays_neither_training_nor_the_end(drive, tmp_path, capsys,
                                                                monkeypatch):
    monkeypatch.setattr(publishing, "SLOW_S", 0.05)
    publisher = Publisher(drive)
    os.mkfifo(drive / PART)  # to open it for writing waits for a reader who never comes
    started = time.monotonic()
    publisher.submit(saved(tmp_path / "local", 1))
    until(lambda: publisher._calls.empty())
    time.sleep(0.1)
    for step in (2, 3):
        publisher.submit(saved(tmp_path / "local", step))
    publisher.close(timeout_s=0.2)
    assert time.monotonic() - started < 5
    told = capsys.readouterr().out
    assert told.count("has not answered") == 1 and "copy them before it goes" in told
    reader = os.open(drive / PART, os.O_RDONLY | os.O_NONBLOCK)  # lets the thread go on
    (drive / PART).unlink()
    os.close(reader)
    publisher._thread.join(10)
    assert steps_in(drive) == {LATEST: 3}


HANG = """
import os, sys
from pathlib import Path
from helpers.checkpoints.publisher import Publisher
folder = Path(sys.argv[1])
publisher = Publisher(folder / "drive")
os.mkfifo(folder / "drive" / "latest.safetensors.part")
publisher.submit(folder / "latest.safetensors")
publisher.close(timeout_s=0.2)
print("ended")
"""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names to hang on")
def test_a_process_ends_though_drive_hangs(tmp_path):
    saved(tmp_path, 1)
    done = subprocess.run([sys.executable, "-c", HANG, str(tmp_path)], cwd=ROOT, text=True,
                          capture_output=True, timeout=120)
    assert done.returncode == 0 and done.stdout.endswith("ended\n"), done.stderr


def test_a_start_on_a_hanging_drive_waits_a_moment_only(drive, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(publishing, "START_S", 0.05)
    back = threading.Event()
    with faulty(drive, hang=back) as faults:
        publisher = Publisher(drive)
        publisher.submit(saved(tmp_path / "local", 1))
        back.set()
        publisher.close()
    assert faults.hits and "has not answered for" in capsys.readouterr().out
    assert steps_in(drive) == {LATEST: 1}


def test_of_several_waiting_the_newest_and_the_best_are_published(drive, tmp_path):
    publisher, back = Publisher(drive), threading.Event()
    with faulty(drive, hang=back):
        for step in range(1, 30):  # each replaces on disk what may be copied at this moment
            publisher.submit(saved(tmp_path / "local", step, best=step == 7), best=step == 7)
        back.set()
        publisher.close()
    assert steps_in(drive) == {LATEST: 29, BEST: 7}


def test_a_save_handed_over_during_a_copy_comes_after_it(drive, tmp_path):
    publisher, back = Publisher(drive), threading.Event()
    with faulty(drive / PART, hang=back) as faults:
        publisher.submit(saved(tmp_path / "local", 1))
        until(lambda: faults.hits)
        publisher.submit(saved(tmp_path / "local", 2))
        back.set()
    publisher.close()
    assert steps_in(drive) == {LATEST: 2, PREVIOUS: 1}


def test_saves_during_slow_copies_never_mix(drive, tmp_path):
    publisher, dice = Publisher(drive), random.Random(0)
    for step in range(1, 40):
        publisher.submit(saved(tmp_path / "local", step))
        time.sleep(dice.random() * 0.01)
        found, passed_over = checkpoints.newest([drive])
        assert passed_over == [] and (not found or (found.tensors["model/a"] == found.step).all())
    publisher.close()
    assert steps_in(drive)[LATEST] == 39


def test_a_session_that_was_overtaken_publishes_nothing_more(drive, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "first-machine")
    older = Publisher(drive)
    submit(older, saved(tmp_path / "a", 4))
    monkeypatch.setattr(socket, "gethostname", lambda: "second-machine")
    newer = Publisher(drive)
    assert "on first-machine" in (told := capsys.readouterr().out) and "next save" in told
    older.submit(saved(tmp_path / "a", 9))
    until(lambda: older.lost)
    newer.submit(saved(tmp_path / "b", 6))
    for publisher in (older, newer):
        publisher.close()
    told = capsys.readouterr().out
    assert "on second-machine" in told and "publishes nothing more" in told
    assert not newer.lost and steps_in(drive) == {LATEST: 6, PREVIOUS: 4}


def test_a_local_file_that_is_gone_is_told_and_without_a_folder_nothing_happens(
        drive, tmp_path, capsys):
    for folder in (None, drive):
        assert capsys.readouterr().out == ""
        publisher = Publisher(folder)
        publisher.submit(tmp_path / "nothing")
        publisher.close()
    assert not publisher.lost
    assert "nothing" in capsys.readouterr().out and [p.name for p in drive.iterdir()] == [OWNER]
