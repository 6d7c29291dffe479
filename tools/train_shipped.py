"""Train the shipped enhancer: a base of its own, all of it, for hours, on precomputed pairs.

    python -m tools.train_shipped --pairs PAIRS PAIRS_256PX=4 --validation *.npz --state STATE
    torchrun --nproc-per-node 2 -m tools.train_shipped …  # one process a core
    python -m tools.train_shipped --state STATE --export helpers/assets --strength 0.9

Encoder, UNet, decoder and skips learn to restore. Goes on where it was stopped, or with --shipped
from the weights in `helpers/assets`. Pairs are shards as `tools.heads.pairs` writes them. --export
writes the base `tiny-restorer` and, as `enhancer`, what an export adds to it. Procedural heads
alone teach how procedural heads look, so many are covered with pictures without people: 14
panoramas of Poly Haven (npm package @pmndrs/assets), from scikit-image `chelsea` (a cat) by Stéfan
van der Walt, `coffee` by Rachel Michetti, `brick`, `grass` and `gravel` by CC0Textures, all CC0;
`rocket` by SpaceX, `moon` by NASA and `coins`, in the public domain, and so is scipy's `face` (a
raccoon) by Judy Weggelaar.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn
from torch.nn.functional import max_pool2d

from splat_enhancer.config import Config, DegradationConfig
from splat_enhancer.degradation.pipeline import degrade, draw_amounts
from splat_enhancer.degradation.wrong_detail import wrong_detail
from splat_enhancer.losses.metrics import psnr
from splat_enhancer.losses.perceptual import load_stlpips, perceptual_distances
from splat_enhancer.model.enhancer import SplatEnhancer
from splat_enhancer.model.export import SHIPPED, export, load
from tools.build_base import HALF, SCHEDULER, TEXT_WIDTH, write_text_encoder

CONFIG = Config(train_base="full", blend="correction", timestep=249, weight_fit=0,
                weight_synthetic=0.13, weight_novel_view=0.6, weight_wrong_detail=0.27,
                mixed_precision="no")
SIZES = {96: 6, 128: 4}  # side of the squares of a step: how many of them
ZOOMS = {1: 0.62, 2: 0.25, 4: 0.13}  # a head is to be changed alike at any size
DTYPE = torch.bfloat16 if HALF else torch.float32  # of the perceptual loss
STRENGTHS, LOG_S = (1.0, 0.6, 0.3), 900  # at which validation looks; seconds from one to the next
MADE_SHARE = 0.4  # of the squares: from one clean picture, not a fit's view
SYNTHETIC_EACH = 3  # so many of those have a synthetic degradation, the others wrong detail
LEARNING_RATE, WARM_S = 2e-4, 60  # at most; seconds to reach it
RATE_FACTORS = {r"unet": 3.0, r"vae\.decoder\.conv_out": 0.5, r"(?!unet|vae\.decoder\.conv_out)": 1}
MILD = 0.03  # a picture with a smaller error counts for more: what is nearly right is to stay so
HARM = 1.0  # where the output is further from the truth than the input, that counts once more
FLAT, FLAT_WEIGHT = 0.03, 3.0  # where the truth varies by less, an error weighs so much more
SQUARED, PERCEPTUAL = 20.0, 8.0  # weights beside the mean absolute error; of ST-LPIPS-VGG
LATENT = 0.2  # of the UNet's error, as a share of what it has to repair
GIVEN_SHARE = 0.4  # of the steps: two squares teach the decoder to draw what the latent says
AVERAGE_STEPS = 8  # after so many, processes average their weights
AVERAGE, SEED = 0.999, 0  # running average of the weights, per step
MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW
SPOTS, SPOT_SHARE = 20, 0.4  # painted at most; of the squares that get some
CLEAN_SHARE, MIXED_SHARE, MILD_SHARE, COLOR_SHARE = 0.05, 0.15, 0.2, 0.5


class Shards:
    """The training pairs in memory; each folder has a weight, each pair in it the same chance."""

    def __init__(self, folders: list[str]) -> None:
        self.arrays: dict[Path, tuple[np.ndarray, np.ndarray]] = {}
        self.made: dict[Path, tuple[np.ndarray, np.ndarray]] = {}
        self.weights: dict[Path, float] = {}
        for folder, weight in ((f + "=1").split("=")[:2] for f in folders):
            for file in sorted(Path(folder).glob("*_train_*.npz")):
                with np.load(file) as content:
                    arrays = [content[n] for n in ("degraded", "clean", "matte", "regions")]
                self.arrays[file] = arrays[0], arrays[1]
                self.made[file] = _make_pairs(*arrays[1:], file)
                self.weights[file] = float(weight) * len(arrays[0])

    def draw(self, rng: np.random.Generator, side: int, count: int) -> tuple[Tensor, Tensor]:
        """Random squares of one shard: degraded, clean (count, 3, side, side) in [0, 1]."""
        files = list(self.weights)
        weights = np.array([self.weights[file] for file in files])
        source = self.made if rng.random() < MADE_SHARE else self.arrays
        degraded, clean = source[files[rng.choice(len(files), p=weights / weights.sum())]]
        zoom = rng.choice(list(ZOOMS), p=list(ZOOMS.values()))
        length, squares = side // zoom, []
        for n in rng.integers(len(clean), size=count):
            top, left = rng.integers(0, np.array(clean.shape[1:3]) - length + 1)
            place = n, slice(top, top + length), slice(left, left + length)
            pair = np.stack([degraded[place], clean[place]])
            squares.append(pair[:, :, ::-1] if rng.random() < 0.5 else pair)
        parts = (to_images(np.stack(squares)[:, i]) for i in (0, 1))
        return tuple(part if zoom == 1 else nn.functional.interpolate(
            part, (side, side), mode="bicubic").clamp(0, 1) for part in parts)


def augment(degraded: Tensor, clean: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Vary colours, and make some degradation mild, local or absent: what is good is to stay so."""
    degraded, clean = degraded.clone(), clean.clone()
    for i in range(len(clean)):
        kind = rng.random()
        if kind < CLEAN_SHARE:
            degraded[i] = clean[i]
        elif kind < CLEAN_SHARE + MIXED_SHARE:  # degraded in patches
            cells = torch.from_numpy(rng.normal(size=(1, 1, 4, 4))).float()
            patches = (6 * nn.functional.interpolate(cells, clean.shape[2:], mode="bicubic"))[0]
            degraded[i] = clean[i].lerp(degraded[i], patches.sigmoid())
        elif kind < CLEAN_SHARE + MIXED_SHARE + MILD_SHARE:
            degraded[i] = clean[i].lerp(degraded[i], float(rng.uniform(0.3, 1)))
        if rng.random() < COLOR_SHARE:
            least = 0.75 if rng.random() < 0.5 else 0.3  # as before a strongly coloured backdrop
            gain = torch.from_numpy(rng.uniform(least, 1.1, (3, 1, 1))).float()
            gamma = float(rng.uniform(0.75, 1.3))
            degraded[i], clean[i] = degraded[i] ** gamma * gain, clean[i] ** gamma * gain
        if rng.random() < SPOT_SHARE:
            degraded[i] = paint_spots(degraded[i], rng)
    return degraded.clamp(0, 1), clean.clamp(0, 1)


