"""One trainer per run folder: on one machine by a lock, on Drive by a fence."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from helpers.__main__ import ROOT
from helpers.checkpoints.claims import LOCK, OWNER, Claim, Fence, claim

HOLDER = """
import sys, time
from pathlib import Path
from helpers.checkpoints.claims import claim
with claim(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds `tmp_path`."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_process_waits_is_told_who_trains_here_and_may_after_a_kill(tmp_path, holder):
    started = time.monotonic()
    with pytest.raises(RuntimeError, match=f"only one .*got process {holder.pid} on .*; stop it"), \
            claim(tmp_path, wait_s=0.5):
        pass
    assert 0.5 <= time.monotonic() - started < 5
    holder.send_signal(signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)
    holder.wait()
    with claim(tmp_path, wait_s=0) as ours:
        assert ours.still_ours()


def _try(folder, answers):
    try:
        with claim(folder, wait_s=0):
            answers.put("held")
    except RuntimeError as error:
        answers.put(str(error))


def test_a_spawned_process_is_refused_while_this_one_holds_and_not_after(tmp_path):
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    for expected in (f"process {os.getpid()} on", "held"):
        holding = claim(tmp_path) if expected != "held" else claim(tmp_path / "other")
        with holding:
            process = context.Process(target=_try, args=(tmp_path, answers))
            process.start()
            assert expected in answers.get(timeout=60)
            process.join()


def test_a_later_claim_of_the_same_process_takes_over(tmp_path):
    first = claim(tmp_path)  # kept alive, as a traceback keeps the frame of a notebook's cell
    older = first.__enter__()
    with claim(tmp_path, wait_s=0) as newer:
        assert newer.still_ours() and not older.still_ours()
        first.__exit__(None, None, None)
        assert newer.still_ours() and newer.lock.is_locked  # the older one let nothing go
    assert not newer.still_ours() and not newer.lock.is_locked and not Claim.held


def test_a_dropped_claim_lets_go(tmp_path):
    def generator():
        with claim(tmp_path):
            yield

    steps = generator()
    next(steps)
    assert len(Claim.held) == 1
    del steps
    gc.collect()
    assert not Claim.held


def test_one_folder_under_two_names_is_one_claim(tmp_path):
    (tmp_path / "run").mkdir()
    with claim(tmp_path / "run") as first, claim(tmp_path / "x" / ".." / "run", wait_s=0):
        assert not first.still_ours()


@pytest.mark.parametrize("content", [b"", b"\xff", b"[1]", b'{"pid": 1}', b"null"])
def test_an_unreadable_owner_file_refuses_nobody_and_confuses_nobody(tmp_path, holder, content):
    (tmp_path / OWNER).write_bytes(content)
    with pytest.raises(RuntimeError, match=r"got (another )?process"), claim(tmp_path, wait_s=0):
        pass
    fence = Fence(tmp_path)
    assert fence.take_over() is None and fence.intruder() is None
    assert Fence(tmp_path).take_over() is None  # a rerun here is not warned of itself


def test_a_leftover_lock_file_refuses_nobody(tmp_path):
    (tmp_path / LOCK).write_text("12345")
    (tmp_path / OWNER).write_text('{"pid": 12345, "host": "gone"}')
    with claim(tmp_path, wait_s=0) as ours:
        assert ours.still_ours()
    with claim(tmp_path, wait_s=0):
        assert json.loads((tmp_path / OWNER).read_text())["pid"] == os.getpid()


def elsewhere(folder, ago_s=0.0):
    """A fence as a session on another machine raised it some time ago."""
    fence = Fence(folder)
    fence.owner["host"] = "other-machine"
    assert fence.take_over() is None
    os.utime(fence.file, (time.time() - ago_s,) * 2)
    return fence


def test_the_last_comer_owns_the_folder_and_the_one_before_finds_out(tmp_path):
    older = elsewhere(tmp_path)
    assert older.intruder() is None
    newer = Fence(tmp_path)
    assert "on other-machine, since" in newer.take_over()
    assert newer.intruder() is None
    assert f"process {os.getpid()}" in older.intruder()
    older.take_over()
    assert older.intruder() is None and newer.intruder()


@pytest.mark.parametrize(("ago_s", "words"), [
    (0, "0 minutes ago"), (300, "5 minutes ago"), (700, None), (-7200, "0 minutes ago")])
def test_a_newcomer_is_told_of_a_session_that_may_still_run(tmp_path, ago_s, words):
    elsewhere(tmp_path, ago_s)
    told = Fence(tmp_path).take_over()
    assert words in told and "will stop at its next save" in told if words else told is None


def test_an_owner_file_that_vanishes_stops_nobody(tmp_path):
    fence = elsewhere(tmp_path)
    fence.file.unlink()
    assert fence.intruder() is None
