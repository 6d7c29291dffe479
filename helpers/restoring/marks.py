"""What a result was made of, written in the result itself: so a folder goes on where it stopped.

There is no ledger beside the results that could be lost, grow, or say what is not so.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..pictures import restored_path, source_of
from ..storage import digest, held


@dataclass(frozen=True)
class Mark:
    """Which file, as it was then, restored by which weights and settings."""

    origin: str  # of the file's path
    size: int  # in bytes
    mtime_ns: int  # when it was changed last
    by: str  # `made_by`
    content: str = "-"  # SHA-256 of the file, once it was read
    part: str = "-"  # which of several results

    @classmethod
    def of(cls, path: Path, by: str) -> Mark:
        """The mark of a file as it is now, not read yet."""
        now = path.stat()
        origin = hashlib.sha256(os.fsencode(path.parent.resolve() / path.name)).hexdigest()[:16]
        return cls(origin, now.st_size, now.st_mtime_ns, by)

    @classmethod
    def read(cls, text: str) -> Mark | None:
        """What `str` of a mark gave; None for any other text."""
        fields = text.split(" ")
        if len(fields) != 6 or not (fields[1] + fields[2]).isdecimal():
            return None
        return cls(fields[0], int(fields[1]), int(fields[2]), *fields[3:])

    def __str__(self) -> str:
        return " ".join(map(str, vars(self).values()))

    def of_content(self, path: Path) -> Mark:
        """The same with the digest of the file: taken before the file is decoded."""
        return replace(self, content=digest(path))

    def of_part(self, part: str) -> Mark:
        """The same of another of several results."""
        return replace(self, part=part)

    def owns(self, made: Mark | None, path: Path) -> bool:
        """Whether a result is of this file, perhaps as it was before, or where it lay before."""
        return made is not None and made.part == self.part and (
            made.origin == self.origin or self._same_content(made, path))

    def fits(self, made: Mark | None, path: Path) -> bool:
        """Whether a result is what would be made now; the file is read only if its time changed."""
        if made is None or (made.part, made.by, made.size) != (self.part, self.by, self.size):
            return False
        here = (made.origin, made.mtime_ns) == (self.origin, self.mtime_ns)
        return here or self._same_content(made, path)

    def _same_content(self, made: Mark, path: Path) -> bool:
        return made.size == self.size and made.content == (
            digest(path) if self.content == "-" else self.content)


def made_by(weights: str, settings: Mapping[str, Any]) -> str:
    """One short word for weights, by their digest, and the settings that matter."""
    return hashlib.sha256(json.dumps([weights, dict(settings)]).encode()).hexdigest()[:16]


def result_of(path: Path, folder: Path, mark: Mark, suffix: str = ".png",
              read: Callable[[Path], str] = source_of) -> tuple[Path, bool]:
    """Where the result of a file lies or shall lie, and whether it is there, made of the same.

    Args:
        path: of the file.
        folder: of the results.
        mark: of the file, or of a part.
        suffix: of the result.
        read: the text of a mark that a result carries, empty for what is not ours.
    """
    part = "" if mark.part == "-" else f"_{mark.part}"
    target = restored_path(folder, f"{path.stem}{part}{path.suffix}",
                           lambda there: mark.owns(Mark.read(read(there)), path), suffix)
    return target, target.exists() and mark.fits(Mark.read(read(target)), path)


@contextmanager
def placing(path: Path, folder: Path, mark: Mark, suffix: str = ".png",
            read: Callable[[Path], str] = source_of) -> Iterator[Path]:
    """Where a result is to be written now; no other process chooses a name there meanwhile.

    The folder is made. So be quick: keep it for the last rename of what takes long.
    """
    folder.mkdir(exist_ok=True)
    with held(folder, wait=True):
        yield result_of(path, folder, mark, suffix, read)[0]
