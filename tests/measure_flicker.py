"""How much a restored film flickers, and what steadying it costs and gains.

    python -m tests.measure_flicker [results/demo/enhancer]   # ten minutes on one core

Heads fitted by 3D Gaussians turn from left to right; their truth is drawn from the same places, so
the flow and what it hides are exact. `steady` is chosen on validation heads by a rule that stands
in `chosen`, then measured once on test heads. Writes results/flicker/: README.md, figures.json and
one picture. The enhancer is the demo's (`make demo` leaves it).
"""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from helpers.__main__ import ROOT
from helpers.config import preset
from helpers.distances import Metrics
from helpers.faces import Head, look_at_head, studio_wall
from helpers.machine import Bar
from helpers.model import SplatEnhancer, load
from helpers.pairs import Fit, load_fits, to_scene
from helpers.restoring.settings import RestoreConfig
from helpers.restoring.steady import Steadier, estimate_flow
from helpers.splats import Camera, View, carry, draw, flow_between, project, rasterise

FOLDER = ROOT / "results" / "flicker"
YAWS_DEG = tuple(range(-45, 46, 3))  # 31 frames, inside the arc of the fitted views and beyond it
CHOICES = (0.25, 0.5, 0.75, 1.0)
DEAREST = 0.02  # share of stlpips_alex that steadying may cost on validation heads
HEADS = {"validation": 4, "test": 8}
HALF_TURN = torch.diag(torch.tensor([1.0, -1.0, -1.0]))
Flow = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Film:
    """A head that turns; every frame (1, 3, H, W), every flow to the frame before."""

    truth: list[Tensor]
    degraded: list[Tensor]
    restored: list[Tensor]
    true_flow: list[Flow]  # of the true head: what flicker is measured along
    own_flow: list[Flow]  # of the Gaussians that were drawn: known for every splat
    estimated: list[Flow]  # of the pictures alone


@torch.no_grad()
def film_of(fit: Fit, model: SplatEnhancer) -> Film:
    """Everything of one head but the steadied frames."""
    size_px, wall = fit.recipe.size_px, studio_wall(fit.recipe.identity, fit.recipe.size_px)
    head, scene = Head.of(fit.recipe.identity, size_px), to_scene(fit.values)
    cameras = [look_at_head(math.radians(yaw), 0.03, size_px=size_px) for yaw in YAWS_DEG]
    truths = [view_of_truth(head, camera, wall) for camera in cameras]
    drawn = [draw(scene, replace(camera, rotation=camera.rotation @ HALF_TURN,
                                 position=HALF_TURN @ camera.position), wall) for camera in cameras]
    degraded = [view.picture[None] for view in drawn]
    return Film([view.picture[None] for view in truths], degraded,
                [model.enhance(frame) for frame in degraded],
                each_two(flow_between, truths), each_two(flow_between, drawn),
                each_two(estimate_flow, degraded))


def view_of_truth(head: Head, camera: Camera, wall: Tensor) -> View:
    """The procedural head with its depth."""
    cloud = head.cloud
    facing = ((cloud.means - camera.position) * cloud.normals).sum(-1) < 0.05
    cloud = cloud[facing.nonzero()[:, 0]]
    depth = ((camera.position - cloud.means) @ camera.rotation[2])[:, None]
    splats = project(cloud.means, cloud.axes @ cloud.axes.mT, depth,
                     torch.full_like(cloud.gloss, 0.95), camera)
    drawn, alpha = rasterise(splats, camera.height_px, camera.width_px)
    picture = head.render(camera, wall)[0]
    return View(camera, picture, alpha, drawn[0] / alpha.clamp(min=1e-6))


def each_two(flow: Callable, frames: Sequence) -> list[Flow]:
    """The flow of every frame to the one before."""
    return [flow(now, before) for before, now in pairwise(frames)]


