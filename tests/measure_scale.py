"""What grows with the number of files: start-up, time and memory, of few and of ten times as many.

    python -m tests.measure_scale           # 500 and 5,000 photographs, 10,000 and 100,000 files
    python -m tests.measure_scale 3000 10000 --json

Each row is measured in a process of its own, a fork of one that has imported everything. The
pictures are tiny, so that what counts is what each file costs besides its pixels; all of them
differ, for photographs are known by their pixels. Linux and macOS only.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image

from helpers.config import DataConfig, PairsConfig
from helpers.faces import Faces, draw_batch, prepare
from helpers.pairs import OwnPairs, prepare_own
from helpers.restoring import find

SIDE_PX, HELD_OUT = 64, 10
PHOTOGRAPHS, FILES, TIMES = 500, 10_000, 10
MIB = 1024  # ru_maxrss counts in KiB


def picture(number: int) -> Image.Image:
    """A picture of noise, another for each number; 12 KiB."""
    dice = np.random.default_rng(number)
    return Image.fromarray(dice.integers(0, 256, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8))


def write_photographs(folder: Path, count: int) -> None:
    """A folder of different photographs, and the same as one's own pairs."""
    for side in ("photos", "pairs/photos", "pairs/renders"):
        (folder / side).mkdir(parents=True)
    for number in range(count):
        path = folder / "photos" / f"{number:06d}.png"
        picture(number).save(path)
        for side in ("photos", "renders"):
            (folder / "pairs" / side / path.name).hardlink_to(path)


def write_files(folder: Path, count: int) -> None:
    """A tree of files to restore: folders of a hundred, all links to the first."""
    for start in range(0, count, 100):
        first, *others = (folder / f"{start // 100:04d}" / f"{number:06d}.png"
                          for number in range(start, min(start + 100, count)))
        first.parent.mkdir(parents=True)
        picture(start).save(first)
        for path in others:
            path.hardlink_to(first)


def open_faces(folder: Path, count: int) -> Faces:
    """Prepare a folder's faces, or open what was prepared; regions are not looked for."""
    config = DataConfig(source=str(folder / "photos"), size_px=SIDE_PX,
                        train_images=count - HELD_OUT, test_images=HELD_OUT)
    return prepare(config, folder / "data", progress=None,
                   parse=lambda images: images[:, 0].mul(0).byte())


def open_own(folder: Path, faces: Faces) -> OwnPairs:
    """Read one's own pairs, or open what was read."""
    return prepare_own(PairsConfig(own=str(folder / "pairs"), own_share=1.0), SIDE_PX,
                       folder / "data", progress=None, faces=faces)


def until_first(what: str, folder: Path, count: int) -> Iterator[None]:
    """Do it up to the first thing that is wanted, and then the rest, if there is one."""
    if what == "find":
        yield from (None for _ in find(folder / "tree", say=None))
        return
    faces = open_faces(folder, count)
    if what == "faces":
        draw_batch(faces, seed=0, step=0, batch=2)
    else:
        open_own(folder, faces).draw(torch.tensor([1, 2]))
    yield


def measure(what: str, folder: Path, count: int) -> dict[str, float]:
    """Seconds until the first thing, in all and of a core; the peak of this process in MiB."""
    before, mapped = peak_mib(), mapped_mib()
    started, worked = time.perf_counter(), time.process_time()
    steps = until_first(what, folder, count)
    next(steps)
    first = time.perf_counter() - started
    rest = sum(1 for _ in steps)
    return {"first_s": first, "all_s": time.perf_counter() - started, "found": rest + 1,
            "core_s": time.process_time() - worked, "peak_mib": peak_mib(),
            "own_mib": peak_mib() - before - (mapped_mib() - mapped),
            "mapped_mib": mapped_mib() - mapped}


def peak_mib() -> float:
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB


def mapped_mib() -> float:
    """The pages of files in it, which the system takes back when it needs them."""
    return getattr(psutil.Process().memory_info(), "shared", 0) / 2**20


def measured(what: str, folder: Path, count: int) -> dict[str, float]:
    """`measure` in a process of its own."""
    read, write = os.pipe()
    if not (process := os.fork()):
        status = 1
        try:
            os.write(write, json.dumps(measure(what, folder, count)).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    with open(read, "rb") as pipe:  # noqa: PTH123  (no path)
        said = pipe.read()
    if os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]):
        raise RuntimeError(f"{what} of {count} in {folder}: expected a measurement, got an error")
    return json.loads(said) | {"count": count}


def grown(folder: Path, few: int, times: int = TIMES) -> dict[str, list[dict[str, float]]]:
    """Photographs: made and opened again, for few and for many."""
    rows: dict[str, list[dict[str, float]]] = {}
    for count in (few, times * few):
        place = folder / str(count)
        write_photographs(place, count)
        for name, what in (("prepare faces", "faces"), ("open faces", "faces"),
                           ("prepare own pairs", "own"), ("open own pairs", "own")):
            rows.setdefault(name, []).append(measured(what, place, count))
    return rows


def grown_tree(folder: Path, few: int, times: int = TIMES) -> dict[str, list[dict[str, float]]]:
    """Files to restore: found, for few and for many."""
    rows: dict[str, list[dict[str, float]]] = {"find files": []}
    for count in (few, times * few):
        write_files(folder / str(count) / "tree", count)
        rows["find files"].append(measured("find", folder / str(count), count))
    return rows


def table(rows: dict[str, list[dict[str, float]]]) -> str:
    """Markdown, a line per measurement."""
    lines = ["| what | files | until the first | in all | of a core | peak memory | besides the "
             "packages | and pages of files |", "|---|---|---|---|---|---|---|---|"]
    lines += [f"| {name} | {row['count']:,} | {row['first_s']:.2f} s | {row['all_s']:.2f} s | "
              f"{row['core_s']:.2f} s | "
              f"{row['peak_mib']:.0f} MiB | {row['own_mib']:.0f} MiB | "
              f"{row['mapped_mib']:.0f} MiB |"
              for name, two in rows.items() for row in two]
    return "\n".join(lines)


def main(photographs: int = PHOTOGRAPHS, files: int = FILES, *, as_json: bool = False) -> None:
    """Print the table."""
    torch.set_num_threads(1)  # a fork has none of the threads of its parent
    with tempfile.TemporaryDirectory() as name:
        rows = grown(Path(name) / "faces", photographs)
        rows |= grown_tree(Path(name) / "trees", files)
    print(json.dumps(rows) if as_json else table(rows))
    few, many = (row["all_s"] for row in rows["prepare faces"])
    slope = (many - few) / ((TIMES - 1) * photographs)
    if not as_json:
        whole_s = few + slope * (30_000 - photographs)
        print(f"\nBy these, 30,000 photographs take {whole_s:.0f} s to prepare, besides the "
              "reading of their own pixels.")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]), as_json="--json" in sys.argv)
