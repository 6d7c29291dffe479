"""The trained enhancer outside the notebook: two small files, without the frozen base.

    from helpers.model import load
    model = load("results/demo/enhancer")  # a folder, or a name on the hub
    restored = model.enhance(images)       # (B, 3, H, W) in [0, 1]
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import torch as tensor_bytes
from torch import Tensor, nn

from ..checkpoints import trained_digest
from ..config import TINY_BASE, Config, ModelConfig
from ..errors import refused
from ..machine import versions
from ..storage import UNREADABLE, damage_named, digest, fetch, write_whole
from .enhancer import SplatEnhancer
from .trained import Learned

WEIGHTS, CARD = "splat_enhancer.safetensors", "card.json"
FORMAT = "splat-enhancer-export-1"
PROMPT = "prompt_embedding"  # its name in the file: with it, loading needs no text encoder
MODEL_FIELDS = ("base", "timestep", "unet_rank", "vae_rank", "mask", "prompt")  # for inference
PACKAGES = ("torch", "diffusers", "peft", "safetensors")
FINGERPRINT_RTOL = 1e-4  # half precision moves a mean of magnitudes by less
EXPORT_AGAIN = "export the model again"


def export(model: SplatEnhancer, config: Config, folder: str | Path, *,
           trained: Mapping[str, Tensor] | None = None, step: int = 0,
           metrics: Mapping[str, Any] | None = None) -> Path:
    """Write the trained tensors and a card that says what they are.

    Each file is written beside its place and renamed; the card comes last and names the hash of
    the other, so what an interruption leaves behind is refused by `load`.

    Args:
        model: whose trained tensors are written, in fp32; the frozen base is not.
        config: the one it was built and trained with.
        folder: created if need be; an export in it is replaced.
        trained: the fp32 masters of a checkpoint; None writes the model's own working copies,
            which on a GPU are rounded to half precision.
        step: how many training steps it has seen.
        metrics: anything JSON can hold, such as the sets of `metrics.json`.

    Returns:
        The folder. A failure (disk full, say) raises OSError.

    Raises:
        ValueError: a config or masters of another model, or metrics that JSON cannot hold.
    """
    tensors = model.trained_state()
    model.refuse_other_tensors(tensors if trained is None else trained)
    if trained is None and model.learned:
        _refuse_other_run(model.learned, config, step)
        step = model.learned.step
    if trained is not None:
        tensors = {name: t.detach().float().cpu() for name, t in trained.items()}
    tensors[PROMPT] = model.prompt_embedding.detach().float().cpu()
    _refuse_other_model(model, tensors, config.model)
    content = tensor_bytes.save({n: t.contiguous() for n, t in tensors.items()})
    card = _describe(config, step, metrics) | {"base_fingerprint": fingerprint(model),
                                               "sha256": digest(content)}
    text = _to_text(card)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _refuse_foreign_card(folder / CARD)
    write_whole(folder / WEIGHTS, content)
    write_whole(folder / CARD, text)
    return folder


def add_metrics(folder: Path, metrics: Mapping[str, Any], *, sha256: str = "") -> None:
    """Enter in the card of an export what was measured of it.

    Args:
        metrics: anything JSON can hold.
        sha256: of the weights that were measured, see `trained_digest`; empty asks nothing.

    Raises:
        ValueError: no export there, a damaged one, or of other weights, or metrics that JSON
            cannot hold.
    """
    card, tensors = read(folder)
    del tensors[PROMPT]
    if sha256 and trained_digest(tensors) != sha256:
        raise refused(str(folder), "an export of the weights that were measured", "others",
                      "run the cell *Export the enhancer* again, then this one")
    write_whole(folder / CARD, _to_text(card | {"metrics": metrics}))


def load(name: str | Path, *, device: torch.device | str = "cpu",
         dtype: torch.dtype | None = None) -> SplatEnhancer:
    """Build an exported enhancer: the base its card names, with the trained tensors in it.

    Args:
        name: a folder, or a hub name as "owner/name", of which two files are fetched.
        dtype: None is float32 on a CPU (bit-equal to the exported model) and float16 on a GPU.

    Returns:
        The enhancer in evaluation mode.

    Raises:
        ValueError: no export there, a damaged one, or one that does not fit its base.
        RuntimeError: the hub did not give it, or its base.
    """
    card, tensors = read(fetch(name, [CARD, WEIGHTS], instead=f"; no folder {name} is here"))
    if dtype is None:
        dtype = torch.float16 if torch.device(device).type == "cuda" else torch.float32
    model = SplatEnhancer.from_pretrained(ModelConfig(**card["model"]), device=device, dtype=dtype,
                                          prompt_embedding=tensors.pop(PROMPT))
    _refuse_other_base(card, fingerprint(model))
    model.load_trained(tensors)
    return model.eval()


def fingerprint(model: SplatEnhancer) -> dict[str, float]:
    """Mean magnitude of the frozen middle of each network: the same to 1e-4 in any dtype."""
    parts = {"vae.encoder": model.vae.encoder, "vae.decoder": model.vae.decoder, "unet": model.unet}
    return {name: _mean_magnitude(part.mid_block) for name, part in parts.items()}


def _mean_magnitude(module: nn.Module) -> float:
    sums = [(float(p.detach().float().abs().sum()), p.numel())
            for p in module.parameters() if not p.requires_grad]
    return sum(total for total, _ in sums) / sum(count for _, count in sums)


def _refuse_other_base(card: Mapping[str, Any], found: Mapping[str, float]) -> None:
    """The base may have changed on the hub, or another folder may lie where it was."""
    expected = card["base_fingerprint"]
    if expected.keys() != found.keys() or any(
            not math.isclose(value, expected[part], rel_tol=FINGERPRINT_RTOL)
            for part, value in found.items()):
        raise refused(f"base {card['model']['base']!r}", f"weights of mean magnitude {expected}",
                      dict(found), "get the version of the base that this export was trained on")


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read and check card and tensors, without building anything; nothing in them is executed.

    Returns:
        The card, and the trained tensors by name with (1, tokens, width) `prompt_embedding`.

    Raises:
        ValueError: a missing, foreign or damaged file.
    """
    path = folder / CARD
    with damage_named(path, f"a readable card of format {FORMAT}, with file {WEIGHTS}, sha256, "
                      "base_fingerprint and model settings", EXPORT_AGAIN, UNREADABLE):
        card = json.loads(path.read_bytes())
        _refuse_other_card(card)
    path = folder / WEIGHTS
    with damage_named(path, f"a readable safetensors file, as {CARD} names it", EXPORT_AGAIN,
                      UNREADABLE):
        content = path.read_bytes()  # read once: what is hashed is what is used
        if (found := digest(content)) != card["sha256"]:
            raise ValueError(f"sha256 {found} in place of {card['sha256']}")
        tensors = tensor_bytes.load(content)
        if PROMPT not in tensors:
            raise ValueError(f"no tensor {PROMPT} among {sorted(tensors)[:3]}")
    return card, tensors


