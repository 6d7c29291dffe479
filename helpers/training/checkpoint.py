"""The state of a run in two alternating files, each with a digest of all that it holds.

A save overwrites the file of the lower step, or a damaged one, so a kill costs at most the save
under way; whoever reads takes the highest step whose digest fits. Drive has the same two files.
Everything random in step n follows from (seed, n): no generator state is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from filelock import AcquireReturnProxy, FileLock, Timeout
from safetensors import SafetensorError
from torch import Tensor

from ..config import Config
from ..files import with_timeout

NAMES = ("checkpoint_a.safetensors", "checkpoint_b.safetensors")
# Settings that change what the trained tensors mean, or which images they have seen so far
BINDING = ("source", "resolution", "max_train_samples", "pretrained_model_name_or_path", "timestep",
           "lora_rank_unet", "lora_rank_vae", "train_base", "blend", "prompt", "init_from", "seed",
           "images per step")


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after `step` steps."""

    step: int
    config: Config
    tensors: dict[str, Tensor]  # model/… trained, exp_avg/… and exp_avg_sq/… of AdamW: all fp32
    loss_scale: dict[str, Any] = field(default_factory=dict)  # empty where no scale is used
    history: list[dict[str, Any]] = field(default_factory=list)  # a record per step
    notes: list[dict[str, Any]] = field(default_factory=list)  # {"after_step": 9, "changed": {…}}
    trained_on: str = ""  # names the training images, see `compare_settings`
    session: str = ""  # id of the call of `train` that saved it
    started: float = 0.0  # when that began, seconds since 1970

    @property
    def trained(self) -> dict[str, Tensor]:
        """The trained tensors in fp32, by their names in the model."""
        return {name.removeprefix("model/"): tensor for name, tensor in self.tensors.items()
                if name.startswith("model/")}

    def to_bytes(self) -> bytes:
        """The content of a checkpoint file: safetensors, with everything else as metadata."""
        state = {name: getattr(self, name) for name in (
            "step", "loss_scale", "history", "notes", "trained_on", "session", "started")}
        texts = {"config": self.config.to_json(), "state": json.dumps(state)}
        texts["digest"] = digest(self.tensors, texts)
        return safetensors.torch.save(self.tensors, texts)


class TakenOver(RuntimeError):
    """Another session that began later saves the same run."""


class DamagedFile(ValueError):
    """A file that is not as a save left it."""


def digest(tensors: Mapping[str, Tensor], texts: Mapping[str, str] | None = None) -> str:
    """The SHA-256 of CPU tensors (names, dtypes, shapes, bytes) and of texts by name."""
    found = hashlib.sha256(json.dumps(sorted((texts or {}).items())).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def save(checkpoint: Checkpoint, folder: Path, *, content: bytes | None = None) -> Path:
    """Overwrite the older or the damaged one of a folder's two files.

    Args:
        folder: of the run; made if need be, its parent folder must be there.
        content: `checkpoint.to_bytes()`, where that is at hand.

    Raises:
        OSError: it could not be written, the disk is full, say; the newer file is as it was.
        TakenOver: a session that began later has saved there.
        ValueError: a file there is of a later step: this run did not go on from it.
    """
    content = checkpoint.to_bytes() if content is None else content
    folder.mkdir(exist_ok=True)
    present = {folder / name: _load_if_good(folder / name) for name in NAMES}
    for path, other in present.items():
        if other and other.session != checkpoint.session and other.started > checkpoint.started:
            raise TakenOver(f"{path.parent}: expected to be the only session that saves run "
                            f"{checkpoint.config.run_name!r}, got another that began later")
        if other and other.step > checkpoint.step:
            raise ValueError(f"{path}: expected nothing later than step {checkpoint.step}, got "
                             f"step {other.step}, which this run did not go on from; run again "
                             "to go on from there, or choose another run_name")
    oldest = min(present, key=lambda path: present[path].step if present[path] else -1)
    try:
        with oldest.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, f"{oldest}: expected to write step {checkpoint.step}, got "
                      f"{error.strerror or error}; make room there") from error
    return oldest


