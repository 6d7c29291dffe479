"""The enhancer: SD-Turbo turned into a one-step image-to-image network by LoRA and skips."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import ModelConfig
from ..errors import refused
from .adapters import DECODER_TARGETS, UNET_TARGETS, add_lora, merged_lora, skip_convolutions
from .base import embed_prompt, load_network, read_alpha_bar
from .mask import RepairMask, decide
from .tiles import MARGIN_PX, OVERLAP_PX, TILE_PX, enhance_tiled, tiled_pixels
from .trained import TrainedPart

# Merging LoRA took 16.4 s of one CPU core at SD-Turbo's shapes and saved 0.25 s on 128² pixels.
# What it saves on a GPU is not known yet: `python -m tests.bench_gpu` measures it
MERGE_FROM_PX = {"cpu": 1_100_000}


class Repair(NamedTuple):
    """One pass, and what it was put together from."""

    restored: Tensor  # (B, 3, H, W): input + mask · (decoded − input)
    decoded: Tensor  # (B, 3, H, W), the decoder's own picture
    logit: Tensor | None = None  # (B, 1, H, W), of the repair mask; None without one

    @property
    def mask(self) -> Tensor:
        """Where it repaired: (B, 1, H, W) in [0, 1], all 1 without a repair mask."""
        return torch.ones_like(self.restored[:, :1]) if self.logit is None else decide(self.logit)

    def choice(self, degraded: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """What the mask chose from, and its logit, as the loss takes it; None without a mask."""
        return None if self.logit is None else (degraded, self.decoded, self.logit)


class SplatEnhancer(TrainedPart):
    """A frozen latent-diffusion base that learns to restore images in one pass.

    Trained are LoRA layers in the UNet and the VAE decoder, the UNet's `conv_in`, 1×1 skip
    convolutions from encoder to decoder, and the repair mask, which says per pixel how much of the
    decoder's picture replaces the input. Without it (`config.mask` False) the outputs are those of
    pix2pix-turbo. All modules hold working copies in one dtype; where that
    is a half-precision one, the trainer keeps fp32 masters of `trainable()`.

    Attributes:
        config, seed: what it was built by.

    Source: Parmar et al., "One-Step Image Translation with Text-to-Image Models", 2024.
    """

    def __init__(self, config: ModelConfig, *, vae: AutoencoderKL, unet: UNet2DConditionModel,
                 prompt_embedding: Tensor, alpha_bar: float, seed: int = 0) -> None:
        """Freeze the base networks (in place) and add what is trained.

        Args:
            prompt_embedding: (1, tokens, cross-attention width of the UNet).
            alpha_bar: cumulative product of the noise schedule at `config.timestep`, in (0, 1).
            seed: of the LoRA weights; the global generators are left alone.
        """
        super().__init__()
        shape, width = tuple(prompt_embedding.shape), unet.config.cross_attention_dim
        if len(shape) != 3 or shape[::2] != (1, width):
            raise refused("prompt_embedding", f"shape (1, tokens, {width})", shape,
                          "use the text encoder of the same base")
        if not (prompt_embedding.is_meta or prompt_embedding.isfinite().all()):
            raise refused("prompt_embedding", "finite values", "NaN or infinity",
                          "delete prompt-*.safetensors in the run's folder, and build it again")
        self.config, self.seed = config, seed
        self.alpha_bar, self.lean_memory = alpha_bar, False
        self.vae, self.unet = vae.requires_grad_(False), unet.requires_grad_(False)
        self.register_buffer("prompt_embedding", prompt_embedding)
        self.register_buffer("timestep", torch.tensor(config.timestep))
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)  # torch.manual_seed reseeds GPUs too
            add_lora(self.unet, config.unet_rank, UNET_TARGETS)
            add_lora(self.vae, config.vae_rank, DECODER_TARGETS)
            self.skips = skip_convolutions(vae.config.block_out_channels, config.skip_init)
            self.mask = RepairMask() if config.mask else None
        self.unet.conv_in.requires_grad_(True)
        self.train()

    @classmethod
    def from_pretrained(cls, config: ModelConfig, *, device: torch.device | str,
                        dtype: torch.dtype = torch.float32, caches: Sequence[Path | None] = (),
                        prompt_embedding: Tensor | None = None, seed: int = 0) -> SplatEnhancer:
        """Build the enhancer on the base named by the config.

        Args:
            dtype: of all working copies: float32 on a CPU, float16 on a GPU.
            caches: folders that keep the prompt's embedding between runs: this disk, Drive.
            prompt_embedding: (1, tokens, width), used instead of embedding `config.prompt`.
            seed: of the LoRA weights.

        Raises:
            ValueError: a base that cannot be found, or one that does not predict noise.
            RuntimeError: the hub did not give the base.
        """
        if prompt_embedding is None:  # first: the text encoder is gone before the UNet comes
            prompt_embedding = embed_prompt(config.base, config.prompt, caches)
        vae = load_network(AutoencoderKL, config.base, "vae", torch_dtype=dtype)
        unet = load_network(UNet2DConditionModel, config.base, "unet", torch_dtype=dtype)
        alpha_bar = read_alpha_bar(config.base, config.timestep)
        return cls(config, vae=vae, unet=unet, prompt_embedding=prompt_embedding,
                   alpha_bar=alpha_bar, seed=seed).to(device=device, dtype=dtype)

    @property
    def size_multiple(self) -> int:
        """The sides of an image must be multiples of this: what VAE and UNet halve, in pixels."""
        return 2 ** sum(len(n.config.block_out_channels) - 1 for n in (self.vae, self.unet))

    def forward(self, degraded: Tensor, skip_mask: Tensor | None = None, *,
                parts: bool = False) -> Tensor | Repair:
        """Restore images in one step, differentiable and not clamped.

        Args:
            degraded: (B, 3, H, W) in [0, 1], sides multiples of `size_multiple`.
            skip_mask: (B,) factor on the skips of each sample, 0 drops them; None is all 1.
            parts: return what the restored images were put together from, too.

        Returns:
            (B, 3, H, W) float32, roughly in [0, 1]; with `parts` a Repair.

        Raises:
            ValueError: images or a skip mask of another shape or type.
        """
        _check_images(degraded, self.size_multiple)
        skip_scale = self._skip_scale(skip_mask, len(degraded))
        latent, features = self._encode(degraded)
        prompt = self.prompt_embedding.expand(len(latent), -1, -1)
        noise = self.unet(latent.to(prompt.dtype), self.timestep, encoder_hidden_states=prompt)
        decoded = self._decode(to_clean_latent(latent, noise.sample, self.alpha_bar),
                               features, skip_scale)
        repair = Repair(decoded, decoded)
        if self.mask is not None:
            logit = self.mask(degraded, decoded)
            repair = Repair(degraded + decide(logit) * (decoded - degraded), decoded, logit)
        return repair if parts else repair.restored

    @torch.no_grad()
    def enhance(self, degraded: Tensor, strength: float = 1.0) -> Tensor:
        """Restore images of any size, without gradients; large ones in tiles, see `tiles`.

        For many pictures call it within `merged()`: LoRA is then merged once for all of them.

        Args:
            degraded: (B, 3, H, W) in [0, 1], 67 million pixels each at most; those too large for
                the model's device may stay on another.
            strength: 0 returns the input, 1 the restored image, between them a linear blend.

        Returns:
            (B, 3, H, W) float32 in [0, 1].

        Raises:
            ValueError: a strength outside [0, 1], no such images, or weights that give no finite
                picture.
        """
        return self._enhanced(self, degraded, strength)

    @torch.no_grad()
    def enhance_and_show(self, degraded: Tensor, strength: float = 1.0,
                         report: Callable[[int, int], object] | None = None,
                         ) -> tuple[Tensor, Tensor]:
        """`enhance`, and where it repaired: the mask (B, 1, H, W) in [0, 1], all 1 without one.

        `report` is told how many tiles are done, and how many there are.
        """
        def both(images: Tensor) -> Tensor:
            repair = self(images, parts=True)
            return torch.cat([repair.restored, repair.mask], 1)  # (b, 4, h, w)

        enhanced = self._enhanced(both, degraded, strength, channels=4, report=report)
        return enhanced[:, :3], enhanced[:, 3:]

    def _enhanced(self, restore: Callable[[Tensor], Tensor], degraded: Tensor, strength: float,
                  channels: int = 3,
                  report: Callable[[int, int], object] | None = None) -> Tensor:
        if not 0.0 <= strength <= 1.0:
            raise refused("strength", "a number from 0 to 1", strength, "lower or raise it")
        was_training = self.training
        self.eval()
        try:
            with self._merged_where_it_pays(degraded):
                enhanced = enhance_tiled(
                    restore, degraded, tile_px=TILE_PX, overlap_px=OVERLAP_PX,
                    margin_px=MARGIN_PX, multiple=self.size_multiple, batch=len(degraded),
                    channels=channels, device=self.prompt_embedding.device, report=report)
        finally:
            self.train(was_training)
        if not enhanced.isfinite().all():
            raise refused("restored images", "finite values", "NaN or infinity",
                          "use other weights, or float32: they may be too large for half precision")
        enhanced = enhanced.clamp(0.0, 1.0)
        enhanced[:, :3] = torch.lerp(degraded.float(), enhanced[:, :3], strength).clamp(0.0, 1.0)
        return enhanced

    def _merged_where_it_pays(self, images: Tensor) -> AbstractContextManager[None]:
        """All for many pixels; on a CPU at least the decoder, of few weights and many pixels."""
        if self._pays_to_merge(images):
            return self.merged()
        return merged_lora(self.vae.decoder) if images.device.type == "cpu" else nullcontext()

    def _pays_to_merge(self, images: Tensor) -> bool:
        if images.ndim != 4:
            return False  # it is about to be refused
        tiles, pixels = tiled_pixels(*images.shape[2:], tile_px=TILE_PX, overlap_px=OVERLAP_PX,
                                     multiple=self.size_multiple)
        return tiles > 1 and len(images) * pixels >= MERGE_FROM_PX.get(images.device.type, math.inf)

    merged = merged_lora

    def use_lean_memory(self, on: bool = True) -> None:
        """Recompute activations in the backward pass: half the memory, a third more work."""
        self.lean_memory = on
        if on:
            self.unet.enable_gradient_checkpointing()
        else:
            self.unet.disable_gradient_checkpointing()

    def parameter_table(self) -> list[tuple[str, int, int]]:
        """Count parameters: (part, frozen, trained), the total last."""
        parts = {"VAE encoder": [self.vae.encoder, self.vae.quant_conv],
                 "VAE decoder": [self.vae.decoder, self.vae.post_quant_conv],
                 "UNet": [self.unet], "skips": [self.skips]}
        parts |= ({"repair mask": [self.mask]} if self.mask else {}) | {"total": [self]}
        return [(part, _count(modules, trained=False), _count(modules, trained=True))
                for part, modules in parts.items()]

    def describe(self) -> str:
        """`parameter_table` as text."""
        rows = [("part", "frozen", "trained")]
        rows += [(part, f"{a:,}", f"{b:,}") for part, a, b in self.parameter_table()]
        return "\n".join(f"{part:<12}{a:>14}{b:>14}" for part, a, b in rows)

    @torch.no_grad()
    def check_shapes(self, size_px: int) -> tuple[int, ...]:
        """Pass one random image through and return the result's shape; ValueError if it is off."""
        images = torch.rand(1, 3, size_px, size_px, generator=torch.Generator().manual_seed(0))
        restored = self(images.to(self.prompt_embedding.device))
        shape, finite = tuple(restored.shape), bool(restored.isfinite().all())
        if shape != images.shape or not finite:
            raise refused("output", f"finite values of shape {tuple(images.shape)}",
                          f"{shape}, finite: {finite}", "check base and dtype")
        return shape

    @torch.no_grad()
    def _encode(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        encoder, features = self.vae.encoder, []
        hidden = encoder.conv_in((images * 2 - 1).to(self.prompt_embedding.dtype))
        for block in encoder.down_blocks:
            features.append(hidden)
            hidden = block(hidden)
        hidden = encoder.conv_act(encoder.conv_norm_out(encoder.mid_block(hidden)))
        mode, _ = self.vae.quant_conv(encoder.conv_out(hidden)).chunk(2, dim=1)
        return mode.float() * self.vae.config.scaling_factor, features

    def _decode(self, latent: Tensor, features: list[Tensor], skip_scale: Tensor) -> Tensor:
        decoder = self.vae.decoder
        latent = (latent / self.vae.config.scaling_factor).to(skip_scale.dtype)
        hidden = self._run(decoder.mid_block, decoder.conv_in(self.vae.post_quant_conv(latent)))
        for block, skip, feature in zip(decoder.up_blocks, self.skips, features[::-1], strict=True):
            hidden = self._run(block, hidden + skip(feature) * skip_scale)
        images = decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(hidden)))
        return images.float() / 2 + 0.5

    def _run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        if self.lean_memory and torch.is_grad_enabled():
            return checkpoint(block, hidden, use_reentrant=False)
        return block(hidden)

    def _skip_scale(self, mask: Tensor | None, batch: int) -> Tensor:
        mask = self.prompt_embedding.new_ones(batch) if mask is None else mask
        if mask.shape != (batch,):
            raise refused("skip_mask", f"shape ({batch},)", tuple(mask.shape), "pass one an image")
        return mask.to(self.prompt_embedding).view(-1, 1, 1, 1)


def to_clean_latent(noisy: Tensor, noise: Tensor, alpha_bar: float) -> Tensor:
    """Remove predicted noise in one step: x0 = (z − sqrt(1 − ᾱ)·ε) / sqrt(ᾱ), in fp32.

    Args:
        noisy, noise: (B, C, h, w).
        alpha_bar: ᾱ, cumulative product of the schedule at the step, in (0, 1).

    Source: Ho et al., "Denoising Diffusion Probabilistic Models", 2020, equation 15.
    """
    return (noisy.float() - math.sqrt(1 - alpha_bar) * noise.float()) / math.sqrt(alpha_bar)


def _check_images(images: Tensor, multiple: int) -> None:
    shape = tuple(images.shape)
    fits = len(shape) == 4 and shape[1] == 3 and not any(side % multiple for side in shape[2:])
    if not fits or 0 in shape or not images.is_floating_point():
        raise refused("images", f"floats (B, 3, H, W), H and W multiples of {multiple}",
                      (images.dtype, shape), "convert or resize them; enhance() pads any size")


def _count(modules: list[nn.Module], *, trained: bool) -> int:
    return sum(p.numel() for m in modules for p in m.parameters() if p.requires_grad == trained)
