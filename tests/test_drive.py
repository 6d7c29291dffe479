"""Copies on Drive, whatever Drive does meanwhile: training goes on, and one line says so."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest
from test_checkpoint import made

from splat_enhancer.training import drive as copying
from splat_enhancer.training.checkpoint import newest
from splat_enhancer.training.drive import DriveCopy


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "MyDrive").mkdir()
    return tmp_path / "MyDrive" / "runs" / "demo"


def wait_for(reached, longest_s=20):
    """For another thread or process."""
    until = time.monotonic() + longest_s
    while not reached() and time.monotonic() < until:
        time.sleep(0.005)
    assert reached()


def submit(copy, step, **changes):
    checkpoint = replace(made(step), **changes)
    copy.submit(checkpoint, checkpoint.to_bytes())


def test_the_newest_checkpoint_gets_through(folder):
    copy = DriveCopy(folder)
    for step in range(1, 6):
        submit(copy, step)
    copy.close()
    assert newest([folder]).step == 5


def test_no_drive_is_no_work():
    copy = DriveCopy(None)
    submit(copy, 1)
    copy.close()
    assert not copy._thread.is_alive()


def test_a_drive_that_hangs_holds_nothing_up_and_the_newest_waits(folder, monkeypatch, capsys):
    awake, begun, saved, save = threading.Event(), threading.Event(), [], copying.save

    def hanging(checkpoint, *arguments, **options):
        begun.set()
        awake.wait()
        saved.append(checkpoint.step)
        return save(checkpoint, *arguments, **options)
    monkeypatch.setattr(copying, "save", hanging)
    monkeypatch.setattr(copying, "SLOW_S", 0.0)
    copy = DriveCopy(folder)
    submit(copy, 1)
    begun.wait()
    for step in (2, 3, 4):
        submit(copy, step)
    assert capsys.readouterr().out.count("has not answered") == 1
    copy.close(timeout_s=0.1)
    assert "lacks the last save, step 4; it is on this machine" in capsys.readouterr().out
    awake.set()
    copy.close()
    assert saved == [1, 4] and newest([folder]).step == 4


def test_a_drive_that_vanishes_costs_one_line_and_is_tried_again(folder, capsys):
    copy, drive = DriveCopy(folder), folder.parents[1]
    drive.rename(drive.with_name("gone"))
    for step in (1, 2, 3):
        submit(copy, step)
        wait_for(lambda step=step: copy._problem and copy._queue.empty() and not copy._busy_since)
    assert not drive.exists()  # it did not become a folder on this disk
    drive.with_name("gone").rename(drive)
    submit(copy, 4)
    copy.close()
    printed = capsys.readouterr().out
    assert printed.count("the next save tries again") == 1
    assert f"{folder} is back: step 4 is copied" in printed
    assert newest([folder]).step == 4


def test_a_copy_that_failed_last_is_tried_once_more_at_the_end(folder, capsys):
    folder.parents[1].rmdir()
    copy = DriveCopy(folder)
    submit(copy, 1)
    wait_for(lambda: copy._problem)
    folder.parents[1].mkdir()
    copy.close()
    assert newest([folder]).step == 1 and "lacks" not in capsys.readouterr().out


def test_a_later_session_on_drive_takes_over(folder, capsys):
    earlier, later = DriveCopy(folder), DriveCopy(folder)
    submit(earlier, 4)
    wait_for(lambda: earlier._copied)
    submit(later, 4, session="later", started=2.0)
    later.close()
    submit(earlier, 5)
    earlier.close()
    assert "another that began later" in earlier.taken_over
    assert newest([folder]).session == "later" and not capsys.readouterr().out


def test_a_later_step_on_drive_that_this_run_does_not_know_is_kept(folder, capsys):
    first = DriveCopy(folder)
    submit(first, 900)
    first.close()
    copy = DriveCopy(folder)
    submit(copy, 100)
    copy.close()
    assert "got step 900" in capsys.readouterr().out and newest([folder]).step == 900
