"""Many files restored, one after the other: named where one fails, skipped where one is done."""

from __future__ import annotations

import errno
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZipFile
from zlib import crc32

from ..checkpoints import trained_digest
from ..machine import Bar, Stopped, StopRequests, free_memory, is_out_of_memory
from ..model import SplatEnhancer, fingerprint
from ..pictures import GONE, source_of
from ..storage import held
from .inputs import Input
from .marks import Mark, made_by, result_of
from .mp4 import read_comment
from .pictures import OVERLAY, restore_picture
from .report import Report
from .settings import RestoreConfig
from .splat import restore_splat, views_of
from .video import restore_video

ENDING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, *GONE)  # no later file would fare better


class Kind(NamedTuple):
    """How files of one kind are restored."""

    restore: Callable[..., list[Path]]  # (model, path, folder, settings, report, *, mark)
    suffix: str  # of the result that counts
    read: Callable[[Path], str]  # the mark in such a result
    fields: tuple[str, ...]  # of the settings, those that change the result
    parts: Callable[[RestoreConfig], tuple[str, ...]] = lambda settings: ()  # of the result
    # What lies beside the result that counts, and is made before it
    beside: Callable[[Path, RestoreConfig], list[Path]] = lambda path, settings: []


KINDS = {"picture": Kind(restore_picture, ".png", source_of, ("strength",),
                         lambda settings: (OVERLAY,) if settings.overlay else ()),
         "video": Kind(restore_video, ".mp4", read_comment, ("strength", "steady")),
         "splat": Kind(restore_splat, ".mp4", read_comment, (
             "strength", "steady", "views", "view_px", "up", "arc_deg", "elevation_deg", "fov_deg",
             "backdrop"), beside=lambda path, settings: views_of(path.with_suffix(""), settings))}


@dataclass(frozen=True)
class Outcome:
    """What became of one file."""

    input: Input
    files: tuple[Path, ...] = ()  # its results, the one that counts first
    seconds: float = 0.0
    error: str = ""  # why there is none
    skipped: bool = False  # it was done before, or another process is at it
    notes: tuple[str, ...] = ()  # what was taken for granted

    @property
    def path(self) -> Path:
        """Of the file that was to be restored."""
        return self.input.path


