"""What several real processes do, and how a test starts them; without a GPU they talk over gloo.

`accelerate launch -m tests.launched FOLDER` runs `together` in each process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import psutil
import torch

from helpers.checkpoints import trained_digest
from helpers.config import Config, preset
from helpers.distances import EnhancerLoss
from helpers.faces import prepare
from helpers.machine import ROOT, processes
from helpers.model import SplatEnhancer
from helpers.training import train

from .runs import PROMPT, TINY

FOUR = {"optim.batch": 4, "run.save_every_steps": 3, "model.skip_dropout": 0.4}
# Folder → changes to the tiny run, and how many steps of it the launched processes take
TOGETHER = {
    "whole": (FOUR, 6),
    "begun": (FOUR, 3),  # goes on with one process
    "ended": (FOUR, 6),  # was begun by one process
    # One process has no room for its second batch, which is smaller than the other's
    "uneven": ({"optim.batch": 3, "optim.accumulate": 2, "optim.steps": 2}, 2),
    "half": ({"optim.batch": 2, "loss.l1": 1.0, "optim.steps": 4}, 4),  # one's is not finite once
}
DTYPES = {"half": torch.float16}


class Failing:
    """A loss that fails once in one process, at a call that counts from 1.

    Args:
        error: raised; None gives what is not finite.
    """

    def __init__(self, loss: EnhancerLoss, rank: int, call: int,
                 error: Exception | None = None) -> None:
        self.loss, self.left, self.error = loss, call, error
        self.fails = processes().rank == rank

    def __call__(self, *images: torch.Tensor, **options):
        self.left -= 1
        failing = self.fails and not self.left
        if failing and self.error:
            raise self.error
        terms = self.loss(*images, **options)
        return {name: value * float("inf") for name, value in terms.items()} if failing else terms


def start(*command: str, ranks: int = 2) -> subprocess.Popen:
    """Start a module of ours on some processes."""
    return subprocess.Popen(
        [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu",
         "--num_processes", str(ranks), "--num_machines", "1", "--mixed_precision", "no",
         "--dynamo_backend", "no", "--main_process_port", "0", "-m", *command],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8",
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""})


def finish(launched: subprocess.Popen, timeout_s: float = 300) -> tuple[int, str, str]:
    """Wait for the end of what was started: exit code, output, errors."""
    try:
        said = launched.communicate(timeout=timeout_s)
    finally:
        for process in (*workers(launched), launched):
            process.kill()
    return launched.returncode, *said


def workers(launched: subprocess.Popen) -> list[psutil.Process]:
    """The processes that the launcher has started, in order of their numbers."""
    try:
        found = psutil.Process(launched.pid).children()
        return sorted((one for one in found if "RANK" in one.environ()),
                      key=lambda one: int(one.environ()["RANK"]))
    except psutil.Error:
        return []


def tiny(name: str) -> tuple[Config, torch.dtype, int]:
    """The config of a part, the dtype of its model, and its steps."""
    changes, steps = TOGETHER[name]
    return preset("demo").with_(TINY | changes), DTYPES.get(name, torch.float32), steps


def build(config: Config, dtype: torch.dtype = torch.float32) -> tuple[SplatEnhancer, EnhancerLoss]:
    """A fresh model and its loss."""
    model = SplatEnhancer.from_pretrained(config.model, device="cpu", dtype=dtype,
                                          prompt_embedding=PROMPT, seed=config.run.seed)
    return model, EnhancerLoss(config.loss, device="cpu")


def together(folder: Path) -> None:
    """Train everything in TOGETHER, note what each process holds; in the end one fails."""
    for name in TOGETHER:
        config, dtype, steps = tiny(name)
        model, loss = build(config, dtype)
        if name == "uneven":
            loss = Failing(loss, 0, 2, torch.OutOfMemoryError("CUDA out of memory"))
        if name == "half":
            loss = Failing(loss, 1, 2)
        faces = prepare(config.data, folder / "data", progress=None)
        records = list(islice(train(config, model, faces, loss, folder=folder / name), steps))
        note(folder / name, {"digest": trained_digest(model.trained_state()),
                             "losses": [record.losses for record in records],
                             "lean": model.lean_memory})
    config = tiny("whole")[0].with_({"optim.steps": 99, "run.save_every_steps": 99})
    model, loss = build(config)
    failing = Failing(loss, 1, 3, ArithmeticError("a fault of this process"))
    for record in train(config, model, faces, failing, folder=folder / "failed"):
        note(folder / "failed", {"reached": record.step})


def note(folder: Path, found: dict) -> None:
    """Add to what this process has found there; a test reads it."""
    path = noted(folder, processes().rank)
    before = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(before | found))


def noted(folder: Path, rank: int) -> Path:
    """Where a process notes what it has found."""
    return folder.with_name(f"{folder.name}.{rank}.json")


if __name__ == "__main__":
    together(Path(sys.argv[1]))
