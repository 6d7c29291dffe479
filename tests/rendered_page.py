"""What the rendered pairs are like: their figures, and sheets to look at.

    python -m tests.rendered_page    # some minutes on one core; needs ../shared/lpips for LPIPS

Writes results/rendered/: README.md, statistics.json and two sheets.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from helpers.__main__ import ROOT
from helpers.faces.avatars import Head
from helpers.machine.progress import Bar
from helpers.pairs.fits import HEAD_SETS, HEADS, Fit, load_fits
from helpers.pairs.reconstruct import render
from helpers.pairs.rendered import draw_view, render_pair

FOLDER = ROOT / "results" / "rendered"
VIEWS = {"inside": 3, "outside": 4}  # of each head
MOST_HEADS = 32  # of a set that are measured
DRAWN_SEED = 1_000  # of the first view that is measured
SHEET_HEADS, SHEET_VIEWS = 8, 6
ARTEFACTS = {  # found by eye
    "floaters": "yes: flecks, and veils of the fitted backdrop's colour between hair and neck; "
                "seen most before another backdrop and outside the arc",
    "dilation": "yes: swollen, soft rims of hair and shoulders, from few and large Gaussians",
    "needles": "a few: thin spikes at the tips of hair, outside the arc",
    "cracks": "mostly outside the arc: slits and holes in hair and neck that show the backdrop",
    "aliasing": "no: a fit is drawn at the size it was fitted at, with the same low-pass",
    "blurring": "yes, in every poor fit: strands, lashes and lips run together",
    "popping": "no: it needs a moving camera, and a pair is a still",
    "ghosting": "hardly: cameras known roughly make blur and see-through rims, seldom a second "
                "contour",
    "colour outliers": "mostly outside the arc: red, green and black patches on hair and cheeks",
}


def squeeze() -> torch.nn.Module:
    """LPIPS with real SqueezeNet weights, of images in [0, 1]; for measuring only."""
    os.environ.setdefault("TORCH_HOME", str(ROOT.parent / "shared" / "lpips"))
    import lpips
    return lpips.LPIPS(net="squeeze", verbose=False).eval()


def views(fit: Fit, count: int, inside: bool | None) -> tuple[Tensor, Tensor]:
    """Degraded and clean views of a head, each (V, 3, H, W) in [0, 1]."""
    head = Head.of(fit.recipe.identity, fit.recipe.size_px)
    pairs = [render_pair(fit, DRAWN_SEED + n, inside=inside, head=head) for n in range(count)]
    degraded, clean, _ = (torch.stack(side) for side in zip(*pairs, strict=True))
    return degraded, clean


@torch.no_grad()
def measured(fits: Sequence[Fit], inside: bool, distance: torch.nn.Module) -> dict[str, object]:
    """PSNR and LPIPS of a set's pairs: mean and percentiles."""
    psnr, far = [], []
    for fit in Bar(fits, desc="Measuring", unit="head"):
        degraded, clean = views(fit, VIEWS["inside" if inside else "outside"], inside)
        psnr += (-10 * (degraded - clean).square().mean((1, 2, 3)).log10()).tolist()
        far += distance(degraded, clean, normalize=True).flatten().tolist()
    return {"pairs": len(far), "heads": len(fits), "psnr": summary(psnr), "lpips": summary(far),
            "share_28_db": round(float(np.mean(np.array(psnr) >= 28)), 3)}


def summary(values: Sequence[float]) -> dict[str, float]:
    """Mean and percentiles."""
    low, middle, high = np.percentile(values, (10, 50, 90))
    found = {"mean": np.mean(values), "p10": low, "p50": middle, "p90": high}
    return {name: round(float(value), 4) for name, value in found.items()}


def speed(fits: Sequence[Fit]) -> dict[str, float]:
    """Milliseconds of processor time, one thread: a head, its truth, its fit, a pair of a set."""
    fit, size_px = fits[0], fits[0].recipe.size_px
    head, view = Head.of(fit.recipe.identity, size_px), draw_view(fit, 0)

    def in_ms(task, repeats: int) -> float:
        task()
        started = time.process_time()
        for _ in range(repeats):
            task()
        return round(1e3 * (time.process_time() - started) / repeats, 1)

    with torch.no_grad():
        return {
            "head_ms": in_ms(lambda: Head.of(fit.recipe.identity, size_px), 10),
            "truth_ms": in_ms(lambda: head.render(view.camera, view.backdrop), 10),
            "fit_ms": in_ms(lambda: render(fit.values, view.camera, view.backdrop), 10),
            "pair_of_four_ms": round(in_ms(lambda: views(fit, 4, None), 8) / 4, 1)}


