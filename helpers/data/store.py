"""The one kind of prepared folder: picture files and an `index.json`, which is written last.

The embedded heads and novel-view pairs are such folders, too. The index lists for each row its
files by part, as {"clean": "00012.png", "regions": "00012.regions.png", "identity": …}.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from PIL import Image, ImageOps, PngImagePlugin
from torch import Tensor

from ..files import atomic_write, pack, unpack, with_timeout

INDEX = "index.json"
ENTRY = "entry"  # text of a row's last file while the folder is not complete
DRIVE_ANSWER_S, DRIVE_TIMEOUT_S = 30.0, 300.0  # for a question, for a copy
Entry = dict[str, Any]
Row = tuple[Entry, dict[str, Image.Image]]  # what is known of a row, and its pictures by part


class ImageStore:
    """A prepared folder, checked when it is opened, and each picture when it is read."""

    def __init__(self, folder: Path, parts: Sequence[str]) -> None:
        self.folder, self.parts = folder, tuple(parts)
        try:
            index = json.loads((folder / INDEX).read_bytes())
            self.entries: list[Entry] = index["images"]
            self.skipped: dict[str, str] = index.get("skipped", {})
            files = {entry[part] for entry in self.entries for part in self.parts}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{folder}: expected a prepared folder with {INDEX}, got "
                             f"{type(error).__name__}: {error}") from error
        if missing := [name for name in sorted(files) if not (folder / name).is_file()]:
            raise ValueError(f"{folder}: expected {len(files)} files, {len(missing)} are missing")

    def __len__(self) -> int:
        return len(self.entries)

    def load(self, rows: Sequence[int], part: str) -> Tensor:
        """Read one part of some rows: uint8 (B, 3, H, W), of regions (B, H, W)."""
        pictures = []
        for row in rows:
            path = self.folder / self.entries[row][part]
            try:
                with Image.open(path) as image:
                    pictures.append(np.array(image if part == "regions" else image.convert("RGB")))
            except Exception as error:  # damaged files make Pillow raise nearly anything
                raise ValueError(f"{path}: expected a picture as it was prepared, got {error!r}; "
                                 f"delete {self.folder} and run again") from error
        values = torch.from_numpy(np.stack(pictures))
        return values if part == "regions" else values.permute(0, 3, 1, 2).contiguous()


def prepare_store(folder: Path, parts: Sequence[str],
                  make: Callable[[list[Entry], dict[str, str]], Iterator[Row]], *,
                  drive: Path | None = None) -> ImageStore:
    """Open a prepared folder, take it from Drive, or make it; of several processes one does.

    However it is interrupted, the next call goes on after the last row that was written.

    Args:
        folder, drive: its place, where the name says what is in it, and that of its archive.
        parts: the files of each row.
        make: what is done already, and a dict for what is left out → the rows that follow.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        archive = drive and drive / f"{folder.name}.tar"
        if (folder / INDEX).exists():
            try:
                ImageStore(folder, parts)
            except ValueError as error:
                print(f"{error}: it is prepared again.")
                shutil.rmtree(folder)
        _share(folder, archive)
        if not (folder / INDEX).exists():
            _make(folder, parts, make)
            _share(folder, archive)
        store = ImageStore(folder, parts)
    if store.skipped:
        first = [f"{name}: {reason}" for name, reason in list(store.skipped.items())[:3]]
        print(f"{folder.name}: {len(store.skipped)} left out: {'; '.join(first)}"
              f"{'; …' if len(store.skipped) > 3 else ''}")
    return store


def derive_number(*parts: int | str) -> int:
    """Derive a 63-bit number that follows from the parts alone."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def pixel_hash(image: Image.Image) -> str:
    """The SHA-256 of a picture's pixels, which knows it whatever its file is called."""
    return hashlib.sha256(repr((image.mode, image.size)).encode() + image.tobytes()).hexdigest()


def centre_square(image: Image.Image, side_px: int,
                  resample: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
    """Cut the square in the middle out of a picture, and scale it."""
    return ImageOps.fit(image, (side_px, side_px), method=resample)


def _make(folder: Path, parts: Sequence[str],
          make: Callable[[list[Entry], dict[str, str]], Iterator[Row]]) -> None:
    def names() -> dict[str, str]:
        number = f"{len(entries):05d}"
        return {part: f"{number}.{part}.png" if part != parts[0] else f"{number}.png"
                for part in parts}

    folder.mkdir(exist_ok=True)
    entries: list[Entry] = []
    skipped: dict[str, str] = {}
    with suppress(OSError, ValueError, SyntaxError, KeyError):  # of the first row to make
        while True:
            with Image.open(folder / names()[parts[-1]], formats=["PNG"]) as image:
                entries.append(json.loads(image.info[ENTRY]))
    for entry, images in make(list(entries), skipped):
        entry = entry | names()
        for part in parts:  # the last file has the entry: with it the row is complete
            info = PngImagePlugin.PngInfo()
            if part == parts[-1]:
                info.add_text(ENTRY, json.dumps(entry))
            content = BytesIO()
            images[part].save(content, "PNG", compress_level=1, pnginfo=info)  # fast
            atomic_write(folder / entry[part], content.getvalue())
        entries.append(entry)
    index = {"images": entries, "skipped": skipped}
    atomic_write(folder / INDEX, (json.dumps(index, indent=1) + "\n").encode())


def _share(folder: Path, archive: Path | None) -> None:
    """Keep a complete folder on Drive, or take a missing one from there; a run goes on without."""
    if not archive:
        return
    try:
        kept = with_timeout(DRIVE_ANSWER_S, archive.is_file)
        if not kept and (folder / INDEX).exists():
            with_timeout(DRIVE_TIMEOUT_S, pack, folder, archive)
            print(f"{folder.name} is kept in {archive.parent} for the next session.")
        elif kept and not folder.exists():
            with_timeout(DRIVE_TIMEOUT_S, unpack, archive, folder)
            print(f"{folder.name} is taken from {archive.parent}.")
    except (OSError, ValueError) as error:
        print(f"{folder.name}: nothing is copied from or to {archive.parent} ({error}); what has "
              "no copy is prepared again.")
        if isinstance(error, ValueError):  # damaged: the next copy is written over it
            archive.replace(archive.with_name(f"{archive.name}.part"))
