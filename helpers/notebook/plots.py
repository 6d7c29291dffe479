"""Pictures in the notebook, each one JPEG with a text for screen readers; the training, live."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from IPython.display import HTML, Pretty, display
from matplotlib.figure import Figure, FigureBase
from torch import Tensor

from ..config import DegradationConfig
from ..data.regions import REGIONS
from ..degradation.pipeline import Preview, degrade
from ..evaluation.report import PICTURES_STYLE, comparison, draw_held_out, figure_tag
from ..evaluation.test_sets import single_effects

if TYPE_CHECKING:
    from ..evaluation.evaluate import Evaluation
    from ..run import Run
    from ..training.train import Record

PALETTE = torch.tensor([  # one colour per region, distinguishable without red and green
    [0.25, 0.25, 0.28], [0.94, 0.80, 0.62], [0.00, 0.45, 0.70], [0.90, 0.62, 0.00],
    [0.80, 0.47, 0.65], [0.35, 0.22, 0.12]])
Cell = tuple[str, Tensor]  # a title and an image (3, H, W) in [0, 1]


def show(figure: Figure, alt: str) -> None:
    """Display a figure as JPEG."""
    display(HTML(figure_tag(figure, alt)))


def image_grid(rows: Sequence[Sequence[Cell]], *, side_in: float = 1.4) -> Figure:
    """Lay out rows of titled images.

    Args:
        rows: each a sequence of (title, image (3, H, W) in [0, 1]).
        side_in: side of an image in inches.
    """
    figure = Figure(figsize=(side_in * max(map(len, rows)), (side_in + 0.2) * len(rows)),
                    layout="constrained")
    draw_grid(figure, rows)
    return figure


def draw_grid(figure: FigureBase, rows: Sequence[Sequence[Cell]]) -> None:
    """Draw `image_grid` into a figure or a part of one."""
    axes = figure.subplots(len(rows), max(map(len, rows)), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for row, cells in zip(axes, rows, strict=True):
        for axis, (title, image) in zip(row, cells, strict=False):
            axis.imshow(image.detach().float().clamp(0, 1).permute(1, 2, 0).cpu().numpy())
            axis.set_title(title, fontsize=9, loc="left")


def show_rows(rows: Mapping[str, Tensor], alt: str = "") -> None:
    """Display rows of images (B, 3, H, W), the name of each above its first one."""
    show(image_grid(titled(rows)), alt or f"rows of images: {', '.join(rows)}")


def titled(rows: Mapping[str, Tensor]) -> list[list[Cell]]:
    """Rows of images as cells of `image_grid`, the name above the first image of each."""
    return [[("" if i else name.replace("_", " "), image) for i, image in enumerate(images)]
            for name, images in rows.items()]


def show_stages(clean: Tensor, regions: Tensor, settings: DegradationConfig,
                seed: int = 0) -> None:
    """Display one face (1, 3, H, W) from clean to degraded, after each stage that changes it."""
    images = Preview(clean, regions)(settings, seed)
    before = [None, *images.values()]
    changed = {name: image[0] for last, (name, image) in zip(before, images.items(), strict=False)
               if image is not last}
    _show_wrapped({name if name == "clean" else f"after {name}": image
                   for name, image in changed.items()}, "one face from clean to degraded")


def show_effects(clean: Tensor, regions: Tensor, seed: int = 0) -> None:
    """Display one face (1, 3, H, W) under each effect alone, at its full amount."""
    _show_wrapped({"clean": clean[0]} | {
        name: degrade(clean, regions, settings, torch.tensor([seed]))[0]
        for name, settings in single_effects().items()},
        "one face under each effect of the degradation")


def _show_wrapped(images: Mapping[str, Tensor], alt: str, columns: int = 7) -> None:
    cells = [(name.replace("_", " "), image) for name, image in images.items()]
    show(image_grid([cells[i:i + columns] for i in range(0, len(cells), columns)], side_in=1.25),
         alt)


def color_regions(regions: Tensor) -> Tensor:
    """Region maps (B, H, W) uint8 as colours (B, 3, H, W) in [0, 1]."""
    return PALETTE[regions.long().cpu()].permute(0, 3, 1, 2)


def region_legend() -> str:
    """The colours of the regions as a line of HTML, readable on light and dark."""
    return " ".join(
        f'<span style="background: rgb({", ".join(map(str, color))})">&emsp;</span> {name}'
        for name, color in zip(REGIONS, (255 * PALETTE).int().tolist(), strict=True))


def show_comparison(evaluation: Evaluation, name: str) -> None:
    """Display pictures of a test set: three at random, the two best and the three worst."""
    display(HTML(PICTURES_STYLE + comparison(evaluation, name)))


class LiveTraining:
    """One line on how far a run is, and a picture redrawn with every held-out measurement.

    Both are display slots: a bar of text would leave a line per step in a saved notebook. No error
    here stops a training.
    """

    def __init__(self, run: Run, pictures: int = 5) -> None:
        self.run, self.failed, self.shown_at = run, False, 0.0
        self.clean, self.degraded = run.held_out(pictures)
        checkpoint = run.latest()
        self.history = list(checkpoint.history) if checkpoint else []
        self.line, self.slot = (display(Pretty("…"), display_id=True) for _ in range(2))
        self.close()
        if any(record.get("held_out") for record in self.history):
            self._draw()

    def update(self, record: Record) -> None:
        """Count one step, and redraw where the held-out distance was measured."""
        self.history.append(dataclasses.asdict(record))
        if time.monotonic() > self.shown_at + 1:
            self.close()
        if record.held_out:
            self._draw()

    def close(self) -> None:
        """Show the last step."""
        total, done = self.run.config.max_train_steps, len(self.history)
        seconds = [record.get("seconds", 0.0) for record in self.history[-20:]] or [0.0]
        left_min = (total - done) * sum(seconds) / len(seconds) / 60
        self.shown_at = time.monotonic()
        if self.line:  # None outside a notebook
            self.line.update(Pretty(f"step {done:,} of {total:,}, about {left_min:.0f} min left"))

    def _draw(self) -> None:
        try:
            figure = Figure(figsize=(7.5, 7.0), layout="constrained")
            above, below = figure.subfigures(2, 1, height_ratios=(2.2, 4.8))
            draw_held_out(above.subplots(), self.history)
            draw_grid(below, titled({
                "degraded": self.degraded, "restored": self.run.model.enhance(self.degraded),
                "clean": self.clean}))
            if self.slot:
                self.slot.update(HTML(figure_tag(
                    figure, "held-out distance over the steps, above held-out faces", 90)))
        except Exception as error:
            if not self.failed:
                print(f"No picture ({type(error).__name__}: {error}); the training goes on.")
            self.failed = True