def sheet(fits: Sequence[Fit], inside: bool) -> Image.Image:
    """Some heads, a row of fits above a row of truths, a column a view."""
    chosen = [fits[n * len(fits) // SHEET_HEADS] for n in range(SHEET_HEADS)]
    rows = [torch.cat(list(side), 2) for fit in Bar(chosen, desc="Drawing a sheet", unit="head")
            for side in views(fit, SHEET_VIEWS, inside)]  # each (3, H, V * W)
    return Image.fromarray((255 * torch.cat(rows, 1)).round().byte().permute(1, 2, 0).numpy())


def page(found: dict[str, object]) -> str:
    """The text beside the sheets."""
    rows = [f"| {name} | {place} | {one['heads']} | {one['pairs']} | {_cells(one['psnr'], 1)} "
            f"| {_cells(one['lpips'], 3)} | {one['share_28_db']:.0%} |"
            for name, places in found["sets"].items() for place, one in places.items()]
    ms, sizes = found["speed"], found["megabytes"]
    return "\n".join([
        "# Rendered pairs", "",
        "Procedural heads fitted by 3D Gaussians from few views (`helpers/pairs`), seen from",
        "others: within the arc of the fitted views and up to 25° beyond it. The truth is drawn",
        "from the same place before the same backdrop; no damage is painted on. No identity is in",
        "two sets. `python -m tests.fit_heads` fits the heads, `python -m tests.rendered_page`",
        "makes this page.", "",
        "PSNR in dB and LPIPS (SqueezeNet, used for measuring only) of the fit against the truth:",
        "mean (10th, 50th, 90th percentile).", "",
        "| set | views | heads | pairs | PSNR | LPIPS | 28 dB or more |",
        "|---|---|---|---|---|---|---|", *rows, "",
        f"Files: {', '.join(f'{name} {size:.2f} MB' for name, size in sizes.items())}.",
        f"Processor time, one thread of {found['machine']}: a head is built in "
        f"{ms['head_ms']:.0f} ms, its truth",
        f"drawn in {ms['truth_ms']:.0f} ms, its fit in {ms['fit_ms']:.0f} ms; with four views of "
        f"a head, a pair takes {ms['pair_of_four_ms']:.0f} ms in all.", "",
        "## Which artefacts they contain", "",
        "Of the nine that ArtifactWorld names, looked for in the sheets below:", "",
        "| artefact | in these pairs |", "|---|---|",
        *(f"| {name} | {text} |" for name, text in ARTEFACTS.items()), "",
        "## Test heads, inside the arc", "", "Fit above, truth below.", "",
        "![Test heads inside the arc](inside.jpg)", "",
        "## Test heads, outside the arc", "", "![Test heads outside the arc](outside.jpg)", ""])


def _cells(figures: dict[str, float], digits: int) -> str:
    mean, *rest = (f"{value:.{digits}f}" for value in figures.values())
    return f"{mean} ({', '.join(rest)})"


def _machine() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")),
                "a processor without a name")


def main() -> None:
    """Measure every set, draw the sheets, and write the page."""
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    sets, distance = {name: load_fits(name) for name in HEAD_SETS}, squeeze()
    found = {
        "machine": _machine(), "speed": speed(sets["train"]),
        "megabytes": {name: (HEADS / f"{name}.safetensors").stat().st_size / 1e6 for name in sets},
        "sets": {name: {place: measured(fits[:MOST_HEADS], place == "inside", distance)
                        for place in VIEWS} for name, fits in sets.items()}}
    (FOLDER / "statistics.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for place in VIEWS:
        sheet(sets["test"], place == "inside").save(FOLDER / f"{place}.jpg", quality=88)
    (FOLDER / "README.md").write_text(page(found), encoding="utf-8")
    print(f"{FOLDER / 'README.md'} is written")


if __name__ == "__main__":
    main()
