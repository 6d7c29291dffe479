"""The base network: its parts, from our assets, a folder or the hub, and its embedded prompt."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from ..config import ASSETS, EMBEDDED_BASES
from ..files import atomic_write, user_path, with_timeout

PROMPT = "prompt_embedding"  # its name in files
CACHE_TIMEOUT_S = 30.0  # Drive can hang


def load_network(kind: type, base: str, part: str, **options: Any) -> Any:
    """Load one network of a base, by its class of diffusers or transformers; fp16 files if any.

    The base is an embedded one, a hub name or a folder in diffusers layout, a part a folder in it.
    """
    folder = part_folder(base, part)
    if part != "text_encoder":  # without accelerate diffusers warns
        options["low_cpu_mem_usage"] = find_spec("accelerate") is not None
    network, report = kind.from_pretrained(
        folder, variant="fp16" if any(folder.glob("*.fp16.safetensors")) else None,
        use_safetensors=True, output_loading_info=True, **options)
    if missing := sorted(report["missing_keys"]):  # they would be random
        raise ValueError(f"{part} of {base}: expected all its weights, got none for {missing[:3]}; "
                         "use another base or newer packages")
    return network


def part_folder(base: str, part: str) -> Path:
    """The folder of one part of a base; from the hub come its settings and its smallest weights."""
    settings, weights = [f"{part}/*.json", f"{part}/*.txt"], f"{part}/*.safetensors"
    home = ASSETS / base if base in EMBEDDED_BASES else fetch(
        base, [*settings, f"{part}/*.fp16.safetensors"])
    has_weights = part in ("text_encoder", "vae", "unet")
    if base not in EMBEDDED_BASES and has_weights and not any(home.glob(weights)):
        home = fetch(base, [*settings, weights])
    if not (home / part).is_dir():
        raise ValueError(f"base: expected {part}/ in diffusers layout, got {base} without it; "
                         "complete it or use another base")
    return home / part


def fetch(name: str | Path, patterns: Sequence[str]) -> Path:
    """A folder as it is, or the files of a hub repository: from the cache where there is no net."""
    if (folder := user_path(name)).is_dir():
        return folder
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", str(name), re.ASCII):
        raise ValueError(f"{name}: expected a folder, or a repository on the hub as owner/name, "
                         f"got neither (there is no folder {folder.absolute()})")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name), allow_patterns=list(patterns)))
    except Exception as error:  # the client's own, requests', httpx's, the disk's
        raise ConnectionError(f"{name}: expected a folder, or a repository that the hub gives, got "
                              f"{type(error).__name__}: {error}; check name and connection, or use "
                              "the preset demo, which is offline") from error


@torch.no_grad()
def embed_prompt(base: str, prompt: str, cache: Sequence[Path | None] = ()) -> Tensor:
    """Embed a sentence with the base's text encoder: (1, tokens, width) float32.

    The folders of the cache (this disk, Drive) keep the result; once one of them has it, or the
    embedded base itself, no text encoder is loaded. One that fails is passed over.
    """
    digest = hashlib.sha256(f"{base}\n{prompt}".encode()).hexdigest()[:16]
    paths = [folder / f"prompt-{digest}.safetensors" for folder in cache if folder]
    for path in [ASSETS / base / f"prompt-{digest}.safetensors", *paths]:
        with suppress(Exception):  # not there, damaged, or a Drive that is gone
            return load(with_timeout(CACHE_TIMEOUT_S, path.read_bytes))[PROMPT]
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(part_folder(base, "tokenizer"))
    tokens = tokenizer(prompt, padding="max_length", return_tensors="pt").input_ids
    if tokens.shape[1] != tokenizer.model_max_length:
        raise ValueError(f"prompt: expected {tokenizer.model_max_length} tokens at most, got "
                         f"{tokens.shape[1]}; shorten it")
    encoder = load_network(CLIPTextModel, base, "text_encoder").float().eval()
    embedding = encoder(tokens).last_hidden_state
    for path in paths:
        with suppress(OSError):
            with_timeout(CACHE_TIMEOUT_S, atomic_write, path, save({PROMPT: embedding}))
    return embedding


def read_alpha_bar(base: str, timestep: int) -> float:
    """ᾱ at a timestep: how much of the variance is still signal, the product of 1 − β up to it."""
    path = part_folder(base, "scheduler") / "scheduler_config.json"
    settings = json.loads(path.read_bytes())
    kind = settings.get("prediction_type"), settings.get("beta_schedule")
    if kind != ("epsilon", "scaled_linear"):
        raise ValueError(f"base: expected one that predicts epsilon on a scaled_linear schedule, "
                         f"got {kind}; use stabilityai/sd-turbo")
    ends = settings["beta_start"] ** 0.5, settings["beta_end"] ** 0.5
    betas = torch.linspace(*ends, settings["num_train_timesteps"], dtype=torch.float32) ** 2
    return float((1 - betas).cumprod(0)[timestep])


def fingerprint(vae: nn.Module, unet: nn.Module) -> dict[str, float]:
    """Mean magnitude of the middle of each network: tells another base of the same name."""
    parts = {"vae.encoder": vae.encoder, "vae.decoder": vae.decoder, "unet": unet}
    weights = {name: list(part.mid_block.parameters()) for name, part in parts.items()}
    return {name: sum(float(p.detach().float().abs().sum()) for p in parameters)
            / sum(p.numel() for p in parameters) for name, parameters in weights.items()}
