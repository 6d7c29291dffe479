"""The base network: its parts, from our assets, a folder or the hub, and its embedded prompt."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from huggingface_hub import snapshot_download
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from .config import ASSETS, TINY_BASE, refused


@torch.no_grad()
def embed_prompt(base: str, prompt: str, cache_dir: Path | None = None) -> Tensor:
    """Embed a sentence with the base's text encoder.

    Args:
        cache_dir: keeps the result; once it is there, no text encoder is loaded any more.

    Returns:
        (1, tokens, width) float32.

    Raises:
        ValueError: a base without text encoder, or a sentence longer than it can read.
    """
    digest = hashlib.sha256(f"{base}\n{prompt}".encode()).hexdigest()[:16]
    path = cache_dir / f"prompt-{digest}.safetensors" if cache_dir else None
    if path and path.exists():
        return load_file(path)["prompt_embedding"]
    tokenizer = CLIPTokenizer.from_pretrained(_base_folder(base, "tokenizer"))
    length = tokenizer.model_max_length
    tokens = tokenizer(prompt, padding="max_length", max_length=length, return_tensors="pt")
    if tokens.input_ids.shape[1] != length:
        raise refused("prompt", f"{length} tokens at most", len(tokens.input_ids[0]), "shorten it")
    encoder = load_network(CLIPTextModel, base, "text_encoder").float().eval()
    embedding = encoder(tokens.input_ids).last_hidden_state
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".tmp")
        save_file({"prompt_embedding": embedding}, partial)
        partial.replace(path)
    return embedding


def load_network(kind: type, base: str, part: str, **options: Any) -> Any:
    """Load one network of a base.

    Args:
        kind: its class, of diffusers or transformers.
        part: its folder in the diffusers layout, as "unet".
        options: for `from_pretrained`.

    Raises:
        ValueError: the base cannot be found, or lacks that part.
    """
    folder = _base_folder(base, part)
    variant = "fp16" if any(folder.glob("*.fp16.safetensors")) else None
    return kind.from_pretrained(folder, variant=variant, use_safetensors=True, **options)


def read_alpha_bar(base: str, timestep: int) -> float:
    """Read ᾱ, the cumulative product of the noise schedule, at a timestep.

    Raises:
        ValueError: the base cannot be found, or does not predict noise.
    """
    scheduler = DDPMScheduler.from_pretrained(_base_folder(base, "scheduler"))
    if scheduler.config.prediction_type != "epsilon":
        raise refused("base", "one that predicts epsilon", scheduler.config.prediction_type,
                      "use stabilityai/sd-turbo")
    return float(scheduler.alphas_cumprod[timestep])


def _base_folder(base: str, part: str) -> Path:
    if base == TINY_BASE:
        folder = ASSETS / base / part
    else:
        folder = Path(base) / part if Path(base).is_dir() else _download(base, part)
    if not folder.is_dir():
        raise refused("base", f"{part}/ in diffusers layout", base, "complete it or use another")
    return folder


def _download(base: str, part: str) -> Path:
    """Fetch one part of a hub base: its fp16 weights, or where it has none, whatever it has."""
    try:
        for weights in ("*.fp16.safetensors", "*.safetensors"):
            wanted = [f"{part}/{name}" for name in ("*.json", "*.txt", weights)]
            folder = Path(snapshot_download(base, allow_patterns=wanted)) / part
            if any(folder.glob(weights)) or not (folder / "config.json").exists():
                break  # only networks have a config.json; tokenizer and scheduler have no weights
    except (OSError, ValueError) as error:
        raise refused("base", "a folder or a reachable hub name", base,
                      "check name and network, or use the demo preset") from error
    return folder
