"""Measure speed and memory, print a table, write `results/benchmark.json`.

    make bench            # or: python -m tests.bench [NAMES of the functions in MEASURES]

Times are wall-clock medians (or 95th percentiles) after a warm-up, with two CPU threads; those of a
GPU are in `tests/bench_gpu.py`. What is not measured keeps the figure it had, or has none.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from helpers.__main__ import ROOT
from helpers.checkpoints.claims import claim
from helpers.checkpoints.publisher import Publisher
from helpers.config import Config, DegradeConfig, preset
from helpers.degradation.pipeline import AMOUNTS, degrade
from helpers.degradation.resplat import DEFECTS, FEWEST, gaussian_count
from helpers.errors import refused
from helpers.faces.avatars import Head, render_avatar
from helpers.model.enhancer import SplatEnhancer
from helpers.pictures import write_picture
from helpers.plans import budget
from helpers.restoring import find, restore_all
from helpers.splats import BASE, Scene, draw, orbit
from helpers.splats.gaussians import LIMIT
from helpers.storage.whole import write_whole
from helpers.training.autosave import Autosave
from helpers.training.loop import resume
from helpers.training.trainer import Trainer
from tests import reference_call, rehearsal

FILE = ROOT / "results" / "benchmark.json"
SIDE, GAUSSIANS = 512, 4_000
HALF = DegradeConfig(**dict.fromkeys(AMOUNTS, 0.5))
TONES = ("brightness", "color_jitter", "desaturation", "blur", "downscale", "blocks", "ghosting",
         "noise", "surface_blur", "warp")
Figures = dict[str, float | str]


@cache
def faces(count: int = 2, side_px: int = SIDE) -> tuple[torch.Tensor, torch.Tensor]:
    """A few avatars (B, 3, side, side) with their regions."""
    return tuple(torch.stack(part) for part in
                 zip(*(render_avatar(7 + i, side_px) for i in range(count)), strict=True))


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
    from helpers.views.sliders import DegradationSliders  # ipywidgets, which a GPU machine may lack

    panel = DegradationSliders(clean, regions, start)
    values = itertools.cycle((0.35, 0.65, 0.2, 0.8))
    times = []
    for name, value in itertools.islice(zip(names, values, strict=False), moves + 5):
        before = panel.tiles["degraded"].image.value
        times.append(seconds(partial(setattr, panel.sliders[name], "value", value)))
        assert panel.tiles["degraded"].image.value != before, name
    return times[5:]


def p95(times: list[float]) -> float:
    """The 95th percentile."""
    return sorted(times)[math.ceil(0.95 * len(times)) - 1]


def peak_mib(count: int) -> float:
    """Peak memory of a fresh Linux process that degrades `count` images in one batch, in MiB."""
    code = ("import re, torch; from pathlib import Path; from helpers.config import DegradeConfig; "
            "from helpers.degradation.pipeline import degrade; torch.set_num_threads(2); "
            f"x = torch.rand(1, 3, {SIDE}, {SIDE}).expand({count}, -1, -1, -1); "
            f"r = torch.ones({count}, {SIDE}, {SIDE}, dtype=torch.uint8); "
            "degrade(x[:1], r[:1], DegradeConfig(), torch.arange(1)); "
            "Path('/proc/self/clear_refs').write_text('5'); "  # the peak starts anew
            f"degrade(x, r, DegradeConfig(), torch.arange({count})); "
            "print(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])")
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True,
                          cwd=ROOT)
    return int(done.stdout) / 1024


def machine() -> Figures:
    """Where the figures come from."""
    return {"machine": f"{platform.machine()}, {os.cpu_count()} CPUs, torch {torch.__version__}"}


def degradation() -> Figures:
    """Speed and memory of `degrade`."""
    few, many = peak_mib(4), peak_mib(20)
    return {"degrade_photographic_images_per_s": images_per_s(without_splats(HALF), *faces()),
            "degrade_splat_images_per_s": images_per_s(at_gaussians(HALF, GAUSSIANS), *faces()),
            "degrade_mib_per_further_image": (many - few) / 16}  # the result itself is 3 MiB


def sliders() -> Figures:
    """How long a moved slider waits for its picture."""
    tones = slider_times(without_splats(HALF), itertools.cycle(TONES), *faces())
    splat = slider_times(at_gaussians(HALF, GAUSSIANS), itertools.cycle(DEFECTS[1:]), *faces())
    return {"slider_p95_ms": 1e3 * p95(tones), "slider_splat_p95_ms": 1e3 * p95(splat)}


def flops(work: Callable[[], object]) -> float:
    """Floating-point operations of a call, 2 per multiply-add."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def training_flops(config: Config, *, lean: bool = False) -> float:
    """Those of a training step, per image."""
    with budget.meta_run():
        networks = budget.build_on_meta(config, torch.float16)
        return flops(budget.prepare_step(config, *networks, lean=lean)) / config.optim.batch


