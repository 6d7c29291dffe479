"""One file holds all it takes to go on: trained tensors, optimiser, loss scale, step, history.

It is written beside its place and renamed, and it carries its own digest: whoever reads it knows
whether it is whole. Of several files the newest whole one counts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import Config
from ..storage import damage_named, read_metadata, read_seal, read_sealed, write_sealed, write_whole
from .summary import summarise, write_summary

LATEST, PREVIOUS, BEST = "latest.safetensors", "previous.safetensors", "best.safetensors"
NAMES = (LATEST, PREVIOUS, BEST)
ASIDE = "latest.safetensors.aside"  # whole, where a kill cut a publication short
STATE = "~state"  # the tensor that holds JSON


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after `step` steps."""

    step: int  # how many are done
    config: Config
    tensors: dict[str, Tensor]  # fp32: model/… what is trained, exp_avg/… and exp_avg_sq/… of AdamW
    loss_scale: dict[str, Any] = field(default_factory=dict)  # empty where no scale is used
    history: list[dict[str, Any]] = field(default_factory=list)  # a record per step, from `train`
    notes: list[dict[str, Any]] = field(default_factory=list)  # {"after_step": 9, "changed": {…}}
    faces: str = ""  # `Faces.trained_on`; empty in older files

    @property
    def trained(self) -> dict[str, Tensor]:
        """The fp32 trained tensors, by the names they have in the model."""
        return {name.removeprefix("model/"): tensor for name, tensor in self.tensors.items()
                if name.startswith("model/")}

    @property
    def digest(self) -> str:
        """See `trained_digest`."""
        return trained_digest(self.trained)


def trained_digest(trained: Mapping[str, Tensor]) -> str:
    """The SHA-256 of trained tensors in fp32, by name: whose weights they are."""
    found = hashlib.sha256()
    for name, tensor in sorted(trained.items()):
        found.update(name.encode())
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


def save(checkpoint: Checkpoint, folder: Path, *, best: bool = False) -> Path:
    """Write a checkpoint as `latest`; a whole one of an earlier step becomes `previous`.

    Args:
        folder: of the run; created if need be.
        best: keep it as `best` too.

    Returns:
        The file written.

    Raises:
        OSError: it could not be written (disk full, say); no whole file was given up for it.
        ValueError: `latest` is of a later step: this run did not go on from where it stands.
    """
    latest, partial = folder / LATEST, folder / (LATEST + ".tmp")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_sealed(partial, _to_tensors(checkpoint), _to_texts(checkpoint))
        if is_earlier(step_or_none(latest), checkpoint.step, latest):
            latest.replace(folder / PREVIOUS)
        partial.replace(latest)
    except OSError as error:
        raise OSError(error.errno, f"{latest}: expected to write step {checkpoint.step}, got "
                      f"{error.strerror or error}; free some disk space, or mend the folder"
                      ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    _sync_folder(folder)
    _write_companions(checkpoint, latest, best=best)
    return latest


def load(path: Path) -> Checkpoint:
    """Read a checkpoint and compare all of it with its digest.

    Raises:
        ValueError: not a checkpoint, one of another version, or a damaged one.
        OSError: the file cannot be read.
    """
    tensors, texts = read_sealed(path)
    with damage_named(path):
        state = _from_json(tensors.pop(STATE).numpy().tobytes())
        _refuse_incomplete(tensors, state.pop("tensors"))
        return Checkpoint(_step(texts), Config.from_json(texts["config"]), tensors,
                          faces=texts.get("faces", ""), **state)


def read_step(path: Path) -> int:
    """The step that a file's header claims; raises as `load` does."""
    texts = read_metadata(path)
    with damage_named(path):
        return _step(texts)


def whole_step(path: Path) -> int | None:
    """The step of a file that is whole; None where there is none, or a damaged one.

    Raises:
        OSError: the file cannot be read, so that nobody knows.
    """
    with suppress(FileNotFoundError, ValueError):
        read_seal(path)
        return read_step(path)
    return None


def step_or_none(path: Path) -> int | None:
    """The same, where a file that cannot be read here and now is as good as none."""
    with suppress(OSError):
        return whole_step(path)
    return None


def is_earlier(before: int | None, step: int, path: Path) -> bool:
    """Whether a file holds a whole state of an earlier step.

    Args:
        before: its step; None where there is no whole file.
        step: of the state that is to take its place.

    Raises:
        ValueError: it holds a later one, which must not be lost.
    """
    if before is not None and before > step:
        raise ValueError(f"{path}: expected nothing later than step {step}, got step {before}, "
                         "which this run could not read when it began; run again to go on from "
                         "there, or choose another run.name")
    return before is not None and before < step


def _to_tensors(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The tensors, and as one more, in JSON, what is no tensor."""
    state = {name: getattr(checkpoint, name) for name in ("loss_scale", "history", "notes")}
    state["tensors"] = sorted(checkpoint.tensors)
    text = bytearray(json.dumps(state).encode())
    return checkpoint.tensors | {STATE: torch.frombuffer(text, dtype=torch.uint8)}


def _to_texts(checkpoint: Checkpoint) -> dict[str, str]:
    now = datetime.now().astimezone()  # for people only: nothing is decided by it
    return {"step": str(checkpoint.step), "config": checkpoint.config.to_json(),
            "faces": checkpoint.faces,
            "summary": json.dumps(summarise(checkpoint.history, checkpoint.notes, now))}


def _step(texts: dict[str, str]) -> int:
    if not (texts["step"].isdecimal() and len(texts["step"]) < 12):
        raise ValueError(f"step {texts['step']:.30}")
    return int(texts["step"])


def _from_json(text: bytes) -> dict[str, Any]:
    """Loss scale, history and notes."""
    state = json.loads(text)
    lists = [state["history"], state["notes"]]
    if not all(isinstance(one, list) and all(isinstance(r, dict) for r in one) for one in lists):
        raise ValueError("a history or notes that are no lists of records")
    if not all(isinstance(number, int | float) for number in state["loss_scale"].values()):
        raise ValueError(f"the loss scale {state['loss_scale']!r:.60}")
    return {name: state[name] for name in ("loss_scale", "history", "notes")} | {
        "tensors": state.get("tensors")}


def _refuse_incomplete(tensors: Mapping[str, Tensor], listed: list[str] | None) -> None:
    """Raise ValueError where a state could not be gone on from: it is judged when it is chosen.

    Args:
        listed: the names that were written; None in older files.
    """
    if listed is not None and listed != sorted(tensors):
        raise ValueError(f"other tensors than were written: {sorted({*listed} ^ {*tensors})[:3]}")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{name} is not finite")


def _write_companions(checkpoint: Checkpoint, latest: Path, *, best: bool) -> None:
    """Write what it does not take to go on: a failure is told, for the tensors are safe."""
    try:
        if best:
            _keep_as_best(latest)
        checkpoint.config.save(latest.with_name("config.json"))
        write_summary(latest, NAMES)
    except (OSError, ValueError) as error:
        print(f"Step {checkpoint.step} is saved, but not all that lies beside it: {error}")


def _keep_as_best(latest: Path) -> None:
    best, link = latest.with_name(BEST), latest.with_name(BEST + ".tmp")
    try:
        link.hardlink_to(latest)
        link.replace(best)
    except OSError:  # no hard links here (exFAT, some network folders), or one left by a kill
        write_whole(best, latest.read_bytes())


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # Windows opens no folders; the files themselves are synced
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


