"""The training loop: exact resume, masters, accumulation, skipped steps."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal

import pytest
import torch
from PIL import Image
from torch.optim.optimizer import register_optimizer_step_post_hook

from helpers import checkpoints, evaluation
from helpers.distances import Metrics
from helpers.distances.losses import EnhancerLoss
from helpers.faces.data import draw_batch, load_batches, prepare
from helpers.model import SplatEnhancer
from helpers.training.loop import learning_rate_at, train, training_batch
from helpers.training.trainer import MASK_FACTOR, Trainer
from tests.runs import PROMPT, run, saved_step, states_differ


def batch_at(config, faces, step):
    drawn = draw_batch(faces, seed=config.run.seed, step=step, batch=config.optim.batch)
    return training_batch(config, drawn, "cpu")


def broken_at(loss, calls, factor=float("nan"), term=0.0):
    """A loss that is not finite at some of its calls, which count from 1."""
    count = 0

    def broken(restored, clean, **options):
        nonlocal count
        count += 1
        terms = loss(restored, clean, **options)
        return {"total": terms["total"] * factor + term} if count in calls else terms
    return broken


@pytest.mark.parametrize(("cut", "dtype", "changes"), [
    (1, torch.float32, {}), (5, torch.float32, {"run.seed": 3}),
    (3, torch.float32, {"optim.accumulate": 3, "optim.steps": 4}),
    (2, torch.float16, {"loss.l1": 60.0})])  # with a loss scale too high for its first steps
def test_resumed_run_equals_uninterrupted_run(config, build, faces, tmp_path, cut, dtype, changes):
    config = config.with_(changes)
    options = {"dtype": dtype, "loss": EnhancerLoss(config.loss, device="cpu")}
    whole, _ = run(config, build, faces, tmp_path / "whole", **options)
    torch.manual_seed(99)  # what else happens in the process must not matter
    run(config, build, faces, tmp_path / "cut", steps=cut, **options)
    torch.rand(7)
    parts, rest = run(config, build, faces, tmp_path / "cut", **options)
    assert [record.step for record in rest] == list(range(cut + 1, config.optim.steps + 1))
    assert states_differ(tmp_path / "whole", tmp_path / "cut") == []
    saved = checkpoints.load(tmp_path / "whole" / checkpoints.LATEST)
    skips = [record["skipped"] for record in saved.history]
    half = dtype == torch.float16
    assert any(skips) == half and not all(skips) and bool(saved.loss_scale) == half
    if dtype == torch.float32 and not changes:
        metrics = Metrics(config.loss, device="cpu")
        results = [evaluation.evaluate(model.enhance, evaluation.held_out_pairs(
            config, faces, device="cpu"), metrics) for model in (whole, parts)]
        assert results[0] == results[1]


def test_loader_processes_change_nothing_and_do_not_stay(config, build, faces, tmp_path):
    run(config, build, faces, tmp_path / "none")
    model, loss = build()
    two = train(config.with_({"run.loader_workers": 2}), model, faces, loss,
                folder=tmp_path / "some")
    assert [next(two).step for _ in range(2)] == [1, 2]  # one batch from each
    workers = multiprocessing.active_children()
    for worker in workers:
        os.kill(worker.pid, signal.SIGINT)  # Ctrl-C in a terminal reaches every process
    assert len(workers) == 2 and [next(two).step for _ in range(2)] == [3, 4]
    two.close()
    run(config.with_({"run.loader_workers": 1}), build, faces, tmp_path / "some", steps=1)
    assert not multiprocessing.active_children()
    run(config, build, faces, tmp_path / "some")
    assert states_differ(tmp_path / "none", tmp_path / "some") == []


def test_batches_are_read_without_touching_the_global_generator(faces):
    before = torch.random.get_rng_state()
    drawn = list(load_batches(faces, range(3, 5), seed=1, batch=2))
    for number, batch in zip((3, 4), drawn, strict=True):
        assert all(map(torch.equal, batch, draw_batch(faces, seed=1, step=number, batch=2)))
    assert torch.equal(before, torch.random.get_rng_state())


def test_an_update_that_breaks_off_is_never_saved(config, build, faces, tmp_path):
    def fail(*_):
        raise MemoryError
    run(config, build, faces, tmp_path / "whole")
    model, loss = build()
    steps = train(config, model, faces, loss, folder=tmp_path / "cut")
    assert [next(steps).step for _ in range(3)] == [1, 2, 3]
    hook = register_optimizer_step_post_hook(fail)  # the weights have moved by then
    with pytest.raises(MemoryError):
        next(steps)
    hook.remove()
    assert saved_step(tmp_path / "cut") == 2
    list(train(config, model, faces, loss, folder=tmp_path / "cut"))
    assert states_differ(tmp_path / "whole", tmp_path / "cut") == []


def test_a_step_that_breaks_off_leaves_no_gradient_behind(config, build, faces, tmp_path):
    config = config.with_({"optim.accumulate": 2, "optim.steps": 3})
    run(config, build, faces, tmp_path / "whole")
    model, loss = build()

    def stumbling(*pair, view_seed, **options):
        if view_seed == 3:  # the second batch of the second step
            raise RuntimeError("out of memory")
        return loss(*pair, view_seed=view_seed, **options)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(train(config, model, faces, stumbling, folder=tmp_path / "cut"))
    records = list(train(config, model, faces, loss, folder=tmp_path / "cut"))
    assert records[0].step == 2
    assert states_differ(tmp_path / "whole", tmp_path / "cut") == []


def test_training_lowers_the_loss(config, build, faces, tmp_path):
    _, records = run(config.with_({"optim.steps": 24}), build, faces, tmp_path)
    early, late = (sum(r.losses["l1"] for r in part) for part in (records[:8], records[-8:]))
    assert late < 0.8 * early


def test_skips_and_mask_learn_at_rates_of_their_own(config, build):
    rated = config.with_({"optim.skip_rate": 0.25, "model.mask": True})
    trainer = Trainer(rated, SplatEnhancer.from_pretrained(
        rated.model, device="cpu", prompt_embedding=PROMPT))
    names = {id(p): name for name, p in trainer.masters.items()}
    found = {names[id(p)].split(".")[0]: group["factor"]
             for group in trainer.optimiser.param_groups for p in group["params"]}
    assert found == {"unet": 1.0, "vae": 1.0, "skips": 0.25, "mask": MASK_FACTOR}
    assert sum(len(g["params"]) for g in trainer.optimiser.param_groups) == len(trainer.masters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_accumulated_batches_give_the_gradient_of_one_large_batch(config, build, faces, dtype):
    def gradient(batch, accumulate):
        own = config.with_({"optim.batch": batch, "optim.accumulate": accumulate,
                            "optim.clip_norm": 1e6, "model.skip_dropout": 0.0})
        model, loss = build(dtype)
        trainer = Trainer(own, model)
        for number in range(2 * accumulate, 3 * accumulate):  # of step 3
            clean, degraded, mask = batch_at(own, faces, number)
            trainer.backward(loss(model(degraded, mask), clean)["total"])
        return torch.cat([p.grad.flatten() for p in trainer.masters.values()]), trainer.loss
    (large, large_loss), (small, small_loss) = gradient(3, 1), gradient(1, 3)
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    assert float((large - small).norm()) < tolerance * float(large.norm())
    assert float(small_loss) == pytest.approx(float(large_loss), rel=tolerance)


@pytest.mark.parametrize(("factor", "term"), [(float("nan"), 0.0), (1.0, float("inf"))])
def test_one_broken_batch_of_three_skips_the_whole_step(config, build, faces, tmp_path, factor,
                                                        term, capsys):
    config = config.with_({"optim.accumulate": 3, "optim.steps": 2})
    model, loss = build()
    before = {n: p.detach().clone() for n, p in model.trainable().items()}
    steps = train(config, model, faces, broken_at(loss, {2}, factor, term), folder=tmp_path)
    first = next(steps)
    assert first.skipped and "Step 1 is skipped" in capsys.readouterr().out
    assert all(torch.equal(before[n], p) for n, p in model.trainable().items())
    assert not next(steps).skipped
    assert any(not torch.equal(before[n], p) for n, p in model.trainable().items())


def test_masters_learn_what_half_precision_would_lose(config, build, faces):
    slow = config.with_({"optim.learning_rate": 1e-7, "optim.warmup_steps": 0})
    model, loss = build(dtype=torch.bfloat16)
    trainer = Trainer(slow, model)
    start = {n: p.detach().clone() for n, p in trainer.masters.items()}
    for step in range(3):
        clean, degraded, mask = batch_at(slow, faces, step)
        trainer.backward(loss(model(degraded, mask), clean)["total"])
        trainer.update()
    assert all(p.dtype == torch.float32 for p in trainer.masters.values())
    moved = [n for n, p in trainer.masters.items() if not torch.equal(start[n], p)]
    lost = [n for n in moved if torch.equal(start[n].bfloat16(), trainer.working[n])]
    assert len(moved) > 0.7 * len(start)  # a single-pixel attention has no gradient
    assert len(lost) > 0.3 * len(moved)


def test_everything_random_in_a_step_follows_from_seed_and_step(config, faces):
    first = batch_at(config, faces, 5)
    torch.manual_seed(2)
    assert all(map(torch.equal, first, batch_at(config, faces, 5)))
    other_step = batch_at(config, faces, 6)
    other_seed = batch_at(config.with_({"run.seed": 1}), faces, 5)
    assert not torch.equal(first[1], other_step[1]) and not torch.equal(first[1], other_seed[1])


def test_skips_are_dropped_at_the_configured_share(config, faces):
    large = config.with_({"optim.batch": 20, "model.skip_dropout": 0.3, "degrade.strength": 0.0})
    kept = torch.cat([batch_at(large, faces, n)[2] for n in range(10)])
    assert 0.58 < float(kept.mean()) < 0.82


def test_the_learning_rate_warms_up_and_decays_to_a_tenth(config):
    optim = config.with_({"optim.steps": 100, "optim.warmup_steps": 10}).optim
    rates = [learning_rate_at(step, optim) for step in range(1, 101)]
    assert rates[0] < 0.2 * optim.learning_rate and max(rates) <= optim.learning_rate
    assert rates[-1] == pytest.approx(0.1 * optim.learning_rate)


def test_a_run_of_other_meaning_is_refused_with_both_values(config, build, faces, tmp_path):
    run(config, build, faces, tmp_path, steps=1)
    with pytest.raises(ValueError, match=r"model\.timestep: 1 then, 500 now"):
        run(config.with_({"model.timestep": 500}), build, faces, tmp_path)


def prepared(config, folder, names, **changes):
    """The config of photographs with these names, and the faces made of them."""
    shutil.rmtree(folder / "photos", ignore_errors=True)
    (folder / "photos").mkdir()
    for name in names:
        Image.new("RGB", (64, 64), (ord(name), 99, 9)).save(folder / "photos" / f"{name}.png")
    config = config.with_({"data.source": str(folder / "photos"), "data.train_images": 4} | changes)
    regions = {"parse": lambda images: images[:, 0].mul(0).byte()}
    return config, prepare(config.data, folder / "data", progress=None, **regions)


def test_a_face_that_was_trained_on_is_never_measured_after_a_folder_changed(config, build,
                                                                             tmp_path):
    config, faces = prepared(config, tmp_path, "abcdef")
    held_out, trained = (set(rows["key"]) for rows in (faces.test, faces.train))
    run(config, build, faces, tmp_path, steps=1)
    config, others = prepared(config, tmp_path, {*"abcdefg"} - {min(held_out)[0]})
    assert trained & set(others.test["key"])
    with pytest.raises(ValueError, match=rf"on the {faces.trained_on} that .*got 4 photographs .*"
                                         r".*photos the images and names .*run\.name"):
        run(config, build, others, tmp_path)
    again = prepared(config, tmp_path, "abcdef")[1]  # other files of the same names
    assert run(config, build, again, tmp_path, steps=1)[1][0].step == 2


def test_held_out_faces_may_become_fewer(config, build, tmp_path):
    for step, count in ((1, 2), (2, 1)):
        own, faces = prepared(config, tmp_path, "abcdef", **{"data.test_images": count})
        assert run(own, build, faces, tmp_path, steps=1)[1][0].step == step


def test_a_finished_run_holds_what_is_trained_says_so_and_goes_on_with_more_steps(
        config, build, faces, tmp_path, capsys):
    config = config.with_({"optim.steps": 2})
    run(config, build, faces, tmp_path)
    model, records = run(config, build, faces, tmp_path)
    assert records == [] and "finished (2 steps); raise optim.steps" in capsys.readouterr().out
    saved = checkpoints.newest([tmp_path])[0]
    assert all(torch.equal(saved.tensors[f"model/{n}"], p) for n, p in model.trainable().items())
    kinds = ("model", "exp_avg", "exp_avg_sq")  # of what is trained, and nothing frozen
    expected = {f"{kind}/{name}" for kind in kinds for name in model.trainable()} | {"updates"}
    assert saved.tensors.keys() == expected and saved.notes == []

    longer = config.with_({"optim.steps": 4, "optim.learning_rate": 5e-4})
    _, records = run(longer, build, faces, tmp_path)
    assert [record.step for record in records] == [3, 4]
    assert "optim.steps 2 → 4, optim.learning_rate 0.001 → 0.0005" in capsys.readouterr().out
    assert checkpoints.newest([tmp_path])[0].notes == [{"after_step": 2, "changed": {
        "optim.steps": [2, 4], "optim.learning_rate": [1e-3, 5e-4]}}]
