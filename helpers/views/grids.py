"""Grids of images: samples, pairs, and a face on its way from clean to degraded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from torch import Tensor

from ..config import DegradeConfig
from ..degradation import AMOUNTS, GROUPS, STAGES, Preview, degrade, variation_mask
from ..faces import REGIONS
from ..pictures import mask_overlay, tint
from .pictures import common_length, region_overlay


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
    draw_grid(figure, columns, rows)
    figure.suptitle(title, fontsize=11) if title else None
    return figure


def draw_grid(figure: FigureBase, columns: Mapping[str, Tensor],
              rows: Sequence[str] | None) -> None:
    """`grid` as a part of a figure."""
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
    return grid(transposed(rows), rows=list(rows), side_in=1.5)


def transposed(rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Kind → samples as number of the sample → kinds."""
    count = common_length(rows)
    return {f"{i + 1}" if count > 1 else "": torch.stack([row[i].cpu() for row in rows.values()])
            for i in range(count)}


def pairs_grid(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Figure:
    """A row of degraded pictures over the clean ones for each kind of pair.

    Args:
        pairs: kind → degraded and clean, each (B, 3, H, W) in [0, 1], the same B everywhere.
    """
    rows = {f"{kind}{part}": images for kind, two in pairs.items()
            for part, images in zip(("", ", clean"), two, strict=True)}
    return grid(transposed(rows), rows=list(rows), side_in=1.3)


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
