"""The enhancer: SD-Turbo turned into a one-step image-to-image network by LoRA and skips.

`SplatEnhancer.forward` is the whole method; what it calls follows in the order of use.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..config import Config
from ..images import check_images
from .added import (
    DECODER_TARGETS,
    UNET_TARGETS,
    RepairMask,
    add_lora,
    decide,
    merge_trained,
    skip_convolutions,
)
from .base import embed_prompt, fingerprint, load_network, read_alpha_bar
from .tiles import restore_in_tiles

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel

VISIBLE_CHANGE = 2 / 255  # of one channel: half of it counts as 0, one and a half as repaired


class Repair(NamedTuple):
    """One pass, and what it was put together from."""

    restored: Tensor  # (B, 3, H, W)
    decoded: Tensor  # (B, 3, H, W), what the loss sees: the picture before a mask blends it
    logit: Tensor | None  # (B, 1, H, W), of the repair mask; None without one
    degraded: Tensor  # (B, 3, H, W)

    @property
    def mask(self) -> Tensor:
        """Where it repaired: the repair mask, or where there is none, `amount_changed`."""
        if self.logit is None:
            return amount_changed(self.restored.detach().clamp(0, 1), self.degraded)
        return decide(self.logit)

    def choice(self, degraded: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """What the mask chose from, and its logit, as the loss takes it; None without a mask."""
        return None if self.logit is None else (degraded, self.decoded, self.logit)


class SplatEnhancer(nn.Module):
    """A latent-diffusion base that learns to restore images in one pass.

    The VAE encoder is frozen. Trained are, by `config.train_base`, LoRA layers in the UNet and the
    VAE decoder and the UNet's `conv_in` ("lora"), or all weights of UNet and decoder ("full");
    with both 1×1 skip convolutions from encoder to decoder, and what `config.blend` adds: "none"
    is pix2pix-turbo. All modules hold working copies in one dtype; where that is a half-precision
    one, the trainer keeps fp32 master weights of `trainable()`.

    Source: Parmar et al., "One-Step Image Translation with Text-to-Image Models", 2024.
    """

    def __init__(self, config: Config, *, vae: AutoencoderKL, unet: UNet2DConditionModel,
                 prompt_embedding: Tensor, alpha_bar: float, seed: int = 0,
                 for_training: bool = True) -> None:
        """Freeze the base networks (in place) and add what is trained.

        Args:
            prompt_embedding: (1, tokens, cross-attention width of the UNet).
            alpha_bar: ᾱ, cumulative product of the noise schedule at `config.timestep`, in (0, 1).
            seed: of the new weights; the global generators are left alone.
            for_training: False leaves LoRA away and all frozen; `load_trained` then merges.
        """
        super().__init__()
        shape, width = tuple(prompt_embedding.shape), unet.config.cross_attention_dim
        if len(shape) != 3 or shape[::2] != (1, width):
            raise ValueError(f"prompt_embedding: expected shape (1, tokens, {width}), got {shape}; "
                             "use the text encoder of the same base")
        self.config, self.alpha_bar, self.gradient_checkpointing = config, alpha_bar, False
        self.vae, self.unet = vae.requires_grad_(False), unet.requires_grad_(False)
        self.register_buffer("prompt_embedding", prompt_embedding)
        self.register_buffer("timestep", torch.tensor(config.timestep))
        self.base_fingerprint: dict[str, float] = {}  # of a base that was loaded by name
        self.merged: dict[str, Tensor] = {}  # trained tensors that are merged, see `load_trained`
        decoder = nn.Sequential(vae.post_quant_conv, vae.decoder)
        self.base_decoder = copy.deepcopy(decoder) if "residual" in config.blend else None
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(seed)  # torch.manual_seed reseeds GPUs too
            if for_training and config.train_base == "lora":
                add_lora(unet, config.lora_rank_unet, UNET_TARGETS)
                add_lora(vae, config.lora_rank_vae, DECODER_TARGETS)
            self.skips = skip_convolutions(vae.config.block_out_channels, config.skip_init)
            self.mask = RepairMask() if "mask" in config.blend else None
            if config.blend == "correction":
                vae.decoder.conv_out = nn.Conv2d(vae.config.block_out_channels[0], 3, 3, padding=1)
                for parameter in vae.decoder.conv_out.parameters():
                    nn.init.zeros_(parameter)
        for module in [unet, decoder] if config.train_base == "full" else [unet.conv_in]:
            module.requires_grad_(True)
        if not for_training:
            self.requires_grad_(False)
        self.train(for_training)

    @classmethod
    def from_pretrained(cls, config: Config, *, device: torch.device | str,
                        dtype: torch.dtype = torch.float32, cache: Sequence[Path | None] = (),
                        prompt_embedding: Tensor | None = None, seed: int = 0,
                        for_training: bool = True) -> SplatEnhancer:
        """Build the enhancer on the base named by the config; the rest is as in the constructor.

        Args:
            dtype: of all working copies: float32 on a CPU, float16 on a GPU.
            cache: folders that keep the prompt's embedding between runs: this disk, Drive.
            prompt_embedding: used instead of embedding `config.prompt`.
        """
        from diffusers import AutoencoderKL, UNet2DConditionModel  # takes seconds

        base = config.pretrained_model_name_or_path
        if prompt_embedding is None:  # first: the text encoder is gone before the UNet comes
            prompt_embedding = embed_prompt(base, config.prompt, cache)
        vae = load_network(AutoencoderKL, base, "vae", torch_dtype=dtype)
        unet = load_network(UNet2DConditionModel, base, "unet", torch_dtype=dtype)
        marks = fingerprint(vae, unet)  # before LoRA comes in
        model = cls(config, vae=vae, unet=unet, prompt_embedding=prompt_embedding, seed=seed,
                    alpha_bar=read_alpha_bar(base, config.timestep), for_training=for_training)
        model.base_fingerprint = marks
        return model.to(device=device, dtype=dtype)

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
            parts: return a `Repair`, what the restored images were put together from, too.
        """
        if degraded.ndim != 4 or any(side % self.size_multiple for side in degraded.shape[2:]):
            raise ValueError(f"degraded: expected (B, 3, H, W), sides multiples of "
                             f"{self.size_multiple}, got {tuple(degraded.shape)}; `enhance` takes "
                             "any size")
        batch, dtype = len(degraded), self.prompt_embedding.dtype

        # 1. The frozen encoder: a latent, and at each size the features that the skips will carry.
        latent, features = self._encode(degraded)  # (B, 4, H/8, W/8)

        # 2. The UNet takes the latent for one with noise, and predicts that noise.
        prompt = self.prompt_embedding.expand(batch, -1, -1)
        noise = self.unet(latent.to(dtype), self.timestep, encoder_hidden_states=prompt).sample

        # 3. One step to the clean latent, in closed form and fp32 (Ho et al. 2020, equation 15).
        clean_latent = ((latent - math.sqrt(1 - self.alpha_bar) * noise.float())
                        / math.sqrt(self.alpha_bar))

        # 4. The decoder draws, with the encoder's features added before each of its blocks.
        skip_scale = degraded.new_ones(batch) if skip_mask is None else skip_mask
        drawn = self._decode(clean_latent, features, skip_scale)  # (B, 3, H, W), about [-1, 1]

        # 5. What is drawn is the picture, or its difference from the input.
        logit = None
        if self.config.blend == "correction":  # x + conv_out'(h): zero at the start
            decoded = degraded + drawn
        elif self.base_decoder is not None:  # x + D'(U(E x)) − D(E x): what a base loses cancels
            with torch.no_grad():
                own = self.base_decoder((latent / self.vae.config.scaling_factor).to(dtype))
            decoded = degraded + (drawn - own.float()) / 2
        else:
            decoded = drawn / 2 + 0.5
        restored = decoded
        if self.mask is not None:  # x + m·(decoded − x)
            logit = self.mask(degraded, decoded)
            restored = degraded + decide(logit) * (decoded - degraded)
        return Repair(restored, decoded, logit, degraded) if parts else restored

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
        decoder, dtype = self.vae.decoder, self.prompt_embedding.dtype
        latent = (latent / self.vae.config.scaling_factor).to(dtype)
        skip_scale = skip_scale.to(dtype).view(-1, 1, 1, 1)
        hidden = self._run(decoder.mid_block, decoder.conv_in(self.vae.post_quant_conv(latent)))
        for block, skip, feature in zip(decoder.up_blocks, self.skips, features[::-1], strict=True):
            hidden = self._run(block, hidden + skip(feature) * skip_scale)
        return decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(hidden))).float()

    def _run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, hidden, use_reentrant=False)
        return block(hidden)

    def enhance(self, images: Tensor, strength: float = 1.0) -> Tensor:
        """Restore images of any size, without gradients; large ones in tiles.

        Args:
            images: (B, 3, H, W) in [0, 1], on any device; so is the float32 that is returned.
            strength: 0 returns the input, 1 the restored image, between them a linear blend.
        """
        return self.enhance_with_mask(images, strength)[0]

    @torch.no_grad()
    def enhance_with_mask(self, images: Tensor, strength: float = 1.0,
                          progress: Callable[[int, int], object] | None = None,
                          ) -> tuple[Tensor, Tensor]:
        """`enhance`, and `amount_changed`; `progress` gets how many tiles of how many are done."""
        if not 0.0 <= strength <= 1.0:
            raise ValueError(f"strength: expected 0 to 1, got {strength}")
        check_images("images", images)
        images = images.float()
        restored = restore_in_tiles(self, images, multiple=self.size_multiple,
                                    device=self.prompt_embedding.device, progress=progress)
        if not restored.isfinite().all():
            raise ValueError("restored images: expected finite values, got NaN or infinity; use "
                             "other weights, or float32: they may be too large for half precision")
        restored = torch.lerp(images, restored.clamp(0, 1), strength).clamp(0, 1)
        return restored, amount_changed(restored, images)

    def trainable(self) -> dict[str, nn.Parameter]:
        """The trained working copies by name, sorted."""
        return {n: p for n, p in sorted(self.named_parameters()) if p.requires_grad}

    def trained_state(self) -> dict[str, Tensor]:
        """Independent fp32 copies of the trained tensors, on the CPU."""
        return {name: tensor.detach().to("cpu", torch.float32, copy=True)
                for name, tensor in (self.merged or self.trainable()).items()}

    @torch.no_grad()
    def load_trained(self, tensors: Mapping[str, Tensor]) -> None:
        """Take what `trained_state` returned, of any float dtype: all of it, or nothing.

        A model that was not built for training merges it into its weights, once.
        """
        working = self.trainable()
        if not working and not self.merged:
            self.merged = dict(tensors)
            return merge_trained(self, tensors)
        shared = working.keys() & tensors.keys()
        faults = {"missing": working.keys() - shared, "unexpected": tensors.keys() - shared,
                  "of another shape": [n for n in shared if working[n].shape != tensors[n].shape],
                  "not finite": [n for n in shared
                                 if not tensors[n].to(working[n].dtype).isfinite().all()]}
        if any(faults.values()):
            found = "; ".join(f"{len(v)} {k} {sorted(v)[:3]}" for k, v in faults.items() if v)
            raise ValueError(f"tensors: expected the {len(working)} trained tensors of this model, "
                             f"got {found}; use the base, LoRA ranks, blend and train_base that "
                             "they were trained with")
        for name, parameter in working.items():
            parameter.copy_(tensors[name])

    def use_gradient_checkpointing(self, on: bool = True) -> None:
        """Recompute activations in the backward pass: half the memory, a third more work."""
        self.gradient_checkpointing = on
        (self.unet.enable_gradient_checkpointing if on
         else self.unet.disable_gradient_checkpointing)()

    def parameter_table(self) -> list[tuple[str, int, int]]:
        """Count parameters: (part, frozen, trained), the total last."""
        parts = {"VAE encoder": [self.vae.encoder, self.vae.quant_conv],
                 "VAE decoder": [self.vae.decoder, self.vae.post_quant_conv],
                 "UNet": [self.unet], "skips": [self.skips], "repair mask": [self.mask],
                 "base decoder": [self.base_decoder], "total": [self]}
        counts = {part: [(p.numel(), p.requires_grad) for m in modules for p in m.parameters()]
                  for part, modules in parts.items() if modules != [None]}
        return [(part, *(sum(n for n, trained in pairs if trained == wanted)
                         for wanted in (False, True))) for part, pairs in counts.items()]


def amount_changed(restored: Tensor, degraded: Tensor) -> Tensor:
    """Which pixels were visibly changed, (B, 1, H, W); the mean is the share that was repaired."""
    change = (restored - degraded).abs().amax(1, keepdim=True)
    return (change / VISIBLE_CHANGE - 0.5).clamp(0, 1)