def paint_spots(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Paint floaters, needles and faint stains of random colours, many of them the picture's."""
    count, side = rng.integers(1, SPOTS + 1), image.shape[1]
    line = torch.arange(side) / 128
    x, y, turn, long, wide, opacity = torch.from_numpy(rng.random((6, count, 1, 1))).float()
    long, wide = 0.008 * 20**long, 0.006 * 8**wide  # of 128 pixels
    dx, dy = line - x * side / 128, line[:, None] - y * side / 128
    along = (dx * (6.28 * turn).cos() + dy * (6.28 * turn).sin()) / long
    across = (dy * (6.28 * turn).cos() - dx * (6.28 * turn).sin()) / wide.minimum(long)
    opacity = (0.1 + 0.8 * opacity) / (1 + 10 * long)
    weights = opacity * torch.exp(-0.5 * (along**2 + across**2))
    places = rng.integers(0, side, (2, count))
    colors = image[:, places[0], places[1]].T.lerp(
        torch.from_numpy(rng.random((count, 3))).float(), float(rng.random()))
    for color, weight in zip(colors[:, :, None, None], weights, strict=True):
        image = image.lerp(color.expand_as(image), weight)
    return image


def new_vae(seed: int) -> AutoencoderKL:
    """The autoencoder before training: 16 latent channels at a quarter of a side."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64), layers_per_block=1, latent_channels=16,
        norm_num_groups=1, sample_size=128, scaling_factor=1.0, mid_block_add_attention=False)
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


def new_unet(seed: int) -> UNet2DConditionModel:
    """The UNet before training: most of the weights, on pictures of a quarter of a side."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=32, in_channels=16, out_channels=16, block_out_channels=(64, 96, 128),
        layers_per_block=1, down_block_types=("DownBlock2D",) * 2 + ("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",) + ("UpBlock2D",) * 2, norm_num_groups=8,
        cross_attention_dim=TEXT_WIDTH, attention_head_dim=4, use_linear_projection=True)


