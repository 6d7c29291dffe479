"""The embedded base: what it promises, and that its command runs."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from helpers.config import ASSETS, TINY_BASE, ModelConfig
from helpers.model.enhancer import SplatEnhancer
from tests import tiny_base

BASE = ASSETS / TINY_BASE


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


def test_the_embedded_base_reconstructs_held_out_avatars_at_28_db():
    vae = AutoencoderKL.from_pretrained(BASE / "vae", variant="fp16", torch_dtype=torch.float32)
    assert tiny_base.reconstruction_db(vae) >= 28


def test_the_untrained_enhancer_on_it_nearly_returns_its_input():
    model = SplatEnhancer.from_pretrained(ModelConfig(timestep=50), device="cpu")
    avatar = tiny_base.render_avatar(1_000_000, 128)[0][None]
    assert float((model.enhance(avatar) - avatar).abs().mean()) < 0.05


def test_pretraining_identities_are_apart_from_the_demos():
    assert 30_000 < tiny_base.FIRST_IDENTITY < 1_000_000 - 4_000  # DataConfig allows 30,000


def test_the_command_builds_a_base_that_loads(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tiny_base, "VAE_ROUNDS", (tiny_base.Round(1, 1, 1e-3, color=1.0),))
    monkeypatch.setattr(tiny_base.reconstruction_db, "__defaults__", (1_000_000, 2))
    monkeypatch.setattr("sys.argv", ["tiny_base", "--out", str(tmp_path / "base"), "--avatars", "8",
                                     "--unet-steps", "1"])
    tiny_base.main()
    assert "dB" in capsys.readouterr().out
    model = SplatEnhancer.from_pretrained(ModelConfig(base=str(tmp_path / "base")), device="cpu")
    assert model.check_shapes(64) == (1, 3, 64, 64)


def test_a_cache_of_another_count_is_not_taken(tmp_path):
    two = tiny_base.render_identities(2, tmp_path / "a.npy")
    assert torch.equal(two, tiny_base.render_identities(2, tmp_path / "a.npy"))
    assert len(tiny_base.render_identities(3, tmp_path / "a.npy")) == 3
