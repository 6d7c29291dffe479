"""Files to and from the machine in front of the person."""

import os
import shutil
from itertools import count
from pathlib import Path


def upload() -> dict[str, bytes]:
    """Save what the person picks in the current folder, beside what has its name already."""
    picked = {path.name: path.read_bytes()
              for path in sorted(Path(os.environ["STAND_IN_UPLOAD"]).iterdir())}
    for name, content in picked.items():
        local = _free_name(name)
        print(f"Saving {name} to {local}")
        Path(local).write_bytes(content)
    return picked


def download(filename: str) -> None:
    """Let the browser save a file."""
    if not Path(filename).exists():
        raise FileNotFoundError(f"Cannot find file: {filename}")
    shutil.copy(filename, os.environ["STAND_IN_DOWNLOAD"])


def _free_name(name: str) -> str:
    numbered = (f"{Path(name).stem} ({n}){Path(name).suffix}" for n in count(1))
    return name if not Path(name).exists() else next(n for n in numbered if not Path(n).exists())
