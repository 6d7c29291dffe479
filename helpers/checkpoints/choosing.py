"""Which of a run's files to go on from: of those that are whole and fit, the one of most steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from ..storage import within
from .checkpoint import ASIDE, LATEST, NAMES, Checkpoint, load, read_step, step_or_none

Found = tuple[list[tuple[int, Path]], list[str]]  # files with their step, and lines on the others


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
