"""The training loop: exact resume, stopping, skipped steps, masters."""

from __future__ import annotations

import os
import signal
from itertools import islice

import pytest
import torch

from helpers import checkpoint as checkpoints
from helpers.train import Trainer, learning_rate_at, train, training_batch


def run(config, build, faces, folder, steps=None, **options):
    model, loss = build()
    records = list(islice(train(config, model, faces, loss, folder=folder, **options), steps))
    return model, records


def learned(folder):
    saved, _ = checkpoints.newest([folder])
    timeless = [{k: v for k, v in r.items() if k not in ("seconds", "images_per_s")}
                for r in saved.history]
    return saved.tensors, timeless


@pytest.mark.parametrize("cut", [1, 3, 5])
def test_resumed_run_equals_uninterrupted_run(config, build, faces, tmp_path, cut):
    run(config, build, faces, tmp_path / "whole")
    torch.manual_seed(99)  # what else happens in the process must not matter
    run(config, build, faces, tmp_path / "cut", steps=cut)
    torch.rand(7)
    _, rest = run(config, build, faces, tmp_path / "cut")
    assert [record.step for record in rest] == list(range(cut + 1, 9))
    whole, history = learned(tmp_path / "whole")
    parts, parts_history = learned(tmp_path / "cut")
    assert whole.keys() == parts.keys() and history == parts_history
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_training_lowers_the_loss(config, build, faces, tmp_path):
    _, records = run(config.with_({"optim.steps": 40}), build, faces, tmp_path)
    early, late = (sum(r.losses["l1"] for r in part) for part in (records[:8], records[-8:]))
    assert late < 0.8 * early


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_finishes_the_step_saves_and_raises(config, build, faces, tmp_path, number):
    model, loss = build()
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt, match="after step 2"):
        for record in train(config, model, faces, loss, folder=tmp_path):
            if record.step == 2:
                os.kill(os.getpid(), number)
    assert checkpoints.newest([tmp_path])[0].step == 2
    assert signal.getsignal(number) is before


def test_an_error_in_the_consumer_still_saves(config, build, faces, tmp_path):
    model, loss = build()
    steps = train(config, model, faces, loss, folder=tmp_path)
    next(steps)
    steps.close()
    assert checkpoints.newest([tmp_path])[0].step == 1


def test_a_finished_run_yields_nothing_and_says_so(config, build, faces, tmp_path, capsys):
    run(config, build, faces, tmp_path)
    model, records = run(config, build, faces, tmp_path)
    assert records == [] and "finished (8 steps); raise optim.steps" in capsys.readouterr().out
    saved = checkpoints.newest([tmp_path])[0].tensors
    assert all(torch.equal(saved[f"model/{n}"], p) for n, p in model.trainable().items())


def test_a_run_of_other_meaning_is_refused_with_both_values(config, build, faces, tmp_path):
    run(config, build, faces, tmp_path, steps=1)
    other = config.with_({"model.timestep": 500})
    with pytest.raises(ValueError, match=r"model\.timestep: 50 then, 500 now"):
        run(other, build, faces, tmp_path)


def test_a_run_goes_on_with_more_steps_and_another_rate(config, build, faces, tmp_path):
    run(config, build, faces, tmp_path)
    longer = config.with_({"optim.steps": 10, "optim.learning_rate": 5e-4})
    _, records = run(longer, build, faces, tmp_path)
    assert [record.step for record in records] == [9, 10]


def test_a_step_that_is_not_finite_is_skipped_and_recorded(config, build, faces, tmp_path):
    model, loss = build()
    before = {n: p.detach().clone() for n, p in model.trainable().items()}

    def broken(restored, clean, **_):
        return {"total": loss(restored, clean)["total"] * float("nan")}

    record = next(train(config, model, faces, broken, folder=tmp_path))
    assert record.skipped
    assert all(torch.equal(before[n], p) for n, p in model.trainable().items())


def test_masters_learn_what_half_precision_would_lose(config, build, faces):
    slow = config.with_({"optim.learning_rate": 1e-7, "optim.warmup_steps": 0})
    model, loss = build(dtype=torch.bfloat16)
    trainer = Trainer(slow, model)
    start = {n: p.detach().clone() for n, p in trainer.masters.items()}
    for step in range(3):
        clean, degraded, mask = training_batch(slow, faces, step, "cpu")
        trainer.update(loss(model(degraded, mask), clean)["total"])
    assert all(p.dtype == torch.float32 for p in trainer.masters.values())
    moved = [n for n, p in trainer.masters.items() if not torch.equal(start[n], p)]
    lost = [n for n in moved if torch.equal(start[n].bfloat16(), trainer.working[n])]
    assert len(moved) > 0.7 * len(start)  # a single-pixel attention has no gradient
    assert len(lost) > 0.3 * len(moved)


def test_everything_random_in_a_step_follows_from_seed_and_step(config, faces):
    torch.manual_seed(1)
    first = training_batch(config, faces, 5, "cpu")
    torch.manual_seed(2)
    again = training_batch(config, faces, 5, "cpu")
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other_step = training_batch(config, faces, 6, "cpu")
    other_seed = training_batch(config.with_({"run.seed": 1}), faces, 5, "cpu")
    assert not torch.equal(first[1], other_step[1]) and not torch.equal(first[1], other_seed[1])


def test_skips_are_dropped_at_the_configured_share(config, faces):
    large = config.with_({"optim.batch": 20, "model.skip_dropout": 0.3})
    kept = torch.cat([training_batch(large, faces, n, "cpu")[2]
                      for n in range(10)])
    assert 0.58 < float(kept.mean()) < 0.82


def test_the_learning_rate_warms_up_and_decays_to_a_tenth(config):
    optim = config.with_({"optim.steps": 100, "optim.warmup_steps": 10}).optim
    rates = [learning_rate_at(step, optim) for step in range(1, 101)]
    assert rates[0] < 0.2 * optim.learning_rate and max(rates) <= optim.learning_rate
    assert rates[-1] == pytest.approx(0.1 * optim.learning_rate)


def test_drive_gets_an_equal_copy_and_can_be_resumed_from(config, build, faces, tmp_path):
    run(config, build, faces, tmp_path / "local", steps=3, drive=tmp_path / "drive")
    name = checkpoints.LATEST
    assert (tmp_path / "local" / name).read_bytes() == (tmp_path / "drive" / name).read_bytes()
    _, rest = run(config, build, faces, tmp_path / "new", drive=tmp_path / "drive")
    assert rest[0].step == 4


def test_a_drive_that_fails_does_not_stop_training(config, build, faces, tmp_path, capsys):
    (tmp_path / "drive").write_text("a file where a folder should be")
    _, records = run(config, build, faces, tmp_path / "local", drive=tmp_path / "drive" / "runs")
    assert len(records) == 8 and "the next save tries again" in capsys.readouterr().out


def test_a_checkpoint_holds_what_is_trained_and_nothing_frozen(config, build, faces, tmp_path):
    model, _ = run(config, build, faces, tmp_path, steps=1)
    kinds = ("model", "exp_avg", "exp_avg_sq")
    expected = {f"{kind}/{name}" for kind in kinds for name in model.trainable()} | {"updates"}
    assert checkpoints.newest([tmp_path])[0].tensors.keys() == expected
