"""Files restored one after the other: skipped where it is done, named where it fails."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile
from zlib import crc32

import torch
from filelock import FileLock, Timeout

from ..environment import Stopped, StopRequests, free_memory
from ..environment import progress as progress_bar
from ..files import sha256
from ..images import read_png_text
from .inputs import MARK, Input, find, name_digest, place, read_mark, stem_of
from .picture import restore, restore_picture
from .settings import RestoreConfig
from .splat import restore_splat, view_files
from .video import restore_video

if TYPE_CHECKING:
    from ..model.enhancer import SplatEnhancer

__all__ = ["Input", "Outcome", "RestoreConfig", "find", "restore", "restore_all", "zip_results"]

ENDS = {"picture": (".png", "_overlay.png"), "video": (".mp4",), "splat": (".mp4", "")}
FIELDS = {"picture": (), "video": ("temporal",), "splat": (
    "temporal", "views", "view_px", "up", "arc_deg", "elevation_deg", "fov_deg", "backdrop")}
CHOSEN = "chosen_strength"  # keyword in a PNG: what before/after saved, and later runs keep
LITTLE = 0.01  # of the picture: less is next to nothing
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # no later file would fare better


@dataclass(frozen=True)
class Outcome:
    """What became of one file."""

    input: Input
    files: tuple[Path, ...] = ()  # its results, the one that counts first
    error: str = ""  # why there is none
    skipped: bool = False  # it was done before, or another process is at it
    notes: tuple[str, ...] = ()  # what was assumed, or could not be kept
    repaired: float | None = None  # share of the pixels that were visibly changed
    seconds: float = 0.0


def restore_all(model: SplatEnhancer, inputs: Sequence[Input],
                settings: RestoreConfig | None = None, *, output: Path | None = None,
                share: tuple[int, int] = (0, 1),
                progress: Callable[..., Any] | None = progress_bar) -> Iterator[Outcome]:
    """Restore files one by one; what was done before is skipped, without being decoded.

    Args:
        model: the enhancer.
        inputs: from `find`.
        settings: how; None for the defaults.
        output: gets the results, in the tree of the inputs; None: they lie beside the inputs.
        share: this process's number, and how many there are.
        progress: makes a bar as `tqdm` does; None shows nothing.

    Yields:
        One Outcome per input of this process.

    Raises:
        ValueError: `output` cannot be a folder.
        OSError: the disk is full: no later file would fare better.
        Stopped: by the Stop button, Ctrl-C or SIGTERM; what is done is kept.
    """
    settings = settings or RestoreConfig()
    try:
        if output:
            output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"output_dir: expected a folder, got {output} ({error.strerror}); name "
                         "another") from error
    weights = weights_digest(model)
    inputs = [item for item in inputs  # files of one stem, whose results lie together, as well
              if crc32(os.fsencode(item.relative.with_suffix(""))) % share[1] == share[0]]
    with StopRequests() as stop, (progress(total=len(inputs), desc="Restoring", unit="file")
                                  if progress else nullcontext()) as bar:
        for done, item in enumerate(inputs):
            if stop.asked:
                raise Stopped(f"Stopped after {done} files. They are kept: the same again goes on.")
            started = time.monotonic()

            def tick(part: int, parts: int, name: str = item.path.name) -> None:
                if stop.asked and part < parts:
                    raise Stopped(f"Stopped in the middle of {name}. What is done is kept: the "
                                  "same again goes on.")
                if bar is not None and parts > 1:
                    bar.set_postfix_str(f"{name} {part}/{parts}",
                                        refresh=time.time() > bar.last_print_t + 1)

            outcome = _outcome(model, weights, item, settings, output, tick)
            yield replace(outcome, seconds=time.monotonic() - started)
            if bar is not None:
                bar.update()


def zip_results(outcomes: Sequence[Outcome], path: Path) -> Path:
    """Put all results, in the tree of the inputs, into one zip file; written atomically.

    Raises:
        ValueError: another file lies there, not an earlier zip of results.
    """
    partial = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError), path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(MARK)))
        if file.read() != MARK.encode():  # the comment of a zip
            raise ValueError(f"{path}: expected a new name, or an earlier zip of results, got "
                             "another file; name another")
    try:
        with ZipFile(partial, "w") as archive:  # stored: pictures and videos are compressed already
            archive.comment = MARK.encode()
            for outcome in outcomes:
                for file in outcome.files:  # the first lies in the folder of the results
                    name = outcome.input.relative.parent / file.relative_to(outcome.files[0].parent)
                    archive.write(file, os.fsencode(name).decode(errors="backslashreplace"))
        return partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def weights_digest(model: SplatEnhancer) -> str:
    """By this a result says which weights it was made by."""
    config = model.config
    digest = hashlib.sha256(repr((config.pretrained_model_name_or_path, config.timestep,
                                  config.prompt, config.blend)).encode())
    for name, tensor in sorted(model.trained_state().items()):
        digest.update(name.encode())
        digest.update(memoryview(tensor.float().contiguous().view(-1).numpy()))
    return digest.hexdigest()


def _outcome(model: SplatEnhancer, weights: str, item: Input, settings: RestoreConfig,
             output: Path | None, tick: Callable[[int, int], None]) -> Outcome:
    problem: Exception | None = None
    try:
        with _alone(item.path):
            return _restored(model, weights, item, settings, output, tick)
    except Timeout:
        return Outcome(item, skipped=True, notes=("another process restores it",))
    except Exception as error:  # whatever is wrong with it, the others are restored
        if getattr(error, "errno", None) in FULL_DISK:
            raise
        problem = error
    if isinstance(problem, torch.OutOfMemoryError):
        free_memory(problem)  # after `except`: by then nobody else holds what the error held
    return Outcome(item, error=_in_words(problem, item.path))


def _restored(model: SplatEnhancer, weights: str, item: Input, settings: RestoreConfig,
              output: Path | None, tick: Callable[[int, int], None]) -> Outcome:
    """Restore one file, unless its results are there already."""
    source, kind, notes = item.path, item.kind, []
    if output and not output.is_dir():
        raise ValueError(f"{source.name}: expected the folder {output}, got nothing there any more")
    folder = output / item.relative.parent if output else source.parent
    folder.mkdir(parents=True, exist_ok=True)
    made_by = [weights, *(getattr(settings, field) for field in FIELDS[kind])]
    mark = {"of": name_digest(source), "source": sha256(source)[:16],
            "by": sha256(json.dumps(made_by).encode())[:16], "strength": settings.strength}
    result, *beside = place(source, folder, *ENDS[kind])
    if result.stem != (name := f"{stem_of(source)}_restored"):
        notes.append(f"something else is called {name}: it is kept, the result is {result.name}")
    made, text = read_mark(result), {}
    chosen = read_png_text(result).get(CHOSEN) if kind == "picture" else None
    if chosen and made.get("source") == mark["source"]:
        if float(chosen) != settings.strength:
            notes.append(f"its strength {chosen} was chosen in before/after and is kept; remove "
                         f"{result.name} to restore it with {settings.strength:g}")
        text[CHOSEN], made["strength"], mark["strength"] = chosen, float(chosen), float(chosen)
        settings = replace(settings, strength=float(chosen))
    if kind == "splat":
        beside = view_files(beside[0], settings.views)
    files = (result, *beside) if settings.overlay or kind != "picture" else (result,)
    if all(made.get(key) == value for key, value in mark.items()) and all(
            path.exists() for path in files):
        return Outcome(item, files, "", True, tuple(notes), made.get("repaired"))
    options = {"tick": tick, "notes": notes, "tag": lambda repaired: json.dumps(
        mark | {"repaired": round(repaired, 4)})}
    if kind == "picture":
        repaired, size = restore_picture(model, source, result, *beside, settings, text, **options)
    elif kind == "video":
        repaired, size = restore_video(model, source, result, settings, **options)
    else:
        repaired, size = restore_splat(model, source, result, beside, settings, **options)
    if repaired < LITTLE and settings.strength:
        notes.append(f"next to nothing was repaired ({100 * repaired:.1f} %): it needs no repair, "
                     "or is unlike what this enhancer was trained on")
    if max(size) > 2 * model.config.resolution:
        notes.append(f"{size[0]} x {size[1]} px is more than twice the {model.config.resolution} "
                     "px that this enhancer was trained at: large faults may stay")
    return Outcome(item, files, "", False, tuple(notes), repaired)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Raises Timeout where another process of this machine restores the same file."""
    user, name = getattr(os, "getuid", int)(), sha256(os.fsencode(path.absolute()))[:16]
    lock = FileLock(Path(tempfile.gettempdir()) / f"splat-enhancer-{user}-{name}.lock", timeout=0)
    lock.acquire()
    try:
        yield
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


def _in_words(error: Exception, path: Path) -> str:
    """Why a file was not restored, with its name."""
    if isinstance(error, ValueError):
        return str(error) if path.name in str(error) else f"{path.name}: {error}"
    if isinstance(error, OSError):
        return (f"{path.name}: expected to read it and to write its result, got "
                f"'{(error.strerror or str(error)).lower()}' at {error.filename or path}")
    return f"{path.name}: {type(error).__name__}: {error!s:.300}"
