"""The embedded base: what it promises, and that its command runs."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from helpers.config import ASSETS, TINY_BASE, ModelConfig
from helpers.distances.metrics import psnr
from helpers.distances.perceptual import load_lpips
from helpers.distances.stlpips import load_stlpips
from helpers.model.enhancer import SplatEnhancer
from tests import tiny_base

BASE = ASSETS / TINY_BASE
REAL_LPIPS = Path(__file__).parents[3] / "shared" / "lpips"


SHORT = tiny_base.DecoderRound(3, 1.0, 1, 1.0, 0.5, save_every_steps=1)  # the last rate is 0


@pytest.fixture
def brief(monkeypatch):
    """One step in the first rounds, three in the last, and one head to judge by."""
    monkeypatch.setattr(tiny_base, "VAE_ROUNDS", (tiny_base.Round(1, 1, 1e-3, color=1.0),))
    monkeypatch.setattr(tiny_base, "DECODER_ROUND", SHORT)
    monkeypatch.setattr(tiny_base, "round_trip", partial(tiny_base.round_trip, count=1))


@pytest.fixture(scope="module")
def held_out():
    """24 heads nobody trained on, and their round trip through the embedded autoencoder."""
    vae = AutoencoderKL.from_pretrained(BASE / "vae", variant="fp16", torch_dtype=torch.float32)
    return tiny_base.round_trip(vae)


def test_the_embedded_base_is_small_and_in_the_hubs_layout():
    files = {path.relative_to(BASE).as_posix(): path.stat().st_size
             for path in BASE.rglob("*") if path.is_file()}
    assert sum(files.values()) <= 10_000_000
    assert {"unet/diffusion_pytorch_model.fp16.safetensors", "unet/config.json",
            "vae/diffusion_pytorch_model.fp16.safetensors", "vae/config.json",
            "text_encoder/model.fp16.safetensors", "text_encoder/config.json",
            "tokenizer/vocab.json", "tokenizer/merges.txt",
            "scheduler/scheduler_config.json"} <= files.keys()


def test_the_embedded_base_has_the_topology_of_sd_turbo():
    vae = AutoencoderKL.load_config(BASE / "vae")
    unet = UNet2DConditionModel.load_config(BASE / "unet")
    assert len(vae["block_out_channels"]) == len(unet["block_out_channels"]) == 4
    assert vae["latent_channels"] == unet["in_channels"] == unet["out_channels"] == 4
    assert unet["down_block_types"] == ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]
    assert unet["up_block_types"] == ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3


def test_the_embedded_base_returns_held_out_avatars_at_29_db(held_out):
    clean, restored = held_out
    assert float(psnr(restored, clean).mean()) >= 29


def test_the_embedded_base_keeps_the_detail_of_held_out_avatars(held_out):
    clean, restored = held_out
    with torch.no_grad():
        assert float(load_stlpips("alex")(restored, clean, normalize=True).mean()) <= 0.09


@pytest.mark.skipif(not REAL_LPIPS.is_dir(), reason=f"needs SqueezeNet's weights in {REAL_LPIPS}")
def test_a_network_of_no_loss_agrees_that_detail_is_kept(held_out, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(REAL_LPIPS))
    clean, restored = held_out
    with torch.no_grad():
        seen = load_lpips("squeeze", pretrained=True)(restored, clean, normalize=True)
    assert float(seen.mean()) <= 0.076


def test_the_untrained_enhancer_on_it_nearly_returns_its_input():
    model = SplatEnhancer.from_pretrained(ModelConfig(timestep=50), device="cpu")
    avatar = tiny_base.render_avatar(1_000_000, 128)[0][None]
    assert float((model.enhance(avatar) - avatar).abs().mean()) < 0.05


def test_pretraining_identities_are_apart_from_the_demos():
    assert 30_000 < tiny_base.FIRST_IDENTITY < 1_000_000 - 4_000  # DataConfig allows 30,000


@pytest.mark.usefixtures("brief")
def test_the_command_builds_a_base_that_loads(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["tiny_base", "--out", str(tmp_path / "base"), "--avatars", "8",
                                     "--unet-steps", "1"])
    tiny_base.main()
    assert "dB" in capsys.readouterr().out
    model = SplatEnhancer.from_pretrained(ModelConfig(base=str(tmp_path / "base")), device="cpu")
    assert model.check_shapes(64) == (1, 3, 64, 64)


@pytest.mark.usefixtures("brief")
def test_the_decoders_round_alone_changes_the_decoder_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(BASE, tmp_path / "base")
    monkeypatch.setattr("sys.argv", ["tiny_base", "--out", str(tmp_path / "base"), "--avatars", "8",
                                     "--decoder-only"])
    tiny_base.main()
    changed = [file for file in BASE.rglob("*") if file.is_file()
               and file.read_bytes() != (tmp_path / "base" / file.relative_to(BASE)).read_bytes()]
    assert [file.parent.name for file in changed if file.suffix == ".safetensors"] == ["vae"]
    assert str(tmp_path) not in (tmp_path / "base" / "vae" / "config.json").read_text()
    before, after = (AutoencoderKL.from_pretrained(folder / "vae", variant="fp16").state_dict()
                     for folder in (BASE, tmp_path / "base"))
    assert {name.split(".")[0] for name, tensor in before.items()
            if not torch.equal(tensor, after[name])} == {"post_quant_conv", "decoder"}


def test_a_resumed_decoders_round_equals_an_uninterrupted_one(tmp_path, monkeypatch):
    vae = AutoencoderKL.from_pretrained(BASE / "vae", variant="fp16", torch_dtype=torch.float32)
    images = tiny_base.render_identities(2, tmp_path / "avatars.npy")
    def train(name):
        return tiny_base.train_decoder(vae, images, SHORT, 0, tmp_path / name,
                                       tmp_path / f"{name}.pt").state_dict()
    whole = train("whole")
    with monkeypatch.context() as broken:
        def stop_at_2(*arguments):
            if arguments[-1] == 2:
                raise KeyboardInterrupt
            return batch(*arguments)
        batch = tiny_base._batch
        broken.setattr(tiny_base, "_batch", stop_at_2)
        with pytest.raises(KeyboardInterrupt):
            train("halves")
    assert (tmp_path / "halves.pt").exists()
    halves = train("halves")
    assert all(torch.equal(tensor, halves[name]) for name, tensor in whole.items())
    assert not torch.equal(whole["decoder.conv_out.weight"], vae.decoder.conv_out.weight)
    assert not (tmp_path / "halves.pt").exists()


def test_a_cache_of_another_count_is_not_taken(tmp_path):
    two = tiny_base.render_identities(2, tmp_path / "a.npy")
    assert torch.equal(two, tiny_base.render_identities(2, tmp_path / "a.npy"))
    assert len(tiny_base.render_identities(3, tmp_path / "a.npy")) == 3
