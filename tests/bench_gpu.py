"""Measure SD-Turbo's true shapes on one CUDA GPU, in the memory of a T4, beside the reference.

    python -m tests.bench_gpu --first     # what should be known first, in ten minutes
    python -m tests.bench_gpu [--reference PATH] [--out results] [--minutes 9]

The weights are random, so nothing is downloaded and no picture means anything; time and memory do
not depend on what is learned. PATH is a checkout of GaParmar/img2img-turbo. Each row is written to
`gpu.json` and `gpu.md` as soon as it is measured, and one that fails does not stop the others.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from helpers.__main__ import ROOT
from helpers.errors import refused
from helpers.machine.memory import avoid_fragments
from helpers.storage.whole import write_whole
from tests import gpu_rows
from tests.gpu_first import first_rows
from tests.gpu_reference import Row, check_reference, reference_rows
from tests.gpu_setup import GIB, Bench, Figures, Setup, limit_memory, release, short

PACKAGES = ("torch", "diffusers", "peft", "transformers")
TITLE = ("what", "ms, median (5–95 %)", "ms per image", "images/s",
         "peak GiB, allocated / reserved", "expected GiB", "notes")


def plan(bench: Bench, checkout: Path | None, folder: Path) -> Iterator[Row]:
    """All rows, what matters most first, what takes minutes to compile last."""
    for dtype in bench.setup.dtypes:
        yield from training_rows(bench, dtype)
        yield from inference_rows(bench, dtype)
    yield from other_rows(bench)
    yield from reference_rows(bench, checkout, folder)
    for dtype in bench.setup.dtypes:
        for batch in bench.setup.batches:
            yield f"forward {short(dtype)} merged compiled, batch {batch}", partial(
                gpu_rows.compiled_row, bench, dtype, batch)


def training_rows(bench: Bench, dtype: torch.dtype) -> Iterator[Row]:
    """Batches in both kinds of memory, and the largest that fits."""
    for memory, lean in (("full", False), ("lean", True)):
        what = f"train {short(dtype)} {memory}"
        for batch in bench.setup.train_batches:
            yield f"{what}, batch {batch}", partial(
                gpu_rows.budget_row, bench, dtype, batch, lean=lean)
        yield f"{what}, largest batch", partial(gpu_rows.largest_row, bench, dtype, lean=lean)


def inference_rows(bench: Bench, dtype: torch.dtype) -> Iterator[Row]:
    """Single passes, and `enhance()`."""
    name, size_px = short(dtype), bench.setup.size_px
    for batch in bench.setup.batches:
        for how, merged in (("merged", True), ("unmerged", False)):
            yield f"forward {name} {how}, batch {batch}", partial(
                gpu_rows.forward_row, bench, dtype, batch, merged=merged)
    yield f"merged against unmerged {name}", partial(gpu_rows.merging_row, bench, dtype)
    for side_px in (size_px, *bench.setup.large_px):
        yield f"enhance {name} {side_px} px", partial(
            gpu_rows.enhance_row, bench, dtype, side_px, merged=True)
    yield f"enhance {name} {size_px} px, merging each time", partial(
        gpu_rows.enhance_row, bench, dtype, size_px, merged=False)


def other_rows(bench: Bench) -> Iterator[Row]:
    """What training does beside the network."""
    setup = bench.setup
    yield f"degrade, batch {setup.degrade_batch}, against the CPU", partial(
        gpu_rows.degrade_row, bench)
    yield f"rasterise {setup.gaussians:,} Gaussians, against the CPU", partial(
        gpu_rows.rasterise_row, bench)
    for dtype in setup.dtypes[:1]:
        for term in ("lpips", "gram", "clip"):
            yield f"loss {term} {short(dtype)}, batch {max(setup.train_batches)}", partial(
                gpu_rows.loss_row, bench, dtype, term)


def measure(bench: Bench, rows: Iterable[Row], out: Path, *, about: Figures,
            minutes: float, name: str = "gpu") -> list[Figures]:
    """Measure row after row until time is over: "what" and its figures, an "error" or a "note"."""
    found, started = [], time.monotonic()
    for what, work in rows:
        left_s = 60 * minutes - (time.monotonic() - started)
        print(f"[{left_s:4.0f} s left] {what}", flush=True)
        late = {"note": f"not begun: {minutes:g} minutes were over"}
        found.append({"what": what} | (attempt(bench, work) if left_s > 0 else late))
        print("            ", " | ".join(filter(None, cells(found[-1])[1:])), flush=True)
        content = json.dumps({"about": about, "rows": found}, indent=2) + "\n"
        write_whole(out / f"{name}.json", content.encode())
        write_whole(out / f"{name}.md", table(about, found).encode())
    return found


def attempt(bench: Bench, work: Callable[[], Figures]) -> Figures:
    """The figures of a row, or what went wrong, in one line."""
    try:
        return work()
    except torch.OutOfMemoryError as error:
        return {"error": "out of memory: " + ". ".join(str(error).split(". ")[1:4])}
    except Exception as error:  # whatever it is, the other rows are wanted
        bench.drop()
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    finally:
        release(bench.setup.device)


def table(about: Figures, rows: Sequence[Figures]) -> str:
    """The Markdown of a report."""
    lines = ["# On a GPU", "", *(f"- {name}: {value}" for name, value in about.items()), "",
             "Random weights at SD-Turbo's true shapes; times are wall clock after a warm-up, the "
             "queue emptied before and after. Speed is this GPU's; the limit stands for the memory "
             "of a T4 only.", "", "| " + " | ".join(TITLE) + " |", "|---" * len(TITLE) + "|"]
    lines += ["| " + " | ".join(c.replace("|", "/") for c in cells(row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def cells(row: Figures) -> list[str]:
    """A row of the table; what was not measured stays empty."""
    def one(form: str, *names: str) -> str:
        return form.format(*(row[n] for n in names)) if all(n in row for n in names) else ""

    row = row | ({"each": row["ms"] / row["images"]} if "ms" in row else {})
    skipped = one("{} steps skipped", "skipped_steps") if row.get("skipped_steps") else ""
    notes = (one("batch {}", "images") if "largest" in row["what"] else "", row.get("error"),
             row.get("note"), skipped, one("compiled in {:.0f} s", "compiling_s"),
             one("differs by at most {:.2g}, on average {:.2g}", "max_abs_difference",
                 "mean_abs_difference"))
    return [row["what"], one("{:.1f} ({:.1f}–{:.1f})", "ms", "ms_p5", "ms_p95"),
            one("{:.1f}", "each"), one("{:.2f}", "images_per_s"),
            one("{:.2f} / {:.2f}", "peak_allocated_gib", "peak_reserved_gib"),
            one("{:.2f}", "expected_gib"), "; ".join(filter(None, notes))]


def describe(setup: Setup) -> Figures:
    """The machine and its software."""
    about: dict[str, Any] = {"CPU": platform.machine(), "Python": platform.python_version()}
    about |= {package: version(package) for package in PACKAGES}
    if setup.device == "cuda":
        about |= {"GPU": torch.cuda.get_device_name(),
                  "capability": ".".join(map(str, torch.cuda.get_device_capability())),
                  "CUDA": torch.version.cuda, "cuDNN": torch.backends.cudnn.version(),
                  "TF32 in fp32 convolutions": torch.backends.cudnn.allow_tf32,
                  "GPU memory, GiB": round(setup.card_gib, 2)}
    return about | {"limit, GiB": setup.limit_gib, "rounds": setup.rounds}


def gpu_setup() -> Setup:
    """The defaults on this GPU, bf16 too where the chip has it."""
    if not torch.cuda.is_available():
        raise refused("device", "a CUDA GPU", "none", "run it on a machine with one")
    half = (torch.float16, torch.bfloat16)
    return Setup(card_gib=torch.cuda.get_device_properties(0).total_memory / GIB,
                 dtypes=half if torch.cuda.get_device_capability() >= (8, 0) else half[:1])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", action="store_true", help="the protocol of a first GPU")
    parser.add_argument("--reference", type=Path, help="a checkout of GaParmar/img2img-turbo")
    parser.add_argument("--out", type=Path, default=ROOT / "results")
    parser.add_argument("--minutes", type=float, default=9.0, help="after which no row is begun")
    options = parser.parse_args(arguments)
    try:
        setup = gpu_setup()
        checkout = check_reference(options.reference) if options.reference else None
    except ValueError as error:
        raise SystemExit(str(error)) from error
    avoid_fragments()
    limit_memory(setup, setup.limit_gib)
    bench, about = Bench(setup), describe(setup)
    with tempfile.TemporaryDirectory() as folder:
        rows = first_rows(bench, Path(folder)) if options.first else plan(bench, checkout,
                                                                          Path(folder))
        found = measure(bench, rows, options.out, about=about, minutes=options.minutes,
                        name="first_gpu" if options.first else "gpu")
    print(table(about, found))


if __name__ == "__main__":
    main()