def steadied(film: Film, steady: float, flows: list[Flow]) -> list[Tensor]:
    """The restored frames after a Steadier."""
    steadier = Steadier(steady)
    return [steadier(*pair, flow) for *pair, flow in
            zip(film.degraded, film.restored, [None, *flows], strict=True)]


def flicker(film: Film, frames: list[Tensor]) -> float:
    """Warping error: mean absolute difference to the frame before, carried along the true flow.

    Over pixels that both frames see, in levels of 255.
    """
    errors = [(255 * (now - carry(before, flow)).abs() * seen).sum() / (3 * seen.sum())
              for before, now, (flow, seen) in zip(frames[:-1], frames[1:], film.true_flow,
                                                   strict=True)]
    return float(torch.stack(errors).mean())


def measured(film: Film, kinds: dict[str, list[Tensor]], metrics: Metrics) -> dict[str, dict]:
    """Flicker of each kind of frames of a head; of every other frame distance and PSNR."""
    joined = {name: torch.cat(frames[::2]) for name, frames in kinds.items()}
    found = metrics.each(joined, torch.cat(film.truth[::2]))
    return {name: {"flicker": flicker(film, frames)}
            | {metric: statistics.mean(found[name][metric]) for metric in ("stlpips_alex", "psnr")}
            for name, frames in kinds.items()}


def averaged(rows: list[dict[str, dict]]) -> dict[str, dict]:
    """The mean over heads."""
    return {kind: {metric: statistics.mean(row[kind][metric] for row in rows)
                   for metric in rows[0][kind]} for kind in rows[0]}


def chosen(table: dict[str, dict]) -> float:
    """The rule: the largest `steady` along the estimated flow that costs DEAREST at most."""
    dearest = (1 + DEAREST) * table["restored"]["stlpips_alex"]
    return max((value for value in CHOICES
                if table[f"estimated {value}"]["stlpips_alex"] <= dearest), default=0.0)


def seconds_per_frame(size_px: int) -> dict[str, float]:
    """Processor time that steadying takes for each further frame: the median of 7."""
    camera = look_at_head(0.0, 0.0, size_px=size_px)
    scene, wall = to_scene(load_fits("validation")[0].values), torch.ones(3, size_px, size_px)
    views = [draw(scene, replace(camera, rotation=camera.rotation @ HALF_TURN,
                                 position=HALF_TURN @ camera.position + torch.tensor([x, 0, 0])),
                  wall) for x in (0.0, 0.05)]
    frames = [view.picture[None] for view in views]
    found = {}
    for name, flow in (("estimated", lambda: None), ("exact", lambda: flow_between(*views[::-1]))):
        times = []
        for _ in range(7):
            steadier = Steadier(0.5)
            steadier(frames[0], frames[0])
            started = time.process_time()
            steadier(frames[1], frames[1], flow())
            times.append(time.process_time() - started)
        found[name] = statistics.median(times)
    return found


def table(figures: dict[str, dict]) -> list[str]:
    """The rows of one set, in Markdown."""
    names = {"truth": "the truth itself", "degraded": "input", "restored": "restored, each frame"}
    before, each = figures["degraded"], figures["restored"]
    rows = ["| frames | flicker | against the input | `stlpips_alex` | against each frame | PSNR |",
            "|---|---|---|---|---|---|"]
    for name, row in figures.items():
        change = f"{100 * (row['flicker'] / before['flicker'] - 1):+.0f} %"
        cost = f"{100 * (row['stlpips_alex'] / each['stlpips_alex'] - 1):+.1f} %"
        own = name == "truth"
        rows.append(f"| {names.get(name, f'steadied, flow {name}')} | {row['flicker']:.2f} "
                    f"| {change} | " + (" | | |" if own else
                    f"{row['stlpips_alex']:.4f} | {cost} | {row['psnr']:.2f} |"))
    return rows


