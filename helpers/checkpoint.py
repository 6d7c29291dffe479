"""One file holds all it takes to go on: trained tensors, optimiser, loss scale, step, history.

The file is safetensors, which cannot execute anything. It is written beside its place and renamed,
so a file under its final name is complete; Drive gets a copy that is compared before it counts.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .config import Config

LATEST, PREVIOUS = "latest.safetensors", "previous.safetensors"
FORMAT = "splat-enhancer-1"
# Fields that change what the trained tensors mean: a run cannot go on with other values
BINDING = ("model.base", "model.timestep", "model.unet_rank", "model.vae_rank", "model.prompt",
           "data.source", "data.size_px", "run.seed")


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after `step` steps.

    Args:
        step: how many steps are done.
        config: of the run.
        tensors: by name: `model/…` the fp32 trained tensors, `exp_avg/…` and `exp_avg_sq/…` AdamW.
        loss_scale: the GradScaler's state, empty where no scale is used.
        history: one record per step, as `train` yields them.
    """

    step: int
    config: Config
    tensors: dict[str, Tensor]
    loss_scale: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)


def save(checkpoint: Checkpoint, folder: Path) -> Path:
    """Write a checkpoint as `latest`, keeping the one before as `previous`.

    Args:
        folder: of the run; created if need be.

    Returns:
        The file written. A failure (disk full, say) raises OSError and leaves both files alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial, latest = folder / (LATEST + ".tmp"), folder / LATEST
    state = {"step": checkpoint.step, "loss_scale": checkpoint.loss_scale,
             "history": checkpoint.history}
    metadata = {"format": FORMAT, "config": checkpoint.config.to_json(), "state": json.dumps(state)}
    try:
        save_file(checkpoint.tensors, partial, metadata)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        if latest.exists():
            latest.replace(folder / PREVIOUS)
        partial.replace(latest)
    except SafetensorError as error:
        raise OSError(f"{latest}: expected to write a checkpoint, got {error}; "
                      "free some disk space") from error
    finally:
        partial.unlink(missing_ok=True)
    checkpoint.config.save(folder / "config.json")
    return latest


def load(path: Path) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        ValueError: not a checkpoint, or a damaged one.
        OSError: the file cannot be read.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: expected a checkpoint, got a damaged file ({error})") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path}: expected format {FORMAT}, got {metadata.get('format')!r}")
    state = json.loads(metadata["state"])
    return Checkpoint(state["step"], Config.from_json(metadata["config"]), tensors,
                      state["loss_scale"], state["history"])


def newest(folders: Iterable[Path]) -> tuple[Checkpoint | None, list[str]]:
    """Find the checkpoint with the most steps among the good ones.

    Args:
        folders: where the run may have saved: this disk, Drive.

    Returns:
        The checkpoint, or None, and one line for each file that was passed over.
    """
    best, skipped = None, []
    for path in (folder / name for folder in folders for name in (LATEST, PREVIOUS)):
        try:
            found = load(path) if path.exists() else None
        except (OSError, ValueError, KeyError, TypeError) as error:
            skipped.append(f"{path.name} in {path.parent}: {error}")
            continue
        if found and (best is None or found.step > best.step):
            best = found
    return best, skipped


def refuse_other_run(checkpoint: Checkpoint, config: Config) -> None:
    """Raise ValueError where the config differs in what the trained tensors mean."""
    def value(of: Config, path: str) -> Any:
        section, name = path.split(".")
        return getattr(getattr(of, section), name)

    changed = [f"{path}: {value(checkpoint.config, path)!r} then, {value(config, path)!r} now"
               for path in BINDING if value(checkpoint.config, path) != value(config, path)]
    if changed:
        raise ValueError(f"run {config.run.name!r}: expected the settings it was started with, got "
                         f"{'; '.join(changed)}; set them back, or choose another run.name")


def publish(file: Path, folder: Path) -> str | None:
    """Copy a closed file to Drive: as `.part`, compared by size and hash, then renamed.

    Returns:
        None, or what went wrong in one line; training goes on either way, the next save retries.
    """
    target = folder / file.name
    partial = target.with_name(target.name + ".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, partial)
        if _digest(partial) != _digest(file):
            return f"The copy of {file.name} in {folder} differs from the original; left out."
        if target.exists():
            target.replace(target.with_name(PREVIOUS))
        partial.replace(target)
    except OSError as error:
        return f"No copy of {file.name} in {folder} ({error}); the next save tries again."
    return None


def _digest(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        return path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
