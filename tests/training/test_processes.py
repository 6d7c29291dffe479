"""Training on two real processes: the result of one, checkpoints for any number, one common end."""

from __future__ import annotations

import json
import os

import pytest
import torch

from helpers import checkpoints
from helpers.faces import draw_batch, prepare
from helpers.machine import ALONE, Stopped, processes
from helpers.machine.processes import Processes
from helpers.training import loop
from helpers.training.loop import training_batch
from tests.launched import TOGETHER, Failing, build, finish, noted, start, tiny
from tests.runs import WALL_CLOCK, run, saved_step

TOLERANCE = 1e-4  # relative: sums in another order, and kernels chosen by the size of a batch


def alone(folder, name, place, steps=None):
    config, dtype, _ = tiny(name)
    faces = prepare(config.data, folder / "data", progress=None)
    model, loss = build(config, dtype)
    loss = Failing(loss, 0, 2) if name == "half" else loss
    return run(config, lambda *_: (model, loss), faces, place, steps)


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """Where two processes have trained everything in TOGETHER, and one its part of it."""
    folder = tmp_path_factory.mktemp("together")
    alone(folder, "ended", folder / "ended", 3)
    code, said, errors = finish(start("tests.launched", str(folder)))
    assert noted(folder / "failed", 0).exists(), errors[-3000:]
    assert saved_step(folder / "begun") == 3
    alone(folder, "begun", folder / "begun")
    for name in TOGETHER:
        if name not in ("begun", "ended"):
            alone(folder, name, folder / f"{name} alone")
    return folder, code, said, errors


def states(folder, *names):
    return [checkpoints.load(folder / name / checkpoints.LATEST) for name in names]


def distance(one, other):
    """Of trained tensors, relative to how far training has moved them."""
    start = build(one.config)[0].trained_state()
    a, b, begun = (torch.cat([tensor.flatten() for _, tensor in sorted(tensors.items())])
                   for tensors in (one.trained, other.trained, start))
    return float((a - b).norm() / (a - begun).norm())


@pytest.mark.parametrize(("name", "other"), [
    ("whole", "whole alone"), ("begun", "whole alone"), ("ended", "whole alone"),
    ("uneven", "uneven alone"), ("half", "half alone")])
def test_two_processes_learn_what_one_learns_from_the_same_batches(launched, name, other):
    ours, theirs = states(launched[0], name, other)
    loose = 10 if name == "half" else 1  # half precision keeps three digits
    assert distance(ours, theirs) < 10 * TOLERANCE or name == "half"  # Adam enlarges the rest
    assert ours.step == theirs.step == len(ours.history) == len(theirs.history)
    for one, two in zip(ours.history, theirs.history, strict=True):
        assert one["losses"] == pytest.approx(two["losses"], rel=loose * TOLERANCE)
        assert one["skipped"] == two["skipped"]
        assert one["skipped"] or one["gradient_norm"] == pytest.approx(
            two["gradient_norm"], rel=10 * loose * TOLERANCE)


def test_a_checkpoint_does_not_tell_how_many_made_it(launched):
    ours, theirs = states(launched[0], "half", "half alone")
    assert ours.tensors.keys() == theirs.tensors.keys() and ours.config == theirs.config
    assert ours.loss_scale == theirs.loss_scale and ours.notes == theirs.notes == []
    assert {record["skipped"] for record in ours.history} == {True, False}
    own, other = (record.keys() for record in (ours.history[0], theirs.history[0]))
    assert own == other and own > {*WALL_CLOCK}


@pytest.mark.parametrize("name", TOGETHER)
def test_both_processes_hold_the_same_weights_and_losses(launched, name):
    first, second = (json.loads(noted(launched[0] / name, rank).read_text()) for rank in (0, 1))
    assert first == second and first["lean"] == (name == "uneven")


def test_only_the_first_process_prints(launched):
    assert launched[2].count("goes on after step 3") == 1
    assert launched[2].count("did not fit") == 1


def test_where_one_process_fails_all_end_and_what_is_whole_is_saved(launched):
    folder, code, _, errors = launched
    reached = [json.loads(noted(folder / "failed", rank).read_text()) for rank in (0, 1)]
    assert reached == [{"reached": 2}] * 2 and code != 0
    assert "ArithmeticError: a fault of this process" in errors
    assert "one of them has ended, and said why" in errors
    assert saved_step(folder / "failed") == 2  # by the first, when the second was gone


def test_rows_are_shared_out_whole_and_a_batch_too_small_is_refused():
    class One(Processes):
        def __init__(self, rank, ranks):
            self.rank, self.ranks = rank, ranks
    for batch, ranks in ((4, 2), (7, 3), (5, 5), (1, 1)):
        found = [list(range(batch))[One(rank, ranks).rows(batch)] for rank in range(ranks)]
        assert [row for rows in found for row in rows] == list(range(batch)) and all(found)
    with pytest.raises(ValueError, match=r"each of 3 processes, got 2; raise optim\.batch to 3"):
        One(0, 3).rows(2)


def test_rows_of_a_batch_are_those_of_the_whole_batch(config, faces):
    whole = draw_batch(faces, seed=3, step=2, batch=5)
    own = config.with_({"model.skip_dropout": 0.5})
    pairs = training_batch(own, whole, "cpu")
    for rows in (slice(0, 2), slice(2, 5)):
        part = draw_batch(faces, seed=3, step=2, batch=5, rows=rows)
        assert len(part[0]) == rows.stop - rows.start and torch.equal(part[2], whole[2])
        for mine, theirs in zip(training_batch(own, part, "cpu", rows=rows), pairs, strict=True):
            assert torch.equal(mine, theirs[rows])


def test_a_run_whose_launcher_is_gone_stops_and_is_saved(config, faces, tmp_path, monkeypatch):
    team = Processes()
    monkeypatch.setattr(loop, "processes", lambda: team)
    model, loss = build(config)
    steps = loop.train(config, model, faces, loss, folder=tmp_path)
    assert next(steps).step == 1
    team.orphaned = True
    with pytest.raises(Stopped, match="Stopped after step 1 and saved"):
        next(steps)
    assert saved_step(tmp_path) == 1


def test_one_process_needs_no_team(monkeypatch):
    processes.cache_clear()
    assert processes() is ALONE and ALONE.first and ALONE.gather(7) == [7]
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_PORT", "29500")  # as `accelerate launch --num_processes 2` leaves it
    processes.cache_clear()
    with pytest.raises(ValueError, match="add --multi_gpu"):
        processes()
    processes.cache_clear()
    assert "RANK" not in os.environ
