"""The benches: every row of the GPU's is measured here on the CPU, at tiny shapes."""

from __future__ import annotations

import json
import sys
from unittest.mock import Mock

import pytest
import torch

from helpers.errors import refused
from helpers.model.enhancer import SplatEnhancer
from tests import bench, bench_gpu, gpu_first, reference_call
from tests.gpu_reference import SAME_WORK, check_reference, load_reference
from tests.gpu_rows import largest_batch, training_step
from tests.gpu_setup import Bench, Setup, differences
from tests.rehearsal import random_networks
from tests.runs import GOLDEN

TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "vocab_size": 49408, "max_position_embeddings": 77}
CLIP = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "image_size": 64}
# The golden base with two blocks instead of four: a quarter of the time
BLOCKS = {
    "unet": {"block_out_channels": [16, 32], "attention_head_dim": [2, 4],
             "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
             "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]},
    "vae": {"block_out_channels": [16, 32], "down_block_types": ["DownEncoderBlock2D"] * 2,
            "up_block_types": ["UpDecoderBlock2D"] * 2}}
# What the bench uses of pix2pix-turbo, in the words of this test
STAND_IN = '''
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from peft import LoraConfig
from transformers import AutoTokenizer, CLIPTextModel

class Pix2Pix_Turbo(torch.nn.Module):
    def __init__(self):
        super().__init__()
        name = "stabilityai/sd-turbo"
        self.tokenizer = AutoTokenizer.from_pretrained(name, subfolder="tokenizer")
        self.text_encoder = CLIPTextModel.from_pretrained(name, subfolder="text_encoder")
        self.vae = AutoencoderKL.from_pretrained(name, subfolder="vae").requires_grad_(False)
        self.unet = UNet2DConditionModel.from_pretrained(name, subfolder="unet")
        self.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"]))
        self.text_encoder.requires_grad_(False)

    def set_train(self):
        self.train()

    def set_eval(self):
        self.eval()

    def forward(self, images, prompt=None, prompt_tokens=None, deterministic=True):
        if prompt is not None:
            prompt_tokens = self.tokenizer(prompt, padding="max_length", max_length=77,
                                           return_tensors="pt").input_ids
        prompt = self.text_encoder(prompt_tokens)[0]
        latent = self.vae.encode(images).latent_dist.mode()
        return self.vae.decode(latent + self.unet(latent, 999, prompt).sample).sample
'''


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A bench of tiny shapes on the CPU."""
    base = tmp_path_factory.mktemp("shapes")
    for part, changes in BLOCKS.items():
        known = json.loads((GOLDEN / part / "config.json").read_text(encoding="utf-8"))
        (base / part).mkdir()
        (base / part / "config.json").write_text(json.dumps(known | changes), encoding="utf-8")
    return Bench(Setup(
        device="cpu", base=str(base), dtypes=(torch.float32,), size_px=64, large_px=(128,),
        train_batches=(1,), most=1, batches=(1,), degrade_batch=3, gaussians=200, rounds=2,
        warmup=1, card_gib=80.0, compiler="eager", text=TEXT, clip=CLIP))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A folder like one of the reference."""
    home = tmp_path_factory.mktemp("reference")
    (home / "src").mkdir()
    (home / "src" / "pix2pix_turbo.py").write_text(STAND_IN, encoding="utf-8")
    yield check_reference(home)
    sys.modules.pop("pix2pix_turbo", None)


@pytest.fixture(scope="module")
def report(tiny, checkout, tmp_path_factory):
    """The whole plan, reference included, measured once; its rows by name, and its table."""
    out = tmp_path_factory.mktemp("out")
    rows = bench_gpu.plan(tiny, checkout, tmp_path_factory.mktemp("base"))
    bench_gpu.measure(tiny, rows, out, about=bench_gpu.describe(tiny.setup), minutes=60)
    written = json.loads((out / "gpu.json").read_text(encoding="utf-8"))
    return {row["what"]: row for row in written["rows"]}, (out / "gpu.md").read_text("utf-8")


def test_every_row_is_measured(report):
    rows, _ = report
    assert not {what: row["error"] for what, row in rows.items() if "error" in row}
    timed = {what: row for what, row in rows.items() if "against unmerged" not in what}
    assert all(row["ms"] > 0 and row["ms_p5"] <= row["ms"] <= row["ms_p95"]
               and row["images_per_s"] == pytest.approx(1e3 * row["images"] / row["ms"])
               for row in timed.values())
    assert all(row["skipped_steps"] == 0 for what, row in rows.items()
               if "train" in what and "reference" not in what)
    assert rows["train fp32 lean, batch 1"]["expected_gib"] < \
        rows["train fp32 full, batch 1"]["expected_gib"]
    assert rows["train fp32 full, largest batch"]["images"] == 1
    assert len(rows) == 22


def test_the_protocol_of_a_first_gpu_measures_every_row(tiny, tmp_path):
    rows = gpu_first.first_rows(tiny, tmp_path / "data", steps=2, readers=[0])
    found = bench_gpu.measure(tiny, ((what, work) for what, work in rows if "labels" not in what),
                              tmp_path, about={}, minutes=60, name="first_gpu")
    assert not [row["error"] for row in found if "error" in row] and len(found) == 9
    page = (tmp_path / "first_gpu.md").read_text(encoding="utf-8")
    assert "0 of 1 steps skipped, loss scale 1" in page and "gradient: L1 " in page
    assert all(f"2 steps at timestep {timestep}" in page for timestep in gpu_first.TIMESTEPS)
    stream = [{"label": "female"}, {"label": "male"}, {"label": "male"}]
    assert gpu_first.labels_row(lambda *_: stream) == {"note": "1 female, 2 male"}


def test_the_table_has_every_row(report):
    rows, page = report
    lines = [line for line in page.splitlines() if line.startswith("|")][2:]
    assert [line.split(" | ")[0].strip("| ") for line in lines] == list(rows)
    assert {line.count("|") for line in lines} == {len(bench_gpu.TITLE) + 1}


def test_what_must_be_equal_is_equal(report):
    rows, _ = report
    merged = rows["merged against unmerged fp32"]
    assert 0 < merged["mean_abs_difference"] < merged["max_abs_difference"] < 1e-4
    assert rows["forward fp32 merged compiled, batch 1"]["max_abs_difference"] < 1e-4
    for what in ("degrade, batch 3", "rasterise 200 Gaussians"):
        assert rows[f"{what}, against the CPU"]["max_abs_difference"] == 0.0


def test_lora_of_the_random_enhancer_matters(tiny):
    model, image = tiny.model(torch.float32), tiny.images(1)
    with torch.no_grad():
        before = model(image)
        model.unet.disable_adapters()
        model.vae.disable_adapters()
        assert differences(model(image), before)["max_abs_difference"] > 1e-3
    with pytest.raises(ValueError, match="finite"):
        differences(before, before / 0)


def test_the_reference_gets_the_weights_of_ours(tiny, checkout, tmp_path):
    theirs = load_reference(tiny, checkout, tmp_path, torch.float32)
    vae, unet = random_networks(tiny.setup.base, "cpu")
    assert torch.equal(theirs.unet.conv_in.weight, unet.conv_in.weight)
    assert torch.equal(theirs.vae.decoder.conv_out.weight, vae.decoder.conv_out.weight)
    ours = tiny.model(torch.float32)
    assert torch.equal(ours.unet.conv_in.weight, unet.conv_in.weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_half_precision_step_is_not_skipped(tiny, dtype):
    config = tiny.setup.config.with_(SAME_WORK | {"loss.lpips": 0.0, "optim.batch": 1})
    step, before = training_step(tiny, dtype, config), tiny.model(dtype).trained_state()
    assert not step()
    after = tiny.model(dtype).trained_state()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def failing_rows():
    """Rows that fail in different ways, and one that does not, in the end."""
    memory = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has 14.50 GiB allowed. See"
    yield "greedy", Mock(side_effect=torch.OutOfMemoryError(memory))
    yield "wrong", Mock(side_effect=refused("x", "1 | 2", 3, "change it"))
    yield "right", lambda: {"ms": 5.0, "ms_p5": 4.0, "ms_p95": 6.0, "images": 2,
                            "images_per_s": 400.0}


def test_a_failing_row_stops_no_other_and_none_is_begun_when_time_is_over(tiny, tmp_path, capsys):
    found = bench_gpu.measure(tiny, failing_rows(), tmp_path, about={}, minutes=1)
    assert [row.get("error") for row in found] == [
        "out of memory: Tried to allocate 2.00 GiB. GPU 0 has 14.50 GiB allowed. See",
        "ValueError: x: expected 1 | 2, got 3; change it", None]
    page = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert "expected 1 / 2, got 3" in page and "| right | 5.0 (4.0–6.0) | 2.5 | 400.00 |" in page
    assert "s left] right" in capsys.readouterr().out
    late = bench_gpu.measure(tiny, failing_rows(), tmp_path, about={}, minutes=0)
    assert [row["note"] for row in late] == ["not begun: 0 minutes were over"] * 3


@pytest.mark.parametrize(("fitting", "expected"), [(0, 1), (1, 1), (4, 4), (9, 6)])
def test_the_largest_batch_is_the_last_that_fits(fitting, expected):
    def work(batch):
        if batch > fitting:
            raise torch.OutOfMemoryError("full")
    cleaned = []
    assert largest_batch(work, 6, lambda: cleaned.append(1)) == expected
    assert len(cleaned) == min(fitting + 1, 6)


def test_the_bench_keeps_one_network_at_a_time(tiny):
    first = tiny.model(torch.float32)
    assert tiny.model(torch.float32) is first and isinstance(first, SplatEnhancer)
    assert tiny.keep("other", lambda: 7) == 7 and list(tiny.network) == ["other"]


def test_without_a_gpu_or_the_reference_it_stops_at_once(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match=r"device: expected a CUDA GPU, got 'none'; run it on"):
        bench_gpu.main(["--out", str(tmp_path)])
    with pytest.raises(ValueError, match="--reference: expected a checkout with src"):
        check_reference(tmp_path)
    assert not list(tmp_path.iterdir())
    note = next(row for what, row in bench_gpu.plan(tiny, None, tmp_path)
                if what == "reference")()
    assert note == {"note": "left out: no --reference PATH"}


def test_a_new_figure_leaves_the_others_in_the_file(tmp_path):
    file = tmp_path / "benchmark.json"
    bench.keep({"machine": "old", "checkpoint_mb": 1.0}, file)
    bench.keep(bench.machine() | bench.enhance_demo(rounds=1)
               | bench.restore_folder(pictures=2), file)
    kept = json.loads(file.read_text(encoding="utf-8"))
    assert kept["checkpoint_mb"] == 1.0 and "torch" in kept["machine"]
    assert kept["enhance_images_per_s_demo"] > 0 and kept["restore_images_per_s_folder"] > 0
    with pytest.raises(SystemExit, match="full_size"):
        bench.main(["unknown"])


def test_a_single_enhance_and_the_reference_do_the_same_work(tiny):
    shapes = {"base": tiny.setup.base, "text": TEXT}
    ours, theirs = reference_call.both(**shapes)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        decoded = ours(image, parts=True).decoded
        restored = theirs(image * 2 - 1, reference_call.prompt_tokens()) / 2 + 0.5
        assert (decoded.clamp(0, 1) - restored).abs().max() < 1e-5
        ours.unet.disable_adapters()  # the weights are shared, so is what was learned
        assert (ours(image, parts=True).decoded - decoded).abs().max() > 1e-4
    assert bench.beside_reference(rounds=1, side_px=64, **shapes)["enhance_beside_reference"] > 0
