"""Pictures for the notebook: grids, live training, sliders. Only this module knows IPython."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import torch
from IPython.display import Image as Picture
from IPython.display import Pretty, display
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, FigureBase
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from tqdm.auto import tqdm

from . import checkpoint
from .config import Config, DegradeConfig
from .data import Faces
from .degrade import STAGES, degrade, stages, variation_mask
from .evaluate import Result, held_out_pairs
from .model import SplatEnhancer
from .regions import REGIONS
from .train import Record

PALETTE = torch.tensor([  # one colour per region, distinguishable without red and green
    [0.25, 0.25, 0.28], [0.94, 0.80, 0.62], [0.00, 0.45, 0.70], [0.90, 0.62, 0.00],
    [0.80, 0.47, 0.65], [0.35, 0.22, 0.12]])


def color_regions(regions: Tensor) -> Tensor:
    """Region maps (B, H, W) uint8 as colours (B, 3, H, W) in [0, 1]."""
    return PALETTE[regions.long().cpu()].permute(0, 3, 1, 2)


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
    count = _common_length(columns)
    if rows and len(rows) != count:
        raise ValueError(f"grid: expected {count} row labels, got {len(rows)}; label every sample")
    figure = Figure(figsize=(side_in * len(columns), side_in * count + (0.6 if title else 0.3)),
                    layout="constrained")
    _draw_grid(figure, columns, rows)
    figure.suptitle(title, fontsize=11) if title else None
    return figure


def _draw_grid(figure: FigureBase, columns: Mapping[str, Tensor],
               rows: Sequence[str] | None) -> None:
    count = _common_length(columns)
    axes = figure.subplots(count, len(columns), squeeze=False)
    for column, (name, images) in enumerate(columns.items()):
        axes[0, column].set_title(name, fontsize=9)
        for row, image in enumerate(images):
            axis = axes[row, column]
            axis.imshow(image.detach().float().clamp(0, 1).permute(1, 2, 0).cpu().numpy())
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
            if rows and not column:
                axis.set_ylabel(rows[row], fontsize=8)


def side_by_side(rows: Mapping[str, Tensor], *, side_in: float = 1.5) -> Figure:
    """Lay out images with samples side by side: one labelled row (B, 3, H, W) per entry."""
    return grid(_transposed(rows), rows=list(rows), side_in=side_in)


def _transposed(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    count = _common_length(rows)
    return {f"{i + 1}" if count > 1 else "": torch.stack([row[i].cpu() for row in rows.values()])
            for i in range(count)}


def ranked_comparison(config: Config, faces: Faces, model: SplatEnhancer, result: Result, *,
                      device: torch.device | str, each: int = 2) -> Figure:
    """Degraded, restored and clean: the best, the median and the worst faces, a column each.

    Args:
        config, faces: of the run.
        model: the trained enhancer.
        result: of `evaluate` on the whole test set; its first metric ranks the faces.
        each: how many of each kind.
    """
    metric = next(iter(result.gain))
    order = sorted(range(result.n), key=lambda i: -result.gain[metric][i])
    half = (result.n - each) // 2
    kinds = dict.fromkeys(order[half:half + each], "median") \
        | dict.fromkeys(order[-each:], "worst") | dict.fromkeys(order[:each], "best")
    picked = [i for i in order if i in kinds]
    pairs = held_out_pairs(config, faces, device=device, batch=len(picked), indices=picked)
    clean, degraded = next(pairs)
    parts = {"degraded": degraded, "restored": model.enhance(degraded), "clean": clean}
    columns = {f"{kinds[i]} (face {i + 1})\n{result.degraded[metric][i]:.2f} → "
               f"{result.restored[metric][i]:.2f}": torch.stack([p[n] for p in parts.values()])
               for n, i in enumerate(picked)}
    return grid(columns, rows=list(parts),
                title=f"{metric}: degraded → restored, of {result.n} held-out faces")


def training_curve(history: Sequence[Mapping[str, Any]], title: str = "") -> Figure:
    """Draw the total loss and its terms over the steps, thin as measured and thick smoothed."""
    figure = Figure(figsize=(7.5, 2.8), layout="constrained")
    _draw_curve(figure, history, title)
    return figure


def _draw_curve(figure: FigureBase, history: Sequence[Mapping[str, Any]], title: str = "") -> None:
    axis = figure.subplots()
    steps = [record["step"] for record in history]
    for name in history[0]["losses"] if history else ():
        values = torch.tensor([record["losses"][name] for record in history])
        width = max(1, len(values) // 30)
        padded = torch.nn.functional.pad(values[None, None], (width // 2, (width - 1) // 2),
                                         mode="replicate")
        smooth = torch.nn.functional.avg_pool1d(padded, width, 1)[0, 0]
        line, = axis.plot(steps, smooth, label=name, linewidth=1.8)
        axis.plot(steps, values, color=line.get_color(), alpha=0.25, linewidth=0.7)
    axis.set(xlabel="step", ylabel="loss", yscale="log", title=title)
    axis.grid(alpha=0.3)
    if history:
        lowest = min(record["losses"]["total"] for record in history)
        axis.set_ylim(bottom=max(axis.get_ylim()[0], 0.05 * lowest))  # a term that does nothing
        axis.legend(loc="upper right", ncols=4, fontsize=8)


def save_figure(figure: Figure, path: Path, dpi: int = 130) -> Path:
    """Write a figure as JPEG or PNG, by the path's suffix, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    partial.write_bytes(_rendered(figure, path.suffix.lstrip(".").replace("jpg", "jpeg"), dpi))
    partial.replace(path)
    return path


