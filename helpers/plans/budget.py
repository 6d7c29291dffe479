"""What memory a run will need, counted in seconds without a weight or a GPU.

The real enhancer, losses and trainer run on "meta" tensors, which have shapes and storages but no
content, at the true shapes of the base. Counted is what torch holds: cuDNN's workspace, what the
allocator loses to rounding and fragments, and the CUDA context come on top.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..config import ASSETS, SD_TURBO, TINY_BASE, Config
from ..distances import EnhancerLoss
from ..errors import refused
from ..model import SplatEnhancer
from ..training import Trainer

SPARE_GIB = 1.5  # for cuDNN's workspace and the allocator's fragments
PROMPT_TOKENS = 77  # of CLIP's text encoders
# What differs from diffusers' defaults in unet/config.json and vae/config.json of SD-Turbo
SD_TURBO_UNET = {
    "sample_size": 64, "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20),
    "block_out_channels": (320, 640, 1280, 1280), "use_linear_projection": True,
}
SD_TURBO_VAE = {
    "sample_size": 768, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2,
    "latent_channels": 4, "scaling_factor": 0.18215,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}


def expected_peak_gib(config: Config, *, dtype: torch.dtype = torch.float16,
                      lean: bool = False) -> float:
    """The most GPU memory that a training step will hold at once, in GiB (2^30 bytes).

    Counts every storage that is alive: weights of all networks, masters, AdamW's moments,
    gradients, images, activations, and what passes in between.

    Args:
        config: its base, loss, batch and size count.
        dtype: of the working copies.
        lean: with `SplatEnhancer.use_lean_memory`.

    Raises:
        OSError: a base other than SD-Turbo whose configuration cannot be found.
    """
    with meta_run() as meter:
        step = prepare_step(config, *build_on_meta(config, dtype), lean=lean)
        meter.peak = meter.now
        step()
        return meter.peak / 2**30


@dataclass(frozen=True)
class Plan:
    """How a run will use the memory of its GPU; printed, it is a sentence."""

    lean: bool  # for `SplatEnhancer.use_lean_memory`
    expected_gib: float  # peak of a training step, as counted
    available_gib: float  # free on the GPU, 0 without one

    def __str__(self) -> str:
        mode = "lean (activations are recomputed)" if self.lean else "full (nothing is recomputed)"
        of = f" of {self.available_gib:.1f} free" if self.available_gib else ""
        return f"memory mode {mode}: a training step should peak at {self.expected_gib:.2f}{of} GiB"


def plan_memory(config: Config, *, dtype: torch.dtype, free_gib: float) -> Plan:
    """Choose between full and lean memory before anything is trained.

    Args:
        config: `optim.memory` decides, or, at "auto", what fits with `SPARE_GIB` to spare.
        dtype: of the working copies.
        free_gib: what the run can have of the GPU's memory, see `machine.free_gib`; 0 without one
            means that full memory is used.

    Raises:
        ValueError: a step cannot fit.
    """
    lean = config.optim.memory == "lean"
    peak = expected_peak_gib(config, dtype=dtype, lean=lean)
    if config.optim.memory == "auto" and 0 < free_gib < peak + SPARE_GIB:
        lean, peak = True, expected_peak_gib(config, dtype=dtype, lean=True)
    if 0 < free_gib < peak:
        raise refused("free memory of the GPU", f"{peak:.1f} GiB or more for a training step",
                      f"{free_gib:.1f}", "end what else uses it, or lower optim.batch "
                      "(optim.accumulate makes up for it) or data.size_px"
                      + ("" if lean else ", or set optim.memory to 'lean'"))
    return Plan(lean, peak, free_gib)


def build_on_meta(config: Config, dtype: torch.dtype) -> tuple[SplatEnhancer, EnhancerLoss]:
    """The enhancer and the loss of a config, of true shape and without content."""
    vae, unet = network_configs(config.model.base)
    with torch.device("meta"):
        prompt = torch.zeros(1, PROMPT_TOKENS, unet["cross_attention_dim"])
        model = SplatEnhancer(config.model, vae=AutoencoderKL.from_config(vae),
                              unet=UNet2DConditionModel.from_config(unet),
                              prompt_embedding=prompt, alpha_bar=0.5).to(dtype)
        vgg = "stlpips" if config.loss.vgg == "stlpips" else "random"  # LPIPS's own is a download
        offline = replace(config.loss, l1=1.0, clip=0.0, vgg=vgg)
        loss = EnhancerLoss(offline, device="meta", dtype=dtype)
        loss.clip = _clip().to(dtype) if config.loss.clip else None
    loss.config = config.loss
    return model, loss


def network_configs(base: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configurations of a base's VAE and UNet; the hub is asked for no base of ours."""
    if base == SD_TURBO:
        return SD_TURBO_VAE, SD_TURBO_UNET
    home = ASSETS / base if base == TINY_BASE else base
    return (AutoencoderKL.load_config(home, subfolder="vae"),
            UNet2DConditionModel.load_config(home, subfolder="unet"))


def prepare_step(config: Config, model: SplatEnhancer, loss: EnhancerLoss, *,
                 lean: bool = False) -> Callable[[], None]:
    """A training step that is not the first: gradients and AdamW's moments are there already."""
    device = model.prompt_embedding.device
    model.use_lean_memory(lean)
    trainer = Trainer(config, model)
    trainer.backward(torch.stack([p.float().sum() for p in trainer.working.values()]).sum())
    trainer.update()
    side = config.data.size_px
    clean, degraded = torch.zeros(2, config.optim.batch, 3, side, side, device=device)
    mask = torch.ones(len(clean), device=device)

    def step() -> None:
        repair = model(degraded, mask, parts=True)
        losses = loss(repair.decoded, clean, choice=repair.choice(degraded))
        trainer.backward(losses["total"])
        trainer.update()

    return step


class Meter(TorchDispatchMode):
    """Adds up the storages of one kind of device, each from the operation that makes it to its end.

    Args:
        device_type: "meta", or "cpu" to count a real run.
    """

    def __init__(self, device_type: str) -> None:
        super().__init__()
        self.device_type = device_type
        self.now = self.peak = 0  # bytes
        self.alive: set[int] = set()

    def __torch_dispatch__(self, operation: Callable, types: tuple, args: tuple = (),
                           kwargs: dict | None = None) -> Any:
        if operation is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return args[0].dtype == torch.bool or 0.0  # all is finite, no gradient overflowed
        result = operation(*args, **kwargs or {})
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return result

    def add(self, tensor: Tensor) -> None:
        """Count the storage of a tensor, unless it is counted already or of another device."""
        if tensor.device.type != self.device_type:
            return
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.alive:
            self.alive.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._remove, key, size).atexit = False

    def _remove(self, key: int, size: int) -> None:
        self.alive.remove(key)
        self.now -= size


@contextmanager
def meta_run() -> Iterator[Meter]:
    """Count storages, answer for values that nobody knows, and run attention as a GPU does.

    Left to itself, torch would give "meta" tensors the attention that keeps every score.
    """
    unfused = functional.scaled_dot_product_attention

    def fused(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
              *_: Any, scale: float | None = None, **__: Any) -> Tensor:
        return torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, attn_mask, torch.is_grad_enabled(), scale=scale)[0]

    functional.scaled_dot_product_attention = fused
    try:
        with Meter("meta") as meter:
            yield meter
    finally:
        functional.scaled_dot_product_attention = unfused


def _clip() -> nn.Module:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection  # slow, as in losses

    return CLIPVisionModelWithProjection(CLIPVisionConfig()).requires_grad_(False).eval()
