"""A run's results as files: `displays/`, `comparisons/`, and one page that holds all of them."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Callable, Mapping
from pathlib import Path

from matplotlib.figure import Figure

from ..distances import IN_WORDS
from ..evaluation import KINDS, Evaluation, Shown, pick, timed
from ..evaluation.tables import brief, change, guard, level, worse
from ..machine import versions
from ..storage import write_whole
from .charts import distribution_chart, gain_chart, region_chart, strength_chart, training_curve
from .display import rendered
from .page import figure, listing, page, settings, table
from .pictures import divided, to_bytes, to_tag
from .sheets import TITLES, comparisons, sheet

VERDICTS = ("better", "worse", "no clear change")  # what an interval can say
LARGEST_BYTES = 5_000_000  # of the page
TILES_PX = (160, 128, 96, 64)  # sides of its small pictures, the first that keeps it below that
DISPLAYS: dict[str, tuple[Callable[[Evaluation], Figure], str]] = {
    "gains": (gain_chart, "Gain over doing nothing: dots are means, lines 95 % intervals over "
                          "identities. Left of 0 is worse than the input."),
    "distributions": (distribution_chart, "Every picture of every set: before, after a cheap "
                                          "filter, after the enhancer."),
    "regions": (region_chart, "The perceptual distance within each region of the face."),
    "strengths": (strength_chart, "By strength of the drawn damage, and each effect alone."),
    "training": (lambda evaluation: training_curve(evaluation.history),
                 "The training loss and its terms, thin as measured and thick smoothed.")}
READING = (
    "Each figure stands beside two rivals: doing nothing, and the better of an unsharp mask and a "
    "bilateral filter, chosen on training faces.",
    "Intervals are 95 %, by bootstrap over identities. “Made worse” is the share of pictures whose "
    "own distance grew.",
    "Of the comparisons the first are drawn by lot, then come the best, then the worst. Blue shows "
    "where the mask let the network repair.")


def write_report(folder: Path, evaluation: Evaluation,
                 say: Callable[[str], None] = print) -> Path:
    """Write all pictures of an evaluation and its page, each whole or not at all.

    Args:
        folder: of the results: gets `displays/*.png`, `comparisons/<set>.png` and `report.html`.
        evaluation: from `evaluate_run`.
        say: told in one line how long each part took.

    Returns:
        The page.
    """
    seconds: dict[str, float] = {}
    folder.mkdir(parents=True, exist_ok=True)
    with timed("charts", seconds):
        charts = {name: rendered(draw(evaluation), "png", 120)
                  for name, (draw, _) in DISPLAYS.items()
                  if (name != "training" or evaluation.history)
                  and (name != "strengths" or evaluation.strengths)}
        for name, png in charts.items():
            write_whole(folder / "displays" / f"{name}.png", png)
    with timed("comparisons", seconds):
        for name in evaluation.sets:
            write_whole(folder / "comparisons" / f"{name}.png", sheet(name, evaluation))
    with timed("page", seconds):
        for tile_px in TILES_PX:
            text = to_page(evaluation, charts, tile_px).encode()
            if len(text) <= LARGEST_BYTES:
                break
        path = write_whole(folder / "report.html", text)
    say("drawn in " + ", ".join(f"{name} {s:.1f} s" for name, s in seconds.items()))
    return path


def to_page(evaluation: Evaluation, charts: Mapping[str, bytes], tile_px: int = 160) -> str:
    """The page as text.

    Args:
        evaluation: from `evaluate_run`.
        charts: PNG by name in DISPLAYS.
        tile_px: the largest side of one small picture.
    """
    weights = evaluation.weights
    title = f"Splat Enhancer: {weights.run}, step {weights.step:,}"
    notes = evaluation.notes()
    body = [
        f"<h1>{html.escape(title)}</h1>", f'<p class="quiet">{html.escape(_subtitle(evaluation))}'
        "</p>", f"<p>{html.escape(verdict(evaluation))}</p>", _first_look(evaluation),
        '<nav><a href="#sets">sets</a><a href="#charts">charts</a>'
        '<a href="#pictures">pictures</a><a href="#figures">all figures</a>'
        '<a href="#settings">settings</a></nav>',
        '<h2 id="sets">What it was tested on</h2>', _sets_table(evaluation), listing(READING),
        *(["<h3>Not measured, or undefined</h3>", listing(notes)] if notes else []),
        '<h2 id="charts">Charts</h2>',
        *(figure(to_tag(png, DISPLAYS[name][1], kind="png"), DISPLAYS[name][1])
          for name, png in charts.items()),
        '<h2 id="pictures">Pictures</h2>',
        *(part for name in evaluation.sets for part in _pictures(name, evaluation, tile_px)),
        '<h2 id="figures">All figures</h2>', listing(
            [f"{name}: {IN_WORDS.get(name, '')}." for name in evaluation.metrics]),
        *(part for name in evaluation.sets for part in _figures(name, evaluation)),
        '<h2 id="settings">Settings</h2>', settings(_settings(evaluation))]
    return page(title, body)


def verdict(evaluation: Evaluation) -> str:
    """In words: on which sets it is better or worse than doing nothing, and than the filter."""
    metric, said = evaluation.metrics[0], []
    for part, rival in (("gain", "doing nothing"), ("over_filter", "the cheap filter")):
        words: dict[str, list[str]] = {}
        for name, result in evaluation.sets.items():
            of = result.summary()[part].get(metric)
            words.setdefault(judged(of), []).append(name.replace("_", " ") + (
                f" ({of['mean']:+.0f} %)" if of else ""))
        found = [f"{word} on {', '.join(words[word])}" for word in VERDICTS if word in words]
        said.append(f"against {rival}: {'; '.join(found) or 'nothing to repair'}")
    return f"By {metric}, {said[0]}. {said[1].capitalize()}."


def judged(gain: Mapping[str, object] | None) -> str:
    """What an interval says: "better", "worse", "no clear change", "–" without one."""
    if gain is None:
        return "–"
    low, high = gain["ci95"]
    return "better" if low > 0 else "worse" if high < 0 else "no clear change"


def _subtitle(evaluation: Evaluation) -> str:
    config = evaluation.config
    return (f"Base {config.model.base}, preset {config.preset}, {config.data.size_px} px, seed "
            f"{config.run.seed}; measured on {evaluation.device}; weights "
            f"{evaluation.weights.sha256[:12]}; filter: {evaluation.cheap}")


def _first_look(evaluation: Evaluation) -> str:
    """One picture under a divider, drawn by lot: the first random one of the first set."""
    measured = next(iter(evaluation.measured.values()))
    shown: Shown = measured.pictures[pick(measured.result)["random"][0]]
    two = (x.float().div(255) for x in (shown.degraded, shown.restored))
    return f"<figure>{divided(*two)}</figure>"


def _sets_table(evaluation: Evaluation) -> str:
    metric = evaluation.metrics[0]
    rows = [("tested on", "gain, 95 % interval", "", "made worse", "do nothing", "filter",
             "restored", "beyond the filter", "", "PSNR", "pictures")]
    for name, result in evaluation.sets.items():
        of = result.summary()
        gain, beyond = (of[part].get(metric) for part in ("gain", "over_filter"))
        rows.append((name.replace("_", " "), change(metric, gain), judged(gain), worse(of, metric),
                     *(brief(metric, of[kind].get(metric)) for kind in KINDS),
                     change(metric, beyond), judged(beyond), guard(of),
                     f"{of['n']} of {of['identities']}"))
    return table(rows) + f'<p class="quiet">{html.escape(metric)}, lower is better; pictures of ' \
                         "so many identities; PSNR is a guard.</p>"


def _pictures(name: str, evaluation: Evaluation, tile_px: int) -> list[str]:
    heads = "".join(f"<span>{title}</span>" for title in TITLES)
    found = [figure(f'<div class="heads">{heads}</div>' + to_tag(to_bytes(
        picture.float().div(255), "JPEG"), f"{name}, {text}"), text)
        for text, picture in comparisons(name, evaluation, tile_px)]
    worst = evaluation.sets[name].summary()["worst"]
    text = f"Worst case: {worst['image']} of {worst['identity']}." if worst else ""
    return [f"<h3>{html.escape(name.replace('_', ' '))}</h3>",
            f'<p class="quiet">{html.escape(text)}</p>', f'<div class="sheet">{"".join(found)}'
            "</div>"]


def _figures(name: str, evaluation: Evaluation) -> list[str]:
    result = evaluation.sets[name]
    of = result.summary()
    rows = [("metric", "do nothing", "filter", "restored", "gain, 95 % interval", "of the filter",
             "made worse")]
    for metric in result.names:
        rows.append((metric, *(level(metric, of[kind].get(metric)) for kind in KINDS),
                     change(metric, of["gain"].get(metric)),
                     change(metric, of["gain_filtered"].get(metric)), worse(of, metric)))
    metric = evaluation.metrics[0]
    for region, within in result.regions().items():
        rows.append((f"{metric}, {region} ({within['n']})",
                     *(level(metric, within[kind].get(metric)) for kind in KINDS),
                     change(metric, within["gain"].get(metric)),
                     change(metric, within["gain_filtered"].get(metric)), worse(within, metric)))
    return [f"<h3>{html.escape(name.replace('_', ' '))}</h3>", table(rows)]


def _settings(evaluation: Evaluation) -> dict[str, Mapping[str, object]]:
    sections = {name: of for name, of in dataclasses.asdict(evaluation.config).items()
                if isinstance(of, dict)}
    made = versions("torch", "torchvision", "diffusers", "peft", "lpips", "stlpips-pytorch",
                    "scikit-image", "numpy")
    return sections | {"versions": made, "seconds of measuring": evaluation.seconds,
                       "filter, on training faces": {
                           name: f"{value:.3f}" for name, value in evaluation.candidates.items()}}
