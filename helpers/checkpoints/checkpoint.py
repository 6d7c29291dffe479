"""One file holds all it takes to go on: trained tensors, optimiser, loss scale, step, history.

It is written beside its place and renamed, and it carries its own digest: whoever reads it knows
whether it is whole. Of several files the newest whole one counts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import Config
from ..storage import (
    damage_named,
    read_metadata,
    read_seal,
    read_sealed,
    within,
    write_sealed,
    write_whole,
)
from .summary import summarise, write_summary

LATEST, PREVIOUS, BEST = "latest.safetensors", "previous.safetensors", "best.safetensors"
NAMES = (LATEST, PREVIOUS, BEST)
ASIDE = "latest.safetensors.aside"  # whole, where a kill cut a publication short
STATE = "~state"  # the tensor that holds JSON
# Fields that change what the trained tensors mean, or which images they have seen so far
BINDING = ("model.base", "model.timestep", "model.unet_rank", "model.vae_rank", "model.prompt",
           "model.mask",
           "data.source", "data.size_px", "data.train_images", "run.seed")

NAMED = ("avatars", "celeba-hq")  # sources that are no folder
Found = tuple[list[tuple[int, Path]], list[str]]  # files with their step, and lines on the others


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


def newest(folders: Iterable[Path], *, timeout_s: float = 120.0,
           fits: Callable[[Checkpoint], None] | None = None) -> tuple[Checkpoint | None, list[str]]:
    """Find the checkpoint with the most steps among the good ones; no clock is asked.

    Args:
        folders: where the run may have saved, the fastest first: this disk, Drive.
        timeout_s: how long a folder, and then a file, may take to answer: Drive can hang.
        fits: raises ValueError for a state that could not be used; it is passed over.

    Returns:
        The checkpoint, or None, and one line for each file that was passed over.
    """
    found, passed_over = _find(folders, timeout_s)
    for _, path in found:
        try:
            saved = within(timeout_s, load, path)
            if fits:
                fits(saved)
            return saved, passed_over
        except Exception as error:  # whatever is wrong with it, another may be whole
            passed_over.append(_line(path, error))
    return None, passed_over


def refuse_other_run(saved: Checkpoint, config: Config,
                     faces: str | Sequence[str] = "") -> None:
    """Raise ValueError where config or faces differ in what the trained tensors mean.

    How many images a step takes is fixed too, for it is their place in the order of images. How
    they are divided is not: `batch` 1 with `accumulate` 2 goes on from `batch` 2. In a folder of
    photos that has changed, a face may be held out now that was trained on then. Where the folder
    lies, and how its path is written, does not matter: the photographs in it do.

    Args:
        faces: what the images are known by, and perhaps what older files call them.
    """
    then, now = _fields(saved.config), _fields(config)
    names = [name for name in ((faces,) if isinstance(faces, str) else faces) if name]
    if saved.faces and names and not {then["data.source"], now["data.source"]} & set(NAMED):
        then["data.source"] = now["data.source"]
    changed = [f"{path}: {then[path]!r} then, {now[path]!r} now"
               for path in (*BINDING, "optim.batch · optim.accumulate") if then[path] != now[path]]
    if changed:
        raise ValueError(f"run {config.run.name!r}: expected the settings it was started with, got "
                         f"{'; '.join(changed)}; set them back, or choose another run.name")
    if saved.faces and names and saved.faces not in names:
        raise ValueError(f"run {config.run.name!r}: expected to train on the {saved.faces} that it "
                         f"was started with, got {names[0]}; give {config.data.source} the images "
                         "and names that it had, or choose another run.name")


def harmless_changes(saved: Config, now: Config) -> dict[str, list[Any]]:
    """What differs and may: {"optim.steps": [300, 500]}, the old value first."""
    then, later = _fields(saved), _fields(now)
    return {path: [then[path], later[path]] for path in then
            if path not in BINDING and "·" not in path and then[path] != later[path]}


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


def set_aside_unusable(folder: Path, later_than: int,
                       fits: Callable[[Checkpoint], None] | None = None) -> Path | None:
    """Rename a later `latest` that is sealed but no state to go on from: it would bar all saves.

    Args:
        later_than: the step that the run goes on after; -1 where it begins.
        fits: as for `newest`.

    Returns:
        Its new place; None where nothing stood in the way.
    """
    latest = folder / LATEST
    if (step := step_or_none(latest)) is None or step <= later_than:
        return None
    try:
        saved = load(latest)
        if fits:
            fits(saved)
    except ValueError:
        return latest.replace(latest.with_name(LATEST + ".unusable"))
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


def refuse_lone_moments(saved: Checkpoint) -> None:
    """Raise ValueError where AdamW could not take over its moments: each has its like and shape."""
    trained = saved.trained
    for name, tensor in saved.tensors.items():
        kind, _, own = name.partition("/")
        twin = {"exp_avg": "exp_avg_sq", "exp_avg_sq": "exp_avg"}.get(kind)
        if twin and (own not in trained or f"{twin}/{own}" not in saved.tensors
                     or tensor.shape != trained[own].shape or "updates" not in saved.tensors):
            raise ValueError(f"{name}: expected beside it {twin} of the same shape and the number "
                             "of updates, got not all of them; use another copy")


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


def _find(folders: Iterable[Path], timeout_s: float) -> Found:
    """Files with a readable header, those with the most steps first."""
    found: list[tuple[int, Path]] = []
    passed_over: list[str] = []
    for folder in folders:
        try:
            steps, lines = within(timeout_s, _read_steps, folder)
        except TimeoutError as error:
            steps, lines = [], [_line(folder, error)]
        found, passed_over = found + steps, passed_over + lines
    return sorted(found, key=lambda entry: -entry[0]), passed_over


def _read_steps(folder: Path) -> Found:
    found, passed_over = [], []
    for path in (folder / name for name in (*NAMES, ASIDE)):
        try:
            found.append((read_step(path), path))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            passed_over.append(_line(path, error))
    return found, passed_over


def _line(path: Path, error: Exception) -> str:
    return str(error) if str(path) in str(error) else f"{path}: {error}"


def _fields(config: Config) -> dict[str, Any]:
    """Every field by its path, and how many images a step takes."""
    sections = {name: part for name, part in asdict(config).items() if name != "preset"}
    flat = {f"{section}.{name}": value for section, part in sections.items()
            for name, value in part.items()}
    flat["optim.batch · optim.accumulate"] = config.optim.batch * config.optim.accumulate
    return {"preset": config.preset} | flat
