"""What can be restored, found in files, folders and patterns; and our own results, known again.

A result carries a mark: which file it was made of, by which weights and settings. By the mark it is
left out, skipped or replaced; whatever carries none is a user's, whatever it is called.
"""

from __future__ import annotations

import glob
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import sha256, user_path
from ..images import SUFFIXES, read_png_text

KINDS = {"picture": SUFFIXES, "splat": (".ply", ".ply.gz"), "video": (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".3gp",
    ".wmv", ".flv")}
OTHER_SPLATS = (".splat", ".ksplat", ".spz", ".sog")  # known when named, to be rejected by name
MARK = "splat-enhancer"  # keyword of the text in a PNG, first word of a tag in an mp4
STEM_BYTES = 200  # of the 255 that a name may have


@dataclass(frozen=True)
class Input:
    """One file to restore."""

    path: Path
    kind: str  # of KINDS
    relative: Path  # its place within what was named: that of the result within an output folder


def find(inputs: str | Path | Sequence[str | Path], output: Path | None = None, *,
         say: Callable[[str], object] | None = print) -> list[Input]:
    """Find what can be restored, sorted by path.

    Hidden files and folders, linked folders, files of other kinds and our own results are left out.
    A file that is named is taken whatever its kind, and a single one even if it is our result.

    Args:
        inputs: a file, a folder (with all below it), a pattern such as `renders/**/*.png`, or
            several of these.
        output: the folder of the results; it is left out.
        say: called in the end with what was left out; None: nobody is.

    Raises:
        ValueError: something that is not there, or nothing that can be restored.
    """
    texts = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    named = {path: is_pattern for text in texts for path, is_pattern in _expand(text)}
    if not named:
        raise ValueError("inputs: expected files, folders or patterns, got none")
    single = next(iter(named)) if len(named) == 1 else None
    root = single if single and single.is_dir() else Path(
        os.path.commonpath([path.parent for path in named]))
    found, left_out = {}, Counter()
    for path, is_pattern in named.items():
        is_folder = path.is_dir()
        for file in _walk(path, output and output.resolve(), left_out) if is_folder else [path]:
            kind = _kind(file)
            if not (kind or is_folder or is_pattern):
                kind = "splat" if file.suffix.lower() in OTHER_SPLATS else "picture"
            if not kind:
                left_out["files of other kinds"] += 1
            elif file != single and read_mark(file):
                left_out["results of ours"] += 1
            else:
                found[file] = Input(file, kind, file.relative_to(root))
    text = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
    if not found:
        raise ValueError(f"{', '.join(map(str, list(named)[:3]))}: expected pictures, videos or "
                         f"splats ({', '.join(sum(KINDS.values(), ()))}), got "
                         f"{text or 'an empty folder'}; name another folder, or a file")
    if text and say:
        say(f"Left out: {text}.")
    return [found[file] for file in sorted(found)]


def stem_of(path: Path) -> str:
    """A file's name without its suffix (`.ply.gz` too), short enough to be added to."""
    stem = path.name[:-7] if path.name.lower().endswith(".ply.gz") else path.stem
    short = os.fsencode(stem)[:STEM_BYTES]
    return stem if short == os.fsencode(stem) else short.decode(errors="ignore")


def name_digest(path: Path) -> str:
    """By this a result says of which file it is, wherever the folder of both is moved."""
    return sha256(os.fsencode(path.name))[:16]


def read_mark(path: Path) -> dict[str, Any]:
    """The mark that a result of ours carries; empty for any other file."""
    suffix, text = path.suffix.lower(), ""
    try:
        if suffix == ".png":
            text = read_png_text(path).get(MARK, "")
        elif suffix == ".mp4":
            text = _read_mp4_tag(path)
        mark = json.loads(text or "{}")
    except (OSError, ValueError):
        return {}
    return mark if isinstance(mark, dict) else {}


def place(source: Path, folder: Path, *ends: str) -> list[Path]:
    """Where results of a file go: `<stem>_restored<end>`; the end "" is a folder of views.

    They are numbered from 2 where anything lies that is not our own result of this very file.
    """
    origin = name_digest(source)

    def is_free(path: Path) -> bool:
        if path.is_dir():
            views = list(path.glob("view_*.png"))
            return all(map(is_free, views)) and (bool(views) or not any(path.iterdir()))
        return not os.path.lexists(path) or read_mark(path).get("of") == origin

    stems = (f"{stem_of(source)}_restored" + (f"_{number}" if number > 1 else "")
             for number in itertools.count(1))
    candidates = ([folder / f"{stem}{end}" for end in ends] for stem in stems)
    return next(paths for paths in candidates if all(map(is_free, paths)))


def _kind(path: Path) -> str | None:
    name = path.name.lower()
    return next((kind for kind, suffixes in KINDS.items() if name.endswith(suffixes)), None)


def _expand(text: str | Path) -> Iterator[tuple[Path, bool]]:
    """A path as it is, or what a pattern matches, and whether it is a pattern.

    Brackets in the names of folders that are there are names.
    """
    path = Path(text) if os.path.lexists(text) else user_path(text)
    path = Path(os.path.abspath(path))  # noqa: PTH100 (a link stays one)
    if os.path.lexists(path):
        yield path, False
        return
    base = next(parent for parent in path.parents if parent.exists())
    pattern = str(path.relative_to(base))
    for rest in (pattern, pattern.replace("[", "[[]")):
        if matches := glob.glob(os.path.join(glob.escape(str(base)), rest),  # noqa: PTH118, PTH207
                                recursive=True):
            yield from ((Path(match), True) for match in sorted(matches))
            return
    raise ValueError(f"{text}: expected a file, a folder, or a pattern that something matches, got "
                     "nothing there; check the path")


def _walk(folder: Path, output: Path | None, left_out: Counter) -> Iterator[Path]:
    """The files of a folder and of all below it."""
    for here, folders, names in os.walk(folder, onerror=lambda error: left_out.update(
            [f"folders that cannot be opened ({error.filename})"])):
        paths = [Path(here, name) for name in names if not name.startswith(".")]
        yield from (path for path in paths if path.is_file() or path.is_symlink())  # not a pipe
        if linked := sum(Path(here, name).is_symlink() for name in folders):
            left_out["linked folders"] += linked
        folders[:] = [name for name in folders if not name.startswith(".")
                      and Path(here, name).resolve() != output]


def _read_mp4_tag(path: Path) -> str:
    """Our tag in the box `moov` of an mp4, wherever that lies."""
    with path.open("rb") as file:
        while len(head := file.read(8)) == 8:
            size, read = int.from_bytes(head[:4], "big"), 8
            if size == 1:
                size, read = int.from_bytes(file.read(8), "big"), 16
            if head[4:] == b"moov":
                tag = re.search(MARK.encode() + rb" (\{[^{}]*\})", file.read(size - read))
                return tag[1].decode() if tag else ""
            if size < read:  # 0: to the end of the file
                break
            file.seek(size - read, os.SEEK_CUR)
    return ""
