"""The trained enhancer outside its run: two small files, without the frozen base.

    from splat_enhancer.model.export import load
    model = load()                    # the shipped one; or a folder, or a name on the hub
    restored = model.enhance(images)  # (B, 3, H, W) in [0, 1]
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from ..config import ASSETS, EMBEDDED_BASES, Config
from ..files import atomic_write, sha256
from .base import PROMPT, fetch
from .enhancer import SplatEnhancer

WEIGHTS, CARD = "splat_enhancer.safetensors", "card.json"
SHIPPED = ASSETS / "enhancer"
FORMAT = "splat-enhancer-export-2"
MODEL_FIELDS = ("pretrained_model_name_or_path", "timestep", "lora_rank_unet", "lora_rank_vae",
                "train_base", "blend", "prompt")  # of the config, needed to build it again
FINGERPRINT_TOLERANCE = 1e-4  # half precision moves a mean of magnitudes by less


def export(model: SplatEnhancer, config: Config, folder: str | Path, *, step: int = 0,
           trained: Mapping[str, Tensor] | None = None,
           metrics: Mapping[str, Any] | None = None) -> Path:
    """Write the trained tensors, then a card that says what they are and names their SHA-256.

    Args:
        model: whose tensors are written, LoRA in fp32, all weights ("full") in fp16.
        config: the one it was built and trained with.
        folder: created if need be; an export in it is replaced.
        step: how many training steps it has seen.
        trained: the fp32 weights of a checkpoint; None writes the model's own working copies,
            which on a GPU are rounded to half precision.
        metrics: anything JSON can hold, such as the sets of `metrics.json`.
    """
    dtype, folder = torch.float16 if config.train_base == "full" else torch.float32, Path(folder)
    tensors = {**(trained or model.trained_state()), PROMPT: model.prompt_embedding.detach()}
    content = save_tensors({name: tensor.to("cpu", dtype).contiguous()
                            for name, tensor in tensors.items()})
    card = describe(config, step) | {"metrics": metrics, "sha256": sha256(content),
                                     "base_fingerprint": model.base_fingerprint}
    text = json.dumps(card, indent=2, allow_nan=False).encode()  # before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / WEIGHTS, content)
    atomic_write(folder / CARD, text)
    return folder


def describe(config: Config, step: int) -> dict[str, Any]:
    """What a card says of a run; folders of a user's are not named, but for a base in one."""
    base, licence = config.pretrained_model_name_or_path, []
    source = config.source if config.source in ("heads", "celeba-hq") else "photographs"
    if base not in EMBEDDED_BASES:
        licence.append("The licence of the base covers weights trained on it, too (of SD-Turbo: "
                       "Stability AI Community License, https://stability.ai/license)")
    if source == "celeba-hq":
        licence.append("CelebA-HQ, and what is trained on it: non-commercial research only")
    if source == "photographs" or config.weight_own:
        licence.append("The rights in the photographs it was trained on apply")
    fields = {name: getattr(config, name) for name in MODEL_FIELDS}
    if base not in EMBEDDED_BASES and Path(base).is_dir():  # found from any working directory
        fields["pretrained_model_name_or_path"] = str(Path(base).resolve())
    return {"format": FORMAT, "model": fields,
            "training": {"resolution": config.resolution, "steps": step, "source": source,
                         "pairs": config.pair_weights, "degradation": asdict(config.degradation)},
            "licence": licence or ["Base and heads are this project's own, without people"],
            "versions": {name: version(name) for name in ("torch", "diffusers", "safetensors")}}


def add_metrics(folder: str | Path, metrics: Mapping[str, Any]) -> None:
    """Enter in the card of an export what was measured of it: anything JSON can hold."""
    card = read(folder)[0] | {"metrics": metrics}
    atomic_write(Path(folder) / CARD, json.dumps(card, indent=2, allow_nan=False).encode())


def load(name: str | Path | None = None, *, device: torch.device | str = "cpu",
         dtype: torch.dtype | None = None) -> SplatEnhancer:
    """Build an exported enhancer for restoring: its trained tensors are merged into its base.

    Args:
        name: a folder, or a hub name as "owner/name"; None or "shipped" is the one that comes with
            the package.
        dtype: None is float32 on a CPU and float16 on a GPU.
    """
    card, tensors = read(name)
    if dtype is None:
        dtype = torch.float16 if torch.device(device).type == "cuda" else torch.float32
    config = Config(**card["model"], resolution=card["training"]["resolution"])
    model = SplatEnhancer.from_pretrained(config, device=device, dtype=dtype, for_training=False,
                                          prompt_embedding=tensors[PROMPT].float())
    _take(model, card, tensors)
    return model.to(memory_format=torch.channels_last)  # a quarter faster on a CPU


def start_from(model: SplatEnhancer, name: str | Path) -> None:
    """Load the tensors of an export into a model that is to be trained further.

    Its config is to have the fields of the export: `config.replace(**read(name)[0]["model"])`.
    """
    _take(model, *read(name))


def read(name: str | Path | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Card and tensors of an export, named as for `load`; nothing in them is executed.

    The card's "model" holds fields of the config; "prompt_embedding" is one of the tensors.
    """
    folder = SHIPPED if name in (None, "", "shipped") else fetch(name, [CARD, WEIGHTS])
    try:
        card = json.loads((folder / CARD).read_bytes())
        if card["format"] != FORMAT:
            raise ValueError(f"format {card['format']!r}")
        content = (folder / WEIGHTS).read_bytes()  # read once: what is checked is what is used
        if (digest := sha256(content)) != card["sha256"]:
            raise ValueError(f"sha256 {digest} in place of {card['sha256']}")
        return card, load_tensors(content)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{folder}: expected an export of format {FORMAT} ({CARD} and {WEIGHTS}), "
                         f"got {type(error).__name__}: {error}; export the model again, or name "
                         "another folder") from error


def push(folder: str | Path, repo_id: str, *, private: bool = True) -> str:
    """Upload an export to the Hugging Face hub, in one commit; returns the repository's address.

    `repo_id` is "owner/name", created if need be; `private=False` shows it to everybody.
    """
    from huggingface_hub import HfApi

    api, base = HfApi(), read(folder)[0]["model"]["pretrained_model_name_or_path"]
    if base not in EMBEDDED_BASES and Path(base).is_dir():
        raise ValueError(f"base: expected a hub name or an embedded one, got a folder that nobody "
                         f"else has, {base}; train on a base from the hub")
    url = api.create_repo(repo_id, private=private, exist_ok=True)
    if private and not api.repo_info(repo_id).private:
        raise ValueError(f"repo_id: expected a private repository, got {repo_id}, which is public; "
                         "pass private=False, or choose another name")
    api.upload_folder(repo_id=repo_id, folder_path=folder, allow_patterns=[WEIGHTS, CARD])
    return str(url)


def _take(model: SplatEnhancer, card: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Load an export's tensors, unless the base has changed on the hub or in our assets."""
    expected, found = card["base_fingerprint"], model.base_fingerprint
    if not all(math.isclose(found.get(part, value), value, rel_tol=FINGERPRINT_TOLERANCE)
               for part, value in expected.items()):
        raise ValueError(f"base {card['model']['pretrained_model_name_or_path']!r}: expected "
                         f"weights of mean magnitude {expected}, got {found}; get the version of "
                         "the base that this export was trained on, or train it again")
    trained = {name: tensor for name, tensor in tensors.items() if name != PROMPT}
    if model.config.train_base == "full":  # what the file lacks is as in the base
        trained = model.trained_state() | trained
    model.load_trained(trained)
