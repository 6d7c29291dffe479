"""Files: atomic writes, one digest, timeouts, archives to and from Drive, users' paths."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
from collections.abc import Callable
from concurrent.futures import Future
from io import BytesIO
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

DIGEST_BYTES = 32  # SHA-256, the last bytes of an archive
QUOTES = ('""', "''", "“”", "‘’", "``", "«»")
Result = TypeVar("Result")


def atomic_write(path: Path, content: bytes) -> Path:
    """Write a file beside its place, then rename it; a failure leaves the file as it was.

    A link is followed. The file's folder and the one above are made, no others: where Drive is
    gone they would be local, and in the way of the next mount.
    """
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    for folder in (path.parent.parent, path.parent):
        folder.mkdir(exist_ok=True)
    partial = path.with_name(f"{path.name}.part")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    return path


def sha256(source: Path | bytes) -> str:
    """The SHA-256 of a file, or of some bytes, in hexadecimal digits."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def with_timeout(timeout_s: float, function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function in a thread that is left behind, with a TimeoutError, if it hangs."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    try:
        return future.result(timeout_s)
    except TimeoutError as error:
        raise TimeoutError(str(error) or f"no answer within {timeout_s:g} s") from error


def pack(folder: Path, archive: Path) -> None:
    """Copy a folder to Drive as one tar file that ends in its SHA-256, read back and compared."""
    file = BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        tar.add(folder, arcname=".")
    content = file.getvalue()
    content += bytes.fromhex(sha256(content))
    archive.parent.mkdir(exist_ok=True)
    partial = archive.with_name(f"{archive.name}.part")
    partial.write_bytes(content)
    if sha256(partial) != sha256(content):
        raise OSError(f"{partial}: what was read back differs from what was written")
    partial.replace(archive)


def unpack(archive: Path, folder: Path) -> None:
    """Bring back what `pack` wrote; the folder appears only when it is complete."""
    content, partial = archive.read_bytes(), folder.with_name(f".{folder.name}.unpacked")
    if sha256(content[:-DIGEST_BYTES]) != content[-DIGEST_BYTES:].hex():
        raise ValueError(f"{archive}: expected a complete archive, got a damaged one")
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(fileobj=BytesIO(content)) as tar:
        tar.extractall(partial, filter="data")
    partial.replace(folder)


def user_path(text: str | Path) -> Path:
    """A user's path: without the quotes and blanks that copying leaves around it, `~` expanded."""
    text = str(text).strip()
    while len(text) > 1 and text[0] + text[-1] in QUOTES:
        text = text[1:-1].strip()
    try:
        return Path(text).expanduser()
    except RuntimeError:  # "~x.png", where nobody is called x.png
        return Path(text)
