"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, content: bytes) -> Path:
    """Write a file beside its place, then rename it; a failure leaves what was there alone.

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
    partial = path.with_name(path.name + ".tmp")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path