def _refuse_other_card(card: Any) -> None:
    """Raise something of `UNREADABLE` unless all that `load` reads is there, of its kind."""
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise ValueError(f"{card!r:.99}")
    if card["file"] != WEIGHTS or not isinstance(card["sha256"], str):
        raise ValueError(f"file {card['file']!r} with sha256 {card['sha256']!r}")
    marks = card["base_fingerprint"]
    if not all(isinstance(value, float) for value in marks.values()):
        raise ValueError(f"base_fingerprint {marks}")
    card["model"].setdefault("mask", False)  # older exports name none
    ModelConfig(**{name: card["model"][name] for name in card["model"].keys() | MODEL_FIELDS})


def _to_text(card: Mapping[str, Any]) -> bytes:
    try:
        return (json.dumps(card, indent=2, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise refused("metrics", "finite numbers, texts, lists and dicts", str(error),
                      "leave out or convert what JSON cannot hold") from error


def _describe(config: Config, step: int, metrics: Mapping[str, Any] | None) -> dict[str, Any]:
    model, source = {name: getattr(config.model, name) for name in MODEL_FIELDS}, config.data.source
    if model["base"] != TINY_BASE and Path(model["base"]).is_dir():
        model["base"] = str(Path(model["base"]).resolve())  # loads from any working directory
    training = {"size_px": config.data.size_px, "steps": step, "degrade": asdict(config.degrade),
                "source": source if source in ("avatars", "celeba-hq") else "a folder of images"}
    return {"format": FORMAT, "file": WEIGHTS, "model": model, "training": training,
            "metrics": metrics, "licence": _licence(config), "versions": versions(*PACKAGES)}


def _licence(config: Config) -> list[str]:
    base, source, notes = config.model.base, config.data.source, []
    if base != TINY_BASE:
        terms = " (SD-Turbo: Stability AI Community License, https://stability.ai/license)"
        notes.append("The licence of the base covers weights trained on it, too"
                     + (terms if "sd-turbo" in base.lower() else ""))
    if source == "celeba-hq":
        notes.append("CelebA-HQ, and what is trained on it: non-commercial research only")
    elif source != "avatars":
        notes.append("The rights in the photographs it was trained on apply")
    return notes or ["Base and faces are this project's own: no photograph of anybody"]


def _refuse_foreign_card(path: Path) -> None:
    """What lies there may be replaced if it is ours, damaged or not, and not if it is a user's."""
    try:
        there = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return
    if not isinstance(there, dict) or not str(there.get("format")).startswith("splat-enhancer"):
        raise FileExistsError(f"{path}: expected no file, or an export's, got one of something "
                              "else; choose another folder")


def _refuse_other_run(learned: Learned, config: Config, step: int) -> None:
    """The card is to say how these weights were trained, not how others would be."""
    then, now = (_describe(one, 0, None) for one in (learned.config, config))
    changed = [name for name in ("model", "training", "licence") if then[name] != now[name]]
    if changed or step not in (0, learned.step):
        raise refused("config", f"the settings of run {learned.config.run.name!r} after step "
                      f"{learned.step}, which trained these weights", f"others ({changed or step})",
                      "pass those of its checkpoint, or leave out step")


def _refuse_other_model(model: SplatEnhancer, tensors: dict[str, Tensor],
                        config: ModelConfig) -> None:
    ranks = {name.split(".")[0]: len(t) for name, t in tensors.items() if ".lora_A." in name}
    found = (model.config.prompt, _base_of(model.config), int(model.timestep), ranks["unet"],
             ranks["vae"], model.mask is not None)
    expected = (config.prompt, _base_of(config), config.timestep, config.unet_rank,
                config.vae_rank, config.mask)
    if found != expected:
        raise refused("config.model", f"prompt, base, timestep, unet_rank, vae_rank, mask {found}, "
                      "as in the model", expected, "pass the config the model was built with")


def _base_of(config: ModelConfig) -> str:
    folder = config.base != TINY_BASE and Path(config.base).is_dir()
    return os.path.realpath(config.base) if folder else config.base
