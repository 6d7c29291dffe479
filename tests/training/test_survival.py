"""A run survives: kills at any moment, and the faults of disks and of Drive."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading

import pytest

from helpers import checkpoints
from helpers.__main__ import ROOT
from helpers.checkpoints.publisher import Publisher
from helpers.training.loop import train
from tests.faulty import faulty
from tests.runs import run, saved_step, states_differ, wait_for


@pytest.fixture(scope="module")
def survived(tmp_path_factory):
    """What became of runs that were killed 100 times."""
    command = [sys.executable, "-m", "tests.survival", "kill",
               str(tmp_path_factory.mktemp("survival")), "100"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks a built model; no fork here")


@forks
def test_100_kills_at_any_moment_leave_no_trace_in_the_result(survived):
    assert len(survived["kills"]) == 100
    assert survived["differences"] == [[]] * len(survived["differences"])


@forks
def test_a_kill_costs_at_most_one_save_interval(survived):
    lost = [kill["reached"] - kill["kept"] for kill in survived["kills"]]
    assert max(lost) <= 2 and sum(lost) > 10
    lost_with_disk = survived["disk_losses"]  # one interval more: that of the copy under way
    assert len(lost_with_disk) > 2 and max(lost_with_disk) <= 4


@forks
def test_kills_fell_into_saves_and_between_steps(survived):
    in_save = sum(kill["in_save"] for kill in survived["kills"])
    assert 20 < in_save < 80, in_save


@forks
def test_sigterm_and_ctrl_c_lose_nothing(survived):
    for stop in survived["stops"]:
        assert stop["status"] == 130 and stop["kept"] == stop["reached"], stop


def test_drive_may_go_and_come_back(config, build, faces, tmp_path, capsys):
    here, drive, back = tmp_path / "here", tmp_path / "drive", threading.Event()
    model, loss = build()
    steps = train(config, model, faces, loss, folder=here, drive=drive)
    assert next(steps).step == 1
    wait_for(lambda: saved_step(drive) == 0)
    with faulty(drive, errno=errno.ENOTCONN, until=back.is_set) as faults:
        assert next(steps).step == 2  # it is saved, and published in vain
        wait_for(lambda: faults.hits)
        back.set()
        assert [record.step for record in steps] == [3, 4, 5, 6]
    said = capsys.readouterr().out
    assert said.count("mount Drive again") == 1 and f"{drive} is back: step" in said
    assert states_differ(here, drive) == []


def test_a_drive_that_hangs_stops_nothing(config, build, faces, tmp_path, capsys, monkeypatch):
    here, drive, awake = tmp_path / "here", tmp_path / "drive", threading.Event()
    monkeypatch.setattr(Publisher.close, "__defaults__", (0.5,))  # instead of two minutes
    model, loss = build()
    steps = train(config, model, faces, loss, folder=here, drive=drive)
    next(steps)
    wait_for(lambda: saved_step(drive) == 0)
    with faulty(drive, hang=awake) as faults:
        assert len(list(steps)) == 5 and faults.hits
        awake.set()
    assert "expected the last save, got no copy of it" in capsys.readouterr().out
    assert saved_step(here) == 6


def test_a_drive_that_refuses_its_folder_does_not_stop_training(config, build, faces, tmp_path,
                                                               capsys):
    (tmp_path / "drive").write_text("a file where a folder should be")
    _, records = run(config, build, faces, tmp_path / "here", drive=tmp_path / "drive" / "runs")
    assert len(records) == 6 and "the next save tries again" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_damaged_file_costs_the_steps_since_the_one_before(config, build, faces, tmp_path,
                                                             damage, capsys):
    run(config, build, faces, tmp_path / "whole")
    run(config, build, faces, tmp_path / "cut", steps=5)
    latest = tmp_path / "cut" / checkpoints.LATEST
    content = bytearray(latest.read_bytes())
    content[len(content) // 2] ^= 4
    latest.write_bytes(content if damage == "flipped" else content[:-9])
    _, rest = run(config, build, faces, tmp_path / "cut")
    assert rest[0].step == 5 and f"Passed over {latest}" in capsys.readouterr().out
    assert states_differ(tmp_path / "whole", tmp_path / "cut") == []
