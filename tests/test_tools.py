"""The maintainers' tools work: what measures a GPU is run here on the CPU, at tiny shapes."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from unittest.mock import Mock, patch

import numpy as np
import pytest
import torch
from tiny import GOLDEN, keep_prompt, tiny_config, tiny_model, write_faces

from splat_enhancer.data import pairs
from splat_enhancer.images import write_png
from tools import ablate, bench, gpu, train_shipped, true_shapes

TOWER = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
SHAPES = {part: json.loads((GOLDEN / part / "config.json").read_text()) for part in ("unet", "vae")}
SHAPES |= {"text_encoder": TOWER | {"vocab_size": 49408, "max_position_embeddings": 77},
           "clip": TOWER | {"image_size": 32, "patch_size": 16}}
SHAPES["unet"] |= {"block_out_channels": [16, 32], "attention_head_dim": [2, 4],
                   "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
                   "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]}
SHAPES["vae"] |= {"block_out_channels": [16, 32], "down_block_types": ["DownEncoderBlock2D"] * 2,
                  "up_block_types": ["UpDecoderBlock2D"] * 2}
SMALL = {"resolution": 64, "max_train_samples": 6}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return str(write_faces(tmp_path_factory.mktemp("faces")))


@pytest.fixture(scope="module")
def table(source, tmp_path_factory):
    """One row of each kind, and each blend, of the GPU protocol, on the CPU: lines by name."""
    folder = tmp_path_factory.mktemp("gpu")
    changes = SMALL | {"source": source, "lambda_lpips": 0.0, "lambda_gram": 0.0}  # no VGG16
    setup = gpu.Setup(folder, "cpu", torch.float32, SHAPES, changes, most=1, large_px=(96,),
                      workers=(0,), steps=2, rounds=1, warm_up=0)
    rows = list(gpu.rows(setup, first=False))
    assert len(rows) == len({what for what, _ in rows}) == 15 + len(gpu.BLENDS)
    chosen = {what if "blend" in what else work.func: (what, work) for what, work in rows}
    with patch.object(gpu, "free_memory"):
        lines = gpu.measure(chosen.values(), folder / "gpu.md", ["a CPU"], minutes=20)
    return {line.split(" | ")[0].strip("| "): line for line in lines[2:]}


def test_each_kind_of_row_of_the_gpu_protocol_is_measured(table):
    assert all(float(line.split(" | ")[1].split(" ")[0] or 0) > 0 for line in table.values()), table
    assert len(table) == 5 + len(gpu.BLENDS)


def test_results_that_must_be_equal_on_both_devices_are_equal(table):
    for name in ("degrade, batch 2", "rasterize 20,000 Gaussians"):
        assert "differs by 0 at most" in table[name]


def test_largest_batch_is_the_last_that_fits(monkeypatch):
    results = [{"images": 1}, {"images": 2}, torch.OutOfMemoryError("full")]
    monkeypatch.setattr(gpu, "training_row", Mock(side_effect=results))
    assert gpu.largest_row(Mock(most=9), "off") == {"images": 2}


def test_row_that_fails_stops_no_other_and_late_rows_are_not_begun(tmp_path):
    rows = [("wrong", Mock(side_effect=ValueError("x: expected 1 | 2"))),
            ("right", lambda: {"ms": [4.0, 5.0, 6.0], "images": 2, "peaks": [1.5, 2.0]})]
    lines = gpu.measure(rows, tmp_path / "gpu.md", [], minutes=1)[2:]
    assert lines == ["| wrong |  |  |  | ValueError: x: expected 1 / 2 |",
                     "| right | 5.0 (4.0–6.0) | 400.00 | 1.50 / 2.00 |  |"]
    assert "not begun" in gpu.measure(rows, tmp_path / "gpu.md", [], minutes=-1)[3]


def test_gradient_checkpointing_is_counted_to_take_less_memory():
    found = true_shapes.training_budget(gpu.Setup(Path()).config(**SMALL), SHAPES)
    assert 0 < found["train_peak_gib_batch2_lean"] < found["train_peak_gib_batch2"] < 1
    assert 0 < 1.5 * found["inference_tflop_per_image"] < found["train_tflop_per_image"] < 1


def test_rehearsal_trains_on_a_base_that_it_wrote_and_goes_on(source, tmp_path):
    changes = SMALL | {"source": source}
    true_shapes.make_base(tmp_path, SHAPES)
    assert min(true_shapes.save_and_resume(tmp_path, **changes).values()) > 0
    assert true_shapes.train_steps(tmp_path, 1, **changes)["step"] == [1]
    assert true_shapes.train_steps(tmp_path, 2, **changes)["step"] == [2]


def test_bench_keeps_figures_that_are_not_measured_again(tmp_path, monkeypatch):
    (file := tmp_path / "benchmark.json").write_text('{"resume_s": 1.0}', encoding="utf-8")
    measure = Mock(return_value={"images_per_s": 2.0}, __name__="speed")
    monkeypatch.setattr(bench, "MEASURES", [measure])
    bench.main(["speed"], file)
    assert set(json.loads(file.read_text())) == {"resume_s", "machine", "images_per_s"}
    bench.main([], file)
    assert set(json.loads(file.read_text())) == {"machine", "images_per_s"}


def test_bypassed_unet_returns_its_latent(tmp_path):
    model = tiny_model(tiny_config(tmp_path, blend="none", timestep=249)).eval()
    ablate.bypass_unet(model)
    with torch.no_grad():
        images = torch.rand(1, 3, 64, 64)
        expected = model._decode(*model._encode(images), torch.ones(1)) / 2 + 0.5
        torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=0)


def test_ablation_goes_on_where_it_was(tmp_path, monkeypatch):
    entries = [{"degraded": "a.png", "clean": "a.png", "identity": "a", "split": "test",
                "views": views} for views in ("interpolated", "extrapolated")]
    write_png(tmp_path / "a.png", torch.full((3, 64, 64), 0.4))
    (tmp_path / "index.json").write_text(json.dumps({"images": entries}), encoding="utf-8")
    monkeypatch.setattr(pairs, "NOVEL_VIEWS", tmp_path)
    config = tiny_config(tmp_path, max_train_steps=2, test_fit_samples=1, max_test_pairs=1)
    for run_name in ("as-it-is", "trained-without-the-UNet"):
        keep_prompt(config, tmp_path / "work" / "runs" / run_name)
    run = partial(ablate.ablate, config, work=tmp_path / "work", out=tmp_path / "out")
    table = run([ablate.BYPASSED])
    assert run([ablate.UNTRAINED]).items() > table.items()
    assert f"| {ablate.BYPASSED} |" in (tmp_path / "out" / "README.md").read_text("utf-8")


def test_training_of_the_shipped_enhancer_bounds_the_unet_and_goes_on_where_it_was(tmp_path):
    training = train_shipped.Training(tmp_path)
    clean = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for seed in range(2):
        training.update(clean**1.2, clean, 1e-2, np.random.default_rng(seed))
    assert max(weight.norm() / limit for weight, limit in training.limits) < 1.001
    training.save()
    resumed = train_shipped.Training(tmp_path)
    assert resumed.step == 2
    for name, weight in training.parameters.items():
        assert torch.equal(weight, resumed.parameters[name])
        assert torch.equal(training.average[name], resumed.average[name])
    resumed.norm = training.norm  # what bounds the gradient is measured again after a stop
    for process in (training, resumed):
        process.update(clean**1.2, clean, 1e-2, np.random.default_rng(2))
    for name, weight in training.parameters.items():
        torch.testing.assert_close(weight, resumed.parameters[name], rtol=1e-5, atol=1e-6)


def test_the_decoder_draws_the_last_two_squares_from_given_latents_in_training_alone(tmp_path):
    model = train_shipped.Training(tmp_path).model.train()
    torch.nn.init.normal_(model.vae.decoder.conv_out.weight)  # at the start it draws nothing
    degraded, clean = torch.rand(2, 4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = model(degraded)
        model.given, _ = model._encode(clean)
        given, (latent, features) = model(degraded), model._encode(degraded)
        expected = degraded + model._decode(latent, features, torch.ones(4))
        assert torch.equal(given[:2], plain[:2]) and not torch.equal(given[2], plain[2])
        torch.testing.assert_close(given[3], expected[3])
        torch.testing.assert_close(model.eval()(degraded), plain)
