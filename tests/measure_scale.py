"""What grows with the number of files: start-up, time and memory, of few and of ten times as many.

    python -m tests.measure_scale               # 500 and 5,000 photographs, 2,000 and 20,000 files

Each row is measured in a process of its own. The pictures are tiny, so that what counts is what
each file costs besides its pixels; all of them differ, for photographs are known by their pixels.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from helpers.config import DataConfig, PairsConfig
from helpers.machine import ROOT

SIDE_PX, HELD_OUT = 64, 10
PHOTOGRAPHS, FILES, TIMES = 500, 2_000, 10
MIB = 1024  # ru_maxrss counts in KiB


def picture(number: int) -> Image.Image:
    """A picture of one colour, another for each number."""
    return Image.new("RGB", (SIDE_PX, SIDE_PX), (number >> 16, number >> 8 & 255, number & 255))


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
    """A tree of files to restore, each a link to one picture: a hundred to a folder."""
    folder.mkdir(parents=True)
    picture(0).save(folder / "one.png")
    for number in range(1, count):
        path = folder / f"{number // 100:04d}" / f"{number:06d}.png"
        path.parent.mkdir(exist_ok=True)
        path.hardlink_to(folder / "one.png")


def open_faces(folder: Path, count: int) -> Any:
    """Prepare a folder's faces, or open what was prepared; regions are not looked for."""
    from helpers.faces import prepare

    config = DataConfig(source=str(folder / "photos"), size_px=SIDE_PX,
                        train_images=count - HELD_OUT, test_images=HELD_OUT)
    return prepare(config, folder / "data", progress=None,
                   parse=lambda images: images[:, 0].mul(0).byte())


def open_own(folder: Path, faces: Any) -> Any:
    """Read one's own pairs, or open what was read."""
    from helpers.pairs import prepare_own

    return prepare_own(PairsConfig(own=str(folder / "pairs"), own_share=1.0), SIDE_PX,
                       folder / "data", progress=None, faces=faces)


def until_first(what: str, folder: Path, count: int) -> Iterator[None]:
    """Do it up to the first thing that is wanted, and then the rest, if there is one."""
    import torch

    from helpers.faces import draw_batch

    if what == "find":
        from helpers.restoring import find
        found = find(folder / "tree", say=None)
        yield from (None for _ in found)
        return
    faces = open_faces(folder, count)
    if what == "faces":
        draw_batch(faces, seed=0, step=0, batch=2)
    else:
        open_own(folder, faces).draw(torch.tensor([1, 2]))
    yield


def measure(what: str, folder: Path, count: int) -> dict[str, float]:
    """Seconds until the first thing, in all and of a core; the peak of this process in MiB."""
    import helpers.pairs  # noqa: F401  (its time is nobody's)

    before, started, worked = peak_mib(), time.perf_counter(), time.process_time()
    steps = until_first(what, folder, count)
    next(steps)
    first = time.perf_counter() - started
    rest = sum(1 for _ in steps)
    return {"first_s": first, "all_s": time.perf_counter() - started, "found": rest + 1,
            "core_s": time.process_time() - worked, "imported_mib": before, "peak_mib": peak_mib()}


def peak_mib() -> float:
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB


def measured(what: str, folder: Path, count: int) -> dict[str, float]:
    """`measure` in a process of its own."""
    done = subprocess.run([sys.executable, "-m", "tests.measure_scale", what, str(folder),
                           str(count)], cwd=ROOT, capture_output=True, encoding="utf-8",
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def grown(folder: Path, few: int, times: int = TIMES) -> dict[str, list[dict[str, float]]]:
    """Photographs: made and opened again, for few and for many."""
    rows: dict[str, list[dict[str, float]]] = {}
    for count in (few, times * few):
        place = folder / str(count)
        write_photographs(place, count)
        for name, what in (("prepare faces", "faces"), ("open faces", "faces"),
                           ("prepare own pairs", "own"), ("open own pairs", "own")):
            rows.setdefault(name, []).append(measured(what, place, count) | {"count": count})
    return rows


def grown_tree(folder: Path, few: int, times: int = TIMES) -> dict[str, list[dict[str, float]]]:
    """Files to restore: found, for few and for many."""
    rows: dict[str, list[dict[str, float]]] = {"find files": []}
    for count in (few, times * few):
        write_files(folder / str(count) / "tree", count)
        rows["find files"].append(measured("find", folder / str(count), count) | {"count": count})
    return rows


def table(rows: dict[str, list[dict[str, float]]]) -> str:
    """Markdown, a line per measurement."""
    lines = ["| what | files | until the first | in all | of a core | peak memory | "
             "besides the packages |",
             "|---|---|---|---|---|---|---|"]
    lines += [f"| {name} | {row['count']:,} | {row['first_s']:.2f} s | {row['all_s']:.2f} s | "
              f"{row['core_s']:.2f} s | "
              f"{row['peak_mib']:.0f} MiB | {row['peak_mib'] - row['imported_mib']:.0f} MiB |"
              for name, two in rows.items() for row in two]
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as name:
        rows = grown(Path(name) / "faces", PHOTOGRAPHS)
        rows |= grown_tree(Path(name) / "trees", FILES)
    print(table(rows))
    few, many = (row["all_s"] for row in rows["prepare faces"])
    slope = (many - few) / ((TIMES - 1) * PHOTOGRAPHS)
    print(f"\n30,000 photographs of this size would be prepared in {few + slope * 29_500:.0f} s.")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        what, place, number = sys.argv[1:]
        print(json.dumps(measure(what, Path(place), int(number))))
    else:
        main()
