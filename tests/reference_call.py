"""What pix2pix-turbo does at one call, built from diffusers and peft on the weights of an enhancer.

The reference itself asks for CUDA and the hub; `gpu_reference.py` measures that. Here is the same
arithmetic on any device: peft's LoRA beside the weights, in the encoder and the skips too, and the
prompt embedded at each call. Two things differ: the posterior's mode instead of a sample, so that
outputs can be compared (`tests/model/test_enhancer.py`: they are the reference's own), and the LoRA
that ours does not have adds nothing, though it is computed.

Source: GaParmar/img2img-turbo, `src/pix2pix_turbo.py`, `src/model.py` (what is computed; MIT).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler
from peft import LoraConfig
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from helpers.config import ASSETS, SD_TURBO, TINY_BASE, ModelConfig
from helpers.model.adapters import ALPHA
from helpers.model.base import read_alpha_bar
from helpers.model.enhancer import SplatEnhancer
from helpers.plans.budget import PROMPT_TOKENS
from tests.rehearsal import TEXT, random_networks

TIMESTEP = 999
LORA_SPREAD = 1e-3  # of the half of LoRA that starts as 0
VAE_TARGETS = ["conv", "conv1", "conv2", "conv_in", "conv_shortcut", "conv_out",
               "to_k", "to_q", "to_v", "to_out.0"]  # by name, so in the encoder too
TO_PROMPT = Callable[[Tensor], Tensor]


class ReferenceCall(nn.Module):
    """An enhancer's weights, called as pix2pix-turbo calls them; the UNet is the enhancer's own."""

    def __init__(self, ours: SplatEnhancer, vae: AutoencoderKL, embed: TO_PROMPT) -> None:
        """Take over what the enhancer has.

        Args:
            vae: the enhancer's, as it was before LoRA; changed in place.
            embed: the text encoder, from tokens (B, n) to (B, n, width).
        """
        super().__init__()
        self.unet, self.embed, self.vae = ours.unet, embed, vae
        self.vae.skips = copy.deepcopy(ours.skips)
        names = [f"skips.{place}" for place in range(len(ours.skips))]
        rank = next(p for n, p in ours.vae.named_parameters() if ".lora_A." in n).shape[0]
        vae.add_adapter(LoraConfig(r=rank, lora_alpha=ALPHA, target_modules=VAE_TARGETS + names),
                        adapter_name="vae_skip")
        learned = {name.replace(".default.", ".vae_skip."): p.detach()
                   for name, p in ours.vae.named_parameters() if p.requires_grad}
        _, unknown = vae.load_state_dict(learned, strict=False)
        assert learned and not unknown, unknown
        self.scheduler = DDPMScheduler.from_pretrained(ASSETS / TINY_BASE / "scheduler",
                                                       timestep_spacing="trailing")
        self.scheduler.set_timesteps(1)
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Restore (B, 3, H, W) in [-1, 1] by a prompt (B, n)."""
        prompt = self.embed(tokens)
        hidden, features = self.vae.encoder.conv_in(images), []
        for block in self.vae.encoder.down_blocks:
            features.append(hidden)
            hidden = block(hidden)
        hidden = _ended(self.vae.encoder, self.vae.encoder.mid_block(hidden))
        latent = self.vae.quant_conv(hidden).chunk(2, dim=1)[0] * self.vae.config.scaling_factor
        noise = self.unet(latent, TIMESTEP, encoder_hidden_states=prompt).sample
        latent = self.scheduler.step(noise, TIMESTEP, latent).prev_sample
        hidden = self.vae.post_quant_conv(latent / self.vae.config.scaling_factor)
        hidden = self.vae.decoder.mid_block(self.vae.decoder.conv_in(hidden))
        for block, skip in zip(self.vae.decoder.up_blocks, self.vae.skips, strict=True):
            hidden = block(hidden + skip(features.pop()))
        return _ended(self.vae.decoder, hidden).clamp(-1, 1)


def _ended(half: nn.Module, hidden: Tensor) -> Tensor:
    return half.conv_out(half.conv_act(half.conv_norm_out(hidden)))


def both(base: str = SD_TURBO, text: Mapping[str, Any] = TEXT) -> tuple[SplatEnhancer,
                                                                       ReferenceCall]:
    """An enhancer with random weights of a base's shapes in fp32, and the reference on them."""
    vae, unet = random_networks(base, "cpu")
    plain, encoder = copy.deepcopy(vae), CLIPTextModel(CLIPTextConfig(**text)).eval()
    with torch.no_grad():
        prompt = encoder(prompt_tokens())[0]
    ours = SplatEnhancer(ModelConfig(base=base, timestep=TIMESTEP), vae=vae, unet=unet,
                         prompt_embedding=prompt, alpha_bar=read_alpha_bar(TINY_BASE, TIMESTEP))
    for name, parameter in ours.trainable().items():
        if ".lora_B." in name:
            nn.init.normal_(parameter, std=LORA_SPREAD)
    return ours, ReferenceCall(ours, plain, lambda tokens: encoder(tokens)[0])


def prompt_tokens() -> Tensor:
    """Some tokens (1, n): how long they take does not depend on which."""
    return torch.arange(PROMPT_TOKENS)[None]
