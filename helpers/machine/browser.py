"""Files from a person's own computer and back, where the place has a dialogue for it: on Colab."""

from __future__ import annotations

import contextlib
from pathlib import Path

from .runtime import Runtime


def receive(runtime: Runtime, folder: Path) -> bool:
    """Ask for files in Colab's own dialogue, and wait for them.

    Args:
        runtime: this machine.
        folder: they are put there, under names of their own; made if need be.

    Returns:
        False where there is no such dialogue.
    """
    if runtime.place != "colab":
        return False
    try:
        from google.colab import files
    except ImportError:  # an editor attached to such a machine
        return False
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(folder):  # it writes to the working directory, and overwrites nothing
        files.upload()
    return True


def send(runtime: Runtime, file: Path) -> bool:
    """Let the browser save a file; returns False where Colab's way is not there."""
    if runtime.place != "colab":
        return False
    try:
        from google.colab import files
    except ImportError:
        return False
    files.download(str(file))
    return True
