"""The base network: its parts, from our assets, a folder or the hub, and its embedded prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from ..config import ASSETS, TINY_BASE
from ..errors import refused
from ..storage import fetch, load_whole, within, write_whole

WEIGHTS = ("*.fp16.safetensors", "*.safetensors")  # half the bytes first
PARTS = ("tokenizer", "text_encoder", "vae", "unet", "scheduler")  # in the order of use
ANSWER_S = 30.0  # of a cache: Drive can hang


@torch.no_grad()
def embed_prompt(base: str, prompt: str, caches: Sequence[Path | None] = ()) -> Tensor:
    """Embed a sentence with the base's text encoder.

    Args:
        caches: folders that keep the result, such as this disk and Drive; once one of them has it,
            no text encoder is loaded any more. One that fails or hangs is passed over.

    Returns:
        (1, tokens, width) float32.

    Raises:
        ValueError: a base without text encoder, or a sentence longer than it can read.
        RuntimeError: the hub did not give the text encoder.
    """
    paths = [folder / embedding_name(base, prompt) for folder in caches if folder]
    for path in paths:
        with suppress(OSError, SafetensorError, KeyError):
            # Not mapped: where Drive dies, touching a mapped page of it kills the process
            kept = load(within(ANSWER_S, path.read_bytes))["prompt_embedding"]
            if kept.ndim == 3 and len(kept) == 1 and kept.isfinite().all():
                return kept
    tokenizer = CLIPTokenizer.from_pretrained(_base_folder(base, "tokenizer"))
    length = tokenizer.model_max_length
    tokens = tokenizer(prompt, padding="max_length", max_length=length, return_tensors="pt")
    if tokens.input_ids.shape[1] != length:
        raise refused("prompt", f"{length} tokens at most", len(tokens.input_ids[0]), "shorten it")
    encoder = load_network(CLIPTextModel, base, "text_encoder").float().eval()
    embedding = encoder(tokens.input_ids).last_hidden_state
    for path in paths:
        with suppress(OSError):
            within(ANSWER_S, write_whole, path, save({"prompt_embedding": embedding}))
    return embedding


def is_embedded(base: str, prompt: str, caches: Sequence[Path | None]) -> bool:
    """Whether one of the caches has the sentence already."""
    for path in (folder / embedding_name(base, prompt) for folder in caches if folder):
        with suppress(OSError):
            if within(ANSWER_S, path.is_file):
                return True
    return False


def embedding_name(base: str, prompt: str) -> str:
    """The file that keeps an embedded sentence."""
    digest = hashlib.sha256(f"{base}\n{prompt}".encode()).hexdigest()[:16]
    return f"prompt-{digest}.safetensors"


def part_files(part: str) -> tuple[list[str], list[str]]:
    """Patterns of a part's files, and of its weights: its fp16 ones, or where it has none, all."""
    if part == "tokenizer":
        return [f"{part}/*.json", f"{part}/*.txt"], []
    return [f"{part}/*.json"], [f"{part}/{p}" for p in WEIGHTS if part != "scheduler"]


def load_network(kind: type, base: str, part: str, **options: Any) -> Any:
    """Load one network of a base.

    Args:
        kind: its class, of diffusers or transformers.
        part: its folder in the diffusers layout, as "unet".
        options: for `from_pretrained`.

    Raises:
        ValueError: the base lacks that part.
        RuntimeError: the hub did not give it.
    """
    folder = _base_folder(base, part)
    variant = "fp16" if any(folder.glob("*.fp16.safetensors")) else None
    return load_whole(kind, folder, f"{part} of {base}", variant=variant, use_safetensors=True,
                      **options)


def read_alpha_bar(base: str, timestep: int) -> float:
    """Read ᾱ, the cumulative product of the noise schedule, at a timestep.

    Raises:
        ValueError: the base lacks a scheduler, or does not predict noise.
        RuntimeError: the hub did not give it.
    """
    scheduler = DDPMScheduler.from_pretrained(_base_folder(base, "scheduler"))
    if scheduler.config.prediction_type != "epsilon":
        raise refused("base", "one that predicts epsilon", scheduler.config.prediction_type,
                      "use stabilityai/sd-turbo")
    return float(scheduler.alphas_cumprod[timestep])


def _base_folder(base: str, part: str) -> Path:
    home = ASSETS / base if base == TINY_BASE else fetch(base, *part_files(part))
    if not (home / part).is_dir():
        raise refused("base", f"{part}/ in diffusers layout", base, "complete it or use another")
    return home / part
