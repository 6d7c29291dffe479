"""When a run is saved: by step, by time, as the best; and when it is not."""

from __future__ import annotations

import errno
import json
import math
import threading
import time
from dataclasses import replace

import pytest
import torch
from filelock import FileLock

from helpers import checkpoints
from helpers.checkpoints.claims import LOCK, OWNER
from helpers.training.autosave import SKIPS_IN_A_ROW, has_collapsed, is_best
from helpers.training.loop import train
from helpers.training.trainer import Trainer
from tests.faulty import faulty
from tests.runs import run, saved_step, states_differ
from tests.training.test_loop import broken_at


def test_a_run_is_saved_by_step_and_at_its_end(config, build, faces, tmp_path):
    model, loss = build()
    config = config.with_({"optim.steps": 5})
    kept = [saved_step(tmp_path) for _ in train(config, model, faces, loss, folder=tmp_path)]
    assert kept == [0, 2, 2, 4, 4] and saved_step(tmp_path) == 5


def test_a_run_is_saved_by_time_whatever_the_clock_says(config, build, faces, tmp_path,
                                                        monkeypatch):
    model, loss = build()
    rare = config.with_({"run.save_every_steps": 1000, "run.save_every_s": 1})
    steps = train(rare, model, faces, loss, folder=tmp_path)
    next(steps)
    monkeypatch.setattr(time, "time", lambda: 0.0)  # set back by decades
    time.sleep(1.1)
    assert next(steps).step == saved_step(tmp_path) == 2


def test_what_cannot_be_saved_is_told_before_the_first_step(config, build, faces, tmp_path):
    with faulty(tmp_path, errno=errno.ENOSPC, after_bytes=1000) as faults, \
            pytest.raises(OSError, match="free some disk space"):
        run(config, build, faces, tmp_path)
    assert faults.hits


def test_a_full_disk_does_not_stop_a_run(config, build, faces, tmp_path, capsys):
    model, loss = build()
    steps, freed = train(config, model, faces, loss, folder=tmp_path), threading.Event()
    next(steps)
    with faulty(tmp_path, errno=errno.ENOSPC, after_bytes=1000, until=freed.is_set) as faults:
        assert [next(steps).step for _ in range(2)] == [2, 3]
        assert faults.hits and saved_step(tmp_path) == 0
        said = capsys.readouterr().out
        assert "Step 2 is not saved" in said and "the next save tries again" in said
        freed.set()
        assert next(steps).step == saved_step(tmp_path) == 4


def test_a_state_that_cannot_be_saved_at_the_end_is_an_error(config, build, faces, tmp_path):
    model, loss = build()
    steps = train(config, model, faces, loss, folder=tmp_path)
    assert [next(steps).step for _ in range(3)] == [1, 2, 3]
    with faulty(tmp_path, errno=errno.ENOSPC, after_bytes=1000), \
            pytest.raises(OSError, match="expected to write step 3"):
        steps.close()
    assert saved_step(tmp_path) == 2


def test_the_best_is_that_of_the_lowest_mean_loss_resumed_or_not(config, build, faces, tmp_path):
    config = config.with_({"optim.steps": 8, "optim.learning_rate": 2e-2})
    run(config, build, faces, tmp_path / "a", steps=3)
    run(config, build, faces, tmp_path / "a")
    totals = [r["losses"]["total"] for r in checkpoints.newest([tmp_path / "a"])[0].history]
    means = [sum(totals[i:i + 2]) for i in range(0, 8, 2)]
    lowest = 2 * (1 + means.index(min(means)))
    assert checkpoints.load(tmp_path / "a" / checkpoints.BEST).step == lowest
    run(config, build, faces, tmp_path / "b")
    assert states_differ(tmp_path / "a", tmp_path / "b", checkpoints.BEST) == []


