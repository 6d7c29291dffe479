"""The networks `bench_gpu` measures, how it times, and what it may hold: any device, any shapes."""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from helpers.config import SD_TURBO, TINY_BASE, Config, preset
from helpers.distances.losses import EnhancerLoss
from helpers.errors import refused
from helpers.model.base import read_alpha_bar
from helpers.model.enhancer import SplatEnhancer
from helpers.plans.budget import PROMPT_TOKENS
from tests.bench import seconds
from tests.rehearsal import TEXT, random_networks

GIB = 2**30
LORA_SPREAD = 1e-3  # of the half of LoRA that starts as 0: merging must have something to merge
Figures = dict[str, Any]
Kept = TypeVar("Kept")


@dataclass(frozen=True)
class Setup:
    """What is measured, and on what; the defaults are the true shapes."""

    device: str = "cuda"
    base: str = SD_TURBO  # whose shapes the networks have
    dtypes: tuple[torch.dtype, ...] = (torch.float16,)  # of the working copies
    size_px: int = 512
    large_px: tuple[int, ...] = (1024, 2048)  # sides of what `enhance` cuts into tiles
    train_batches: tuple[int, ...] = (1, 2)
    most: int = 16  # the largest batch that is tried
    batches: tuple[int, ...] = (1, 4)  # at inference
    degrade_batch: int = 8
    gaussians: int = 20_000
    rounds: int = 12  # timed, after
    warmup: int = 3  # that are not
    limit_gib: float = 14.5  # what this process may hold, as on a T4
    card_gib: float = 0.0  # what the GPU has
    compiler: str = "inductor"
    text: Mapping[str, Any] = field(default_factory=lambda: TEXT)  # the prompt's encoder
    clip: Mapping[str, Any] = field(default_factory=dict)  # what differs from CLIP's ViT-B/32

    @property
    def config(self) -> Config:
        """The `t4` preset on these shapes."""
        return preset("t4").with_({"model.base": self.base, "data.size_px": self.size_px,
                                   "loss.vgg": "stlpips"})


class Bench:
    """A setup, and the one network that is in memory at a time."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.network: dict[Hashable, Any] = {}

    def keep(self, key: Hashable, build: Callable[[], Kept]) -> Kept:
        """Build a network, or take the last one if it has this key."""
        if key not in self.network:
            self.drop()
            self.network[key] = build()
        return self.network[key]

    def drop(self) -> None:
        """Free the network."""
        self.network.clear()
        release(self.setup.device)

    def model(self, dtype: torch.dtype) -> SplatEnhancer:
        """The enhancer, with LoRA that does something, as after some training."""
        return self.keep(dtype, lambda: random_enhancer(self.setup, dtype))

    def images(self, batch: int, side_px: int = 0, seed: int = 0) -> Tensor:
        """Noise (B, 3, side, side) in [0, 1]: constant images would be processed faster."""
        side = side_px or self.setup.size_px
        dice = torch.Generator().manual_seed(seed)
        return torch.rand(batch, 3, side, side, generator=dice).to(self.setup.device)


def limit_memory(setup: Setup, gib: float) -> None:
    """Let this process hold so much of the GPU, the CUDA context not counted."""
    release(setup.device)
    if setup.device == "cuda":
        torch.cuda.set_per_process_memory_fraction(min(1.0, gib / setup.card_gib))


def release(device: str) -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def random_enhancer(setup: Setup, dtype: torch.dtype) -> SplatEnhancer:
    """The enhancer with random weights, drawn on its device."""
    vae, unet = random_networks(setup.base, setup.device)
    config = setup.config.model
    prompt = torch.randn(1, PROMPT_TOKENS, unet.config.cross_attention_dim,
                         generator=torch.Generator().manual_seed(1))
    model = SplatEnhancer(config, vae=vae, unet=unet, prompt_embedding=prompt,
                          alpha_bar=read_alpha_bar(TINY_BASE, config.timestep))
    dice = torch.Generator().manual_seed(2)
    for name, parameter in model.trainable().items():
        if ".lora_B." in name:
            parameter.data.copy_(LORA_SPREAD * torch.randn(parameter.shape, generator=dice))
    return model.to(setup.device, dtype)


def random_loss(setup: Setup, config: Config, dtype: torch.dtype) -> EnhancerLoss:
    """The loss of a config with random VGG16 and CLIP."""
    loss = EnhancerLoss(replace(config.loss, l1=1.0, clip=0.0), device=setup.device, dtype=dtype)
    if config.loss.clip:
        with torch.device(setup.device):
            clip = CLIPVisionModelWithProjection(CLIPVisionConfig(**setup.clip))
        loss.clip = clip.requires_grad_(False).eval().to(dtype)
    loss.config = config.loss
    return loss


def short(dtype: torch.dtype) -> str:
    """torch.float16 → fp16."""
    return str(dtype).replace("torch.", "").replace("bfloat", "bf").replace("float", "fp")


def timed(setup: Setup, work: Callable[[], object], *, images: int = 1) -> Figures:
    """Time calls after a warm-up, everything queued on the GPU included; then its peak memory."""
    for _ in range(setup.warmup):
        work()
    if setup.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = torch.tensor([seconds(work, setup.device) for _ in range(setup.rounds)])
    low, median, high = times.quantile(torch.tensor([0.05, 0.5, 0.95])).tolist()
    figures = {"ms": 1e3 * median, "ms_p5": 1e3 * low, "ms_p95": 1e3 * high, "images": images,
               "images_per_s": images / median}
    if setup.device == "cuda":
        figures |= {"peak_allocated_gib": torch.cuda.max_memory_allocated() / GIB,
                    "peak_reserved_gib": torch.cuda.max_memory_reserved() / GIB}
    return figures


def differences(ours: Tensor, theirs: Tensor) -> Figures:
    """Largest and mean absolute difference; ValueError where one is not finite."""
    if not (ours.isfinite().all() and theirs.isfinite().all()):
        raise refused("output", "finite values", "others", "look at dtype and weights")
    gap = (ours.float().cpu() - theirs.float().cpu()).abs()
    return {"max_abs_difference": float(gap.max()), "mean_abs_difference": float(gap.mean())}
