"""A run can be stopped, and a loop that was dropped half-way stands in nobody's way."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from IPython.core.interactiveshell import InteractiveShell

from helpers.machine.stop import Stopped, StopRequests
from helpers.training.loop import train
from tests.runs import run, saved_step, states_differ


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_finishes_the_step_saves_and_raises(config, build, faces, tmp_path, number):
    model, loss = build()
    before, steps = signal.getsignal(number), []

    def signalling(*pair, view_seed, **options):
        if view_seed == 2:  # in the middle of step 3
            os.kill(os.getpid(), number)
        return loss(*pair, view_seed=view_seed, **options)
    with pytest.raises(KeyboardInterrupt, match=f"after step 3 and saved in {tmp_path}"):
        for record in train(config, model, faces, signalling, folder=tmp_path):
            steps.append(record.step)
    assert steps == [1, 2, 3] and saved_step(tmp_path) == 3
    assert signal.getsignal(number) is before


def test_a_stop_is_one_line_in_a_notebook(capsys):
    shell = InteractiveShell()

    def fail():
        raise Stopped("Stopped after step 3.")
    shell.push({"fail": fail})
    assert not shell.run_cell("fail()").success
    assert capsys.readouterr().out.strip() == "Stopped after step 3."


def test_an_error_in_the_loop_saves_at_once(config, build, faces, tmp_path):
    model, loss = build()
    with pytest.raises(ZeroDivisionError) as kept_alive:  # as a notebook keeps a traceback
        for record in train(config, model, faces, loss, folder=tmp_path):
            record.step / (record.step - 3)
    assert saved_step(tmp_path) == 3 and kept_alive


def test_a_loop_that_is_never_closed_stands_in_nobodys_way(config, build, faces, tmp_path):
    run(config, build, faces, tmp_path / "whole")
    model, loss = build()
    before = signal.getsignal(signal.SIGINT)
    dropped = train(config, model, faces, loss, folder=tmp_path / "cut")
    assert [next(dropped).step for _ in range(3)] == [1, 2, 3]
    rest = train(config, model, faces, loss, folder=tmp_path / "cut")
    assert next(rest).step == 3  # on from the save after step 2
    with pytest.raises(RuntimeError, match="a later call took over"):
        next(dropped)
    assert [record.step for record in rest] == [4, 5, 6]
    assert states_differ(tmp_path / "whole", tmp_path / "cut") == []
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture
def interruptible():
    """Ctrl-C is heard even where a shell started the tests in the background, deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_the_second_signal_is_obeyed_at_once():
    with StopRequests() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_handlers_of_a_dropped_loop_are_not_restored_later():
    before = signal.getsignal(signal.SIGINT)
    dropped = StopRequests().__enter__()
    with StopRequests() as stop:
        dropped.__exit__()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.asked and not dropped.asked
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_leave_signals_alone():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work():
        with StopRequests() as stop:
            seen.extend([signal.getsignal(signal.SIGINT), stop.asked])
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before, False] and signal.getsignal(signal.SIGINT) is before
