"""Curves and charts: the training, and what an evaluation found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase

from ..evaluation import Evaluation

COLORS = {"degraded": "#8a8a8a", "filtered": "#d08a00", "restored": "#0072b2"}
NAMES = {"degraded": "do nothing", "filtered": "cheap filter", "restored": "restored"}


def training_curve(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the total loss and its terms over the steps, thin as measured and thick smoothed."""
    figure = Figure(figsize=(7.5, 2.8), layout="constrained")
    draw_curve(figure, history)
    return figure


def draw_curve(figure: FigureBase, history: Sequence[Mapping[str, Any]]) -> None:
    """`training_curve` as a part of a figure."""
    axis = figure.subplots()
    steps = [record["step"] for record in history]
    totals = [record["losses"]["total"] for record in history]
    floor = 0.05 * min(filter(math.isfinite, totals), default=0.0)
    for name in dict.fromkeys(name for record in history for name in record["losses"]):
        values = torch.tensor([record["losses"].get(name, math.nan) for record in history])
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


def transfer_chart(table: Mapping[str, Any], metric: str = "stlpips_alex") -> Figure:
    """The transfer table as a heat map: gain in the metric, with the change in PSNR below it.

    Args:
        table: from `evaluation.run_variants`.
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


def gain_chart(evaluation: Evaluation) -> Figure:
    """The gain of the enhancer and of the filter on each set, with 95 % intervals."""
    summaries = {name: result.summary() for name, result in evaluation.sets.items()}
    metric = evaluation.metrics[0]
    rows = [name for name, of in summaries.items() if metric in of["gain"]]
    figure, axis = _axes(0.42 * len(rows) + 1.1)
    for kind, part, shift in (("restored", "gain", -0.14), ("filtered", "gain_filtered", 0.14)):
        for row, name in enumerate(rows):
            of = summaries[name][part][metric]
            low, high = of["ci95"]
            axis.plot([low, high], [row + shift] * 2, color=COLORS[kind], linewidth=2)
            axis.plot(of["mean"], row + shift, "o", color=COLORS[kind],
                      label=None if row else NAMES[kind])
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(rows)), [name.replace("_", " ") for name in rows])
    axis.invert_yaxis()
    axis.set_xlabel(f"gain in {metric} over doing nothing, % (right is better)")
    _finish(axis, "x", len(rows))
    return figure


def distribution_chart(evaluation: Evaluation) -> Figure:
    """The ranking distance of every picture of each set, before and after; lines are medians."""
    metric, sets = evaluation.metrics[0], evaluation.sets
    figure, axis = _axes(3.2)
    kinds = ("degraded", "filtered", "restored")
    for place, (name, result) in enumerate(sets.items()):
        for kind, shift in zip(kinds, (-0.26, 0.0, 0.26), strict=True):
            values = np.asarray(getattr(result, kind)[metric])
            values = values[np.isfinite(values)]
            jitter = np.random.default_rng(len(name)).uniform(-0.09, 0.09, len(values))
            axis.plot(place + shift + jitter, values, ".", color=COLORS[kind], alpha=0.55,
                      markersize=4, label=None if place else NAMES[kind])
            if len(values):
                axis.plot([place + shift - 0.11, place + shift + 0.11], [np.median(values)] * 2,
                          color="black", linewidth=1.4)
    axis.set_xticks(range(len(sets)), [name.replace("_", "\n", 1) for name in sets])
    axis.set_ylabel(f"{metric} (lower is better)")
    _finish(axis, "y", 1)
    return figure


def region_chart(evaluation: Evaluation) -> Figure:
    """The ranking distance within each region, mean over the pictures of each set that has any."""
    metric = evaluation.metrics[0]
    found = {name: regions for name, result in evaluation.sets.items()
             if (regions := result.regions())}
    figure = Figure(figsize=(7.5, 2.0 * -(-len(found) // 2) + 0.5), layout="constrained")
    axes = figure.subplots(-(-len(found) // 2) or 1, 2, squeeze=False, sharey=True).flat
    for axis, (name, regions) in zip(axes, found.items(), strict=False):
        for shift, kind in zip((-0.27, 0.0, 0.27), NAMES, strict=True):
            heights = [of[kind].get(metric, {}).get("mean", 0.0) for of in regions.values()]
            axis.bar(np.arange(len(regions)) + shift, heights, 0.26, color=COLORS[kind],
                     label=NAMES[kind])
        axis.set_xticks(range(len(regions)), list(regions), fontsize=7)
        axis.set_title(name.replace("_", " "), fontsize=9)
        axis.grid(axis="y", alpha=0.3)
    for axis in list(axes):
        axis.set_visible(False)
    if found:
        figure.axes[0].set_ylabel(metric, fontsize=8)
        figure.axes[0].legend(fontsize=7)
    return figure


def strength_chart(evaluation: Evaluation) -> Figure:
    """The ranking distance by the strength of all damage, and under each effect alone."""
    metric = evaluation.metrics[0]
    means = {name: {kind: float(np.nanmean(getattr(result, kind)[metric])) for kind in NAMES}
             for name, result in evaluation.strengths.items()}
    whole = {float(name.split()[1]): of for name, of in means.items() if " " in name}
    alone = {name: of for name, of in means.items() if " " not in name}
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.2))
    for kind, label in NAMES.items():
        left.plot(list(whole), [of[kind] for of in whole.values()], "o-", color=COLORS[kind],
                  label=label)
        right.plot([of[kind] for of in alone.values()], range(len(alone)), "o",
                   color=COLORS[kind], markersize=4)
    left.set(xlabel="strength of all damage", ylabel=f"{metric} (lower is better)")
    right.set_yticks(range(len(alone)), [name.replace("_", " ") for name in alone], fontsize=7)
    right.set_xlabel("each effect alone, in full")
    right.invert_yaxis()
    for axis in (left, right):
        axis.grid(alpha=0.3)
    left.legend(fontsize=8)
    return figure


def _axes(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.5, height), layout="constrained")
    return figure, figure.subplots()


def _finish(axis: Axes, grid: str, rows: int) -> None:
    axis.grid(axis=grid, alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    if rows:
        axis.legend(fontsize=8)
