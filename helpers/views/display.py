"""Pictures for the notebook: grids, curves and live training."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from IPython.display import HTML, Pretty, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from torch import Tensor

from ..checkpoints import checkpoint
from ..config import Config, DegradeConfig
from ..degradation import AMOUNTS, GROUPS, STAGES, Preview, degrade, variation_mask
from ..evaluation import Batch, Result
from ..faces import REGIONS
from ..machine import Bar
from ..model import SplatEnhancer
from ..storage import write_whole
from ..training import Record
from .pictures import (
    common_length,
    divided,
    mask_overlay,
    region_overlay,
    shown,
    tint,
    to_bytes,
    to_tag,
)

_NO_SLOT = SimpleNamespace(update=lambda _: None)  # where there is no notebook


def grid(columns: Mapping[str, Tensor], *, rows: Sequence[str] | None = None, side_in: float = 1.7,
         title: str = "") -> Figure:
    """Lay out images, one row per sample and one titled column per entry.

    Args:
        columns: title → (B, 3, H, W) in [0, 1], the same B everywhere.
        rows: a label for each sample.
        side_in: side of one image in inches.
        title: above everything.

    Raises:
        ValueError: columns of different length, none, or labels that do not match them.
    """
    count = common_length(columns)
    if rows and len(rows) != count:
        raise ValueError(f"grid: expected {count} row labels, got {len(rows)}; label every sample")
    figure = Figure(figsize=(side_in * len(columns), side_in * count + (0.6 if title else 0.3)),
                    layout="constrained")
    _draw_grid(figure, columns, rows)
    figure.suptitle(title, fontsize=11) if title else None
    return figure


def _draw_grid(figure: FigureBase, columns: Mapping[str, Tensor],
               rows: Sequence[str] | None) -> None:
    count = common_length(columns)
    axes = figure.subplots(count, len(columns), squeeze=False)
    for column, (name, images) in enumerate(columns.items()):
        for row, image in enumerate(images):
            _draw_image(axes[row, column], image, "" if row else name)
    for axis, label in zip(axes[:, 0], rows or (), strict=False):
        axis.set_ylabel(label, fontsize=8)


def _draw_image(axis: Axes, image: Tensor, title: str) -> None:
    axis.imshow(image.detach().float().clamp(0, 1).permute(1, 2, 0).cpu().numpy())
    axis.set(xticks=[], yticks=[])
    axis.set_title(title, fontsize=9)
    axis.spines[:].set_visible(False)


def side_by_side(rows: Mapping[str, Tensor]) -> Figure:
    """Lay out images with samples side by side: one labelled row (B, 3, H, W) per entry."""
    return grid(_transposed(rows), rows=list(rows), side_in=1.5)


def _transposed(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    count = common_length(rows)
    return {f"{i + 1}" if count > 1 else "": torch.stack([row[i].cpu() for row in rows.values()])
            for i in range(count)}


def ranked_comparison(model: SplatEnhancer, result: Result, pairs: Iterable[Batch],
                      title: str = "") -> Figure:
    """The two best, median and worst of a test set: degraded, restored, where, and clean.

    Args:
        model: the trained enhancer.
        result: of `evaluate` on this set; ranked by its first metric, whose network the loss does
            not know.
        pairs: the set once more, from `held_out_sets`.
        title: above everything; the metric follows it.
    """
    metric = next(iter(result.gain))
    order = sorted(range(result.n), key=lambda i: result.restored[metric][i]
                   - result.degraded[metric][i])
    half = (result.n - 2) // 2
    kinds = dict.fromkeys(order[half:half + 2], "median") \
        | dict.fromkeys(order[-2:], "worst") | dict.fromkeys(order[:2], "best")
    picked = [i for i in order if i in kinds]
    clean, degraded = _picked(pairs, picked)
    restored, mask = model.enhance_and_show(degraded)
    parts = {"degraded": degraded, "restored": restored,
             "where it repaired": _repaired(restored, mask), "clean": clean}
    columns = {f"{kinds[i]} ({i + 1})\n{result.degraded[metric][i]:.2f} → "
               f"{result.restored[metric][i]:.2f}": torch.stack([p[n] for p in parts.values()])
               for n, i in enumerate(picked)}
    return grid(columns, rows=list(parts),
                title=f"{title}{metric}: degraded → restored, of {result.n} pictures")


def _picked(pairs: Iterable[Batch], wanted: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Some of a set's pairs, in the order wanted: clean and degraded, each (B, 3, H, W)."""
    found: dict[int, tuple[Tensor, Tensor]] = {}
    count = 0
    for clean, degraded, _ in pairs:
        found |= {i: (clean[i - count], degraded[i - count])
                  for i in wanted if count <= i < count + len(clean)}
        count += len(clean)
    clean, degraded = zip(*(found[i] for i in wanted), strict=True)
    return torch.stack(clean), torch.stack(degraded)


