"""Rebuild the embedded base `helpers/assets/tiny-sd-turbo`: SD-Turbo's topology, very small.

    python -m tools.build_base OUT              # two hours on two CPU cores, or less

Trained on procedural heads alone, on identities that neither the demo's training set nor any test
set contains. No photograph of anybody is involved. The last step makes the decoder's features of
about deviation 1 at every size, which changes no output: trained on, they double at every size, so
skips of a common size would drown the deep ones or vanish at the fine ones.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, mse_loss
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from splat_enhancer.config import Config
from splat_enhancer.losses.metrics import psnr
from splat_enhancer.losses.perceptual import load_stlpips, perceptual_distances
from tools.heads.person import plain_picture

SIZE_PX = 128
FIRST_IDENTITY, HEADS, FIRST_HELD_OUT = 100_000, 4_000, 1_000_000
TEXT_WIDTH = 64
HALF = torch.backends.cpu.get_cpu_capability().startswith("AVX512")  # else bfloat16 is slower
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
             "clip_sample": False}


@dataclass(frozen=True)
class Round:
    """One round of training the autoencoder, each with a fresh optimiser."""

    steps: int
    decay_steps: int  # of the cosine; a round may end before its rate reaches zero
    peak: float  # learning rate
    squared: float  # weight of the squared error beside the absolute one, of images in [-1, 1]
    color: float = 0.0  # weight of the mean colour of each 8 x 8 block, as read off the latent
    perceptual: float = 0.0  # weight of ST-LPIPS-VGG; the decoder alone is then trained
    batch: int = 8


# The first round alone never encoded green against magenta (a linear read-out of the block's mean
# explained 3 % of it, and one of four latent directions lay idle). The second asks for it outright.
# The last one teaches the decoder what people see; its squared error holds PSNR.
ROUNDS = (Round(2_500, 5_000, 2e-3, 2.0), Round(1_500, 2_200, 1.5e-3, 2.0, color=1.0),
          Round(1_400, 1_400, 1e-3, 6.0, perceptual=0.5, batch=2))
UNET_STEPS, UNET_DECAY_STEPS = 1_000, 2_500  # the enhancer goes on from there


def draw_heads(first: int, count: int) -> Tensor:
    """Procedural heads, uint8 (count, 3, 128, 128)."""
    seeds = tqdm(range(first, first + count), desc="heads", mininterval=10)
    return torch.stack([(plain_picture(seed, SIZE_PX)[0] * 255).round().byte() for seed in seeds])


def new_vae(seed: int) -> AutoencoderKL:
    """The autoencoder before training: 4 encoder blocks, 4 latent channels, an eighth of a side."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(24, 48, 64, 96), layers_per_block=1, latent_channels=4,
        norm_num_groups=8, sample_size=SIZE_PX)


def train_vae(vae: AutoencoderKL, images: Tensor, plan: Round, seed: int) -> AutoencoderKL:
    """Train for one round in bfloat16, and return the averaged weights."""
    torch.manual_seed(seed)
    decoder_only = plan.perceptual > 0
    vae = copy.deepcopy(vae).to(memory_format=torch.channels_last)
    colors_of = nn.Conv2d(vae.config.latent_channels, 3, 1)
    trained = nn.ModuleList([vae.post_quant_conv, vae.decoder] if decoder_only
                            else [vae, colors_of])
    vae.requires_grad_(False)
    trained.requires_grad_(True)
    averages = {name: p.detach().clone() for name, p in trained.named_parameters()}
    network = load_stlpips("vgg") if decoder_only else None
    for step, rate, optimizer in _schedule(trained, plan.steps, plan.decay_steps, plan.peak):
        clean = _batch(images, plan.batch, seed, step)
        with torch.autocast("cpu", torch.bfloat16, enabled=HALF):
            posterior = vae.encode(clean).latent_dist
            latent = posterior.mode() if decoder_only else posterior.sample()
            restored = vae.decode(latent).sample.float()
        error = restored - clean
        loss = error.abs().mean() + plan.squared * error.square().mean()
        if network:
            loss = loss + plan.perceptual * perceptual_distances(
                network, restored / 2 + 0.5, clean / 2 + 0.5, dtype=torch.float32,
                terms=("lpips",))["lpips"].mean()
        else:
            colors = colors_of(posterior.mode()).float()  # (B, 3, H/8, W/8)
            loss = loss + 1e-6 * posterior.kl().mean() \
                + plan.color * (colors - avg_pool2d(clean, 8)).abs().mean()
        _update(trained, averages, optimizer, loss, step, rate)
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            parameter.copy_(averages[name])
    if not decoder_only:
        latents = encode(vae, images[:256])
        vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 5))
    return vae


