"""Runs that are killed again and again, beside one that is not.

    python -m tests.survival          # five kills, and their picture: results/survival/loss.png

A template process builds model and faces once; every training is a fork of it, and every kill a
real SIGKILL. Linux and macOS only.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib import pyplot

from helpers import checkpoints, evaluation
from helpers.__main__ import ROOT
from helpers.config import Config, preset
from helpers.distances import EnhancerLoss, Metrics
from helpers.faces import data
from helpers.model.enhancer import SplatEnhancer
from helpers.training.loop import train

from .runs import PROMPT, TINY, states_differ

PICTURE = ROOT / "results" / "survival" / "loss.png"
TMP = checkpoints.LATEST + ".tmp"
EVERY = 2  # steps between two saves


@dataclass(frozen=True)
class Kill:
    """One SIGKILL."""

    reached: int  # the last step that was finished
    kept: int  # the step the run goes on from
    in_save: bool  # it fell into the writing of a file


class Trainings:
    """Trainings of one config, each in a process of its own; the faces lie in the folder."""

    def __init__(self, config: Config, folder: Path, prompt_embedding: Any = None) -> None:
        torch.set_num_threads(1)  # a fork has none of the threads of its parent
        self.config = config
        self.faces = data.prepare(config.data, folder / "data", progress=None)
        self.model = SplatEnhancer.from_pretrained(config.model, device="cpu",
                                                   prompt_embedding=prompt_embedding)
        self.loss = EnhancerLoss(config.loss, device="cpu")
        self.metrics = Metrics(config.loss, device="cpu")
        self.progress = mmap.mmap(-1, 8)  # the last step of the process under way

    def start(self, folder: Path, drive: Path | None = None) -> int:
        """Train on in another process, evaluate at the end; returns its id."""
        process = os.fork()
        if not process:
            status = 1
            try:
                self._train(folder, drive)
                status = 0
            except KeyboardInterrupt as stopped:
                print(stopped)
                status = 130
            finally:
                sys.stdout.flush()
                os._exit(status)  # nothing of the parent is closed here
        return process

    def reached_in(self, *folders: Path) -> int:
        """The step a run goes on from, which is all that is reached before it does."""
        saved, _ = checkpoints.newest(folders)
        start = saved.step if saved else 0
        self.progress[:] = start.to_bytes(8, "little")
        return start

    @property
    def reached(self) -> int:
        """The last step that the process under way has finished."""
        return int.from_bytes(self.progress[:], "little")

    def _train(self, folder: Path, drive: Path | None) -> None:
        for record in train(self.config, self.model, self.faces, self.loss, folder=folder,
                            drive=drive):
            self.progress[:] = record.step.to_bytes(8, "little")
        pairs = evaluation.held_out_pairs(self.config, self.faces, device="cpu")
        result = evaluation.evaluate(self.model.enhance, pairs, self.metrics)
        (folder / "evaluation.json").write_text(json.dumps(asdict(result)), encoding="utf-8")

    def run(self, folder: Path, drive: Path | None = None) -> None:
        """Train to the end, undisturbed."""
        _, status = os.waitpid(self.start(folder, drive), 0)
        if status:
            raise RuntimeError(f"{folder}: expected a training that ends well, got {status}")
        history = checkpoints.newest([folder])[0].history
        self.step_s = statistics.median(record["seconds"] for record in history)

    def kill(self, folder: Path, dice: random.Random, *, steps: tuple[int, int],
             in_save: bool = False, drive: Path | None = None) -> Kill | None:
        """Train on and kill it, so many steps later or within the next save; None if it ended."""
        before, folders = _written_at(folder / TMP), [folder] + ([drive] if drive else [])
        start = self.reached_in(*folders)
        process = self.start(folder, drive)
        if in_save:
            ended = _wait(process, lambda: _written_at(folder / TMP) not in (None, before))
            time.sleep(dice.uniform(0, 0.003))
        else:
            until = start + dice.randint(*steps)
            ended = _wait(process, lambda: self.reached >= until)
            time.sleep(dice.uniform(0, 1.5 * self.step_s))
        if ended:
            return None
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        newest, passed_over = checkpoints.newest(folders)
        if passed_over or (start and not newest):
            raise AssertionError(f"expected good files only, got {passed_over or 'none at all'}")
        kept = newest.step if newest else 0
        unfinished = _written_at(folder / TMP) not in (None, before)
        return Kill(max(self.reached, kept), kept,  # a step is told only after its save
                    unfinished or not (folder / checkpoints.LATEST).exists())

    def stop(self, folder: Path, number: int) -> dict[str, int]:
        """Train on and send a signal after two steps: exit status, last step, step kept."""
        until = self.reached_in(folder) + 2
        process = self.start(folder)
        if _wait(process, lambda: self.reached >= until):
            raise RuntimeError("expected a run to stop, got one that had ended; raise its steps")
        os.kill(process, number)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        return {"status": status, "reached": self.reached,
                "kept": checkpoints.newest([folder])[0].step}


def differences(one: Path, other: Path, drive: Path | None = None) -> list[str]:
    """What is not equal in the states (of the other on Drive, if given) and evaluations."""
    found = [f"{name}: {part}" for name in (checkpoints.LATEST, checkpoints.BEST)
             for part in states_differ(one, drive or other, name)]
    evaluations = [(folder / "evaluation.json").read_bytes() for folder in (one, other)]
    return found + (["evaluation"] if evaluations[0] != evaluations[1] else [])


def survive(folder: Path, kills: int, *, seed: int = 0) -> dict[str, Any]:
    """Kill runs until there were so many kills, finish them all, compare with one never killed.

    Every other run has a Drive, and loses its disk with each third kill. One more is not killed
    but stopped, by SIGTERM and by Ctrl-C.
    """
    started, dice = time.perf_counter(), random.Random(seed)
    config = preset("demo").with_(TINY | {"optim.steps": 20, "run.save_every_steps": EVERY})
    trainings = Trainings(config, folder, PROMPT)
    trainings.run(folder / "whole")
    fallen, disk_losses, differing = [], [], []
    while len(fallen) < kills:
        number = len(differing)
        place = folder / f"run{number}"
        drive = folder / f"drive{number}" if number % 2 else None
        while len(fallen) < kills:
            kill = trainings.kill(place, dice, steps=(0, 2 * EVERY), in_save=dice.random() < 0.5,
                                  drive=drive)
            if not kill:
                break
            fallen.append(kill)
            if drive and len(fallen) % 3 == 0:
                shutil.rmtree(place)
                disk_losses.append(kill.reached - trainings.reached_in(drive))
        trainings.run(place, drive)
        differing.append(differences(folder / "whole", place, drive))
    stops = [trainings.stop(folder / "stopped", n) for n in (signal.SIGTERM, signal.SIGINT)]
    trainings.run(folder / "stopped")
    differing.append(differences(folder / "whole", folder / "stopped"))
    return {"kills": [asdict(kill) for kill in fallen], "disk_losses": disk_losses,
            "stops": stops, "differences": differing,
            "seconds": time.perf_counter() - started}


def five_kills(folder: Path) -> list[Kill]:
    """Train the demo undisturbed in `folder`/whole, and in `folder`/killed with five kills."""
    demo = preset("demo").with_({"data.size_px": 64, "data.train_images": 16, "optim.steps": 40,
                                 "data.test_images": 2, "run.save_every_steps": 4})
    trainings, dice, kills = Trainings(demo, folder), random.Random(1), []
    trainings.run(folder / "whole")
    while len(kills) < 5:
        kill = trainings.kill(folder / "killed", dice, steps=(5, 9), in_save=len(kills) == 3)
        if not kill:
            raise RuntimeError("expected a run of five kills, got one too short; raise its steps")
        kills.append(kill)
    trainings.run(folder / "killed")
    return kills


def draw(kills: list[Kill], folder: Path, path: Path) -> str:
    """Lay both loss curves over each other, mark the kills; returns the title, which counts."""
    states = (checkpoints.newest([folder / name])[0] for name in ("whole", "killed"))
    losses, survived = ([r["losses"]["total"] for r in state.history] for state in states)
    largest = max(abs(a - b) for a, b in zip(losses, survived, strict=True))
    differing = len(differences(folder / "whole", folder / "killed"))
    again = sum(kill.reached - kill.kept for kill in kills)
    title = (f"{len(losses)} steps, {len(kills)} kills, {again} steps taken again. Largest "
             f"difference of the loss: {largest:g};\nof weights, optimiser, history and "
             f"evaluation, {differing} parts differ")
    figure, axis = pyplot.subplots(figsize=(8, 4), layout="constrained")
    steps = range(1, len(losses) + 1)
    axis.plot(steps, losses, color="#9ecae1", linewidth=6, label="never killed")
    axis.plot(steps, survived, color="#08306b", linewidth=1.4, label=f"killed {len(kills)} times")
    for kill, named in zip(kills, [True] + [False] * len(kills), strict=False):
        lost = (kill.kept + 0.5, kill.reached + 0.5)
        axis.axvline(lost[1], color="#d94801", linewidth=1.2, linestyle="--",
                     label="SIGKILL" if named else None)
        axis.axvspan(*lost, color="#d94801", alpha=0.15, linewidth=0,
                     label="steps lost, and taken again" if named else None)
    axis.set(xlabel="step", ylabel="loss", xlim=(1, len(losses)))
    axis.set_title(title, fontsize=11)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", frameon=False, ncols=4)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100, facecolor="white")
    pyplot.close(figure)
    return title


def main() -> None:
    """Make the picture."""
    with tempfile.TemporaryDirectory() as name:
        kills = five_kills(Path(name))
        print(draw(kills, Path(name), PICTURE), *kills, sep="\n")


def _written_at(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _wait(process: int, reached: Callable[[], bool]) -> bool:
    """Look until something is reached; True if the process ended before."""
    while not reached():
        if os.waitpid(process, os.WNOHANG)[0]:
            return True
        time.sleep(0.001)
    return False


if __name__ == "__main__":
    if sys.argv[1:2] == ["kill"]:
        print(json.dumps(survive(Path(sys.argv[2]), int(sys.argv[3]))))
    else:
        main()
