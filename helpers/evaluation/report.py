"""An evaluation as one HTML page that holds its pictures, for screen, phone and paper."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..files import atomic_write
from ..images import to_pil
from .evaluate import KINDS, Evaluation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {"degraded": "#8a8a8a", "filtered": "#d08a00", "restored": "#0072b2"}
BLUE = torch.tensor([0.1, 0.3, 1.0]).view(3, 1, 1)  # where a picture was changed
STYLE = """<style>
:root { color-scheme: light } * { box-sizing: border-box }
body { margin: 0 auto; padding: 1.2rem 1rem 4rem; max-width: 68rem; background: #fff;
       color: #1c1c1e; font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem }
h2 { font-size: 1.25rem; margin: 2.4rem 0 .6rem; padding-top: .8rem; border-top: 1px solid #ddd }
p, ul { max-width: 44rem; margin: .5rem 0 }
figcaption { color: #5b5b62; font-size: .86rem }
.wide { overflow-x: auto; margin: .6rem 0 }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem .3rem 0; text-align: left; border-bottom: 1px solid #ececf0;
         white-space: nowrap } th { white-space: normal }
figure { margin: .8rem 0; break-inside: avoid }
@media print { body { max-width: none; padding: 0; font-size: 10pt } .wide { overflow: visible }
  th, td { white-space: normal; padding-right: .4rem } h2, h3 { break-after: avoid } }
</style>"""
PICTURES_STYLE = """<style>
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 28rem), 1fr));
            gap: .8rem 1.2rem }
.pictures figure { margin: 0; break-inside: avoid }
.row { display: grid; grid-auto-flow: column; grid-auto-columns: 1fr; gap: 3px; align-items: end }
.row { font-size: .75rem } .row img { width: 100%; height: auto; display: block }
</style>"""


def write_report(folder: Path, evaluation: Evaluation) -> Path:
    """Write `report.html` atomically; returns its path."""
    summary, config = evaluation.summary(), evaluation.config
    sets, effects = summary["sets"], summary["effects"]
    ranking = next(iter(next(iter(sets.values()))["restored"]))
    title = f"Splat Enhancer: {config.run_name}, step {evaluation.step:,}"
    lines = [
        f"Preset {config.preset}, base {config.pretrained_model_name_or_path}, {config.resolution} "
        f"px, seed {config.seed}; measured on {evaluation.device}; weights "
        f"{evaluation.weights[:12]}.",
        *verdict(sets, ranking),
        "No picture here was seen in training. The unsharp mask (radius "
        f"{evaluation.baseline.radius:g}, amount {evaluation.baseline.amount:g}) was chosen on "
        f"training faces. {ranking} ranks; people often disagree with PSNR and SSIM.",
        "Intervals are 95 %, by bootstrap over identities. “Worse” is the share of pictures whose "
        "own value got worse than the input's.",
        *(f"{name} is absent: {reason}." for name, reason in evaluation.absent.items())]
    charts = [(gain_chart(sets, ranking), "Mean gain over the input with its 95 % interval."),
              (distribution_chart(evaluation), "Every dot is a picture, black lines are medians.")]
    if any(record.get("held_out") for record in evaluation.history):
        figure, axes = _figure(2.8)
        draw_held_out(axes, evaluation.history)
        charts.insert(0, (figure, "Distance on held-out images while training."))
    if effects:
        unmended = [name.removeprefix("effect ") for name, gains in effects.items()
                    if gains[ranking]["ci95"][0] <= 0]
        charts.append((gain_chart({name: {"gain": of} for name, of in effects.items()}, ranking),
                       "Each effect of the degradation alone, in full. Not clearly improved: "
                       f"{', '.join(unmended) or 'none'}."))
    means = evaluation.table.pivot_table(index=["set", "metric"], columns="kind", values="value",
                                         sort=False).rename(columns=KINDS).round(4)
    settings = pd.json_normalize(summary["config"] | summary["versions"]).T.rename(
        columns={0: "value"}).map(str)
    first = next(picture for images in next(iter(evaluation.shown.values())).values()
                 for picture in images.values())
    body = [
        f"<h1>{html.escape(title)}</h1>", picture_row(first, 512),
        "<ul>", *(f"<li>{html.escape(line)}</li>" for line in lines), "</ul>",
        "<h2>What it was tested on</h2>", _table(evaluation.overview()),
        "<h2>Charts</h2>", *(
            f"<figure>{figure_tag(chart, text)}<figcaption>{html.escape(text)}</figcaption>"
            "</figure>" for chart, text in charts),
        "<h2>Pictures</h2>", *(f"<h3>{name.replace('_', ' ')}</h3>{comparison(evaluation, name)}"
                               for name in evaluation.shown),
        "<h2>All means</h2>", _table(means), "<h2>Settings</h2>", _table(settings)]
    page = ('<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(title)}</title>{STYLE}{PICTURES_STYLE}</head>\n<body>\n"
            + "\n".join(body) + "\n</body></html>\n")
    return atomic_write(folder / "report.html", page.encode())


def verdict(sets: Mapping[str, Any], ranking: str) -> list[str]:
    """In words: on which sets restored is better or worse than the input and the baseline."""
    sentences = []
    for part, rival in (("gain", "the input"), ("gain_over_filtered", "the unsharp mask")):
        words: dict[str, list[str]] = {"better": [], "worse": [], "not clearly different": []}
        for name, of_set in sets.items():
            if described := of_set[part].get(ranking):
                low, high = described["ci95"]
                word = "better" if low > 0 else "worse" if high < 0 else "not clearly different"
                words[word].append(f"{name.replace('_', ' ')} ({described['mean']:+.0f} %)")
        found = "; ".join(f"{word} on {', '.join(names)}" for word, names in words.items() if names)
        sentences.append(f"Restored beside {rival}, by {ranking}: {found}.")
    return sentences


def comparison(evaluation: Evaluation, name: str) -> str:
    """The pictures of a set that are shown, as HTML: some at random, the best and the worst."""
    rows = evaluation.table[evaluation.table["set"] == name]
    values, blocks = rows.pivot(index="image", columns=["metric", "kind"], values="value"), []
    for reason, images in evaluation.shown[name].items():
        for image, pictures in images.items():
            before, filtered, after = values.loc[image][rows["metric"].iloc[0]][list(KINDS)]
            psnr = values.loc[image].get("psnr", {})
            caption = (f"{reason} · {image} · {before:.3f} → {after:.3f} (unsharp mask "
                       f"{filtered:.3f})" + (f" · PSNR {psnr['degraded']:.1f} → "
                                             f"{psnr['restored']:.1f} dB" if len(psnr) else ""))
            blocks.append(f"<figure>{picture_row(pictures, 256)}"
                          f"<figcaption>{caption}</figcaption></figure>")
    return f'<div class="pictures">{"".join(blocks)}</div>'


def picture_row(pictures: Mapping[str, Tensor], side_px: int) -> str:
    """Input, unsharp mask, restored, clean, and in blue where it changed, side by side as HTML."""
    changed = torch.lerp(pictures["restored"], BLUE, 0.7 * pictures["changed"])
    cells = [f"<div>{KINDS.get(name, name)}{image_tag(image, KINDS.get(name, name), side_px)}</div>"
             for name, image in {**pictures, "changed": changed}.items()]
    return f'<div class="row">{"".join(cells)}</div>'


def image_tag(image: Tensor, alt: str, side_px: int, attributes: str = "") -> str:
    """An image (3, H, W) in [0, 1] as a JPEG within HTML, no larger than `side_px`."""
    scale = side_px / max(image.shape[1:])
    if scale < 1:
        size = [max(1, round(length * scale)) for length in image.shape[1:]]
        image = interpolate(image[None].float(), size, mode="area")[0]
    buffer = io.BytesIO()
    to_pil(image.detach().float().cpu().clamp(0, 1)).save(buffer, "JPEG", quality=90)
    return _tag(buffer.getvalue(), alt, attributes)


def figure_tag(figure: Figure, alt: str, dpi: int = 110) -> str:
    """A matplotlib figure as a JPEG within HTML."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="jpeg", dpi=dpi, facecolor="white", pil_kwargs={"quality": 88})
    return _tag(buffer.getvalue(), alt, 'style="max-width: 100%; height: auto"')