def page(found: dict) -> str:
    """The text of results/flicker/README.md."""
    steady, times = found["chosen"], found["seconds_per_frame"]
    return "\n".join([
        "# Flicker", "",
        "Heads fitted by 3D Gaussians turn by 3° a frame, from 45° left to 45° right, 128 px; no",
        "head that the demo's enhancer was trained on. Flicker is the warping error: the mean",
        "absolute difference, in levels of 255, between a frame and the one before it carried",
        "along the true head's flow, over pixels that both see. The truth has some too: its light",
        "stays where it is while it turns, and carrying interpolates. `python -m",
        "tests.measure_flicker` makes this page.", "",
        "What is blended is the change (output − input) with the last frame's, along the flow and",
        "only where the flow holds. *Estimated* is from the pictures alone, as for any video;",
        "*exact* follows from the Gaussians drawn, as for a `.ply`.", "",
        f"## Test heads ({found['heads']['test']}), measured once", "", *table(found["test"]), "",
        f"## Validation heads ({found['heads']['validation']}), on which `steady` was chosen", "",
        f"The largest that costs at most {DEAREST:.0%} of `stlpips_alex` along the estimated flow:",
        f"**{steady}**.", "", *table(found["validation"]), "",
        "## Time", "",
        "Processor seconds that steadying adds to a frame, one core: "
        + "; ".join(f"{size} px: {one['estimated']:.3f} estimated, {one['exact']:.3f} exact"
                    for size, one in times.items()) + ".", "",
        "![Truth, input, each frame, steadied; below each the difference to the frame before "
        "carried along the flow, eightfold](frames.jpg)", "",
        "*Truth, input, restored frame by frame, steadied; below, eightfold, what differs from the",
        "frame before.*", ""])


def sheet(film: Film, frames: list[Tensor], at: int = 10) -> Image.Image:
    """Four kinds of one frame, and their differences to the frame before."""
    flow, seen = film.true_flow[at - 1]
    kinds = [film.truth, film.degraded, film.restored, frames]
    top = torch.cat([kind[at][0] for kind in kinds], 2)
    errors = [8 * (kind[at] - carry(kind[at - 1], flow)).abs() * seen for kind in kinds]
    below = torch.cat([error[0] for error in errors], 2).clamp(0, 1)
    both = torch.cat([top, below], 1).mul(255).round().byte()
    return Image.fromarray(both.permute(1, 2, 0).contiguous().numpy())


def main(export: Path) -> None:
    """Choose, measure, and write the page."""
    model = load(export, device="cpu")
    metrics = Metrics(preset("demo").loss, device="cpu")
    fits = {name: load_fits(name)[:count] for name, count in HEADS.items()}
    rows: dict[str, list] = {name: [] for name in fits}
    found: dict = {"heads": HEADS, "frames": len(YAWS_DEG)}
    for name in ("validation", "test"):
        for fit in Bar(fits[name], desc=f"Turning {name} heads", unit="head"):
            with model.merged():
                film = film_of(fit, model)
            values = CHOICES if name == "validation" else (found["chosen"],)
            kinds = {"truth": film.truth, "degraded": film.degraded, "restored": film.restored}
            kinds |= {f"{flow} {value}": steadied(film, value, flows) for value in values
                      for flow, flows in (("estimated", film.estimated), ("exact", film.own_flow))}
            rows[name].append(measured(film, kinds, metrics))
        found[name] = averaged(rows[name])
        if name == "validation":
            found["chosen"] = chosen(found[name])
            print(f"chosen: steady {found['chosen']}; the default is {RestoreConfig().steady}")
    found["seconds_per_frame"] = {str(size): seconds_per_frame(size) for size in (128, 512)}
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "figures.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (FOLDER / "README.md").write_text(page(found), encoding="utf-8")
    sheet(film, list(kinds.values())[3]).save(FOLDER / "frames.jpg", quality=88)
    print("\n".join(table(found["test"])))


if __name__ == "__main__":
    torch.set_num_threads(1)  # of so little work, two threads make no more speed
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "results" / "demo" / "enhancer")
