"""The training while it runs: a bar, the loss curve, and a grid of held-out faces."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from IPython.display import Pretty, display
from matplotlib.figure import Figure
from torch import Tensor

from ..checkpoints import newest
from ..config import Config
from ..machine import Bar
from ..model import SplatEnhancer
from ..training import Record
from .charts import draw_curve
from .display import picture
from .grids import draw_grid, transposed

_NO_SLOT = SimpleNamespace(update=lambda _: None)  # where there is no notebook


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
        saved, _ = newest([folder for folder in folders if folder])
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
        draw_curve(above, self.history)
        draw_grid(below, transposed(rows), list(rows))
        self.slot.update(picture(figure, "loss over steps, above held-out images at this step"))

    def close(self) -> None:
        """Leave the final state on the screen."""
        self.bar.close()
        self.draw()