def gain_chart(sets: Mapping[str, Any], ranking: str) -> Figure:
    """The gain of the enhancer and of the baseline on each set, with intervals."""
    rows = [name for name, of_set in sets.items() if ranking in of_set["gain"]]
    figure, axes = _figure(0.4 * len(rows) + 1.0)
    for part, kind, shift in (("gain", "restored", -0.14), ("gain_filtered", "filtered", 0.14)):
        for row, name in enumerate(rows):
            if described := sets[name].get(part, {}).get(ranking):
                axes.plot(described["ci95"], [row + shift] * 2, color=COLORS[kind], linewidth=2)
                axes.plot(described["mean"], row + shift, "o", color=COLORS[kind],
                          label=None if row else KINDS[kind])
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [name.replace("_", " ") for name in rows])
    axes.invert_yaxis()
    axes.set_xlabel(f"gain in {ranking} over the input, % (left of 0 is worse)")
    axes.legend(fontsize=8)
    return figure


def distribution_chart(evaluation: Evaluation) -> Figure:
    """The ranking distance of every picture of each set, before and after."""
    table, names = evaluation.table, list(evaluation.shown)
    ranking = table["metric"].iloc[0]
    figure, axes = _figure(3.2)
    for (name, kind), values in table[table["metric"] == ranking].groupby(["set", "kind"])["value"]:
        if name in names:
            place = names.index(name) + 0.26 * (list(KINDS).index(kind) - 1)
            jitter = np.random.default_rng(0).uniform(-0.09, 0.09, len(values))
            axes.plot(place + jitter, values, ".", color=COLORS[kind], alpha=0.55, markersize=4,
                      label=KINDS[kind] if name == names[0] else None)
            axes.plot([place - 0.11, place + 0.11], [values.median()] * 2, color="black")
    axes.set_xticks(range(len(names)), [name.replace("_", "\n") for name in names], fontsize=8)
    axes.set_ylabel(f"{ranking} (lower is better)")
    axes.legend(fontsize=8)
    return figure


def draw_held_out(axes: Axes, history: Sequence[Mapping[str, Any]]) -> None:
    """Draw the held-out distance over the steps, input and unsharp mask as lines."""
    records = [record for record in history if record.get("held_out")]
    for kind in ("degraded", "filtered"):
        axes.axhline(records[-1]["held_out"][kind], color=COLORS[kind], linestyle="--",
                     label=KINDS[kind])
    axes.plot([record["step"] for record in records],
              [record["held_out"]["restored"] for record in records], "o-", markersize=4,
              color=COLORS["restored"], label=KINDS["restored"])
    axes.set(xlabel="step", ylabel="distance")
    axes.legend(fontsize=8)


def _figure(height_in: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, height_in), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _table(frame: pd.DataFrame) -> str:
    return f'<div class="wide">{frame.to_html(border=0)}</div>'


def _tag(jpeg: bytes, alt: str, attributes: str) -> str:
    return (f'<img alt="{html.escape(alt)}" {attributes} '
            f'src="data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}">')