def inference_flops(config: Config) -> float:
    """Those of restoring one image, with LoRA merged."""
    with budget.meta_run(), torch.no_grad():
        model, side = budget.build_on_meta(config, torch.float16)[0].eval(), config.data.size_px
        with model.merged():  # merging itself is done once, for all images
            return flops(lambda: model(torch.zeros(1, 3, side, side, device="meta")))


def training_budget() -> Figures:
    """Work and memory of SD-Turbo, counted."""
    t4 = preset("t4").with_({"loss.clip": 0.0})  # CLIP is not part of the budget
    return {"train_tflop_per_image": training_flops(t4) / 1e12,
            "inference_tflop_per_image": inference_flops(t4) / 1e12,
            "train_peak_gib_batch2": budget.expected_peak_gib(t4),
            "train_peak_gib_batch2_lean": budget.expected_peak_gib(t4, lean=True)}


def full_size() -> Figures:
    """Host memory of building SD-Turbo from fp16 files, and its checkpoint: half a minute, 3 GB."""
    with tempfile.TemporaryDirectory() as folder:
        found = {name: rehearsal.in_own_process(name, Path(folder))
                 for name in ("make_base", "build_fp16", "save_once")}
    return {"build_peak_rss_gib": found["build_fp16"]["peak_rss_gib"],
            "checkpoint_mb": found["save_once"]["checkpoint_mb"]}


def enhance_demo(rounds: int = 12) -> Figures:
    """Images a second through the demo's network, LoRA merged once for all of them."""
    config = preset("demo")
    model = SplatEnhancer.from_pretrained(config.model, device="cpu")
    degraded = faces(1, config.data.size_px)[0]
    with model.merged():
        times = [seconds(lambda: model.enhance(degraded)) for _ in range(rounds + 2)][2:]
    return {"enhance_images_per_s_demo": len(degraded) / statistics.median(times)}


def restore_folder(pictures: int = 24) -> Figures:
    """Files a second from a folder of 128-pixel PNGs to restored ones, each synced to the disk."""
    config = preset("demo")
    model = SplatEnhancer.from_pretrained(config.model, device="cpu")
    with tempfile.TemporaryDirectory() as name:
        for number in range(pictures):
            write_picture(Path(name) / f"{number}.png", faces(1, config.data.size_px)[0][0])
        time_s = seconds(lambda: list(restore_all(model, find(name), progress=None)))
    return {"restore_images_per_s_folder": pictures / time_s}


def beside_reference(rounds: int = 3, side_px: int = 256, **shapes: Any) -> Figures:
    """A single `enhance()` beside pix2pix-turbo's own call, in turn: theirs over ours."""
    ours, theirs = reference_call.both(**shapes)
    degraded, tokens = torch.rand(1, 3, side_px, side_px), reference_call.prompt_tokens()
    calls = (lambda: theirs(degraded * 2 - 1, tokens), lambda: ours.enhance(degraded))
    times = [[seconds(call) for call in calls] for _ in range(rounds + 1)][1:]
    slow, quick = (statistics.median(column) for column in zip(*times, strict=True))
    return {"enhance_beside_reference": slow / quick}