def _repaired(restored: Tensor, mask: Tensor) -> Tensor:
    """The picture, the bluer the more the network took its own."""
    return tint(restored, mask_overlay(mask[:, 0]))


def pairs_grid(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Figure:
    """A row of degraded pictures over the clean ones for each kind of pair.

    Args:
        pairs: kind → degraded and clean, each (B, 3, H, W) in [0, 1], the same B everywhere.
    """
    rows = {f"{kind}{part}": images for kind, two in pairs.items()
            for part, images in zip(("", ", clean"), two, strict=True)}
    return grid(_transposed(rows), rows=list(rows), side_in=1.3)


def transfer_chart(table: Mapping[str, Any], metric: str = "stlpips_alex") -> Figure:
    """The transfer table as a heat map: gain in the metric, with the change in PSNR below it.

    Args:
        table: from `evaluation.transfer`.
        metric: a distance; sets on which it has no gain are left out.
    """
    sets = [name for name, of in next(iter(table.values())).items() if metric in of["gain"]]
    gains = [[table[row][name]["gain"][metric]["mean"] for name in sets] for row in table]
    figure = Figure(figsize=(1.6 * len(sets) + 2.6, 0.5 * len(table) + 1.0), layout="constrained")
    axis = figure.subplots()
    axis.imshow(gains, cmap="RdBu", vmin=-60, vmax=60, aspect="auto")
    axis.set_xticks(range(len(sets)), [name.replace("_", " ") for name in sets])
    axis.set_yticks(range(len(table)), list(table))
    axis.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    for row, name in enumerate(table):
        for column, tested in enumerate(sets):
            decibels = table[name][tested]["gain"]["psnr"]["mean"]
            axis.text(column, row, f"{gains[row][column]:+.0f} %\n{decibels:+.2f} dB", fontsize=8,
                      ha="center", va="center",
                      color="white" if abs(gains[row][column]) > 45 else "black")
    axis.set_title(f"gain in {metric}: trained on (rows) × tested on", fontsize=9)
    return figure


def training_curve(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the total loss and its terms over the steps, thin as measured and thick smoothed."""
    figure = Figure(figsize=(7.5, 2.8), layout="constrained")
    _draw_curve(figure, history)
    return figure


def _draw_curve(figure: FigureBase, history: Sequence[Mapping[str, Any]]) -> None:
    axis = figure.subplots()
    steps = [record["step"] for record in history]
    totals = [record["losses"]["total"] for record in history]
    floor = 0.05 * min(filter(math.isfinite, totals), default=0.0)
    for name in history[0]["losses"] if history else ():
        values = torch.tensor([record["losses"][name] for record in history])
        width = max(1, len(values) // 30)
        padded = torch.nn.functional.pad(values[None, None], (width // 2, (width - 1) // 2),
                                         mode="replicate")
        smooth = torch.nn.functional.avg_pool1d(padded, width, 1)[0, 0]
        seen = values.nan_to_num(0.0).max() > floor  # not so a term that does nothing
        label = name if seen else f"{name} (below)"
        line, = axis.plot(steps, smooth, label=label, linewidth=1.8)
        axis.plot(steps, values, color=line.get_color(), alpha=0.25, linewidth=0.7)
    axis.set(xlabel="step", ylabel="loss", yscale="log")
    axis.grid(alpha=0.3)
    if history:
        axis.set_ylim(bottom=max(axis.get_ylim()[0], floor))
        axis.legend(loc="upper right", ncols=4, fontsize=8)


def save_figure(figure: Figure, path: Path, dpi: int = 130) -> Path:
    """Write a figure as JPEG or PNG, by the path's suffix, whole or not at all."""
    kind = path.suffix.lstrip(".").replace("jpg", "jpeg")
    return write_whole(path, _rendered(figure, kind, dpi))


def save_image(images: Tensor, path: Path) -> Path:
    """Write the first image of a batch (B, 3, H, W) in [0, 1] as PNG, whole or not at all."""
    return write_whole(path, to_bytes(images[0], "PNG"))


def show(figure: Figure, alt: str) -> None:
    """Display a figure inline as JPEG, with a text for those who cannot see it."""
    display(_picture(figure, alt))


def compare(before: Tensor, after: Tensor, mask: Tensor | None = None) -> None:
    """Display two images (1, 3, H, W) in [0, 1], one over the other, with a divider to drag.

    Args:
        mask: (1, 1, H, W) in [0, 1]; shown beside them, over the second image.
    """
    where = shown(_repaired(after, mask)[0], "where it repaired") if mask is not None else ""
    display(HTML(f'<div style="display: flex; flex-wrap: wrap; gap: 8px; align-items: flex-start">'
                 f"<div>{divided(before[0], after[0])}</div><div>{where}</div></div>"))


class LiveTraining:
    """A progress bar, and one display slot with the loss curve over a fixed held-out grid.

    Args:
        config: of the run.
        model: the enhancer in training.
        clean, degraded: (B, 3, H, W) in [0, 1], the held-out pairs to watch.
        folders: where earlier sessions of this run saved, for the first part of the curve.
    """

    def __init__(self, config: Config, model: SplatEnhancer, clean: Tensor, degraded: Tensor, *,
                 folders: Sequence[Path | None] = ()) -> None:
        self.config, self.model = config, model
        saved, _ = checkpoint.newest([folder for folder in folders if folder])
        self.history = list(saved.history) if saved else []
        self.clean, self.degraded = clean, degraded
        self.bar = Bar(total=config.optim.steps, initial=len(self.history), desc="Training",
                       unit="step")
        self.slot = display(Pretty("…"), display_id=True) or _NO_SLOT

    def update(self, record: Record) -> None:
        """Show one step; the pictures change every `preview_every_steps`."""
        self.history.append(dataclasses.asdict(record))
        self.bar.set_postfix(loss=f"{record.losses['total']:.3f}", refresh=False)
        self.bar.update()
        if record.step % self.config.run.preview_every_steps == 0:
            self.draw()

    def draw(self) -> None:
        """Redraw curve and grid now."""
        rows = {"degraded": self.degraded, "restored": self.model.enhance(self.degraded),
                "clean": self.clean}
        figure = Figure(figsize=(7.5, 7.2), layout="constrained")
        above, below = figure.subfigures(2, 1, height_ratios=(2.4, 4.8))
        _draw_curve(above, self.history)
        _draw_grid(below, _transposed(rows), list(rows))
        self.slot.update(_picture(figure, "loss over steps, above held-out images at this step"))

    def close(self) -> None:
        """Leave the final state on the screen."""
        self.bar.close()
        self.draw()


def degradation_grid(clean: Tensor, regions: Tensor, settings: DegradeConfig,
                     seed: int = 0) -> Figure:
    """Each sample from clean to degraded: its regions, its patchy mask, and after each group.

    Args:
        clean: (B, 3, H, W) in [0, 1].
        regions: (B, H, W) uint8.
        settings: the amounts.
        seed: of the first sample; the next ones follow.
    """
    rows = [_walk(clean[i:i + 1], regions[i:i + 1], settings, seed + i)
            for i in range(common_length({"clean": clean, "regions": regions}))]
    return grid({name: torch.cat([row[name] for row in rows]) for name in rows[0]})


def _walk(clean: Tensor, regions: Tensor, settings: DegradeConfig, seed: int) -> dict[str, Tensor]:
    steps = Preview(clean, regions)(settings, seed)
    mask = variation_mask(regions, settings, torch.tensor([seed]))
    return {"clean": clean, "regions": tint(clean, region_overlay(regions)),
            "variation": tint(clean, mask_overlay(mask)),
            **{f"after {name}": steps[name] for name in GROUPS}, "degraded": steps["degraded"]}


def effect_grid(clean: Tensor, regions: Tensor, seed: int = 0) -> Figure:
    """Every effect alone at its full amount, the regions as one, on one sample (1, 3, H, W)."""
    none = dataclasses.replace(DegradeConfig(), strength=1.0, **dict.fromkeys(AMOUNTS, 0.0))
    pictures = {"clean": clean}
    for stage in STAGES:
        parts = [REGIONS] if stage.amounts == REGIONS else [(name,) for name in stage.amounts]
        for own in parts:
            name = own[0].replace("_", " ") if len(own) == 1 else stage.name
            alone = dataclasses.replace(none, **dict.fromkeys(own, 1.0))
            pictures[name] = degrade(clean, regions, alone, torch.tensor([seed]))
    rows = -(-len(pictures) // 5)
    figure = Figure(figsize=(7.5, 1.7 * rows), layout="constrained")
    for place, (name, picture) in enumerate(pictures.items(), 1):
        _draw_image(figure.add_subplot(rows, 5, place), picture[0], name)
    return figure


def _rendered(figure: Figure, kind: str, dpi: int) -> bytes:
    buffer = io.BytesIO()
    options = {"pil_kwargs": {"quality": 88}} if kind == "jpeg" else {}
    figure.savefig(buffer, format=kind, dpi=dpi, facecolor="white", **options)
    return buffer.getvalue()


def _picture(figure: Figure, alt: str) -> HTML:
    return HTML(to_tag(_rendered(figure, "jpeg", 100), alt))