def save_image(images: Tensor, path: Path) -> Path:
    """Write the first image of a batch (B, 3, H, W) in [0, 1] as PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    _to_pil(images[0]).save(partial, "PNG")
    partial.replace(path)
    return path


def show(figure: Figure, alt: str) -> None:
    """Display a figure inline as JPEG, with a text for those who cannot see it."""
    display(_picture(figure, alt))


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
        saved, _ = checkpoint.newest([folder for folder in folders if folder])
        self.config, self.model = config, model
        self.history = list(saved.history) if saved else []
        self.clean, self.degraded = clean, degraded
        self.bar = tqdm(total=config.optim.steps, initial=len(self.history), desc="training",
                        unit="step", mininterval=1.0)
        self.slot = display(Pretty("…"), display_id=True) or _NoSlot()

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
    """Each sample from clean to degraded: region map, patchy mask, and the picture after stages.

    Args:
        clean: (B, 3, H, W) in [0, 1].
        regions: (B, H, W) uint8.
        settings: the amounts.
        seed: of the first sample; the next ones follow.
    """
    rows = [_preview(clean[i:i + 1], regions[i:i + 1], settings, seed + i)
            for i in range(_common_length({"clean": clean, "regions": regions}))]
    return grid({name: torch.cat([row[name] for row in rows]) for name in rows[0]})


def effect_grid(clean: Tensor, regions: Tensor, seed: int = 0) -> Figure:
    """Every effect of the pipeline alone, at its full amount, on one sample (1, 3, H, W)."""
    none = dataclasses.replace(DegradeConfig(), **{
        name: 0.0 for stage in STAGES for name in stage.amounts})
    pictures = {"clean": clean}
    for stage in STAGES:
        alone = dataclasses.replace(none, **dict.fromkeys(stage.amounts, 1.0))
        pictures[stage.name] = degrade(clean, regions, alone, torch.tensor([seed]))
    names = list(pictures)
    half = -(-len(names) // 2)
    figure = Figure(figsize=(1.5 * half, 3.4), layout="constrained")
    for axis, name in zip(figure.subplots(2, half).flat, names + [""] * half, strict=False):
        axis.set_axis_off()
        if name:
            axis.set_title(name, fontsize=9)
            axis.imshow(pictures[name][0].clamp(0, 1).permute(1, 2, 0).cpu().numpy())
    return figure


def degradation_sliders(clean: Tensor, regions: Tensor, settings: DegradeConfig) -> widgets.Widget:
    """Sliders over every amount, with the pictures they make. For looking only.

    Args:
        clean: (B, 3, H, W) in [0, 1], the images to pick from.
        regions: (B, H, W) uint8.
        settings: where the sliders start.
    """
    count = _common_length({"clean": clean, "regions": regions})
    sliders = {f.name: widgets.FloatSlider(
        getattr(settings, f.name), min=0, max=1, step=0.05, description=f.name,
        continuous_update=False, style={"description_width": "100px"}, layout={"width": "320px"})
        for f in dataclasses.fields(settings) if f.name != "strength_min"}
    image = widgets.Dropdown(options=[(f"image {i + 1}", i) for i in range(count)],
                             description="show", layout={"width": "200px"})
    seed = widgets.BoundedIntText(0, min=0, max=9_999, description="seed",
                                  layout={"width": "200px"})
    reset = widgets.Button(description="reset", tooltip="back to the config's amounts")
    picture, changed = widgets.Image(format="jpeg"), widgets.HTML()

    def draw(_: Any = None) -> None:
        amounts = {name: slider.value for name, slider in sliders.items()}
        now = dataclasses.replace(settings, **amounts)
        row = _preview(clean[image.value:image.value + 1], regions[image.value:image.value + 1],
                       now, seed.value)
        picture.value = _strip([row[k] for k in ("clean", "regions", "variation", "degraded")])
        moved = {f"degrade.{k}": v for k, v in amounts.items() if v != getattr(settings, k)}
        changed.value = ("These are the amounts of the config." if not moved else
                         f"To train with these, the form needs <code>CHANGES = {moved}</code>")

    def restore(_: Any) -> None:
        for name, slider in sliders.items():
            slider.value = getattr(settings, name)

    for control in (*sliders.values(), image, seed):
        control.observe(draw, "value")
    reset.on_click(restore)
    draw()
    groups = {"face regions": [*REGIONS, "variation"],
              "whole image": [n for s in STAGES[1:] for n in s.amounts]}
    tabs = widgets.Tab([widgets.GridBox([sliders[n] for n in names], layout={
        "grid_template_columns": "repeat(2, 340px)"}) for names in groups.values()])
    for index, name in enumerate(groups):
        tabs.set_title(index, name)
    return widgets.VBox([widgets.HBox([image, seed, reset]), sliders["strength"], picture, changed,
                         tabs])


def _common_length(entries: Mapping[str, Tensor]) -> int:
    counts = {name: len(images) for name, images in entries.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ValueError(f"grid: expected entries of one length above 0, got {counts}; "
                         "pass equally many images of each")
    return next(iter(counts.values()))


def _to_pil(image: Tensor) -> Image.Image:
    pixels = image.detach().float().cpu().clamp(0, 1).mul(255)
    return to_pil_image(pixels.round().to(torch.uint8))  # of floats, to_pil_image drops the rest


def _preview(clean: Tensor, regions: Tensor, settings: DegradeConfig,
             seed: int) -> dict[str, Tensor]:
    """What happens to one sample (1, 3, H, W), as titled pictures."""
    steps = stages(clean, regions, settings, seed)
    mask = variation_mask(regions, settings, torch.tensor([seed]))[:, None].expand(-1, 3, -1, -1)
    return {"clean": steps["clean"], "regions": color_regions(regions), "variation": mask,
            "after regions": steps["regions"], "after blur": steps["blur"],
            "degraded": steps["degraded"]}


def _strip(pictures: list[Tensor]) -> bytes:
    """One sample's pictures (1, 3, H, W) side by side as JPEG."""
    row = torch.cat([p[0].cpu() for p in pictures], dim=-1)
    image = _to_pil(row)
    if image.height < 200:
        image = image.resize((image.width * 200 // image.height, 200), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _rendered(figure: Figure, kind: str, dpi: int) -> bytes:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    options = {"pil_kwargs": {"quality": 88}} if kind == "jpeg" else {}
    figure.savefig(buffer, format=kind, dpi=dpi, facecolor="white", **options)
    return buffer.getvalue()


def _picture(figure: Figure, alt: str) -> Picture:
    return Picture(data=_rendered(figure, "jpeg", 100), format="jpeg", alt=alt)


class _NoSlot:
    """Stands for a display slot where there is no notebook."""

    def update(self, _: Any) -> None:
        """Nothing to show it on."""