def load(path: Path) -> Checkpoint:
    """Read a checkpoint and compare all of it with its digest.

    Raises:
        DamagedFile: not a checkpoint, or a damaged one.
        ValueError: one of a version with other settings.
    """
    content = path.read_bytes()
    try:
        header = json.loads(content[8:8 + int.from_bytes(content[:8], "little")])
        texts, tensors = header["__metadata__"], safetensors.torch.load(content)
        if texts.pop("digest") != digest(tensors, texts):
            raise ValueError("its digest differs")
    except (ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
        raise DamagedFile(f"{path}: expected a whole checkpoint, got a damaged or foreign file "
                          f"({error})") from error
    return Checkpoint(config=Config.from_json(texts["config"]), tensors=tensors,
                      **json.loads(texts["state"]))


def newest(folders: Iterable[Path], *, timeout_s: float = 120.0) -> Checkpoint | None:
    """Find the checkpoint with the most steps among the good ones; no clock is asked.

    A file or folder that cannot be used is named in one line and passed over.

    Args:
        folders: where the run may have saved, the fastest first: this disk, Drive.
        timeout_s: how long a folder may take to answer: Drive can hang.
    """
    best = None
    for folder in folders:
        try:
            found, lines = with_timeout(timeout_s, _load_good, folder)
        except OSError as error:  # a TimeoutError is one
            found, lines = [], [f"{folder}: {error}"]
        for line in lines:
            print("Passed over", line)
        for saved in found:
            if best is None or (saved.step, saved.started) > (best.step, best.started):
                best = saved
    return best


def lock(folder: Path) -> AcquireReturnProxy:
    """Hold a run's folder, as a context, for one training on this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    # Not bound to a thread: whoever drops a generator may do so in another one. After a kill the
    # loader's workers hold the lock for up to five seconds
    held = FileLock(folder / "run.lock", timeout=7, thread_local=False)
    try:
        return held.acquire(poll_interval=0.1)
    except Timeout as error:
        raise RuntimeError(f"{folder}: expected to be the only session that trains there, got "
                           "another; stop it (in a notebook: restart its kernel), or choose "
                           "another run_name") from error


def compare_settings(saved: Checkpoint, config: Config, trained_on: str = "") -> dict[str, Any]:
    """Refuse settings that cannot go on from a checkpoint, and list those that changed and may.

    How many images a step takes is fixed, for it is their place in the order of images; how they
    are divided is not: batch 1 accumulated twice goes on from batch 2. A folder of photographs is
    known by what is in it, so that no photograph is held out now that was trained on then.

    Args:
        trained_on: names the training images as they are now; empty where it does not matter.

    Returns:
        What differs and changes nothing that was learned: name → [before, now].

    Raises:
        ValueError: a binding setting differs, or the training images do.
    """
    before, now = _fields(saved.config), _fields(config)
    if saved.trained_on and trained_on:
        before["source"] = now["source"]  # the folder may have moved
    changed = {name: [before[name], now[name]] for name in now if before[name] != now[name]}
    binding = [f"{name}: {changed[name][0]!r} then, {changed[name][1]!r} now"
               for name in BINDING if name in changed]
    if binding:
        raise ValueError(f"run {config.run_name!r}: expected the settings it was started with, got "
                         f"{'; '.join(binding)}; set them back, or choose another run_name")
    if trained_on not in ("", saved.trained_on) and saved.trained_on:
        raise ValueError(f"run {config.run_name!r}: expected to train on the {saved.trained_on} "
                         f"that it was started with, got {trained_on}; give {config.source} the "
                         "images that it had, or choose another run_name")
    return {name: values for name, values in changed.items() if name != "run_name"}


def _fields(config: Config) -> dict[str, Any]:
    fields = asdict(config)
    fields |= {f"degradation.{k}": v for k, v in fields.pop("degradation").items()}
    fields["images per step"] = config.train_batch_size * config.gradient_accumulation_steps
    return fields


def _load_if_good(path: Path) -> Checkpoint | None:
    with suppress(FileNotFoundError, DamagedFile):  # one of another version is not overwritten
        return load(path)
    return None


def _load_good(folder: Path) -> tuple[list[Checkpoint], list[str]]:
    """The good ones of a folder's two files, and a line on each other."""
    found, lines = [], []
    for path in (folder / name for name in NAMES):
        try:
            found.append(load(path))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:
            lines.append(str(error) if str(path) in str(error) else f"{path}: {error}")
    return found, lines
