"""Two real processes learn what one learns, and either goes on with the other's run."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TOLERANCE = 1e-3  # relative: sums in another order, which Adam enlarges
FOUR = {"train_batch_size": 4, "skip_dropout": 0.4, "max_train_steps": 4, "checkpointing_steps": 9}
# Run → changes of the tiny config, and how many steps the two processes take
TOGETHER = {
    "whole": (FOUR, 4),
    "begun": (FOUR, 2),  # one process goes on with it
    "ended": (FOUR, 4),  # one process began it
    "cut": (FOUR, 2), "cut ": (FOUR, 4),  # the same folder: two go on with what two began
    # One process has no memory for its second batch, which is smaller than the other's
    "uneven": ({"train_batch_size": 3, "gradient_accumulation_steps": 2, "max_train_steps": 2}, 2),
    "stopped": (FOUR, 4)}  # one is asked to stop in its second step


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """Where two processes have trained everything in TOGETHER, and one its part of it."""
    from tiny import tiny_config, tiny_data, train_some

    folder = tmp_path_factory.mktemp("together")
    config = tiny_config(folder)
    data = tiny_data(config, folder)

    def alone(name, place, steps=None):
        train_some(config.replace(**TOGETHER[name][0]), data, folder / place, steps)
    alone("ended", "ended", 2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [subprocess.Popen(
        [sys.executable, __file__, str(folder)], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=os.environ | {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"})
        for rank in (0, 1)]
    printed = [process.communicate(timeout=600) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed[0][1][-2000:]
    alone("begun", "begun")
    for name in ("whole", "uneven"):
        alone(name, f"{name} alone")
    return folder, printed


@pytest.mark.parametrize(("name", "other"), [
    ("whole", "whole alone"), ("begun", "whole alone"), ("ended", "whole alone"),
    ("uneven", "uneven alone")])
def test_two_processes_learn_what_one_learns_from_the_same_batches(launched, name, other):
    from tiny import tiny_model

    from splat_enhancer.training.checkpoint import newest

    ours, theirs = (newest([launched[0] / place]) for place in (name, other))
    start = tiny_model(ours.config).trained_state()
    a, b, begun = (torch.cat([tensor.flatten() for _, tensor in sorted(tensors.items())])
                   for tensors in (ours.trained, theirs.trained, start))
    assert float((a - b).norm() / (a - begun).norm()) < TOLERANCE
    assert ours.step == theirs.step == len(ours.history) == len(theirs.history)
    for one, two in zip(ours.history, theirs.history, strict=True):
        assert one["losses"] == pytest.approx(two["losses"], rel=TOLERANCE)
        assert one["gradient_norm"] == pytest.approx(two["gradient_norm"], rel=TOLERANCE)


def test_what_two_processes_resume_is_bit_equal(launched):
    from tiny import differences

    assert differences(launched[0] / "whole", launched[0] / "cut") == []


def test_all_stop_after_the_step_in_which_one_is_asked_to(launched):
    from tiny import saved_step

    assert saved_step(launched[0] / "stopped") == 2
    assert launched[1][0][0].count("Stopped after step 2 and saved") == 1


@pytest.mark.parametrize("name", [name for name in TOGETHER if name != "stopped"])
def test_both_processes_hold_the_same_weights_and_losses(launched, name):
    first, second = (json.loads((launched[0] / f"{name}.{rank}.json").read_text())
                     for rank in (0, 1))
    assert first == second and first["gradient_checkpointing"] == (name == "uneven")


def test_only_the_first_process_prints(launched):
    (first, _), (second, _) = launched[1]
    assert first.count("goes on after step 2") == 2 and first.count("did not fit") == 1
    assert not second


def together(folder: Path) -> None:
    """Train everything in TOGETHER in this process of two; note what it holds."""
    from tiny import tiny_config, tiny_data, train_some

    from splat_enhancer.distributed import processes
    from splat_enhancer.environment import Stopped
    from splat_enhancer.training.checkpoint import digest
    from splat_enhancer.training.train import default_training_step

    rank = processes().rank
    config = tiny_config(folder)
    data = tiny_data(config, folder)
    for name, (changes, steps) in TOGETHER.items():
        def disturbed(model, loss, name=name):
            step, calls = default_training_step(model, loss), [0]

            def training_step(*batch):
                calls[0] += 1
                if name == "uneven" and rank == 0 and calls[0] == 2:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                if name == "stopped" and rank == 1 and calls[0] == 2:
                    os.kill(os.getpid(), signal.SIGTERM)
                return step(*batch)
            return training_step
        try:
            model, records = train_some(config.replace(**changes), data, folder / name.strip(),
                                        steps, training_step=disturbed)
        except Stopped as stop:
            print(stop)
            continue
        (folder / f"{name}.{rank}.json").write_text(json.dumps({
            "weights": digest(model.trained_state()), "losses": [r.losses for r in records],
            "gradient_checkpointing": model.gradient_checkpointing}))


if __name__ == "__main__":
    import conftest  # noqa: F401  (finds the package, and sets one thread)

    together(Path(sys.argv[1]))
