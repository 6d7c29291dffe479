"""Rebuild the embedded base `helpers/assets/tiny-sd-turbo`: SD-Turbo's topology, very small.

    python -m tests.tiny_base                  # two hours on two CPU cores, or less
    python -m tests.tiny_base --decoder-only   # its last round, on the weights that lie there

Trained on procedural avatars alone, on identities that neither the demo's training set nor its
test set contains. No photograph of anybody is involved.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, mse_loss
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from helpers.config import ASSETS, TINY_BASE, ModelConfig
from helpers.distances.metrics import psnr
from helpers.distances.perceptual import vgg_distances
from helpers.distances.stlpips import load_stlpips
from helpers.faces.avatars import render_avatar

SIZE_PX = 128
FIRST_IDENTITY = 100_000  # train seeds start at 0, test seeds at 1,000,000
TEXT_WIDTH = 64
UNET_DECAY_STEPS = 2_500  # of the cosine; the enhancer's LoRA goes on from there


def render_identities(count: int, cache: Path) -> Tensor:
    """Render `count` avatars, or read them back: uint8 (count, 3, 128, 128)."""
    if cache.exists():
        images = np.load(cache)
        if len(images) == count:
            return torch.from_numpy(images)
    seeds = tqdm(range(FIRST_IDENTITY, FIRST_IDENTITY + count), desc="avatars", mininterval=10)
    images = torch.stack([(render_avatar(s, SIZE_PX)[0] * 255).round().byte() for s in seeds])
    cache.parent.mkdir(parents=True, exist_ok=True)
    partial = cache.with_suffix(".tmp.npy")
    np.save(partial, images.numpy())
    partial.replace(cache)
    return images


@dataclass(frozen=True)
class Round:
    """One round of training the autoencoder, each with a fresh optimiser."""

    steps: int
    decay_steps: int  # of the cosine; a round may end before its rate reaches zero
    peak: float  # learning rate
    color: float  # weight of the mean colour of each 8 x 8 block, as read off the latent


# The first round alone never encoded green against magenta (a linear read-out of the block's mean
# explained 3 % of it, and one of four latent directions lay idle). The second asks for it outright.
VAE_ROUNDS = (Round(2_500, 5_000, 2e-3, color=0.0), Round(1_500, 2_200, 1.5e-3, color=1.0))


@dataclass(frozen=True)
class DecoderRound:
    """The last round: the decoder alone, by what people see. Latents and UNet stay as they are."""

    steps: int
    peak: float  # learning rate
    batch: int
    squared: float  # weight of the squared error beside the absolute one, of images in [-1, 1]
    perceptual: float  # weight of ST-LPIPS-VGG of the whole image
    save_every_steps: int = 100


# Two whole images teach more in the same time than 64-pixel squares of four. The squared error
# holds PSNR above 29 dB, which the perceptual term alone would give away.
DECODER_ROUND = DecoderRound(1_400, 1e-3, batch=2, squared=6.0, perceptual=0.5)


def new_vae(seed: int) -> AutoencoderKL:
    """The autoencoder before training: 4 encoder blocks, 4 latent channels, ÷8."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(24, 48, 64, 96), layers_per_block=1, latent_channels=4,
        norm_num_groups=8, sample_size=SIZE_PX)


def train_vae(vae: AutoencoderKL, images: Tensor, plan: Round, batch: int, seed: int,
              out: Path) -> AutoencoderKL:
    """Train for one round (bf16 arithmetic), save the averaged weights in fp16, return them."""
    torch.manual_seed(seed)
    vae = copy.deepcopy(vae).requires_grad_(True).to(memory_format=torch.channels_last)
    nets = torch.nn.ModuleList([vae, torch.nn.Conv2d(vae.config.latent_channels, 3, 1)])
    averages = copy.deepcopy(nets).requires_grad_(False)
    average = averages[0]
    for step, rate, optimiser in _schedule(nets, plan.steps, plan.decay_steps, plan.peak):
        clean = _batch(images, batch, seed, step)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(clean).latent_dist
            colors = nets[1](posterior.mode()).float()  # (B, 3, H/8, W/8)
            restored = vae.decode(posterior.sample()).sample.float()
        error = restored - clean
        loss = error.abs().mean() + 2 * error.square().mean() + 1e-6 * posterior.kl().mean()
        loss = loss + plan.color * (colors - avg_pool2d(clean, 8)).abs().mean()
        _update(nets, averages, optimiser, loss, step, rate)
        if step % 500 == 0 or step == plan.steps:
            latents = _encode(average, images[:256])
            average.register_to_config(scaling_factor=round(1 / float(latents.std()), 5))
            _save(average, out / "vae")
    return average.half().float()  # as it was saved