def new_unet(seed: int) -> UNet2DConditionModel:
    """The UNet before training."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=SIZE_PX // 8, block_out_channels=(48, 64, 64, 80), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3, norm_num_groups=16,
        cross_attention_dim=TEXT_WIDTH, attention_head_dim=(3, 4, 4, 5),
        use_linear_projection=True)


def train_unet(latents: Tensor, embedding: Tensor, seed: int) -> UNet2DConditionModel:
    """Train the noise predictor on scaled latents (N, 4, 16, 16) at all timesteps."""
    scheduler = DDPMScheduler(**SCHEDULER)
    unet = new_unet(seed)
    averages = {name: p.detach().clone() for name, p in unet.named_parameters()}
    for step, rate, optimizer in _schedule(unet, UNET_STEPS, UNET_DECAY_STEPS, 1e-3):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        clean = latents[torch.randint(len(latents), (16,), generator=generator)]
        noise = torch.randn(clean.shape, generator=generator)
        when = torch.randint(1_000, (16,), generator=generator)
        noisy = scheduler.add_noise(clean, noise, when)
        predicted = unet(noisy, when, embedding.expand(16, -1, -1)).sample
        _update(unet, averages, optimizer, mse_loss(predicted, noise), step, rate)
    unet.load_state_dict(unet.state_dict() | averages)
    return unet


@torch.no_grad()
def balance(vae: AutoencoderKL, images: Tensor) -> list[float]:
    """Rescale the decoder in place, so that each of its blocks takes features of deviation 1.

    Every block begins by normalising what it takes, so what is added between can have any scale.

    Args:
        images: uint8 (N, 3, H, W), whose features are measured.

    Returns:
        The deviations before.
    """
    decoder, hidden, deviations = vae.decoder, encode(vae, images), []
    hidden = decoder.mid_block(decoder.conv_in(vae.post_quant_conv(hidden)))
    for block in decoder.up_blocks:
        deviations.append(float(hidden.std()))
        hidden = block(hidden)

    def rescale(layer: nn.Module, weight: float, bias: float) -> None:
        layer.weight.mul_(weight)
        layer.bias.mul_(bias)

    factors = [1 / deviation for deviation in deviations]
    rescale(decoder.conv_in, factors[0], factors[0])
    for attention in decoder.mid_block.attentions:
        rescale(attention.to_out[0], factors[0], factors[0])
    blocks = [(decoder.mid_block, factors[0]), *zip(decoder.up_blocks, factors, strict=True)]
    for block, factor in blocks:
        for resnet in block.resnets:
            rescale(resnet.conv2, factor, factor)
            if resnet.conv_shortcut is not None:
                rescale(resnet.conv_shortcut, 1, factor)
    for number, block in enumerate(decoder.up_blocks[:-1]):
        after = factors[number + 1]
        rescale(block.upsamplers[0].conv, after / factors[number], after)
    return deviations


def write_text_encoder(out: Path, seed: int) -> Tensor:
    """Write a byte-level CLIP tokenizer and a small random text encoder; return the embedding.

    One fixed sentence is all the enhancer ever reads, so the encoder is not trained: its output is
    a constant that the UNet learns to use.
    """
    torch.manual_seed(seed)
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
    ids = tokenizer(Config().prompt, padding="max_length", truncation=True, max_length=77,
                    return_tensors="pt").input_ids
    with torch.no_grad():
        return encoder.float()(ids)[0]


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Unscaled latents of uint8 images, eight at a time."""
    return torch.cat([vae.encode(part.float() / 127.5 - 1).latent_dist.mode()
                      for part in images.split(8)])


def _schedule(net: nn.Module, steps: int, decay_steps: int, peak: float) -> Iterator:
    """Yield (step, learning rate, optimizer): short warm-up, then cosine towards zero."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=peak, betas=(0.9, 0.99), weight_decay=1e-3)
    for step in tqdm(range(1, steps + 1), mininterval=10):
        rate = peak * min(1.0, step / 100) * 0.5 * (1 + math.cos(math.pi * step / decay_steps))
        yield step, rate, optimizer


def _update(net: nn.Module, averages: dict[str, Tensor], optimizer: torch.optim.Optimizer,
            loss: Tensor, step: int, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()
    keep = min(0.997, step / (step + 20))
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            averages[name].lerp_(parameter, 1 - keep)


def _batch(images: Tensor, batch: int, seed: int, step: int) -> Tensor:
    """Images of one step in [-1, 1], some mirrored, one in eight softened."""
    rng = np.random.default_rng([seed, step])
    picked = images[rng.integers(len(images), size=batch)].float() / 127.5 - 1
    mirrored, soft = (torch.from_numpy(rng.random(batch) < share) for share in (0.5, 0.125))
    picked[mirrored] = picked[mirrored].flip(-1)
    small = avg_pool2d(picked[soft], 4)
    picked[soft] = interpolate(small, scale_factor=4, mode="bilinear", align_corners=False)
    return picked.contiguous(memory_format=torch.channels_last)


def main() -> None:
    """Build all parts of the base, and print what it reconstructs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    images, vae = draw_heads(FIRST_IDENTITY, HEADS), new_vae(0)
    for seed, plan in enumerate(ROUNDS):
        vae = train_vae(vae, images, plan, seed)
    latents = encode(vae, torch.cat([images, images.flip(-1)])) * vae.config.scaling_factor
    unet = train_unet(latents, write_text_encoder(out, 2), 1)
    unet.half().save_pretrained(out / "unet", variant="fp16")
    DDPMScheduler(**SCHEDULER).save_pretrained(out / "scheduler")
    print("deviations of the decoder's features before:", balance(vae, images[:24]))
    vae.register_to_config(_name_or_path="")  # no folder of ours in its card
    vae.half().save_pretrained(out / "vae", variant="fp16")
    held_out, vae = draw_heads(FIRST_HELD_OUT, 24), vae.float()
    clean = held_out.float() / 255
    with torch.no_grad():
        restored = (vae.decode(encode(vae, held_out)).sample / 2 + 0.5).clamp(0, 1)
        seen = load_stlpips("alex")(restored, clean, normalize=True).mean()
    print(f"held-out heads: {psnr(restored, clean).mean():.2f} dB, stlpips_alex {seen:.4f}")


if __name__ == "__main__":
    main()