def test_skipped_steps_do_not_count_for_the_best():
    def history(*totals):
        return [{"losses": {"total": abs(t)}, "skipped": t < 0} for t in totals]
    assert is_best(history(3, 3, 1, 1), 2) and not is_best(history(1, 1, 3, 3), 2)
    assert not is_best(history(1, 1, 3, 3, 0), 2)  # the third window has only begun
    assert is_best(history(3, 3, -99, 1), 2) and not is_best(history(3, 3, -0.1, -0.1), 2)


def test_a_run_that_learns_nothing_stops_and_leaves_the_good_state(config, build, faces, tmp_path,
                                                                   capsys):
    model, loss = build()
    config = config.with_({"optim.steps": 60})
    broken = broken_at(loss, range(6, 99))
    with pytest.raises(FloatingPointError, match=r"after step 4 .* lower optim\.learning_rate"):
        for record in train(config, model, faces, broken, folder=tmp_path):
            assert record.skipped == (record.step > 5)
    assert record.step == 5 + SKIPS_IN_A_ROW - 1  # the last one is not even yielded
    assert saved_step(tmp_path) == 4
    lines = [line for line in capsys.readouterr().out.splitlines() if "is skipped" in line]
    assert [line.split()[1] for line in lines] == ["6", "7", "9", "13", "21"]


def test_17_isolated_bad_steps_in_1000_end_nothing_and_the_loss_scale_recovers(config, build):
    trainer = Trainer(config, build(torch.float16)[0])
    first, bad = trainer.scaler.get_scale(), set(range(55, 1_000, 56))
    assert len(bad) == 17
    for step in range(1_000):
        weights = torch.stack([p.float().sum() for p in trainer.working.values()]).sum()
        trainer.backward(weights * (math.nan if step in bad else 1e-9))
        _, skipped = trainer.update()
        assert skipped == (step in bad)
        trainer.history.append({"skipped": skipped})
        assert not has_collapsed(trainer)
    assert trainer.scaler.get_scale() >= first


def test_a_run_saved_with_torchs_slow_loss_scale_recovers_too(config, build):
    trainer = Trainer(config, build(torch.float16)[0])
    saved = trainer.checkpoint()
    slow = {"scale": 8.0, "growth_interval": 2_000, "_growth_tracker": 49}
    trainer.restore(replace(saved, loss_scale=saved.loss_scale | slow))
    assert trainer.scaler.get_scale() == 8.0
    trainer.backward(1e-9 * next(iter(trainer.working.values())).float().sum())
    assert not trainer.update()[1] and trainer.scaler.get_scale() == 16.0


def test_a_second_training_of_the_folder_is_refused(config, build, faces, tmp_path):
    model, loss = build()
    with FileLock(tmp_path / LOCK), pytest.raises(RuntimeError, match="only one training here"):
        next(train(config, model, faces, loss, folder=tmp_path))


def test_who_lost_drive_to_another_notebook_saves_here_and_stops(config, build, faces, tmp_path):
    here, drive = tmp_path / "here", tmp_path / "drive"
    model, loss = build()
    with pytest.raises(RuntimeError, match=f"saved in {here}"):
        for record in train(config, model, faces, loss, folder=here, drive=drive):
            if record.step == 1:
                (drive / OWNER).write_text(json.dumps({"id": "another", "host": "elsewhere"}))
            time.sleep(0.2)  # for the thread that publishes
    assert saved_step(here) == record.step and saved_step(drive) < record.step


def test_what_drive_and_a_killed_run_missed_is_written_at_the_next_start(config, build, faces,
                                                                        tmp_path):
    here, drive = tmp_path / "here", tmp_path / "drive"
    run(config, build, faces, here, steps=2)  # the first window is the best so far
    (here / checkpoints.BEST).unlink()
    run(config, build, faces, here, steps=1)
    assert checkpoints.load(here / checkpoints.BEST).step == 2
    run(config, build, faces, here, steps=3)
    run(config, build, faces, here, drive=drive)
    assert states_differ(here, drive) == []
