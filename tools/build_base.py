"""Rebuild the embedded base `helpers/assets/tiny-sd-turbo`: SD-Turbo's topology, very small.

    python -m tools.train_shipped --pairs PAIRS --state STATE --minutes 120
    python -m tools.build_base OUT --state STATE --pairs PAIRS --validation FILE

The encoder is the one that `tools.train_shipped` has trained, and from here on it is frozen. The
decoder that learned beside it to draw what was encoded is taught what people see, and a UNet learns
to predict noise. All pictures are procedural heads; no photograph of anybody is involved.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

SIZE_PX = 128
TEXT_WIDTH = 64
SCHEDULER = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
             "clip_sample": False}


@dataclass(frozen=True)
class Plan:
    """How a network is trained: AdamW with a short warm-up and a cosine towards zero."""

    steps: int
    batch: int
    rate: float  # at its peak


DECODER, UNET = Plan(700, 2, 8e-4), Plan(1_000, 16, 1e-3)
SQUARED, PERCEPTUAL = 6.0, 0.5  # weights beside the mean absolute error, of images in [-1, 1]


def new_vae(seed: int) -> AutoencoderKL:
    """The autoencoder before training: 4 encoder blocks, 4 latent channels, an eighth of a side."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 96), layers_per_block=1, latent_channels=4,
        norm_num_groups=1, sample_size=SIZE_PX, scaling_factor=1.0)
    for name, layer in vae.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            after_silu = name.endswith(("conv1", "conv2", "conv_out"))
            gain = (0.4 if name.endswith(("conv2", "to_out.0")) else 1) / (
                0.356 if after_silu else 1) ** 0.5  # 0.356: mean square of SiLU
            nn.init.normal_(layer.weight, 0, gain / math.sqrt(layer.weight[0].numel()))
            nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.GroupNorm):
            nn.init.constant_(layer.weight, (1 - EvenNorms.SHARE) ** -0.5)
    EvenNorms(vae.encoder, vae.decoder).hold()
    return vae


class EvenNorms:
    """Keeps what each GroupNorm divides by nearly the same, whatever is in the picture.

    Two channels of opposite constants make up three quarters of the variance. Without them a small
    network learns to make a few features so large that the normalisation leaves nothing of the
    others, and the same face is changed differently in a larger picture or in a tile of it.
    """

    SHARE = 0.75  # of the variance

    def __init__(self, *halves: nn.Module, skips: nn.ModuleList | None = None) -> None:
        """Take encoders and decoders of an AutoencoderKL, and what leads from one to the other."""
        self.values: list[tuple[Tensor, Any]] = []  # what is held, and the value
        for half in halves:
            for name, layer in half.named_modules():
                if isinstance(layer, nn.GroupNorm) or name.endswith(("conv2", "to_out.0")):
                    self.values += [(layer.weight[:2].detach(), 0.0),
                                    (layer.bias[:2].detach(), 0.0)]
                elif isinstance(layer, nn.Conv2d) and name != "conv_out":
                    size = math.sqrt(layer.out_channels * self.SHARE / (1 - self.SHARE) / 2)
                    self.values += [(layer.weight[:2].detach(), 0.0),
                                    (layer.bias[:2].detach(), torch.tensor([size, -size]))]
                    if name != "conv_in" and not name.endswith("conv1"):  # it reads what is held
                        self.values.append((layer.weight[:, :2].detach(), 0.0))
        for skip in skips or []:
            self.values += [(skip.weight[:2].detach(), 0.0), (skip.weight[:, :2].detach(), 0.0)]

    @torch.no_grad()
    def hold(self) -> None:
        """Set all of them again; after each step of an optimiser."""
        for place, value in self.values:
            place.copy_(torch.as_tensor(value).expand_as(place))


