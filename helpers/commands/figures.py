"""Figures of runs: printed again, or of many runs side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro

from ..config import PACKAGE
from ..config import preset as settings
from ..errors import refused
from ..machine import detect, workspace
from ..storage import write_whole
from .command import Command


@dataclass(frozen=True, kw_only=True)
class Metrics(Command):
    """Print the figures of a run, a table for each set of pictures."""

    folder: tyro.conf.Positional[Path]  # of the results, with metrics.json

    def run(self) -> dict[str, Any]:
        """Print them."""
        from ..evaluation import format_table, read_metrics

        found = read_metrics(self.folder / "metrics.json")
        for name, figures in found["sets"].items():
            print(f"{name}: {format_table(figures)}\n")
        return found


@dataclass(frozen=True, kw_only=True)
class Transfer(Command):
    """Train on each kind of pair and test on each; interrupted, the same command goes on."""

    name: ClassVar[str] = "transfer"
    preset: str = "demo"  # whose run all variants change
    out: Path | None = None  # gets page, table and picture; none: results/ and the command's name
    steps: int = 0  # of every run; 0: the preset's
    only: tuple[str, ...] = ()  # names of variants; none: all
    base: Path | None = None  # one more variant: on this base, in diffusers layout
    changes: Annotated[dict[str, Any], tyro.conf.arg(constructor=json.loads, metavar="JSON")] = \
        field(default_factory=dict)  # to all of them, as {"data.test_images": 8}

    def run(self) -> dict[str, Any]:
        """Train, measure, compare."""
        work = workspace(detect())
        return compare_variants(
            self.name, self.preset, work, self.out or work / "results" / self.name, base=self.base,
            steps=self.steps, only=self.only, changes=self.changes)


@dataclass(frozen=True, kw_only=True)
class Ablate(Transfer):
    """Train with one change of a setting at a time; interrupted, the same command goes on."""

    name: ClassVar[str] = "ablate"


PAGE = """# {title}

Every row is a run of its own, with the same seed, the same {steps} steps and, but for what its name
says, the same settings (`{preset}`); all are measured on the same pictures. Cells: gain in {metric}
over doing nothing, and the change in PSNR; for `clean`, where doing nothing is perfect, what came
out.

{table}

![the table as a heat map]({name}.png)

The heads of the rendered sets are test identities, {views} views inside and {views} outside the arc
of their cameras each; `fitted` is made by a recipe that no training pair has. All figures, with
intervals over identities: `table.json`. Made by `python -m {package} {name}`, which goes on where
it was interrupted.
"""
TITLES = {"transfer": "Trained on each kind of pair, tested on each",
          "ablate": "One change at a time"}


def compare_variants(name: str, preset: str, work: Path, folder: Path, *,
                     base: Path | None = None, steps: int = 0, only: Sequence[str] = (),
                     changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Make a table of variants of a preset, its picture and its page; goes on where it stopped.

    Args:
        name: "transfer" or "ablate".
        preset: whose run all variants change.
        work: the folder that holds data/ and runs/.
        folder: gets `README.md`, `table.json` and the picture.
        base: a base in diffusers layout, for one more variant on it.
        steps: of every run; 0 takes the preset's.
        only: names of variants; empty: all.
        changes: to the settings of all of them.
    """
    from .. import evaluation
    from ..faces import prepare
    from ..views import save_figure, transfer_chart

    machine, config = detect(), settings(preset).with_(
        {"data.rendered_views": 2} | ({"optim.steps": steps} if steps else {}) | (changes or {}))
    data, metric = work / "data", "stlpips_alex"
    faces = prepare(config.data, data, device=machine.device, seed=config.run.seed)
    make = {"transfer": evaluation.transfer_variants, "ablate": evaluation.ablation_variants}[name]
    variants = make(config) | ({"another base": {"model.base": str(base)}} if base else {})
    if unknown := set(only) - set(variants):
        raise refused("--only", f"names among {', '.join(variants)}", sorted(unknown), "pick some")
    variants = {one: of for one, of in variants.items() if not only or one in only}
    table = evaluation.run_variants(config, faces, work / "runs" / name, variants, data=data,
                                    device=machine.device, dtype=machine.dtype)
    page = PAGE.format(title=TITLES[name], name=name, package=PACKAGE, preset=preset,
                       steps=config.optim.steps, metric=metric, views=config.data.rendered_views,
                       table=evaluation.format_compared(table, metric=metric, corner="run"))
    save_figure(transfer_chart(table, metric), folder / f"{name}.png")
    write_whole(folder / "table.json", (json.dumps(table, indent=1) + "\n").encode())
    write_whole(folder / "README.md", page.encode())
    print(page)
    return table
