"""Measure speed and memory, print them, and write `results/benchmark.json`.

    make bench            # or: python -m tools.bench [NAMES of the functions in MEASURES]

Times are wall-clock medians (or 95th percentiles) after a warm-up, with two CPU threads; those of a
GPU are in `tools/gpu.py`. Without names the file starts empty: what is not measured is absent.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from statistics import quantiles

import torch

from splat_enhancer.config import DegradationConfig, preset
from splat_enhancer.data.faces import Faces, prepare_faces
from splat_enhancer.degradation.pipeline import AMOUNTS, degrade
from splat_enhancer.degradation.splat_effects import DEFECTS, FEWEST
from splat_enhancer.files import atomic_write
from splat_enhancer.gaussians.describe import LIMIT
from splat_enhancer.images import write_png
from splat_enhancer.model.enhancer import SplatEnhancer
from splat_enhancer.run import Run
from tools import true_shapes
from tools.true_shapes import ROOT, median_s, seconds, training_budget

FILE = ROOT / "results" / "benchmark.json"
SIDE_PX, GAUSSIANS = 512, 4_000
HALF = DegradationConfig(**dict.fromkeys(AMOUNTS, 0.5))
PHOTOGRAPHIC = replace(HALF, **dict.fromkeys(DEFECTS, 0.0))
# With the sparsity that gives so many Gaussians
SPLAT = replace(HALF, sparsity=math.log(LIMIT / GAUSSIANS) / math.log(LIMIT / FEWEST))
TONES = ("brightness", "color_jitter", "desaturation", "blur", "downscale", "blocks", "ghosting",
         "noise", "surface_blur", "warp")
Figures = dict[str, float]


@cache
def faces(side_px: int) -> Faces:
    """The embedded heads, at a size."""
    return prepare_faces(preset("demo").replace(resolution=side_px), Path())


def degradation(images: int = 2) -> Figures:
    """Images a second through `degrade`."""
    clean, regions = faces(SIDE_PX).load("train", range(images))
    rates = [images / median_s(partial(degrade, clean, regions, settings, torch.arange(images)))
             for settings in (PHOTOGRAPHIC, SPLAT)]
    return {"degrade_photographic_images_per_s": rates[0], "degrade_splat_images_per_s": rates[1]}


def sliders() -> Figures:
    """How long a moved slider waits for its pictures."""
    return {"slider_p95_ms": slider_p95_ms(PHOTOGRAPHIC, TONES),
            "slider_splat_p95_ms": slider_p95_ms(SPLAT, DEFECTS[1:])}


def slider_p95_ms(start: DegradationConfig, names: Iterable[str], moves: int = 60) -> float:
    """The 95th percentile from moving a slider to the pictures in the widget."""
    from splat_enhancer.notebook.sliders import DegradationSliders  # ipywidgets

    with tempfile.TemporaryDirectory() as folder:
        run = Run(preset("demo").replace(resolution=SIDE_PX, degradation=start), output_dir=folder)
        run.faces = faces(SIDE_PX)
        panel, times = DegradationSliders(run), []
        values, warm_up = itertools.cycle((0.35, 0.65, 0.2, 0.8)), 5
        for name, value in itertools.islice(zip(itertools.cycle(names), values, strict=False),
                                            moves + warm_up):
            before = panel.pictures.value
            times.append(seconds(partial(setattr, panel.sliders[name], "value", value)))
            assert panel.pictures.value != before, name
    return 1e3 * quantiles(times[warm_up:], n=20)[-1]


def full_size() -> Figures:
    """Host memory of building SD-Turbo from fp16 files, and its checkpoints: a minute, 3 GB."""
    with tempfile.TemporaryDirectory() as folder:
        _, built, saved = (true_shapes.in_own_process(name, Path(folder))
                           for name in ("make_base", "build_fp16", "save_and_resume"))
    return {"build_peak_rss_gib": built["peak_rss_gib"]} | {
        name: saved[name] for name in ("checkpoint_mb", "checkpoint_save_s", "resume_s")}


def restoring() -> Figures:
    """Images a second through the demo's network, LoRA merged."""
    config = preset("demo")
    model = SplatEnhancer.from_pretrained(config, device="cpu", for_training=False)
    degraded = faces(config.resolution).load("train", [0])[0]
    return {"enhance_images_per_s_demo": 1 / median_s(lambda: model.enhance(degraded))}


def cold_start(rounds: int = 3) -> Figures:
    """Seconds of the command line in new processes: its help, and one picture restored."""
    with tempfile.TemporaryDirectory() as name:
        picture = Path(name) / "picture.png"
        write_png(picture, faces(128).load("train", [0])[0][0])

        def call(*arguments: str) -> None:
            subprocess.run([sys.executable, "-m", "splat_enhancer", *arguments], cwd=ROOT,
                           check=True, capture_output=True)
            picture.with_name("picture_restored.png").unlink(missing_ok=True)  # or it is skipped

        return {"cold_help_s": median_s(lambda: call("--help"), rounds, 1),
                "cold_enhance_s": median_s(lambda: call("enhance", str(picture)), rounds, 1)}


MEASURES = (degradation, sliders, training_budget, full_size, restoring, cold_start)


def main(names: Sequence[str], file: Path = FILE) -> None:
    """Measure, print and write everything, or what is named; each figure is kept at once."""
    known = {measure.__name__: measure for measure in MEASURES}
    if unknown := set(names) - set(known):
        raise SystemExit(f"names: expected some of {', '.join(known)}, got {sorted(unknown)}; name "
                         "none to measure all")
    figures = json.loads(file.read_text(encoding="utf-8")) if names and file.is_file() else {}
    about = f"{platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}"
    figures = {"machine": about} | figures
    for name in names or known:
        found = known[name]()
        figures |= found
        atomic_write(file, (json.dumps(figures, indent=2) + "\n").encode())
        for key, figure in found.items():
            print(f"{key:36}{figure:.3g}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(2)
    main(sys.argv[1:])