def restore_all(model: SplatEnhancer, inputs: Iterable[Input],
                settings: RestoreConfig | None = None, *, output: Path | None = None,
                share: tuple[int, int] = (0, 1), total: int | None = None,
                progress: Callable[..., Any] | None = Bar) -> Iterator[Outcome]:
    """Restore files one by one; what was done before is skipped, without being decoded.

    Several processes may work on the same files: each is restored by one of them.

    Args:
        model: the enhancer; LoRA is merged once for all of them.
        inputs: from `find`.
        settings: how; None for the defaults.
        output: gets the results, in the tree of the inputs; None: they lie beside the inputs.
        share: this process's number, and how many there are; a file's own place says whose it is.
        total: how many inputs, for the time left.
        progress: makes a bar as `tqdm` does; None shows nothing.

    Yields:
        One Outcome per input.

    Raises:
        Stopped: by the Stop button, Ctrl-C or SIGTERM; what is done is kept.
        OSError: the disk is full, or Drive is gone: no later file would fare better.
    """
    settings, (number, of) = settings or RestoreConfig(), share
    if output:
        output.mkdir(parents=True, exist_ok=True)
    weights = _weights(model)  # before the merge, which changes the frozen ones
    by = {name: made_by(weights, {f: getattr(settings, f) for f in kind.fields})
          for name, kind in KINDS.items()}
    inputs = (one for one in inputs if _owner(one, of) == number)
    first = list(itertools.islice(inputs, 2))
    many = len(first) > 1 or any(one.kind != "picture" for one in first)
    with (StopRequests() as stop, model.merged() if many else nullcontext(),
          progress(total=total and -(-total // of), desc="Restoring", unit="file")
          if progress else nullcontext() as bar):
        for done, one in enumerate(itertools.chain(first, inputs), start=1):
            report = Report(one.path.name, stop, progress)
            try:
                yield _outcome(model, one, settings, output, by.get(one.kind, ""), report)
            finally:
                report.close()
            if bar is not None:
                bar.update()
            if stop.asked:
                raise Stopped(f"Stopped after {done} files. They are kept: the same again goes on.")


def zipped(outcomes: Iterable[Outcome], path: Path) -> Iterator[Outcome]:
    """Pass outcomes on, and put all results, in their tree, into one zip; whole or not at all."""
    partial = path.with_name(path.name + ".tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with ZipFile(partial, "w") as whole:  # stored: pictures and videos are compressed already
            for outcome in outcomes:
                for file in outcome.files:  # the first lies in the folder of the results
                    place = file.relative_to(outcome.files[0].parent)
                    name = os.fsencode(outcome.input.relative.parent / place).decode(
                        errors="backslashreplace")  # not every name of a file is a text
                    if name not in whole.NameToInfo:  # copies of a file share its result
                        whole.write(file, name)
                yield outcome
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _owner(one: Input, of: int) -> int:
    """Which of several processes restores a file, whatever else each of them finds and when."""
    return crc32(os.fsencode(one.relative)) % of


def _outcome(model: SplatEnhancer, one: Input, settings: RestoreConfig, output: Path | None,
             by: str, report: Report) -> Outcome:
    started = time.perf_counter()
    try:
        files, skipped = _restored(model, one, settings, output, by, report)
        return Outcome(one, tuple(files), time.perf_counter() - started, "", skipped,
                       tuple(report.notes))
    except Exception as error:  # whatever is wrong with it, the others are restored
        if getattr(error, "errno", None) in ENDING:
            raise
        text, full = _in_words(error, one.path), is_out_of_memory(error)
    if full:
        free_memory()  # after `except`: by then nobody holds what the error held
    return Outcome(one, (), time.perf_counter() - started, text)


def _in_words(error: Exception, path: Path) -> str:
    """Why a file was not restored, with its name."""
    if isinstance(error, ValueError):  # ours: they name it
        return str(error)
    if isinstance(error, OSError):
        return f"{path.name}: {error.strerror or error} ({error.filename or path})"
    return f"{path.name}: {type(error).__name__}: {error!s:.300}"


def _restored(model: SplatEnhancer, one: Input, settings: RestoreConfig, output: Path | None,
              by: str, report: Report) -> tuple[list[Path], bool]:
    """The results of one file, and whether they were there before."""
    if one.problem:
        raise ValueError(one.problem)
    kind, folder = KINDS[one.kind], _folder(one, output)
    with held(one.path, wait=False) as free:
        if not free:
            report.notes.append("another process restores it")
            return [], True
        mark = Mark.of(one.path, by)
        there = [result_of(one.path, folder, part, kind.suffix, kind.read)
                 for part in (mark, *map(mark.of_part, kind.parts(settings)))]
        if all(fits for _, fits in there):
            files = [path for path, _ in there]
            return files + [p for p in kind.beside(files[0], settings) if p.exists()], True
        return kind.restore(model, one.path, folder, settings, report, mark=mark), False


def _folder(one: Input, output: Path | None) -> Path:
    """Of the results; those within the output folder are made as far as that is there."""
    if output is None:
        return one.path.parent
    if not output.is_dir():
        raise OSError(errno.ESTALE, "the folder of the results is gone", str(output))
    folder = output / one.relative.parent
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _weights(model: SplatEnhancer) -> str:
    """Whose results these are: the digest of what was trained, and of what it was trained on."""
    frozen = (f"{mean:.6g}" for mean in fingerprint(model).values())
    return " ".join((trained_digest(model.trained_state()), str(model.config.timestep),
                     model.config.prompt, *frozen))