class EvenNorms:
    """Keeps what each GroupNorm divides by nearly the same, whatever is in the picture.

    Two channels of opposite constants make up three quarters of the variance. Without them a small
    network learns to make a few features so large that the normalisation leaves nothing of the
    others, and its statistics are others in a larger picture or in a tile of it.
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


class TrainedEncoder(SplatEnhancer):
    """The enhancer with an encoder that learns, too; it keeps the UNet's input and output.

    With `given` set, the decoder draws the last two pictures from it and from the input's latent.
    """

    given: Tensor | None = None

    def _encode(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        self.latent, features = SplatEnhancer._encode.__wrapped__(self, images)
        return self.latent, features

    def _decode(self, latent: Tensor, features: list[Tensor], skip_scale: Tensor) -> Tensor:
        self.restored_latent = latent
        if self.training and self.given is not None:
            latent = torch.cat([latent[:-2], self.given[-2:-1], self.latent[-1:]])
        return super()._decode(latent, features, skip_scale)


def build(folder: Path) -> TrainedEncoder:
    """The networks before training, in float32; their convolutions run in bfloat16."""
    if not (base := folder / "base").exists():
        write_text_encoder(base, SEED)
        DDPMScheduler(**SCHEDULER).save_pretrained(base / "scheduler")
        new_unet(SEED).save_pretrained(base / "unet")
        new_vae(SEED).save_pretrained(base / "vae")
    config = CONFIG.replace(pretrained_model_name_or_path=str(base))
    model = TrainedEncoder.from_pretrained(config, device="cpu", seed=SEED)
    model.vae.encoder.requires_grad_(True)
    model.vae.quant_conv.requires_grad_(True)
    generator = torch.Generator().manual_seed(SEED)
    for skip in model.skips:
        skip.weight.data.normal_(0, 2 / math.sqrt(skip.in_channels), generator=generator)
    for block in model.vae.decoder.up_blocks[:-1]:
        block.upsamplers[0].conv.weight.data.mul_(0.5)  # what comes by the skips counts for more
    return model.to(memory_format=torch.channels_last)


class Training:
    """Weights, their running average, the optimiser and the step: all that a stop must keep."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.step, self.seconds = folder, 0, 0.0
        self.model = build(folder)
        self.norms = EvenNorms(self.model.vae.encoder, self.model.vae.decoder,
                               skips=self.model.skips)
        self.norms.hold()
        self.parameters = self.model.trainable()
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}
        groups = [{"factor": factor, "params": [p for name, p in self.parameters.items()
                                                if re.match(pattern, name)]}
                  for pattern, factor in RATE_FACTORS.items()]
        self.limits = [(p.detach(), p.detach().norm()) for name, p in
                       self.model.unet.named_parameters() if p.ndim > 1 and "conv_out" not in name]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=1e-3, fused=True)
        self.vgg = load_stlpips("vgg")
        self.vgg.net.to(DTYPE, memory_format=torch.channels_last)
        self.losses, self.norm = [], 1.0  # of each step; of the gradient, its running mean
        if (folder / "state.safetensors").exists():
            self._read()

    def update(self, degraded: Tensor, clean: Tensor, rate: float,
               rng: np.random.Generator) -> None:
        """One step of AdamW on one batch."""
        degraded = degraded.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=HALF):
            with torch.no_grad():
                clean_latent, _ = self.model._encode(clean)
            self.model.given = clean_latent if rng.random() < GIVEN_SHARE else None
            restored = self.model.train()(degraded)
            latent, restored_latent = self.model.latent, self.model.restored_latent
        target = clean if self.model.given is None else torch.cat([clean[:-1], degraded[-1:]])
        error = restored - target
        harm = (error.abs() - (degraded - target).abs()).clamp(min=0)
        low, high = (max_pool2d(sign * clean, 5, 1, 2) for sign in (-1, 1))
        flat = (low + high).amax(1, keepdim=True) < FLAT
        milder = MILD / (0.01 + (degraded - clean).abs().mean((1, 2, 3)))  # (B,)
        weight = milder.view(-1, 1, 1, 1) * (1 + FLAT_WEIGHT * flat)
        losses = {"l1": (weight * (error.abs() + HARM * harm)).mean(),
                  "l2": (weight * error.square()).mean()}
        own = (latent.detach() - latent) / math.sqrt(self.model.alpha_bar)  # the encoder learns not
        losses["latent"] = (restored_latent + own - clean_latent).square().mean() / \
            (latent.detach() - clean_latent).square().mean()  # to be easy for the UNet
        top, left = rng.integers(0, clean.shape[2] - 63, size=2)
        square = slice(2), slice(None), slice(top, top + 64), slice(left, left + 64)
        losses["stlpips"] = (milder[:2] * perceptual_distances(
            self.vgg, restored[square], clean[square], dtype=DTYPE,
            terms=("lpips",))["lpips"]).mean()
        self.optimizer.zero_grad()
        (losses["l1"] + SQUARED * losses["l2"] + PERCEPTUAL * losses["stlpips"]
         + LATENT * losses["latent"]).backward()
        norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), 2 * self.norm))
        self.norm = 0.98 * self.norm + 0.02 * min(norm, 2 * self.norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self.optimizer.step()
        self.norms.hold()
        with torch.no_grad():  # or features grow from layer to layer, until the UNet stands still
            for weight, limit in self.limits:
                weight.mul_((limit / weight.norm()).clamp(max=1))
        self.step += 1
        keep = min(AVERAGE, self.step / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()),
                                 1 - keep)
        self.losses.append({name: float(value.detach()) for name, value in losses.items()})

    @torch.no_grad()
    def average_processes(self, done: float) -> float:
        """Average the weights, and whatever number `done`, with those of the other processes."""
        parameters = list(self.parameters.values())
        total = torch.cat([*(p.flatten() for p in parameters), torch.tensor([done])])
        distributed.all_reduce(total)
        *means, done = (total / distributed.get_world_size()).split(
            [p.numel() for p in parameters] + [1])
        for parameter, mean in zip(parameters, means, strict=True):
            parameter.copy_(mean.view_as(parameter))
        return float(done)

    @contextmanager
    def averaged(self) -> Iterator[SplatEnhancer]:
        """The model with the averaged weights, for measuring."""
        trained = self.model.trained_state()
        self.model.eval().load_trained(self.average)
        try:
            yield self.model
        finally:
            self.model.train().load_trained(trained)

    def save(self) -> None:
        """Write all of it, beside its place first."""
        tensors = {f"weights/{name}": p.detach() for name, p in self.parameters.items()}
        tensors |= {f"average/{name}": value for name, value in self.average.items()}
        for name, parameter in self.parameters.items():
            tensors |= {f"{key}/{name}": self.optimizer.state[parameter][key] for key in MOMENTS}
        partial = self.folder / "state.partial"
        save_file({name: value.contiguous() for name, value in tensors.items()}, partial,
                  {"step": str(self.step), "seconds": str(self.seconds)})
        partial.replace(self.folder / "state.safetensors")

    def take_shipped(self, strength: float) -> None:
        """Go on from an export that was written at this strength; the optimiser starts again."""
        shipped = dict(load().named_parameters())
        for name, parameter in self.parameters.items():
            is_last = name.startswith("vae.decoder.conv_out")
            parameter.data.copy_(shipped[name].float() / (strength if is_last else 1))
            self.average[name].copy_(parameter.detach())
        self.step = json.loads((SHIPPED / "card.json").read_text())["training"]["steps"]

    def _read(self) -> None:
        file = self.folder / "state.safetensors"
        with safe_open(file, "pt") as content:
            texts = content.metadata()
        self.step, self.seconds = int(texts["step"]), float(texts["seconds"])
        tensors = load_file(file)
        for name, parameter in self.parameters.items():
            parameter.data.copy_(tensors[f"weights/{name}"])
            self.average[name].copy_(tensors[f"average/{name}"])
            self.optimizer.state[parameter] = {"step": torch.tensor(float(self.step))} | {
                key: torch.empty_like(parameter).copy_(tensors[f"{key}/{name}"]) for key in MOMENTS}