class TrueShapes(nn.Module):
    """What a trainer sees of the enhancer on SD-Turbo: its trained tensors, and nothing frozen."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        named = budget.build_on_meta(config, torch.float16)[0].trainable().items()
        self.tensors = {name: nn.Parameter(torch.randn(p.shape).half()) for name, p in named}

    def trainable(self) -> dict[str, nn.Parameter]:
        """As `SplatEnhancer.trainable`."""
        return self.tensors

    def refuse_other_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """As `SplatEnhancer.refuse_other_tensors`, whose checkpoints these are."""

    keep_start = forget = lambda self: None

    def take_over(self, tensors: Mapping[str, torch.Tensor], learned: object) -> None:
        """As `SplatEnhancer.take_over`."""
        self.load_trained(tensors)

    @torch.no_grad()
    def load_trained(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """As `SplatEnhancer.load_trained`."""
        for name, value in tensors.items():
            self.tensors[name].copy_(value)


def long_run(config: Config, steps: int = 1_000) -> Trainer:
    """A trainer at SD-Turbo's shapes with AdamW's moments and the history of so many steps."""
    trainer = Trainer(config, TrueShapes(config))
    for master in trainer.masters.values():
        master.grad = torch.randn_like(master)
    trainer.optimiser.step()
    trainer.optimiser.zero_grad()
    losses = dict.fromkeys(("l1", "lpips", "gram", "clip", "total"), 0.1234567)
    record = {"step": 1, "losses": losses, "learning_rate": 5e-5, "gradient_norm": 1.0,
              "skipped": False, "seconds": 1.5, "images_per_s": 1.3, "peak_gib": 9.8}
    trainer.step, trainer.history = steps, [record | {"step": i + 1} for i in range(steps)]
    return trainer


def checkpoints() -> Figures:
    """A save and a resume (claim, find, verify, load, restore) at SD-Turbo's shapes."""
    config = preset("t4").with_({"optim.steps": 2_000, "loss.clip": 0.0})
    trainer = long_run(config)
    with tempfile.TemporaryDirectory() as name:
        folder, saves = Path(name), []
        with claim(folder) as claimed:
            autosave = Autosave(trainer, folder, Publisher(None), claimed)
            for _ in range(7):
                trainer.step += 1
                trainer.history.append(trainer.history[-1] | {"step": trainer.step})
                saves.append(seconds(autosave.save))

        def again() -> None:
            with claim(folder) as claimed:
                resumed = resume(config, trainer.model, folder=folder)
                Autosave(resumed, folder, Publisher(None), claimed)
        resumes = [seconds(again) for _ in range(3)]
    return {"checkpoint_save_s": statistics.median(saves), "resume_s": statistics.median(resumes)}


def trained_scene(count: int) -> Scene:
    """Gaussians on the skin and hair of a head, as many as a trained avatar has, of degree 3."""
    cloud, dice = Head.of(7, SIDE).cloud, torch.Generator().manual_seed(0)
    cloud = cloud[torch.randperm(len(cloud.means), generator=dice)[:count]]
    harmonics = 0.1 * torch.randn(count, 16, 3, generator=dice)
    harmonics[:, 0] = (cloud.colors - 0.5) / BASE
    wider = math.log((len(Head.of(7, SIDE).cloud.means) / count) ** 0.5)  # they cover the same
    return Scene(cloud.means, cloud.axes.norm(dim=1).log() + wider,
                 torch.randn(count, 4, generator=dice), 2 * torch.randn(count, generator=dice),
                 harmonics)


def splat_view(count: int = 100_000, rounds: int = 5) -> Figures:
    """Seconds for one view of a trained scene at 512 pixels."""
    scene, wall = trained_scene(count), torch.ones(3, SIDE, SIDE)
    cameras = orbit(scene, views=rounds + 1, size_px=SIDE, up="y")
    times = [seconds(partial(draw, scene, camera, wall)) for camera in cameras][1:]
    return {"splat_view_s_100k_512": statistics.median(times)}


MEASURES = (machine, degradation, sliders, training_budget, full_size, checkpoints, enhance_demo,
            restore_folder, beside_reference, splat_view)


def keep(figures: Figures, file: Path = FILE) -> None:
    """Write figures into the file; what else it holds stays."""
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    write_whole(file, (json.dumps(known | figures, indent=2) + "\n").encode())


def main(names: Sequence[str]) -> None:
    """Measure, print and keep everything, or what is named."""
    if unknown := set(names) - {measure.__name__ for measure in MEASURES}:
        raise SystemExit(str(refused("names", f"some of {[m.__name__ for m in MEASURES]}",
                                     sorted(unknown), "name none to measure all")))
    torch.set_num_threads(2)
    for measure in MEASURES:
        if not names or measure.__name__ in names:
            figures = measure()
            keep(figures)
            for name, figure in figures.items():
                shown = figure if isinstance(figure, str) else f"{figure:.2f}"
                print(f"{name:38} {shown}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
