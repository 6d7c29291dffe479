"""Results as one file to take away."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable
from pathlib import Path

from ..errors import refused


def zip_results(files: Iterable[Path], target: Path) -> Path:
    """Put files into one zip, whole or not at all, in the tree in which they lie.

    They are stored as they are: pictures and videos are compressed already.

    Args:
        files: that are there; one named twice is taken once.
        target: the zip, replaced if it is there.

    Returns:
        `target`.

    Raises:
        ValueError: no files.
        OSError: it could not be written.
    """
    paths = list(dict.fromkeys(Path(file).absolute() for file in files))
    if not paths:
        raise refused("zip", "files that were restored", "none", "restore something first")
    root = Path(os.path.commonpath([path.parent for path in paths]))
    partial = target.with_name(target.name + ".tmp")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(partial, "w", strict_timestamps=False) as archive:
            for path in paths:
                archive.write(path, path.relative_to(root))
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target
