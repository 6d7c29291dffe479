"""Checkpoints of the reference, pix2pix-turbo, as our enhancer."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import ModelConfig
from ..errors import refused
from .adapters import ALPHA
from .enhancer import SplatEnhancer

KEYS = ("rank_unet", "rank_vae", "state_dict_unet", "state_dict_vae")
SKIP = re.compile(r"vae\.decoder\.skip_conv_([1-9])\.(?:base_layer\.)?weight")  # 1 is the deepest
SKIP_LORA = re.compile(r"vae\.decoder\.skip_conv_[1-9]\.lora_[AB]\.vae_skip\.weight")
ENCODER_LORA = re.compile(r"vae\.encoder\..*\.lora_[AB]\.vae_skip\.weight")


def from_pix2pix_turbo(path: str | Path, config: ModelConfig, *,
                       device: torch.device | str = "cpu", **options: Any,
                       ) -> tuple[SplatEnhancer, list[str]]:
    """Load what pix2pix-turbo's `save_model` wrote.

    Our encoder is frozen, so LoRA of the reference's encoder is left out. Outputs equal the
    reference's only where that LoRA is zero; after real training they come near, and a few hundred
    steps of ours close the gap. The reference also samples the latent (we take the mode), embeds a
    prompt per image (we keep one) and always uses timestep 999: pass a config that says so. LoRA
    on its skip convolutions is folded into them, exactly.

    Args:
        path: a .pkl file; it is unpickled with weights_only, so nothing in it is executed.
        config: base, timestep and prompt; its ranks are replaced by those of the file.
        device, options: for `SplatEnhancer.from_pretrained`.

    Returns:
        The enhancer in evaluation mode, and the sorted names of the tensors left out.

    Raises:
        ValueError: no checkpoint of pix2pix-turbo, one with objects in it, or one that does not fit
            the base (as that of its stochastic sketch model, with two `conv_in`).

    Source: GaParmar/img2img-turbo, `src/pix2pix_turbo.py` (layout only; MIT).
    """
    content = _read(Path(path))
    ranks = {f"{part}_rank": content[f"rank_{part}"] for part in ("unet", "vae")}
    try:
        config = replace(config, **ranks)
    except ValueError as error:
        raise refused(str(path), "LoRA ranks from 1 to 256", ranks, "use another file") from error
    tensors = {f"{part}.{name}": tensor for part in ("unet", "vae")
               for name, tensor in content[f"state_dict_{part}"].items()}
    unused = sorted(filter(ENCODER_LORA.fullmatch, tensors))
    used = {name: tensor for name, tensor in tensors.items() if name not in unused}
    own = _to_own_names(used, config.vae_rank)
    model = SplatEnhancer.from_pretrained(config, device=device, **options)
    model.load_trained(own)
    return model.eval(), unused


def _read(path: Path) -> dict[str, Any]:
    expected, remedy = "a checkpoint of pix2pix-turbo", "pass what its save_model() wrote"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a foreign pickle can make the reader raise anything
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        raise refused(str(path), expected, reason, remedy) from error
    missing = [k for k in KEYS if k not in content] if isinstance(content, dict) else KEYS
    if missing:
        raise refused(str(path), expected, f"{type(content).__name__} without {', '.join(missing)}",
                      remedy)
    return content


def _to_own_names(tensors: dict[str, Tensor], vae_rank: int) -> dict[str, Tensor]:
    """Rename the reference's tensors; unknown names stay as they are, for the model to refuse."""
    own: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if skip := SKIP.fullmatch(name):
            stem = f"vae.decoder.skip_conv_{skip[1]}."
            lora = [tensors.get(f"{stem}lora_{ab}.vae_skip.weight") for ab in "BA"]
            if (known := f"skips.{int(skip[1]) - 1}.weight") in own:
                raise refused(stem, "one weight", "two", "use another file")
            own[known] = _fold(stem, tensor, *lora, vae_rank)
        elif not SKIP_LORA.fullmatch(name):
            own[name.replace(".vae_skip.", ".default.")] = tensor
    return own


def _fold(stem: str, weight: Tensor, up: Tensor | None, down: Tensor | None, rank: int) -> Tensor:
    """Add a 1×1 convolution's LoRA, (out, rank, 1, 1) after (rank, in, 1, 1), to its weight."""
    if up is None and down is None:
        return weight
    shapes = [tuple(t.shape) if t is not None else () for t in (weight, up, down)]
    if shapes != [(*shapes[0][:2], 1, 1), (*shapes[0][:1], rank, 1, 1), (rank, *shapes[0][1:])]:
        raise refused(stem, f"weight, LoRA B and LoRA A of rank {rank}", shapes, "use another file")
    product = up.detach().float().flatten(1) @ down.detach().float().flatten(1)
    return weight.detach().float() + ALPHA / rank * product[..., None, None]
