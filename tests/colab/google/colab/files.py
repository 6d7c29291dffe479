"""Files between the browser and the kernel.

The environment plays the person at the browser:

    STAND_IN_UPLOADS    a folder whose files are chosen in the dialogue
    STAND_IN_DOWNLOADS  a folder that gets what the browser saves
"""

import os
import shutil
from pathlib import Path


def upload() -> dict[str, bytes]:
    """Write the chosen files to the working directory, under names that are free."""
    chosen = {}
    for path in sorted(Path(os.environ["STAND_IN_UPLOADS"]).iterdir()):
        target, number = Path(path.name), 1
        while target.exists():
            target, number = Path(f"{path.stem} ({number}){path.suffix}"), number + 1
        print(f"Saving {path.name} to {target}")
        chosen[path.name] = path.read_bytes()
        target.write_bytes(chosen[path.name])
    return chosen


def download(filename: str) -> None:
    """Save a file where the browser saves."""
    if not Path(filename).exists():
        raise FileNotFoundError(f"Cannot find file: {filename}")
    shutil.copy(filename, os.environ["STAND_IN_DOWNLOADS"])