def train_decoder(vae: AutoencoderKL, images: Tensor, plan: DecoderRound, seed: int, out: Path,
                  state_file: Path) -> AutoencoderKL:
    """Tune the decoder on the encoder's latents, save the averaged weights in fp16, return them.

    Every `save_every_steps` the round is kept in `state_file`; the same plan goes on from there.
    """
    vae = copy.deepcopy(vae).requires_grad_(False).to(memory_format=torch.channels_last)
    average = copy.deepcopy(vae)
    nets, averages = (torch.nn.ModuleList([v.post_quant_conv, v.decoder]) for v in (vae, average))
    nets.requires_grad_(True)
    network = load_stlpips("vgg")
    network.net.to(torch.bfloat16, memory_format=torch.channels_last)
    kept = _read_state(state_file, plan, nets, averages)
    for step, rate, optimiser in _schedule(nets, plan.steps, plan.steps, plan.peak, kept):
        clean = _batch(images, plan.batch, seed, step)
        with torch.autocast("cpu", torch.bfloat16):
            restored = vae.decode(vae.encode(clean).latent_dist.mode()).sample.float()
        error = restored - clean
        seen = vgg_distances(network, restored / 2 + 0.5, clean / 2 + 0.5, dtype=torch.bfloat16,
                             terms=("lpips",))["lpips"]
        loss = error.abs().mean() + plan.squared * error.square().mean()
        loss = loss + plan.perceptual * seen.mean()
        _update(nets, averages, optimiser, loss, step, rate)
        if step % plan.save_every_steps == 0 or step == plan.steps:
            _save(average, out / "vae")
            _write_state(state_file, plan, nets, averages, optimiser, step)
    state_file.unlink(missing_ok=True)
    return average.half().float()  # as it was saved


def train_unet(latents: Tensor, embedding: Tensor, steps: int, batch: int, seed: int,
               out: Path) -> UNet2DConditionModel:
    """Train the noise predictor on scaled latents (N, 4, 16, 16) at all timesteps."""
    torch.manual_seed(seed + 1)
    scheduler = _scheduler()
    unet = UNet2DConditionModel(
        sample_size=SIZE_PX // 8, block_out_channels=(48, 64, 64, 80), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3, norm_num_groups=16,
        cross_attention_dim=TEXT_WIDTH, attention_head_dim=(3, 4, 4, 5),
        use_linear_projection=True)
    average = copy.deepcopy(unet).requires_grad_(False)
    for step, rate, optimiser in _schedule(unet, steps, UNET_DECAY_STEPS, 1e-3):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        clean = latents[torch.randint(len(latents), (batch,), generator=generator)]
        noise = torch.randn(clean.shape, generator=generator)
        when = torch.randint(1_000, (batch,), generator=generator)
        noisy = scheduler.add_noise(clean, noise, when)
        predicted = unet(noisy, when, embedding.expand(batch, -1, -1)).sample
        _update(unet, average, optimiser, mse_loss(predicted, noise), step, rate)
        if step % 1_000 == 0 or step == steps:
            _save(average, out / "unet")
    return average


def write_text_encoder(out: Path, seed: int) -> Tensor:
    """Write a byte-level CLIP tokenizer and a small random text encoder; return the embedding.

    One fixed sentence is all the enhancer ever reads, so the encoder is not trained: its output is
    a constant that the UNet learns to use.
    """
    torch.manual_seed(seed + 2)
    folder = out / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    letters = [chr(c) for c in range(33, 127)]
    tokens = letters + [c + "</w>" for c in letters] + ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}),
                                       encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"),
                              model_max_length=77)
    tokenizer.save_pretrained(folder)
    encoder = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokens), hidden_size=TEXT_WIDTH, intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=2, num_attention_heads=4, projection_dim=TEXT_WIDTH,
        bos_token_id=len(tokens) - 2, eos_token_id=len(tokens) - 1, pad_token_id=len(tokens) - 1))
    encoder = encoder.half()
    encoder.save_pretrained(out / "text_encoder", variant="fp16")
    path = out / "text_encoder" / "model.fp16.safetensors"
    tensors = {f"text_model.{name.removeprefix('text_model.')}": tensor
               for name, tensor in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})  # as transformers 4 names them; 5 reads both
    tokens = tokenizer(ModelConfig().prompt, padding="max_length", truncation=True, max_length=77,
                       return_tensors="pt").input_ids
    with torch.no_grad():
        return encoder.float()(tokens)[0]


@torch.no_grad()
def round_trip(vae: AutoencoderKL, first_seed: int = 1_000_000,
               count: int = 24) -> tuple[Tensor, Tensor]:
    """Held-out heads, and what the autoencoder makes of them: (count, 3, 128, 128) in [0, 1]."""
    clean = torch.stack([render_avatar(first_seed + i, SIZE_PX)[0] for i in range(count)])
    restored = vae.decode(vae.encode(clean * 2 - 1).latent_dist.mode()).sample
    return clean, (restored / 2 + 0.5).clamp(0, 1)


