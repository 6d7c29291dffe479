"""CelebA-HQ as a stream from the hub: all kinds of faces from the first row on, and where to go on.

Its files are sorted by label, women first, so they are read in turn: a row of each. What was read
is exactly known, and with the hub's bookmark no part of a file is loaded again that was used up.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import datasets

from ..storage import HUB_ERRORS, loading_quietly, out_of_reach, passes

CELEBA_HQ = "mattymchen/celeba-hq"
ORDER = "mixed"  # of the rows; stores and faces are named after it, for others were in file order
HUB_TRIES = 5  # 30 s of waiting in all

Row = Mapping[str, Any]


@dataclass
class Place:
    """How far a source has been read: where an interrupted preparation goes on."""

    done: dict[str, str] = field(default_factory=dict)  # the faces that are kept: key and split
    skipped: dict[str, str] = field(default_factory=dict)  # the images left out: name and reason
    prints: dict[str, str] = field(default_factory=dict)  # `picture_print` of each: its key
    rows: int = 0  # taken from a stream
    bookmark: dict[str, Any] | None = None  # the stream's own, after these rows
    labels: dict[str, int] = field(default_factory=dict)  # of the faces: name and how many
    small: int = 0  # photographs that had to be enlarged


def rows_from(rows: Iterable[Row] | None, place: Place) -> Iterator[Row]:
    """Go on where a connection error stopped the rows; give up after five without a row.

    Args:
        rows: stand in for the stream.
        place: where to go on; it moves along.
    """
    failures = 0
    while True:
        try:
            for row in _rows_after(place, _hub_stream() if rows is None else rows):
                failures = 0
                yield row
            return
        except HUB_ERRORS as error:
            failures += 1
            if failures == HUB_TRIES or not passes(error):
                raise out_of_reach(f"row {place.rows} of {CELEBA_HQ}", error) from error
            print(f"data: {CELEBA_HQ} broke off after {place.rows} rows "
                  f"({type(error).__name__}: {error}); trying again in {2**failures} s")
            time.sleep(2**failures)


def _rows_after(place: Place, stream: Iterable[Row]) -> Iterator[Row]:
    """The rows that follow a place, which moves along; labels by name.

    With its bookmark a hub's stream loads again no more than three parts of each file (some 100
    rows each), around where it stopped; without one, or with that of another release, all before.
    """
    marked, skip = isinstance(stream, InTurn), place.rows
    if marked and place.bookmark and place.bookmark["release"] == datasets.__version__:
        stream.load_state_dict(place.bookmark["state"])
        skip = 0
    label = stream.features.get("label") if marked else None
    for row in islice(stream, skip, None):
        place.rows += 1
        if marked:
            place.bookmark = {"release": datasets.__version__, "state": stream.state_dict()}
        if isinstance(label, datasets.ClassLabel) and row["label"] is not None:
            row = {**row, "label": label.int2str(row["label"])}
        yield row


class InTurn:
    """A row of each file, then the next of each, until all are read: every row once.

    `datasets` can interleave streams too, but loads what it has read again when it goes on.

    Args:
        files: streams of one file each.

    Attributes:
        features: of the rows.
    """

    def __init__(self, files: Sequence[datasets.IterableDataset]) -> None:
        self.files, self.features = files, files[0].features or {}
        self.turn, self.begun, self.ended = 0, [False] * len(files), [False] * len(files)

    def __iter__(self) -> Iterator[Row]:
        rows = [iter(file) for file in self.files]
        while not all(self.ended):
            at, self.turn = self.turn, (self.turn + 1) % len(rows)
            if self.ended[at]:
                continue
            self.begun[at], row = True, next(rows[at], None)
            if row is None:
                self.ended[at] = True
            else:
                yield row

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, after the last row."""
        return {"turn": self.turn, "ended": list(self.ended), "files": [
            file.state_dict() if begun else None
            for file, begun in zip(self.files, self.begun, strict=True)]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Stand where another one stood that was made of the same files."""
        self.turn, self.ended = state["turn"], list(state["ended"])
        self.begun = [own is not None for own in state["files"]]
        for file, own in zip(self.files, state["files"], strict=True):
            if own is not None:
                file.load_state_dict(own)


def _hub_stream() -> InTurn:
    """The photographs, about 0.1 MB each; only the parts of files that are taken are downloaded."""
    with loading_quietly():
        stream = datasets.load_dataset(CELEBA_HQ, split="train", streaming=True)
    if "image" in (stream.features or {}):  # kept encoded: a broken image then has a name
        stream = stream.cast_column("image", datasets.Image(decode=False))
    files = [stream.shard(stream.num_shards, number) for number in range(stream.num_shards)]
    if hasattr(stream, "reshard"):  # since datasets 4.6: parts of files can be passed over
        files = [file.reshard() for file in files]
    return InTurn(files)