def new_unet(seed: int) -> UNet2DConditionModel:
    """The UNet before training."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=SIZE_PX // 8, block_out_channels=(48, 64, 64, 80), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3, norm_num_groups=16,
        cross_attention_dim=TEXT_WIDTH, attention_head_dim=(3, 4, 4, 5),
        use_linear_projection=True)


def write_start(out: Path, seed: int) -> None:
    """The untrained base, with text encoder and scheduler."""
    write_text_encoder(out, seed + 2)
    DDPMScheduler(**SCHEDULER).save_pretrained(out / "scheduler")
    new_unet(seed).save_pretrained(out / "unet")
    new_vae(seed).save_pretrained(out / "vae")


def read_trained(state: Path) -> AutoencoderKL:
    """The autoencoder as `tools.train_shipped` has left it: its encoder, and the plain decoder."""
    average = {name.removeprefix("average/"): tensor for name, tensor
               in load_file(state / "state.safetensors").items() if name.startswith("average/")}
    parts = {"vae.encoder.": "encoder.", "vae.quant_conv.": "quant_conv.",
             "plain.0.": "post_quant_conv.", "plain.1.": "decoder."}
    vae = new_vae(0)
    vae.load_state_dict({new + name.removeprefix(old): tensor for name, tensor in average.items()
                         for old, new in parts.items() if name.startswith(old)})
    return vae


def train_decoder(vae: AutoencoderKL, images: Tensor, seed: int) -> None:
    """Teach the decoder what people see, in bfloat16; its squared error holds PSNR."""
    torch.manual_seed(seed)
    vae.requires_grad_(False).to(memory_format=torch.channels_last)
    trained = nn.ModuleList([vae.post_quant_conv, vae.decoder]).requires_grad_(True)
    norms, network = EvenNorms(vae.decoder), load_stlpips("vgg")
    averages = {name: p.detach().clone() for name, p in trained.named_parameters()}
    for step, rate, optimizer in _schedule(trained, DECODER):
        clean = _batch(images, DECODER.batch, seed, step)
        with torch.autocast("cpu", torch.bfloat16):
            restored = vae.decode(vae.encode(clean).latent_dist.mode()).sample.float()
        error = restored - clean
        loss = error.abs().mean() + SQUARED * error.square().mean() \
            + PERCEPTUAL * perceptual_distances(
                network, restored / 2 + 0.5, clean / 2 + 0.5, dtype=torch.bfloat16,
                terms=("lpips",))["lpips"].mean()
        _update(trained, averages, optimizer, loss, step, rate)
        norms.hold()
    trained.load_state_dict(trained.state_dict() | averages)


def train_unet(latents: Tensor, embedding: Tensor, seed: int) -> UNet2DConditionModel:
    """Train the noise predictor on scaled latents (N, 4, 16, 16) at all timesteps."""
    torch.manual_seed(seed)
    scheduler = DDPMScheduler(**SCHEDULER)
    unet = new_unet(seed)
    averages = {name: p.detach().clone() for name, p in unet.named_parameters()}
    for step, rate, optimizer in _schedule(unet, UNET):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        clean = latents[torch.randint(len(latents), (UNET.batch,), generator=generator)]
        noise = torch.randn(clean.shape, generator=generator)
        when = torch.randint(1_000, (UNET.batch,), generator=generator)
        noisy = scheduler.add_noise(clean, noise, when)
        predicted = unet(noisy, when, embedding.expand(UNET.batch, -1, -1)).sample
        _update(unet, averages, optimizer, mse_loss(predicted, noise), step, rate)
    unet.load_state_dict(unet.state_dict() | averages)
    return unet


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


def _schedule(net: nn.Module, plan: Plan) -> Iterator:
    """Yield (step, learning rate, optimizer)."""
    optimizer = torch.optim.AdamW(net.parameters(), plan.rate, (0.9, 0.99), weight_decay=1e-3)
    for step in tqdm(range(1, plan.steps + 1), mininterval=10):
        rate = plan.rate * min(1.0, step / 100) * 0.5 * (
            1 + math.cos(math.pi * step / plan.steps))
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


def read_clean(files: list[Path], every: int) -> Tensor:
    """Clean pictures of shards, uint8 (N, 3, H, W)."""
    parts = []
    for file in files:
        with np.load(file) as content:
            parts.append(torch.from_numpy(content["clean"][::every]))
    return torch.cat(parts).permute(0, 3, 1, 2)


def main() -> None:
    """Build all parts of the base, and print what it reconstructs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--state", type=Path, required=True, help="of tools.train_shipped")
    parser.add_argument("--pairs", type=Path, required=True, help="folder with shards of 128 px")
    parser.add_argument("--validation", type=Path, required=True, help="one more shard")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    images = read_clean(sorted(args.pairs.glob("gen4_train_*.npz")), every=1)
    vae = read_trained(args.state).half()
    vae.save_pretrained(args.out / "vae", variant="fp16")  # the encoder is as it stays
    vae = vae.float()
    embedding = write_text_encoder(args.out, args.seed + 2)
    new_unet(args.seed).half().save_pretrained(args.out / "unet", variant="fp16")
    DDPMScheduler(**SCHEDULER).save_pretrained(args.out / "scheduler")
    print("The encoder is there; the enhancer may go on beside this", flush=True)
    train_decoder(vae, images, args.seed)
    latents = encode(vae, torch.cat([images[::2], images[1::2].flip(-1)]))
    unet = train_unet(latents, embedding, args.seed + 1)
    unet.half().save_pretrained(args.out / "unet", variant="fp16")
    vae.register_to_config(_name_or_path="")  # no folder of ours in its card
    vae.half().save_pretrained(args.out / "vae", variant="fp16")
    held_out, vae = read_clean([args.validation], every=2), vae.float()
    clean = held_out.float() / 255
    with torch.no_grad():
        restored = (vae.decode(encode(vae, held_out)).sample / 2 + 0.5).clamp(0, 1)
        seen = load_stlpips("alex")(restored, clean, normalize=True).mean()
    print(f"held-out heads: {psnr(restored, clean).mean():.2f} dB, stlpips_alex {seen:.4f}")


if __name__ == "__main__":
    main()
