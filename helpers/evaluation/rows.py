"""Rows that are measured already: an interrupted evaluation goes on with what is missing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..storage import write_whole
from .result import Row


class Rows:
    """A file for each image of a set, written whole as it is measured.

    Args:
        folder: of a run; rows of other weights or settings lie beside these and are not read.
        bound_to: all that a row follows from besides its image: whose weights, which sets, which
            filter, which metrics.
    """

    def __init__(self, folder: Path, bound_to: Mapping[str, Any]) -> None:
        text = json.dumps(bound_to, sort_keys=True)
        self.of = hashlib.sha256(text.encode()).hexdigest()
        self.folder = folder / self.of[:12]
        self.found = 0  # how many were there already

    def read(self, name: str, image: str) -> Row | None:
        """The row of an image in a set; None where there is none, or no whole one."""
        with suppress(OSError, ValueError, TypeError, LookupError):
            kept = json.loads(self._path(name, image).read_bytes())
            if kept.pop("of") == self.of:
                row = Row(**kept)
                self.found += 1
                return row
        return None

    def write(self, name: str, row: Row) -> None:
        """Keep a row of a set."""
        path = self._path(name, row.image)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps({"of": self.of} | asdict(row)).encode())

    def _path(self, name: str, image: str) -> Path:
        return self.folder / name.replace(" ", "_") / f"{image}.json"