def _write_state(file: Path, plan: DecoderRound, nets: torch.nn.Module, averages: torch.nn.Module,
                 optimiser: torch.optim.Optimizer, step: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".tmp")
    torch.save({"plan": asdict(plan), "step": step, "nets": nets.state_dict(),
                "averages": averages.state_dict(), "optimiser": optimiser.state_dict()}, partial)
    partial.replace(file)


def _read_state(file: Path, plan: DecoderRound, nets: torch.nn.Module,
                averages: torch.nn.Module) -> dict:
    """Load what an interrupted round of the same plan has kept; what is left is the schedule's."""
    state = torch.load(file, weights_only=True) if file.exists() else {}
    if state.get("plan") != asdict(plan):
        return {}
    nets.load_state_dict(state["nets"])
    averages.load_state_dict(state["averages"])
    return state


def _scheduler() -> DDPMScheduler:
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                         clip_sample=False)


def _schedule(net: torch.nn.Module, steps: int, decay_steps: int, peak: float,
              kept: dict | None = None) -> Iterator:
    """Yield (step, learning rate, optimiser): short warm-up, then cosine towards zero."""
    optimiser = torch.optim.AdamW(net.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=1e-3)
    if kept:
        optimiser.load_state_dict(kept["optimiser"])
    done = kept["step"] if kept else 0
    for step in tqdm(range(done + 1, steps + 1), initial=done, total=steps, mininterval=10):
        rate = peak * min(1.0, step / 100) * 0.5 * (1 + math.cos(math.pi * step / decay_steps))
        yield step, rate, optimiser


def _update(net: torch.nn.Module, average: torch.nn.Module, optimiser: torch.optim.Optimizer,
            loss: Tensor, step: int, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimiser.step()
    keep = min(0.997, step / (step + 20))
    with torch.no_grad():
        for slow, fast in zip(average.parameters(), net.parameters(), strict=True):
            slow.lerp_(fast, 1 - keep)
    if step % 100 == 0:
        tqdm.write(f"step {step}: loss {float(loss.detach()):.4f}")


def _batch(images: Tensor, batch: int, seed: int, step: int) -> Tensor:
    """Images of one step in [-1, 1], some mirrored, one in eight softened."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    picked = images[torch.randint(len(images), (batch,), generator=generator)].float() / 127.5 - 1
    mirrored = torch.rand(batch, generator=generator) < 0.5
    picked[mirrored] = picked[mirrored].flip(-1)
    soft = torch.rand(batch, generator=generator) < 0.125
    small = avg_pool2d(picked[soft], 4)
    picked[soft] = interpolate(small, scale_factor=4, mode="bilinear", align_corners=False)
    return picked.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def _encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Unscaled latents of uint8 images, eight at a time."""
    return torch.cat([vae.encode(part.float() / 127.5 - 1).latent_dist.mode()
                      for part in images.split(8)])


def _save(net: torch.nn.Module, folder: Path) -> None:
    copy.deepcopy(net).half().save_pretrained(folder, variant="fp16")


def main() -> None:
    """Build all parts of the base, or its decoder alone, and print what it reconstructs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ASSETS / TINY_BASE)
    parser.add_argument("--avatars", type=int, default=4_000)
    parser.add_argument("--unet-steps", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--decoder-only", action="store_true",
                        help="go on from the weights in --out; redo the decoder's round alone")
    args = parser.parse_args()
    images = render_identities(args.avatars, Path("data/tiny-base-avatars.npy"))
    if args.decoder_only:
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(args.out / "vae"))
        weights = args.out / "vae" / "diffusion_pytorch_model.fp16.safetensors"
        vae.load_state_dict(load_file(weights))
    else:
        vae = _train_all_but_the_last_round(images, args)
    vae = train_decoder(vae, images, DECODER_ROUND, args.seed + len(VAE_ROUNDS), args.out,
                        Path("data/tiny-base-decoder.pt"))
    clean, restored = round_trip(vae)
    seen = load_stlpips("alex")(restored, clean, normalize=True).mean()
    print(f"held-out avatars: {psnr(restored, clean).mean():.2f} dB, stlpips_alex {seen:.4f}")


def _train_all_but_the_last_round(images: Tensor, args: argparse.Namespace) -> AutoencoderKL:
    vae = new_vae(args.seed)
    for number, plan in enumerate(VAE_ROUNDS):
        vae = train_vae(vae, images, plan, 8, args.seed + number, args.out)
    both = torch.cat([images, images.flip(-1)])
    latents = _encode(vae, both) * vae.config.scaling_factor
    embedding = write_text_encoder(args.out, args.seed)
    train_unet(latents, embedding, args.unet_steps, 16, args.seed, args.out)
    _scheduler().save_pretrained(args.out / "scheduler")
    return vae


if __name__ == "__main__":
    main()
