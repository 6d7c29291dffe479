"""Things that are there whole or not at all, and are known to be whole: by their SHA-256.

A file has the digest of all that stands before as its last bytes; a folder has a file that lists
the digests of the others. Everything this project keeps is of one of these two kinds.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError

SEAL_BYTES = 32
# What reading absurd content can raise
ABSURD = (ValueError, TypeError, LookupError, AttributeError, AssertionError, OverflowError,
          RuntimeError, SafetensorError)
UNREADABLE = (OSError, *ABSURD)  # where a file that is not there is damage as well


class DamagedFile(ValueError):
    """A file whose content is not what this project wrote."""


def write_whole(path: Path, content: bytes) -> Path:
    """Write a file beside its place, then rename it; a failure leaves what was there alone.

    A link is followed: what it leads to is written, and keeps its mode.

    Args:
        path: the file; its folder and the one above are made if need be.
        content: all of it.

    Returns:
        `path`.

    Raises:
        OSError: it could not be written; nothing half-written is left behind.
    """
    for folder in (path.parent.parent, path.parent):  # not all: where Drive is gone, the folders
        folder.mkdir(exist_ok=True)  # would be local, and in the way of the next mount
    target = Path(os.path.realpath(path)) if path.is_symlink() else path
    partial = target.with_name(target.name + ".tmp")
    try:
        pour(content, partial)
        with suppress(OSError):  # nothing was there, or the place knows no modes
            partial.chmod(stat.S_IMODE(target.stat().st_mode))
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return path


def pour(source: Path | bytes, target: Path) -> str:
    """Write a file to the disk, flushed; returns the SHA-256 of what was to be written."""
    with _opened(source) as whole, target.open("wb") as copy:
        found = _digest(whole, copy=copy)
        copy.flush()
        os.fsync(copy.fileno())
    return found.hex()


def digest(source: Path | bytes) -> str:
    """The SHA-256 of a file or of its content, in hexadecimal digits."""
    with _opened(source) as whole:
        return _digest(whole).hex()


def seal(path: Path) -> None:
    """Append to a file the SHA-256 of what it holds."""
    content = digest(path)
    with path.open("ab") as file:
        file.write(bytes.fromhex(content))


def read_seal(source: Path | bytes, name: Path | str = "") -> bytes:
    """The SHA-256 that a file ends in, compared with its bytes without holding them in memory.

    Args:
        source: the file, or its content.
        name: of the content, for the error.

    Raises:
        DamagedFile: they do not fit.
        OSError: the file cannot be read.
    """
    with _opened(source) as file, damage_named(name or source):
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        found = _digest(file, left=max(0, size - SEAL_BYTES))
        if found != file.read(SEAL_BYTES):
            raise ValueError("bytes that do not fit their SHA-256: it is truncated or damaged")
    return found


def list_digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a folder by its name, once its bytes are on the disk."""
    digests = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb+") as file:
            os.fsync(file.fileno())
        digests[path.name] = digest(path)
    return digests


def refuse_changed(folder: Path, digests: Mapping[str, str]) -> None:
    """Raise ValueError where a folder's files are not as they were listed; OSError if one fails."""
    changed = [name for name, listed in digests.items() if digest(folder / name) != listed]
    if changed:
        raise ValueError(f"other bytes in {', '.join(changed)}")


@contextmanager
def damage_named(name: Path | str, expected: str = "a whole checkpoint",
                 remedy: str = "use another copy",
                 kinds: tuple[type[Exception], ...] = ABSURD) -> Iterator[None]:
    """Turn whatever absurd content can raise into one DamagedFile that names the file.

    Args:
        name: of the file.
        expected, remedy: what it should have been, and what helps.
        kinds: of errors that mean damage.
    """
    try:
        yield
    except DamagedFile:
        raise
    except kinds as error:
        kind = "" if type(error) is ValueError else f"{type(error).__name__}: "
        raise DamagedFile(f"{name}: expected {expected}, got {kind}{error!s:.300}; {remedy}"
                          ) from error


def _opened(source: Path | bytes) -> BinaryIO:
    return BytesIO(source) if isinstance(source, bytes) else source.open("rb", buffering=0)


def _digest(file: BinaryIO, *, left: int = -1, copy: BinaryIO | None = None) -> bytes:
    """The SHA-256 of a file from here on, or of some bytes of it; they are copied as they pass."""
    found, buffer = hashlib.sha256(), memoryview(bytearray(2**18))
    while left and (count := file.readinto(buffer[:left] if left >= 0 else buffer)):
        found.update(buffer[:count])
        left -= count if left > 0 else 0
        if copy:
            copy.write(buffer[:count])
    return found.digest()
