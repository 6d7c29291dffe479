"""The folder of prepared faces: it grows in groups, and has its name only once it is whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from PIL import Image

from ..storage import UNREADABLE, damage_named, digest, list_digests, refuse_changed, write_whole
from .sources import picture_print
from .stream import Place, Row

GROUP = 4  # faces that are parsed and kept together: an interruption costs fewer than these
SEALED = 16  # groups that stand together in a store: who reads all keys reads few other bytes
ROWS = "data-00000-of-00001.arrow"  # as `datasets` names them
CONTENTS = "prepared.json"  # what was left out, and the SHA-256 of every other file of a store
TOLD = ("skipped", "labels", "small")  # of a source; older stores have the first only
COLUMNS = ("image", "regions")  # PNG bytes; beside them stand a face's key and split


class PartialStore:
    """The groups that an interrupted preparation left, and the place to go on from.

    Each group is one file beside the store, written whole and named by its number and hash, with
    the source's place after it: a torn, changed or foreign file ends the groups that are trusted.

    Args:
        store: the folder that it becomes.
        columns: what is kept of each, as bytes, beside its key and split.
        noun: what they are, in words.
        known_by: the column whose pictures `place.prints` knows; empty where nobody asks.

    Attributes:
        groups: the files of the groups, in order.
        place: how far the source has been read.
    """

    def __init__(self, store: Path, columns: Sequence[str] = COLUMNS, noun: str = "faces",
                 known_by: str = COLUMNS[0]) -> None:
        self.schema = pa.schema({"key": pa.string(), **dict.fromkeys(columns, pa.binary()),
                                 "split": pa.string()})
        self.noun = noun
        self.store, self.folder = store, store.with_name(store.name + ".partial")
        self.groups: list[Path] = []
        self.place = Place()
        found = sorted(self.folder.glob("*.arrow"))
        for path in found:
            content = path.read_bytes()
            if path.name != self._name(content):
                break
            table = pa.ipc.open_stream(content).read_all()
            place = Place(**json.loads(table.schema.metadata[b"place"]))
            place.done, place.prints = self.place.done, self.place.prints
            place.skipped = self.place.skipped | place.skipped
            self.place = place
            keys = table["key"].to_pylist()
            place.done |= dict(zip(keys, table["split"].to_pylist(), strict=True))
            if known_by:
                for key, png in zip(keys, table[known_by], strict=True):
                    place.prints.setdefault(print_of(png.as_py()), key)
            self.groups.append(path)
        self.told = len(self.place.skipped)  # those that a group names
        for path in found[len(self.groups):]:
            print(f"data: {path.name} is damaged or follows one that is; its {noun} are made again")
            path.unlink()

    def add(self, rows: Sequence[Row]) -> None:
        """Keep a group of faces and the place after it.

        Raises:
            OSError: no room; what was kept before stays.
        """
        skipped = self.place.skipped
        note = vars(self.place) | {"done": {}, "prints": {},  # the rows say it
                                   "skipped": dict(islice(skipped.items(), self.told, None))}
        schema = self.schema.with_metadata({"place": json.dumps(note)})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema) as stream:
            stream.write_batch(pa.RecordBatch.from_pylist(list(rows), schema=schema))
        content = sink.getvalue().to_pybytes()
        with self._told():
            self.groups.append(write_whole(self.folder / self._name(content), content))
        self.told = len(skipped)
        self.place.done |= {row["key"]: row["split"] for row in rows}

    def fill(self, rows: Iterable[Row]) -> None:
        """Keep rows as they come, a group at a time; raises as `add` does."""
        rows = iter(rows)
        while group := list(islice(rows, GROUP)):
            self.add(group)

    def seal(self) -> None:
        """Make the groups one Arrow folder, and give it its name when all of it is on the disk.

        Raises:
            OSError: no room; the groups stay.
        """
        faces = self.folder / "faces"
        with self._told():
            shutil.rmtree(faces, ignore_errors=True)
            faces.mkdir()
            with pa.OSFile(str(faces / ROWS), "wb") as file, \
                    pa.ipc.new_stream(file, self.schema) as stream:
                for at in range(0, len(self.groups), SEALED):
                    some = [pa.ipc.open_stream(path.read_bytes()).read_all()
                            .replace_schema_metadata(None) for path in self.groups[at:at + SEALED]]
                    stream.write_table(pa.concat_tables(some).combine_chunks())
            told = {name: getattr(self.place, name) for name in TOLD}
            contents = told | {"sha256": list_digests(faces),
                               "prints": {key: known for known, key in self.place.prints.items()}}
            write_whole(faces / CONTENTS, json.dumps(contents, indent=2).encode())
            faces.replace(self.store)
        self.discard()

    def discard(self) -> None:
        """Delete the groups."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _name(self, content: bytes) -> str:
        """The name of the next group, if this is its content."""
        return f"{len(self.groups):06d}-{digest(content)[:16]}.arrow"

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, f"data: expected to write to {self.folder}, got {error}; "
                          f"make room and run again: {len(self.place.done)} {self.noun} are kept"
                          ) from error


def open_rows(store: Path) -> datasets.Dataset:
    """The rows of a store, mapped: by file, for `load_from_disk` takes a path for an address."""
    with as_prepared(store):
        files = sorted(store.glob(ROWS.replace("00000-of-00001", "*")))
        return datasets.concatenate_datasets([datasets.Dataset.from_file(str(f)) for f in files])


def read_column(rows: datasets.Dataset, name: str) -> Iterator[Any]:
    """The cells of a column in order, a few at a time: all pictures at once are too many."""
    for some in rows.select_columns([name]).iter(64):
        yield from some[name]


def read_prints(store: Path) -> dict[str, str]:
    """What the pictures of a store are known by, by key; older stores say nothing."""
    with as_prepared(store):
        return dict(json.loads((store / CONTENTS).read_bytes()).get("prints", {}))


def print_of(png: bytes) -> str:
    """The print of a picture that is kept as PNG; see `picture_print`."""
    with Image.open(BytesIO(png), formats=["PNG"]) as image:
        return picture_print(image)


def read_contents(store: Path) -> Place:
    """Check every byte of a store against what was written.

    Returns:
        What is told of its source: the images left out, labels, how many were small.

    Raises:
        ValueError: a file is missing or was changed; it says what to do.
    """
    with as_prepared(store):
        contents = json.loads((store / CONTENTS).read_bytes())
        refuse_changed(store, contents["sha256"])
        return Place(**{name: contents[name] for name in TOLD if name in contents})


def as_prepared(store: Path, where: str = "", kinds: tuple[type[Exception], ...] = UNREADABLE,
                ) -> AbstractContextManager[None]:
    """Name what is raised within as damage to a store, and say what to do; see `damage_named`."""
    return damage_named(f"what is kept in {store}{where}", "what was prepared",
                        "delete this folder and run again: it is prepared anew", kinds)
