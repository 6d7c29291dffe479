"""A run survives: 20 real kills at any moment, with and without Drive, leave no trace in it.

A process builds model and faces once; every training is a fork of it, every kill a SIGKILL.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

KILLS, EVERY, STEPS = 20, 2, 8  # EVERY: steps between two saves
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks a built model; no fork here")


@pytest.fixture(scope="module")
def survived(tmp_path_factory):
    """What became of runs that were killed 20 times."""
    done = subprocess.run([sys.executable, __file__, str(tmp_path_factory.mktemp("survival"))],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@forks
def test_20_kills_at_any_moment_leave_no_trace_in_the_result(survived):
    assert len(survived["lost"]) + len(survived["lost_with_disk"]) == KILLS
    assert survived["differences"] == [[]] * len(survived["differences"])


@forks
def test_a_kill_costs_at_most_one_save_interval(survived):
    assert max(survived["lost"]) <= EVERY
    # One interval more where the disk is gone, too: that of the copy under way
    assert survived["lost_with_disk"] and max(survived["lost_with_disk"]) <= 2 * EVERY


@forks
def test_sigterm_and_ctrl_c_lose_nothing(survived):
    assert survived["stops"] == [[130, 0], [130, 0]]  # exit code, steps lost


@dataclass
class Trainings:
    """Trainings of one config, each in a process of its own."""

    config: Any
    data: Any
    reached: mmap.mmap = field(default_factory=lambda: mmap.mmap(-1, 8))  # last step that is done

    def start(self, folder: Path, drive: Path | None = None) -> int:
        """Train on in another process; returns its id."""
        from tiny import saved_step, tiny_model

        places = [folder, *([drive] if drive else [])]
        self.reached[:] = (saved_step(*places) or 0).to_bytes(8, "little")
        model = tiny_model(self.config)
        if process := os.fork():
            return process
        code = 1
        try:
            from splat_enhancer.losses.loss import EnhancerLoss
            from splat_enhancer.training.train import train

            for record in train(self.config, model, EnhancerLoss(self.config, device="cpu"),
                                *self.data, folder=folder, drive=drive):
                self.reached[:] = record.step.to_bytes(8, "little")
            code = 0
        except KeyboardInterrupt:
            code = 130
        finally:
            sys.stdout.flush()
            os._exit(code)  # nothing of the parent is closed here

    def run(self, folder: Path, drive: Path | None = None) -> None:
        """Train to the end, undisturbed."""
        assert os.waitpid(self.start(folder, drive), 0)[1] == 0

    def signal(self, number: int, steps: int, wait_s: float, folder: Path,
               drive: Path | None = None) -> tuple[int, int] | None:
        """Train on and send a signal after so many steps: exit code and last step, or it ended."""
        process = self.start(folder, drive)
        until = self.step + steps
        while self.step < until:
            if os.waitpid(process, os.WNOHANG)[0]:
                return None
            time.sleep(0.001)
        time.sleep(wait_s)
        os.kill(process, number)
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), self.step

    @property
    def step(self) -> int:
        return int.from_bytes(self.reached[:], "little")


def survive(folder: Path) -> dict[str, Any]:
    """Kill runs until there were so many kills, finish them all, compare with one never killed.

    Every other run has a Drive, and loses its disk with each third kill.
    """
    from tiny import differences, saved_step, tiny_config, tiny_data

    from splat_enhancer.training.checkpoint import newest

    config = tiny_config(folder, max_train_steps=STEPS, checkpointing_steps=EVERY)
    trainings, rng = Trainings(config, tiny_data(config, folder)), random.Random(0)
    started = time.monotonic()
    trainings.run(folder / "whole")
    step_s = (time.monotonic() - started) / STEPS
    (folder / "drive").mkdir()
    lost, lost_with_disk, unequal, number = [], [], [], 0
    while len(lost) + len(lost_with_disk) < KILLS:
        place = folder / f"run{number}"
        drive = folder / "drive" / "runs" / str(number) if number % 2 else None
        while len(lost) + len(lost_with_disk) < KILLS:
            killed = trainings.signal(signal.SIGKILL, rng.randint(0, 2 * EVERY),
                                      rng.uniform(0, 1.5 * step_s), place, drive)
            if killed is None:
                break
            if drive and rng.random() < 0.4:
                shutil.rmtree(place, ignore_errors=True)
                lost_with_disk.append(killed[1] - (saved_step(drive) or 0))
            else:
                lost.append(killed[1] - (saved_step(place, *([drive] if drive else [])) or 0))
        trainings.run(place, drive)
        unequal.append(differences(newest([folder / "whole"]), newest(
            [place, *([drive] if drive else [])])))
        number += 1
    stops = []
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        code, step = trainings.signal(signal_number, 2, 0.0, folder / "stopped")
        stops.append([code, step - saved_step(folder / "stopped")])
    trainings.run(folder / "stopped")
    return {"lost": lost, "lost_with_disk": lost_with_disk, "stops": stops,
            "differences": [*unequal, differences(folder / "whole", folder / "stopped")]}


if __name__ == "__main__":
    import conftest  # noqa: F401  (finds the package, and sets one thread)

    print(json.dumps(survive(Path(sys.argv[1]))))
