"""Measure speed and memory, print a table, write `results/benchmark.json`.

    make bench            # or: python -m tests.bench

Times are wall-clock medians (or 95th percentiles) after a warm-up, with two CPU threads unless the
name says GPU. What this machine cannot measure is left out of the file, never guessed.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from helpers import budget
from helpers.avatars import render_avatar
from helpers.config import DegradeConfig, preset
from helpers.degrade import AMOUNTS, degrade
from helpers.gaussians import LIMIT
from helpers.resplat import DEFECTS, FEWEST, gaussian_count
from helpers.sliders import DegradationSliders

FILE = Path(__file__).resolve().parent.parent / "results" / "benchmark.json"
SIDE, IMAGES, GAUSSIANS = 512, 8, 4_000
PHOTOGRAPHIC = tuple(name for name in AMOUNTS if name not in DEFECTS)


def faces(count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """A few avatars (B, 3, SIDE, SIDE) with their regions."""
    return tuple(torch.stack(part) for part in
                 zip(*(render_avatar(7 + i, SIDE) for i in range(count)), strict=True))


def at_gaussians(settings: DegradeConfig, count: int) -> DegradeConfig:
    """The settings with the sparsity that gives this many Gaussians."""
    sparsity = math.log(LIMIT / count) / math.log(LIMIT / FEWEST)
    assert int(gaussian_count(torch.tensor(sparsity))) == count
    return dataclasses.replace(settings, sparsity=sparsity)


def without_splats(settings: DegradeConfig) -> DegradeConfig:
    """The photographic stages alone."""
    return dataclasses.replace(settings, **dict.fromkeys(DEFECTS, 0.0))


def seconds(work: Callable[[], object], device: str = "cpu") -> float:
    """Wall-clock seconds of one call, everything queued on a GPU included."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def images_per_s(settings: DegradeConfig, clean: torch.Tensor, regions: torch.Tensor, *,
                 rounds: int = 12) -> float:
    """Images a second through `degrade`, by the median batch."""
    seeds, device = torch.arange(len(clean)), clean.device.type
    times = [seconds(lambda: degrade(clean, regions, settings, seeds), device)
             for _ in range(rounds + 2)][2:]
    return len(clean) / statistics.median(times)


def slider_times(start: DegradeConfig, names: Iterator[str], clean: torch.Tensor,
                 regions: torch.Tensor, *, moves: int = 60) -> list[float]:
    """Seconds from moving a slider to the new JPEG in the widget, for each of many moves."""
    panel = DegradationSliders(clean, regions, start)
    values = itertools.cycle((0.35, 0.65, 0.2, 0.8))
    times = []
    for name, value in itertools.islice(zip(names, values, strict=False), moves + 5):
        before = panel.tiles["degraded"].image.value

        def move(name: str = name, value: float = value) -> None:
            panel.sliders[name].value = value
        times.append(seconds(move))
        assert panel.tiles["degraded"].image.value != before, name
    return times[5:]


def p95(times: list[float]) -> float:
    """The 95th percentile."""
    return sorted(times)[math.ceil(0.95 * len(times)) - 1]


def peak_mib(count: int) -> float:
    """Peak memory of a fresh Linux process that degrades `count` images in one batch, in MiB."""
    code = ("import re, torch; from pathlib import Path; from helpers.config import DegradeConfig; "
            "from helpers.degrade import degrade; torch.set_num_threads(2); "
            f"x = torch.rand(1, 3, {SIDE}, {SIDE}).expand({count}, -1, -1, -1); "
            f"r = torch.ones({count}, {SIDE}, {SIDE}, dtype=torch.uint8); "
            "degrade(x[:1], r[:1], DegradeConfig(), torch.arange(1)); "
            "Path('/proc/self/clear_refs').write_text('5'); "  # the peak starts anew
            f"degrade(x, r, DegradeConfig(), torch.arange({count})); "
            "print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])")
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True,
                          cwd=FILE.parent.parent)
    return int(done.stdout) / 1024


def measure() -> dict[str, float | str]:
    """All figures of this machine."""
    torch.set_num_threads(2)
    clean, regions = faces()
    half = DegradeConfig(**dict.fromkeys(AMOUNTS, 0.5))
    found = {"machine": f"{platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}"}
    found["degrade_photographic_images_per_s"] = images_per_s(without_splats(half), clean, regions)
    found["degrade_splat_images_per_s"] = images_per_s(at_gaussians(half, GAUSSIANS), clean,
                                                       regions)
    wide = without_splats(half)
    tones = ("brightness", "color_jitter", "desaturation", "blur", "downscale", "blocks",
             "ghosting", "noise", "surface_blur", "warp")
    found["slider_p95_ms"] = 1e3 * p95(slider_times(
        wide, itertools.cycle(tones), clean, regions))
    found["slider_splat_p95_ms"] = 1e3 * p95(slider_times(
        at_gaussians(half, GAUSSIANS), itertools.cycle(DEFECTS[1:]), clean, regions))
    few, many = peak_mib(4), peak_mib(20)
    found["degrade_mib_per_further_image"] = (many - few) / 16  # the result itself is 3 MiB
    t4 = preset("t4").with_({"loss.clip": 0.0})  # CLIP is not part of the budget
    found["train_tflop_per_image"] = budget.count_training_flops(t4) / 1e12
    found["inference_tflop_per_image"] = budget.count_inference_flops(t4) / 1e12
    found["train_peak_gib_batch2"] = budget.expected_peak_gib(t4)
    found["train_peak_gib_batch2_lean"] = budget.expected_peak_gib(t4, lean=True)
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        batch = [x.repeat(IMAGES // 2, *[1] * (x.ndim - 1)).cuda() for x in (clean, regions)]
        found["gpu_degrade_splat_images_per_s"] = images_per_s(at_gaussians(half, GAUSSIANS),
                                                               *batch)
    return found


if __name__ == "__main__":
    figures = measure()
    for name, figure in figures.items():
        print(f"{name:38} {figure if isinstance(figure, str) else f'{figure:.2f}'}")
    print(f"peak memory of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} "
          "MiB")
    FILE.parent.mkdir(exist_ok=True)
    kept = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
    FILE.write_text(json.dumps(kept | figures, indent=2) + "\n", encoding="utf-8")
