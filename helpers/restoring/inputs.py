"""What can be restored, found in files, folders and patterns: a name at a time, never a list."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import refused
from ..pictures import SUFFIXES
from ..storage import own_path

KINDS = {"picture": SUFFIXES, "video": (".mp4", ".mov", ".mkv", ".webm", ".avi"),
         "splat": (".ply",)}  # by suffix
NAMED_ONLY = {".splat": "splat", ".ksplat": "splat", ".spz": "splat"}  # refused by who knows them
OURS = re.compile(r"_restored(_\d+)?$")  # ends the stem of every result
RESULTS = "results of ours (*_restored)"
Named = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Input:
    """One file to restore."""

    path: Path
    kind: str  # of KINDS
    relative: Path  # its place within what was named: that of the result within an output folder
    problem: str = ""  # why it cannot even be opened


def kind_of(path: str | Path) -> str | None:
    """"picture", "video" or "splat", by a file's suffix; None for any other."""
    suffix = Path(path).suffix.lower()
    return next((kind for kind, suffixes in KINDS.items() if suffix in suffixes), None)


def _kind_if_named(path: Path) -> str:
    """The kind of a file that no folder would give, but somebody has named."""
    return NAMED_ONLY.get(path.suffix.lower(), "picture")


def is_result(path: str | Path) -> bool:
    """Whether a file or folder is called as our results are."""
    return bool(OURS.search(Path(path).stem))


def find(what: Named, *, output: Path | None = None,
         say: Callable[[str], object] | None = print) -> Iterator[Input]:
    """Find what can be restored, sorted by name, folder by folder.

    No more than the names of one folder are held. Hidden files, linked folders, the output folder
    and our own results are left out, and so is what is of no kind; a single file that is named is
    taken whatever it is called.

    Args:
        what: a file, a folder (with all below it), a pattern such as `renders/**/*.png`, or several
            of these.
        output: the folder of the results.
        say: told in the end what was left out; None for nobody.

    Raises:
        ValueError: something that is not there, or nothing that can be restored.
    """
    paths = list(dict.fromkeys(path for one in ([what] if isinstance(what, str | Path) else what)
                               for path in _expanded(one)))
    single, left_out, found = len(paths) == 1, Counter(), 0
    root, named = _root(paths), set(paths)
    for path in paths:
        if path.is_dir():
            inputs = (one for one in _within(path, root, output and output.resolve(), left_out)
                      if single or not _named_below(path, one.path, named))
        elif is_result(path) and not single:
            left_out[RESULTS] += 1
            continue
        else:
            inputs = [Input(path, kind_of(path) or _kind_if_named(path), path.relative_to(root))]
        for one in inputs:
            found += 1
            yield one
    told = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
    if not found:
        raise refused(", ".join(map(str, paths[:3])), "pictures, videos or splats ("
                      + ", ".join(s for suffixes in KINDS.values() for s in suffixes) + ")",
                      told or "an empty folder", "name another folder, or a file")
    if told and say:
        say(f"Left out: {told}.")


def count(what: Named, output: Path | None = None) -> int:
    """How many files `find` will give."""
    return sum(1 for _ in find(what, output=output, say=None))


def _expanded(one: str | Path) -> list[Path]:
    """A path as it is, or what a pattern matches."""
    path = own_path(one).absolute()
    if path.exists() or path.is_symlink():
        return [_without_dots(path)]
    if found := sorted(map(Path, glob.glob(str(path), recursive=True))):  # noqa: PTH207 (absolute)
        return [_without_dots(path) for path in found]
    raise refused(str(one), "a file, a folder, or a pattern that something matches",
                  "nothing there", "check the path")


def _without_dots(path: Path) -> Path:
    """The same place without `..`, which would lead out of the folder of the results."""
    if ".." not in path.parts:
        return path
    return path.resolve() if path.name == ".." else path.parent.resolve() / path.name


def _named_below(folder: Path, path: Path, named: set[Path]) -> bool:
    """Whether a file of a named folder is named again, or lies in another folder that is."""
    depth = len(path.relative_to(folder).parts)
    return not named.isdisjoint((path, *path.parents)[:depth])


def _root(paths: Sequence[Path]) -> Path:
    """The folder in which all that was named lies."""
    if len(paths) == 1:
        return paths[0] if paths[0].is_dir() else paths[0].parent
    return Path(os.path.commonpath([path.parent for path in paths]))


def _within(folder: Path, root: Path, output: Path | None, left_out: Counter) -> Iterator[Input]:
    """The files of a folder, then those of each folder in it."""
    files, folders, place = [], [], folder.relative_to(root)
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                elif entry.is_symlink() and entry.is_dir():
                    left_out["linked folders"] += 1
                elif entry.is_file() or entry.is_symlink():  # a pipe would be waited for
                    files.append(entry.name)
    except OSError as error:
        yield Input(folder, "folder", place, f"{folder}: cannot be opened "
                    f"({error.strerror or error}); check its permissions")
        return
    for name in sorted(files):
        if not name.startswith(".") and (reason := _reason(name)):
            left_out[reason] += 1
        elif not name.startswith("."):
            yield Input(folder / name, kind_of(name), place / name)
    for name in sorted(folders):
        path = folder / name
        if is_result(name):
            left_out[RESULTS] += 1
        elif not name.startswith(".") and path.resolve() != output:
            yield from _within(path, root, output, left_out)


def _reason(name: str) -> str:
    """Why a file of a folder is left out; empty for what is to be restored."""
    if kind_of(name) is None:
        return "files of other kinds"
    return RESULTS if is_result(name) else ""
