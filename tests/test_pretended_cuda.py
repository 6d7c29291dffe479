"""The path of a GPU, on one that is pretended: devices, precisions, waits, and planted mistakes."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch

from helpers import evaluation
from helpers.config import preset
from helpers.degradation import damage, degrade, draw_amounts, effects, pipeline
from helpers.distances import EnhancerLoss, Metrics
from helpers.evaluation.batch import Batch
from helpers.faces.avatars import render_avatar
from helpers.machine import runtime
from helpers.model import SplatEnhancer, enhancer, tiles
from helpers.pairs import fit_poorly
from helpers.splats import draws, fit, rasteriser
from helpers.training import Trainer, loop
from tests.pretended_cuda import OnCuda, pretended_cuda
from tests.runs import PROMPT, TINY

SETTINGS = replace(damage("medium"), downscale=0.5, clean_share=0.0)
SEEDS = torch.arange(2) + 5


@pytest.fixture(scope="module")
def heads():
    """Clean heads and their regions, 64 px, on the CPU."""
    return tuple(torch.stack(side) for side in zip(*(render_avatar(seed, 64) for seed in (0, 1)),
                                                   strict=True))


def degraded(clean, regions):
    return degrade(clean.clamp(0, 1), regions, SETTINGS, SEEDS,
                   amounts=draw_amounts(SETTINGS, SEEDS))


def settings(**changes):
    return preset("t4").with_(TINY | {"model.mask": True, "loss.mask": 0.1, "loss.l1": 2.0,
                                      "loss.clip": 0.0, "optim.batch": 2} | changes)


def build(config, dtype, device="cuda"):
    model = SplatEnhancer.from_pretrained(config.model, device=device, dtype=dtype,
                                          prompt_embedding=PROMPT)
    return model, EnhancerLoss(config.loss, device=device, dtype=dtype)


def learn(heads, config, model, loss):
    """A step of the real loop, without its files: the trainer, and whether it was skipped."""
    trainer = Trainer(config, model)
    loop.add_gradients(trainer, loss, [(*heads, SEEDS[:len(heads[0])])])
    return trainer, trainer.update()[1]


@pytest.fixture(scope="module")
def on_cpu():
    """The model in float32 on the CPU."""
    return build(settings(), torch.float32, "cpu")[0]


@pytest.mark.parametrize(("dtype", "lean", "changes"), [
    (torch.float16, False, {"loss.lpips": 0.5, "loss.gram": 0.01, "loss.vgg": "random",
                            "loss.vgg_view_px": 16}),
    (torch.float16, True, {}), (torch.bfloat16, False, {"loss.mask": 0.0})])
def test_a_whole_step_in_every_precision_and_memory(heads, on_cpu, dtype, lean, changes):
    config = settings(**changes)
    with pretended_cuda() as counts:
        few = [side[:1] for side in heads]
        model, loss = build(config, dtype)
        model.use_lean_memory(lean)
        trainer, skipped = learn(few, config, model, loss)
        kinds = [{(p.device.type, p.dtype) for p in parameters.values()}
                 for parameters in (trainer.working, trainer.masters)]
        assert kinds == [{("cuda", dtype)}, {("cuda", torch.float32)}]
        saved = trainer.checkpoint()
        counts.clear()
        trainer.backward(sum(p.float().sum() for p in trainer.working.values()))
        trainer.update()
        assert counts.waits <= 2  # one is of the pretence: C++ groups gradients by what it sees
    assert saved.step == 1 and not any(isinstance(t, OnCuda) for t in saved.tensors.values())
    assert not skipped or dtype == torch.float16  # the first loss scale may be too high
    assert saved.trained.keys() == on_cpu.trainable().keys()


def test_a_batch_is_degraded_as_on_a_cpu_with_few_waits_and_uploads(heads):
    amounts = draw_amounts(SETTINGS, SEEDS)  # all at once, as on a GPU
    expected = pipeline.degrade_batch(heads[0].clamp(0, 1), heads[1], amounts, SETTINGS.variation,
                                      SEEDS.tolist())
    with pretended_cuda() as counts:
        there = [side.to("cuda") for side in heads]
        degraded(*there)  # constants are uploaded once
        counts.clear()
        found = degraded(*there)
        assert isinstance(found, OnCuda)
        assert counts.waits <= 8 and counts.uploads <= 30 and counts.launches < 1_500
        found = found.cpu()
    assert torch.equal(found, expected)


def test_pictures_are_enhanced_in_tiles_and_measured_and_photographs_fitted(heads):
    config = settings(**{"loss.vgg": "stlpips"})
    clean = heads[0].clamp(0, 1)
    with pretended_cuda():
        model, _ = build(config, torch.float16)
        metrics = Metrics(config.loss, device="cuda")
        batch = Batch(clean.to("cuda"), clean.roll(1, -1).to("cuda"), ["a", "b"],
                      ["a", "b"])  # regions: one_hot makes tensors where C++ sees them
        with model.merged():
            result = evaluation.evaluate(model.enhance, [batch], metrics)
        wide = clean[:1].to("cuda")[..., :60]
        restored, mask = model.enhance_and_show(wide)
        cut = tiles.enhance_tiled(lambda x: x, wide, tile_px=32, overlap_px=16, multiple=16)
        fits = fit_poorly(wide, SEEDS[:1]), fit.fit_splats(wide, 40, 2, seeds=SEEDS[:1])
        assert all(isinstance(x, OnCuda) for x in (restored, mask, cut, *fits))
        assert float((cut - wide).abs().max()) < 1e-6
    assert result.n == 2 and not enhancer.MERGE_FROM_PX.get("cuda")


def test_the_machine_is_a_t4_and_its_memory_is_asked_for():
    with pretended_cuda():
        machine = runtime.detect()
        assert (machine.gpu, machine.dtype) == ("Tesla T4", torch.float16)
        assert runtime.choose_preset("auto", machine)[0] == "t4"


def left_behind(call):
    """The same function, which leaves its result on the CPU."""
    def wrong(*args, **kwargs):
        found = call(*args, **kwargs)
        return found.cpu() if isinstance(found, torch.Tensor) else [x.cpu() for x in found]
    return wrong


PLANTED = {
    "draws": (draws.Draws, "_draw"), "places": (effects, "pixel_grid"),
    "amounts": (pipeline, "_named"), "owners": (rasteriser, "_spread"),
    "constants": (effects, "constant"), "skips": (SplatEnhancer, "_skip_scale"),
    "latent": (enhancer, "to_clean_latent"), "batch": (loop, "training_batch")}


@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_mistake_is_caught(heads, on_cpu, monkeypatch, planted):
    place, name = PLANTED[planted]
    wrong, config = left_behind(getattr(place, name)), settings()
    if planted == "amounts":
        monkeypatch.setattr(place, name, lambda amounts, share, device, own=pipeline._named:
                            own(amounts, share, "cpu"))
    else:
        monkeypatch.setattr(place, name, wrong)
    with pretended_cuda():
        if planted in ("skips", "latent", "batch"):
            model = copy.deepcopy(on_cpu).to("cuda")
            few, loss = [side[:1] for side in heads], EnhancerLoss(config.loss, device="cuda")
            work = partial(learn, few, config, model, loss)
        else:
            work = partial(degraded, *(side.to("cuda") for side in heads))
        with pytest.raises(RuntimeError, match=r"same device|same type|0-dim"):
            work()


@pytest.mark.parametrize("wrong", [
    lambda x, y: x + y, lambda x, y: torch.cat([x, y]), lambda x, y: x.numpy(),
    lambda x, y: torch.where(y > 0, x, x), lambda x, y: setattr(x, "data", y)])
def test_what_a_gpu_refuses_is_refused(wrong):
    with pretended_cuda() as counts:
        x, y = torch.rand(3, device="cuda"), torch.rand(3)
        with pytest.raises((RuntimeError, TypeError)):
            wrong(x, y)
        counts.clear()
        assert float(x.sum()) >= 0 and counts.waits == 1 and counts.launches >= 1
        assert isinstance(x[torch.tensor([0, 1])] * torch.tensor(2.0), OnCuda)  # these it takes