class Validation:
    """Gain over the untouched render on heads that are not trained on; these choose."""

    def __init__(self, files: list[Path], count: int = 16) -> None:
        self.alex, self.sets = load_stlpips("alex"), {}
        for file in files:
            with np.load(file) as content:
                degraded, clean, inside = (
                    content[name] for name in ("degraded", "clean", "interpolated"))
            for name, kind in (("interpolated", inside), ("extrapolated", ~inside)):
                chosen = np.flatnonzero(kind)
                chosen = chosen[:: max(1, len(chosen) // count)][:count]
                if len(chosen):
                    pair = to_images(degraded[chosen]), to_images(clean[chosen])
                    self.sets[f"{file.stem} {name}"] = (*pair, self._measure(*pair))

    @torch.no_grad()
    def __call__(self, model: SplatEnhancer) -> dict[str, list[float]]:
        """By set, stlpips_alex gain in percent and PSNR gain in dB, at each of STRENGTHS."""
        figures = {}
        for name, (degraded, clean, before) in self.sets.items():
            with torch.autocast("cpu", torch.bfloat16, enabled=HALF):
                restored = torch.cat([model(part) for part in degraded.split(4)])
            figures[name] = []
            for strength in STRENGTHS:
                after = self._measure(degraded.lerp(restored, strength).clamp(0, 1), clean)
                figures[name] += [round(100 * (1 - after[0] / before[0]), 2),
                                  round(after[1] - before[1], 3)]
        return figures

    @torch.no_grad()
    def _measure(self, images: Tensor, clean: Tensor) -> tuple[float, float]:
        parts = zip(images.split(4), clean.split(4), strict=True)
        distances = torch.cat([self.alex(a, b, normalize=True).flatten() for a, b in parts])
        return float(distances.mean()), float(psnr(images, clean).mean())


def train(training: Training, shards: Shards, validation: Validation, minutes: float,
          decay_minutes: float) -> None:
    """Train for some minutes by the clock; in the last of them the rate falls to a fiftieth."""
    began, used = time.monotonic(), time.process_time()
    rank, ranks = (int(os.environ.get(name, n)) for name, n in (("RANK", 0), ("WORLD_SIZE", 1)))
    rng = np.random.default_rng([SEED, training.step, rank])
    due = began + LOG_S
    while True:
        spent = time.monotonic() - began
        done = min(1.0, spent / (60 * minutes))
        left = (minutes - spent / 60) / decay_minutes if decay_minutes else 1.0
        rate = LEARNING_RATE * min(1.0, (spent + 1) / WARM_S, max(0.02, left))
        side = list(SIZES)[training.step % 2]  # the same in all processes: none waits long
        pair = augment(*shards.draw(rng, side, SIZES[side]), rng)
        training.update(*pair, rate, rng)
        if ranks > 1 and training.step % AVERAGE_STEPS == 0:
            done = training.average_processes(done)
        elif ranks > 1:
            continue
        if not rank and (time.monotonic() > due or done == 1):
            training.seconds += ranks * (time.process_time() - used)
            used = time.process_time()
            with training.averaged() as model:
                figures = validation(model)
            entry: dict[str, Any] = {
                "step": training.step, "core_seconds": round(training.seconds),
                "rate": round(rate, 6), "pairs": sum(len(a) for a, _ in shards.arrays.values()),
                "losses": {name: round(float(np.mean([x[name] for x in training.losses[-300:]])), 5)
                           for name in training.losses[-1]}, "validation": figures}
            with (training.folder / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(entry) + "\n")
            print(json.dumps(entry), flush=True)
            training.save()
            due = time.monotonic() + LOG_S
        if done == 1:
            return


def _make_pairs(clean: np.ndarray, matte: np.ndarray, regions: np.ndarray, shard: Path,
                ) -> tuple[np.ndarray, np.ndarray]:
    """Other pairs of a shard's pictures, kept beside it: degraded, clean."""
    kept = shard.parent / "made" / shard.name
    if kept.exists():
        with np.load(kept) as content:
            return content["degraded"], content["clean"]
    pairs: list[list[np.ndarray]] = [[], []]
    settings, first_seed = DegradationConfig(), int(shard.stem.rsplit("_", 1)[1]) * 1000
    for row in range(len(clean)):
        image, seeds = to_images(clean[row:row + 1]), torch.tensor([first_seed + row])
        if row % SYNTHETIC_EACH == 0:
            parts = torch.from_numpy(regions[row:row + 1])
            pair = degrade(image, parts, settings, seeds,
                           amounts=draw_amounts(settings, seeds)), image
        else:
            mask = torch.from_numpy(matte[row:row + 1] / 255).float()
            pair = wrong_detail(image, mask, seeds.tolist())[::-1]
        for part, picture in zip(pairs, pair, strict=True):
            part.append(to_pixels(picture))
    degraded, clean = (np.concatenate(part) for part in pairs)
    kept.parent.mkdir(exist_ok=True)
    np.savez(kept, degraded=degraded, clean=clean)
    return degraded, clean


def write_export(training: Training, assets: Path, strength: float) -> None:
    """Write the averaged weights: a base in half precision, and what an export adds to it."""
    base = assets / "tiny-restorer"
    shutil.copytree(training.folder / "base", base, dirs_exist_ok=True)
    with training.averaged() as model:
        vae, unet = copy.deepcopy(model.vae), copy.deepcopy(model.unet)
    new = {f"vae.decoder.conv_out.{name}": value.detach() * strength
           for name, value in vae.decoder.conv_out.state_dict().items()}
    for part, network in (("vae", vae), ("unet", unet)):
        for file in (base / part).glob("*.safetensors"):
            file.unlink()
        network.register_to_config(_name_or_path="")  # no folder of ours in its card
        network.half().save_pretrained(base / part, variant="fp16")
    config = CONFIG.replace(pretrained_model_name_or_path=base.name)
    model = SplatEnhancer.from_pretrained(config, device="cpu")
    skips = {name: value for name, value in training.average.items() if name.startswith("skips")}
    export(model, config, assets / "enhancer", step=training.step, trained=new | skips)


def to_pixels(images: Tensor) -> np.ndarray:
    """The reverse of `to_images`."""
    return (images * 255).round().byte().permute(0, 2, 3, 1).numpy()


def to_images(pixels: np.ndarray) -> Tensor:
    """Uint8 (N, H, W, 3) as float32 (N, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(0, 3, 1, 2).float() / 255


def main() -> None:
    """Train or export."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", nargs="+", default=[], help="folders, as FOLDER=WEIGHT")
    parser.add_argument("--validation", nargs="+", type=Path, default=[], help="shards")
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60, help="by the clock")
    parser.add_argument("--decay-minutes", type=float, default=0, help="the last of them")
    parser.add_argument("--shipped", action="store_true", help="begin with the shipped weights")
    parser.add_argument("--export", type=Path, help="helpers/assets: write base and enhancer")
    parser.add_argument("--strength", type=float, default=1.0, help="of the exported correction")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if ranks := int(os.environ.get("WORLD_SIZE", 0)):
        distributed.init_process_group("gloo")
        if distributed.get_rank():
            distributed.barrier()  # until the first has written what all read
    args.state.mkdir(parents=True, exist_ok=True)
    training = Training(args.state)
    if args.shipped and not training.step:
        training.take_shipped(args.strength)
    if args.export:
        write_export(training, args.export, args.strength)
        return
    shards = Shards(args.pairs)
    validation = Validation(args.validation)
    if ranks and not distributed.get_rank():
        distributed.barrier()
    train(training, shards, validation, args.minutes, args.decay_minutes)


if __name__ == "__main__":
    main()
