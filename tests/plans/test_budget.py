"""What a T4 run costs, counted at SD-Turbo's true shapes: the claims of helpers/plans/budget.py."""

from __future__ import annotations

import itertools
import time
from functools import cache

import pytest
import torch

from helpers.config import SD_TURBO, TINY_BASE, preset
from helpers.distances.losses import EnhancerLoss
from helpers.model.enhancer import SplatEnhancer
from helpers.plans import budget
from tests import bench

T4 = preset("t4").with_({"loss.clip": 0.0})  # 512², batch 2; CLIP on top: the last test
TERA = 1e12


@pytest.fixture(scope="module", autouse=True)
def counted_once():
    """The same peak is counted once for all tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "expected_peak_gib", cache(budget.expected_peak_gib))
        yield


@pytest.fixture(scope="module")
def counted():
    """The peak of T4 in GiB, and the seconds of one core it took to count."""
    started = time.process_time()
    found = budget.expected_peak_gib(T4, dtype=torch.float16, lean=False)
    return found, time.process_time() - started


@pytest.fixture
def peak_gib(counted):
    return counted[0]


def test_the_peak_is_known_within_20_seconds_of_one_core(counted):
    assert counted[1] < 20


def test_the_base_has_the_true_shapes_of_sd_turbo():
    model, _ = budget.build_on_meta(T4, torch.float16)
    assert T4.model.base == SD_TURBO
    frozen = {part: count for part, count, _ in model.parameter_table()}
    conv_in = sum(p.numel() for p in model.unet.conv_in.parameters())  # trained, but the base's
    assert frozen["UNet"] + conv_in == 865_910_724
    assert frozen["VAE encoder"] + frozen["VAE decoder"] == 83_653_863
    assert all(p.is_meta and p.dtype == torch.float16 for p in model.parameters())


def test_a_training_step_takes_at_most_8_75_tflop_per_image():
    assert 8.65 < bench.training_flops(T4) / TERA <= 8.75


def test_a_lean_training_step_takes_about_11_9_tflop_per_image():
    assert bench.training_flops(T4, lean=True) / TERA == pytest.approx(11.9, rel=0.02)


def test_one_pass_takes_4_44_tflop_per_image():
    assert bench.inference_flops(T4) / TERA == pytest.approx(4.44, rel=0.01)


def test_the_work_of_an_image_does_not_depend_on_the_batch():
    small = preset("demo")
    one, three = (bench.training_flops(small.with_({"optim.batch": n})) for n in (1, 3))
    assert one == pytest.approx(three, rel=1e-3)


def test_batch_2_at_512_px_needs_at_most_10_5_gib_and_6_with_lean_memory(peak_gib):
    assert 9.5 < peak_gib <= 10.5  # of 14.56 GiB visible on a T4, 13 to be planned with
    assert 5.0 < budget.expected_peak_gib(T4, dtype=torch.float16, lean=True) <= 6.0


@pytest.mark.parametrize(("asked", "gpu_gib", "lean"), [
    ("auto", 0.0, False), ("auto", 14.56, False), ("auto", 11.6, True), ("auto", 7.0, True),
    ("lean", 39.4, True), ("full", 11.0, False)])
def test_the_plan_takes_full_memory_where_it_fits(asked, gpu_gib, lean):
    plan = budget.plan_memory(T4.with_({"optim.memory": asked}), dtype=torch.float16,
                              free_gib=gpu_gib)
    assert plan.lean == lean and (plan.expected_gib < 6) == lean
    assert f"{plan.expected_gib:.2f}" in str(plan) and ("lean" in str(plan)) == lean


@pytest.mark.parametrize(("asked", "gpu_gib", "remedy"), [
    ("auto", 4.0, "data.size_px$"), ("full", 8.0, "optim.memory to 'lean'$")])
def test_a_step_that_cannot_fit_is_refused_before_training(asked, gpu_gib, remedy):
    with pytest.raises(ValueError, match=rf"free memory of the GPU: .*got.*batch.*{remedy}"):
        budget.plan_memory(T4.with_({"optim.memory": asked}), dtype=torch.float16, free_gib=gpu_gib)


def test_the_peak_grows_with_batch_size_dtype_and_clip(peak_gib):
    def gib(dtype=torch.float16, **changes):
        return budget.expected_peak_gib(T4.with_(changes), dtype=dtype, lean=False)

    one = gib(**{"optim.batch": 1})
    weights = 1.98  # of 9.5e8 base, 9e6 trained and 1.5e7 VGG16 parameters, and AdamW's state
    assert peak_gib - weights == pytest.approx(2 * (one - weights), rel=0.05)
    assert gib(**{"data.size_px": 256}) - weights < 0.3 * (peak_gib - weights)
    assert gib(torch.float32, **{"data.size_px": 256}) > 1.8 * gib(**{"data.size_px": 256})
    assert 0.16 < gib(**{"loss.clip": 0.5}) - peak_gib < 0.3  # 8.8e7 parameters in fp16


def test_counting_leaves_torch_as_it_was():
    attention, state = torch.nn.functional.scaled_dot_product_attention, torch.get_rng_state()
    with pytest.raises(OSError, match="nowhere"):
        budget.expected_peak_gib(T4.with_({"model.base": "/nowhere"}))
    budget.expected_peak_gib(preset("demo"))
    assert torch.nn.functional.scaled_dot_product_attention is attention
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("lean", [False, True])
def test_a_real_step_holds_what_was_expected(lean):
    config = preset("demo").with_({"optim.batch": 4})
    with budget.Meter("cpu") as meter:
        model = SplatEnhancer.from_pretrained(config.model, device="cpu",
                                              prompt_embedding=torch.zeros(1, 77, 64))
        loss = EnhancerLoss(config.loss, device="cpu")
        for tensor in itertools.chain(*(m.parameters() for m in (model, loss))):
            meter.add(tensor)
        step = budget.prepare_step(config, model, loss, lean=lean)
        meter.peak = meter.now
        step()
    expected = budget.expected_peak_gib(config, dtype=torch.float32, lean=lean)
    assert config.model.base == TINY_BASE
    assert meter.peak / 2**30 == pytest.approx(expected, rel=0.02)
