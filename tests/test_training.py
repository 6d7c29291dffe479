"""The training loop: exact resume, master weights, accumulation, and whatever breaks in a step."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
import weakref
from dataclasses import replace

import pytest
import torch
from tiny import differences, saved_step, tiny_config, tiny_data, tiny_model, train_some, wait_for
from torch.optim.optimizer import register_optimizer_step_post_hook

from splat_enhancer.data.faces import draw_batch
from splat_enhancer.environment import Stopped
from splat_enhancer.losses.loss import EnhancerLoss
from splat_enhancer.training import train as training
from splat_enhancer.training.checkpoint import newest
from splat_enhancer.training.drive import DriveCopy
from splat_enhancer.training.train import default_training_step, learning_rate_at, training_batch
from splat_enhancer.training.trainer import MASK_FACTOR, Trainer

NO_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def config(folder):
    return tiny_config(folder)


@pytest.fixture(scope="module")
def data(config, folder):
    return tiny_data(config, folder)


@pytest.fixture(scope="module")
def whole(config, data, folder):
    """The folder of a run that nothing disturbed."""
    train_some(config, data, folder / "whole")
    return folder / "whole"


def batch_at(config, data, number, rows=slice(None)):
    drawn = draw_batch(data[0], seed=config.seed, step=number, batch=config.train_batch_size,
                       rows=rows)
    return training_batch(config, data[1], drawn, "cpu", rows)


def step_at(calls, change):
    """A training step whose losses are changed in some of its calls, which count from 1."""
    def make(model, loss):
        step, count = default_training_step(model, loss), 0

        def training_step(*batch):
            nonlocal count
            count += 1
            losses = step(*batch)
            return change(losses) if count in calls else losses
        return training_step
    return make


def not_finite(losses):
    return {name: value * float("nan") for name, value in losses.items()}


def fail(*_):
    raise RuntimeError("it broke")


@pytest.mark.parametrize(("cut", "dtype", "changes"), [
    (1, torch.float32, {}), (5, torch.float32, {"seed": 3, "blend": "none"}),
    (3, torch.float32, {"gradient_accumulation_steps": 3, "max_train_steps": 4}),
    (3, torch.float32, {"blend": "residual", "train_base": "full"}),
    (2, torch.float16, {"lambda_l1": 60.0})])  # with a loss scale too high for its first steps
def test_resumed_run_equals_uninterrupted_run(config, data, tmp_path, cut, dtype, changes):
    config = config.replace(**changes)
    train_some(config, data, tmp_path / "whole", dtype=dtype)
    torch.manual_seed(99)  # what else happens in the process must not matter
    train_some(config, data, tmp_path / "cut", cut, dtype=dtype)
    torch.rand(7)
    _, rest = train_some(config, data, tmp_path / "cut", dtype=dtype)
    assert [record.step for record in rest] == list(range(cut + 1, config.max_train_steps + 1))
    assert differences(tmp_path / "whole", tmp_path / "cut") == []
    saved, half = newest([tmp_path / "whole"]), dtype == torch.float16
    skips = [record["skipped"] for record in saved.history]
    assert any(skips) == half and not all(skips) and bool(saved.loss_scale) == half


def test_loader_processes_change_nothing(config, data, tmp_path, whole):
    train_some(config.replace(dataloader_num_workers=2), data, tmp_path, 2)
    train_some(config, data, tmp_path)
    assert differences(whole, tmp_path) == []


def test_everything_random_in_a_step_follows_from_seed_and_step(config, data):
    first = batch_at(config, data, 5)
    torch.manual_seed(2)
    assert all(map(torch.equal, first, batch_at(config, data, 5)))
    for other in (batch_at(config, data, 6), batch_at(config.replace(seed=1), data, 5)):
        assert not torch.equal(first[1], other[1])


def test_rows_of_a_batch_are_those_of_the_whole_batch(config, data):
    config = config.replace(train_batch_size=5, skip_dropout=0.5)
    whole = batch_at(config, data, 2)
    for rows in (slice(0, 2), slice(2, 5)):
        for part, of_all in zip(batch_at(config, data, 2, rows), whole, strict=True):
            assert torch.equal(part, of_all[rows])


def test_skips_are_dropped_at_the_configured_share(config, data):
    config = config.replace(train_batch_size=20, skip_dropout=0.3)
    kept = torch.cat([batch_at(config, data, number)[2] for number in range(10)])
    assert 0.58 < float(kept.mean()) < 0.82


def test_training_lowers_the_loss(config, data, tmp_path):
    _, records = train_some(config.replace(max_train_steps=18), data, tmp_path)
    early, late = (sum(r.losses["l1"] for r in part) for part in (records[:6], records[-6:]))
    assert late < 0.8 * early


def test_the_learning_rate_warms_up_and_decays_to_a_tenth(config):
    config = config.replace(max_train_steps=100, lr_warmup_steps=10)
    rates = [learning_rate_at(step, config) for step in range(1, 101)]
    assert rates[0] < 0.2 * config.learning_rate and max(rates) <= config.learning_rate
    assert rates[-1] == pytest.approx(0.1 * config.learning_rate)


def test_skips_and_mask_learn_at_rates_of_their_own(config):
    trainer = Trainer(config.replace(skip_learning_rate_factor=0.25), tiny_model(config))
    names = {id(p): name for name, p in trainer.weights.items()}
    factors = {names[id(p)].split(".")[0]: group["factor"]
               for group in trainer.optimiser.param_groups for p in group["params"]}
    assert factors == {"unet": 1.0, "vae": 1.0, "skips": 0.25, "mask": MASK_FACTOR}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_accumulated_batches_give_the_gradient_of_one_large_batch(config, data, dtype):
    def gradient(batch, accumulate):
        changed = config.replace(train_batch_size=batch, skip_dropout=0.0,
                                 gradient_accumulation_steps=accumulate)
        model = tiny_model(config, dtype)
        trainer, step = Trainer(changed, model), default_training_step(
            model, EnhancerLoss(config, device="cpu"))
        for number in range(2 * accumulate, 3 * accumulate):  # of step 3
            trainer.backward(step(*batch_at(changed, data, number))["total"], accumulate)
        return torch.cat([p.grad.flatten() for p in trainer.weights.values()
                          if p.grad is not None]), trainer.loss
    (large, large_loss), (small, small_loss) = gradient(3, 1), gradient(1, 3)
    tolerance = 1e-4 if dtype == torch.float32 else 0.1  # bfloat16 rounds by up to 0.4 % each time
    assert float((large - small).norm()) < tolerance * float(large.norm())
    assert float(small_loss) == pytest.approx(float(large_loss), rel=tolerance)


def test_master_weights_learn_what_half_precision_would_lose(config, data):
    config = config.replace(learning_rate=1e-7)
    model = tiny_model(config, torch.bfloat16)
    trainer, step = Trainer(config, model), default_training_step(
        model, EnhancerLoss(config, device="cpu"))
    start = {name: p.detach().clone() for name, p in trainer.weights.items()}
    for number in range(3):
        trainer.backward(step(*batch_at(config, data, number))["total"])
        trainer.update()
    moved = [name for name, p in trainer.weights.items() if not torch.equal(start[name], p)]
    lost = [name for name in moved
            if torch.equal(start[name].bfloat16(), trainer.working[name])]
    assert len(moved) > 0.7 * len(start) and len(lost) > 0.3 * len(moved)


def test_one_broken_batch_of_three_skips_the_whole_step(config, data, tmp_path, capsys):
    config = config.replace(gradient_accumulation_steps=3, max_train_steps=2)
    start = tiny_model(config).trained_state()
    model, (first,) = train_some(config, data, tmp_path, 1,
                                 training_step=step_at({2}, not_finite))
    assert first.skipped and "Step 1 is skipped" in capsys.readouterr().out
    assert all(torch.equal(start[name], p) for name, p in model.trained_state().items())
    model, (second,) = train_some(config, data, tmp_path)
    assert second.step == 2 and not second.skipped
    assert any(not torch.equal(start[name], p) for name, p in model.trained_state().items())


def test_a_run_that_collapsed_ends_and_its_last_good_state_stays(config, data, tmp_path):
    config = config.replace(max_train_steps=40)
    with pytest.raises(FloatingPointError, match=r"20 steps in a row .* step 2 is saved"):
        train_some(config, data, tmp_path, training_step=step_at(range(3, 40), not_finite))
    assert saved_step(tmp_path) == 2


def test_a_step_that_breaks_off_leaves_nothing_behind(config, data, tmp_path):
    config = config.replace(gradient_accumulation_steps=2, max_train_steps=3)
    train_some(config, data, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="it broke"):  # in the second batch of the second step
        train_some(config, data, tmp_path / "cut", training_step=step_at({4}, fail))
    assert saved_step(tmp_path / "cut") == 1
    train_some(config, data, tmp_path / "cut")
    assert differences(tmp_path / "whole", tmp_path / "cut") == []


def test_an_update_that_breaks_off_is_never_saved(config, data, tmp_path, whole):
    train_some(config, data, tmp_path, 3)
    hook = register_optimizer_step_post_hook(fail)  # the weights have moved by then
    with pytest.raises(RuntimeError, match="it broke"):
        train_some(config, data, tmp_path)
    hook.remove()
    assert saved_step(tmp_path) == 3
    train_some(config, data, tmp_path)
    assert differences(whole, tmp_path) == []


@pytest.mark.parametrize("in_backward", [False, True])
def test_out_of_memory_repeats_the_step_with_gradient_checkpointing(config, data, tmp_path, whole,
                                                                   in_backward, capsys):
    kept = []

    def full(losses):
        def fail(*_):
            raise torch.OutOfMemoryError(NO_MEMORY)
        kept.append(weakref.ref(losses["total"]))
        if not in_backward:
            fail()
        losses["total"].register_hook(fail)
        return losses
    model, records = train_some(config, data, tmp_path, training_step=step_at({2}, full))
    assert model.gradient_checkpointing and len(records) == 6
    assert capsys.readouterr().out.count("from here on with gradient checkpointing") == 1
    assert differences(whole, tmp_path) == []
    gc.collect()
    assert kept[0]() is None  # what the failed try held is free


@pytest.mark.parametrize(("setting", "remedy"), [
    ("auto", "halve train_batch_size"), ("off", "set gradient_checkpointing to 'on', or halve"),
    ("on", "halve train_batch_size")])
def test_what_does_not_fit_at_all_ends_with_a_remedy(config, data, tmp_path, setting, remedy):
    def full(_):
        raise torch.OutOfMemoryError(NO_MEMORY)
    config = config.replace(gradient_checkpointing=setting)
    with pytest.raises(torch.OutOfMemoryError, match=f"room for step 2, .*{remedy}"):
        train_some(config, data, tmp_path, training_step=step_at({2, 3}, full))
    assert saved_step(tmp_path) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_finishes_the_step_and_saves(config, data, tmp_path, whole, number):
    def stop(losses):
        os.kill(os.getpid(), number)
        return losses
    with pytest.raises(Stopped, match="Stopped after step 3 and saved"):
        train_some(config, data, tmp_path, training_step=step_at({3}, stop))
    assert saved_step(tmp_path) == 3
    train_some(config, data, tmp_path)
    assert differences(whole, tmp_path) == []


def test_saves_come_by_steps_by_time_and_before_the_first_step(config, data, tmp_path, monkeypatch):
    saved, save = [], training.save
    monkeypatch.setattr(training, "save", lambda checkpoint, *arguments, **options: (
        saved.append(checkpoint.step), save(checkpoint, *arguments, **options)))
    train_some(config.replace(checkpointing_steps=4), data, tmp_path / "steps")
    assert saved == [0, 4, 6]
    saved.clear()
    clock = iter(range(0, 10_000, 100))
    monkeypatch.setattr(training.time, "monotonic", lambda: next(clock))
    train_some(config.replace(checkpointing_steps=99, checkpointing_s=200), data, tmp_path / "time")
    assert saved[0] == 0 and 2 <= len(saved[1:-1]) <= 4


def test_a_full_disk_does_not_stop_a_run_but_its_end_says_so(config, data, tmp_path, monkeypatch,
                                                             capsys):
    def full(checkpoint, *arguments, **options):
        if checkpoint.step:
            raise OSError(28, "No space left on device")
    monkeypatch.setattr(training, "save", full)
    with pytest.raises(OSError, match="No space left"):
        train_some(config, data, tmp_path)
    printed = capsys.readouterr().out
    assert "Step 2 is not saved" in printed and "Step 6 is not saved" in printed


def test_drive_has_what_is_saved_and_a_lost_disk_goes_on_from_there(config, data, tmp_path, whole):
    (tmp_path / "drive").mkdir()
    drive = tmp_path / "drive" / "runs" / "test"
    train_some(config, data, tmp_path / "lost", 3, drive=drive)
    assert saved_step(drive) == 3
    train_some(config, data, tmp_path / "new", drive=drive)
    assert differences(whole, tmp_path / "new") == differences(whole, drive) == []


def test_a_drive_that_hangs_or_refuses_stops_nothing(config, data, tmp_path, monkeypatch, capsys):
    awake = threading.Event()
    monkeypatch.setattr(DriveCopy.close, "__defaults__", (0.2,))
    monkeypatch.setattr("splat_enhancer.training.drive.save", lambda *_, **__: awake.wait())
    assert len(train_some(config, data, tmp_path / "a", drive=tmp_path / "drive")[1]) == 6
    assert "lacks the last save" in capsys.readouterr().out
    awake.set()
    monkeypatch.undo()
    (tmp_path / "file").write_text("a file where a folder should be")
    train_some(config, data, tmp_path / "b", drive=tmp_path / "file" / "runs")
    assert "training goes on" in capsys.readouterr().out and saved_step(tmp_path / "b") == 6


def test_who_lost_the_run_on_drive_to_a_later_session_saves_here_and_stops(config, data, tmp_path):
    drive, taken = tmp_path / "drive", []

    def take_over(losses):
        if not taken:
            taken.append(True)
            wait_for(lambda: saved_step(drive) == 0)
            later = newest([drive])
            training.save(replace(later, session="later", started=later.started + 9), drive)
        time.sleep(0.2)  # for the thread that copies
        return losses
    with pytest.raises(RuntimeError, match=r"another that began later\. This one is saved in"):
        train_some(config.replace(checkpointing_steps=1), data, tmp_path / "here", drive=drive,
                   training_step=step_at(range(9), take_over))
    assert saved_step(tmp_path / "here") > 0 and saved_step(drive) == 0


def test_a_finished_run_says_so_and_goes_on_with_more_steps(config, data, tmp_path, capsys):
    config = config.replace(max_train_steps=2)
    train_some(config, data, tmp_path)
    model, records = train_some(config, data, tmp_path)
    assert records == [] and "finished (2 steps); raise max_train_steps" in capsys.readouterr().out
    saved = newest([tmp_path])
    assert all(torch.equal(saved.trained[name], p) for name, p in model.trainable().items())
    kinds = ("model", "exp_avg", "exp_avg_sq")  # of what is trained, and nothing frozen
    assert {name.split("/")[0] for name in saved.tensors} == {*kinds, "updates"}
    assert saved.trained.keys() == model.trainable().keys() and saved.notes == []

    longer = config.replace(max_train_steps=4, learning_rate=5e-4)
    _, records = train_some(longer, data, tmp_path)
    assert [record.step for record in records] == [3, 4]
    assert "max_train_steps 2 → 4" in capsys.readouterr().out
    assert newest([tmp_path]).notes == [{"after_step": 2, "changed": {
        "max_train_steps": [2, 4], "learning_rate": [1e-3, 5e-4]}}]


def test_a_run_of_other_meaning_or_images_is_refused(config, data, tmp_path):
    train_some(config, data, tmp_path, 1, trained_on="6 faces a")
    with pytest.raises(ValueError, match="timestep: 1 then, 500 now"):
        train_some(config.replace(timestep=500), data, tmp_path)
    with pytest.raises(ValueError, match=r"the 6 faces a that it was .* got 6 faces b"):
        train_some(config, data, tmp_path, trained_on="6 faces b")


def test_held_out_distances_are_recorded_and_change_nothing(config, data, tmp_path, whole):
    _, records = train_some(config, data, tmp_path, validate=lambda: {"restored": 0.5})
    assert [r.step for r in records if r.held_out == {"restored": 0.5}] == [3, 6]
    saved = newest([tmp_path])
    cleared = replace(saved, history=[record | {"held_out": None} for record in saved.history])
    assert differences(whole, cleared) == []


def test_loss_crops_follow_from_seed_and_step(config, data, tmp_path):
    seeds = []

    def note(model, loss):
        step = default_training_step(model, loss)
        return lambda *batch: (seeds.append(loss.crop_seed), step(*batch))[1]
    train_some(config.replace(gradient_accumulation_steps=2, seed=7, max_train_steps=2), data,
               tmp_path, training_step=note)
    assert seeds == [7, 8, 9, 10]
