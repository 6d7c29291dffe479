"""Figures as Markdown tables, which also read well as plain text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .result import HIGHER_IS_BETTER, Result

Summary = Mapping[str, Any]  # one set of `metrics.json`
KIND_NAMES = {"degraded": "degraded (do nothing)", "filtered": "cheap filter",
              "restored": "restored"}


def format_table(result: Result | Summary) -> str:
    """One set: doing nothing, the filter and the enhancer, a line per metric.

    Args:
        result: from `measure`, or one set of `metrics.json`.
    """
    summary = _summary(result)
    kinds = [kind for kind in KIND_NAMES if kind in summary]
    names = dict.fromkeys(name for kind in kinds for name in summary[kind])
    rows = [["metric", *(KIND_NAMES[kind] for kind in kinds), "gain, 95 % interval", "made worse"]]
    for name in names:
        arrow = "↑" if name in HIGHER_IS_BETTER else "↓"
        rows.append([f"{name} {arrow}", *(level(name, summary[kind].get(name)) for kind in kinds),
                     change(name, summary["gain"].get(name)), worse(summary, name)])
    people = summary.get("identities", summary["n"])
    return f"{summary['n']} pictures of {people} identities; mean ± std\n\n{aligned(rows)}"


def format_sets(sets: Mapping[str, Result | Summary]) -> str:
    """All sets in one table: the metric that ranks, for all three, PSNR as a guard, made worse.

    Args:
        sets: name → result of `measure`, or the sets of `metrics.json`.
    """
    rows = [["tested on", "do nothing", "cheap filter", "restored", "gain, 95 % interval",
             "beyond the filter", "PSNR", "made worse"]]
    metric = ranking(sets)
    for name, result in sets.items():
        summary = _summary(result)
        levels = [brief(metric, summary.get(kind, {}).get(metric)) for kind in KIND_NAMES]
        gains = [change(metric, summary.get(part, {}).get(metric))
                 for part in ("gain", "over_filter")]
        rows.append([f"{name} ({summary['n']})", *levels, *gains, guard(summary),
                     worse(summary, metric)])
    return f"{metric}, lower is better\n\n{aligned(rows)}"


def format_compared(table: Mapping[str, Mapping[str, Result | Summary]], *,
                    metric: str = "stlpips_alex", corner: str = "") -> str:
    """Several enhancers on the same sets: gain in the metric and in PSNR, a row for each.

    Args:
        table: name → set → result or summary; "–" stands for a set that one has not.
        metric: a distance.
        corner: heads the names.
    """
    sets = list(dict.fromkeys(name for results in table.values() for name in results))
    rows = [[corner, *sets]]
    for name, results in table.items():
        rows.append([name, *(_cell(_summary(results[each]), metric) if each in results else "–"
                             for each in sets)])
    return aligned(rows)


def ranking(sets: Mapping[str, Result | Summary]) -> str:
    """The metric that ranks: the first of those there are."""
    return next(iter(dict.fromkeys(name for result in sets.values()
                                   for name in _summary(result)["restored"])))


def guard(summary: Summary) -> str:
    """What became of PSNR; where doing nothing has none, what came out."""
    if "psnr" in summary["gain"]:
        return change("psnr", summary["gain"]["psnr"])
    out = summary["restored"].get("psnr")
    return f"comes out at {out['mean']:.1f} dB" if out else "–"


def worse(summary: Summary, name: str) -> str:
    """The share of images made worse."""
    share = summary["share_worse"].get(name)
    return "–" if share is None else f"{100 * share:.0f} %"


def brief(name: str, summary: Summary | None) -> str:
    """The mean of a metric."""
    return "–" if summary is None else f"{summary['mean']:.{1 if name == 'psnr' else 3}f}"


def level(name: str, summary: Summary | None) -> str:
    """Mean and deviation of a metric."""
    if summary is None:
        return "–"
    digits, unit = (2, " dB") if name == "psnr" else (3, "")
    return f"{summary['mean']:.{digits}f} ± {summary['std']:.{digits}f}{unit}"


def change(name: str, summary: Summary | None) -> str:
    """A mean gain with its interval."""
    if summary is None:
        return "–"
    digits, unit = (2, " dB") if name == "psnr" else (3, "") if name in HIGHER_IS_BETTER \
        else (1, " %")
    mean, low, high = (f"{v:+.{digits}f}" for v in (summary["mean"], *summary["ci95"]))
    return f"{mean}{unit} [{low}, {high}]"


def aligned(rows: list[list[str]]) -> str:
    """A Markdown table whose columns are as wide as their widest cell; the first row heads it."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    rows = [rows[0], ["-" * width for width in widths], *rows[1:]]
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(
        row, widths, strict=True)) + " |" for row in rows)


def _summary(result: Result | Summary) -> Summary:
    return result.summary() if isinstance(result, Result) else result


def _cell(summary: Summary, metric: str) -> str:
    """Gain and PSNR difference; where nothing was degraded, what came out."""
    if metric in summary["gain"]:
        decibels = summary["gain"].get("psnr")
        return f"{summary['gain'][metric]['mean']:+.0f} %" + (
            f", {decibels['mean']:+.2f} dB" if decibels else "")
    out = summary["restored"]
    return ", ".join([brief(metric, out.get(metric)),
                      *([f"{out['psnr']['mean']:.1f} dB"] if "psnr" in out else [])])
