"""The command line: what the notebook does, without opening it.

    python -m helpers notebook --preset demo     # execute the notebook, keep the executed copy
    python -m helpers metrics results/demo       # print the figures of a run
    python -m helpers tidy saved.ipynb           # make what Colab saved open on GitHub
    python -m helpers transfer                   # trained on each kind of pair × tested on each
    python -m helpers ablate                     # one change of a setting at a time
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .config import PRESETS
from .config import preset as settings
from .errors import refused
from .storage import write_whole

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = "splat_enhancer.ipynb"


def execute_notebook(preset: str, source: Path, folder: Path) -> Path:
    """Execute the notebook from first to last cell, saying where it is.

    Args:
        preset: written into its form.
        source: the notebook; it runs beside itself and is left as it is.
        folder: gets the executed copy, in which paths start at the notebook.

    Returns:
        The executed copy; also after a failing cell, whose error is raised.
    """
    import nbformat
    from nbclient import NotebookClient

    if folder.resolve() == source.parent.resolve():
        raise refused("--out", "another folder than the notebook's, which would be written over",
                      str(folder), "choose another")
    notebook = nbformat.read(source, as_version=4)
    code = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"
            and cell.source.strip()]
    for cell in notebook.cells:
        cell.source = re.sub(r'^PRESET = ".*?"', f'PRESET = "{preset}"', cell.source, flags=re.M)
    started = time.monotonic()

    def announce(cell, cell_index: int) -> None:
        if cell_index in code:
            title = re.sub(r"#@title |\{.*\}", "", cell.source.strip().splitlines()[0]).strip()
            place = f"[{code.index(cell_index) + 1:2}/{len(code)}]"
            print(f"{place} {time.monotonic() - started:5.0f} s  {title}", flush=True)

    client = NotebookClient(notebook, kernel_name="python3", timeout=None, on_cell_start=announce,
                            store_widget_state=False,
                            resources={"metadata": {"path": str(source.parent)}})
    try:
        client.execute()
    finally:
        for output in (o for i in code for o in notebook.cells[i].outputs if "text" in o):
            output.text = output.text.replace(str(source.parent.resolve()), ".")
        folder.mkdir(parents=True, exist_ok=True)
        executed = folder / source.name
        nbformat.write(notebook, executed)
    print(f"Executed in {time.monotonic() - started:.0f} s: {executed}")
    return executed


def tidy_notebook(path: Path) -> None:
    """Remove the state of widgets from a saved notebook; code, texts and pictures stay.

    Colab saves that state in a form that GitHub refuses ("the 'state' key is missing from
    'metadata.widgets'"), and without a kernel it moves no slider anywhere.

    Raises:
        ValueError: not a notebook.
        OSError: it cannot be read or written; it is then as it was.
    """
    import nbformat

    try:
        notebook = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
    except (ValueError, KeyError, AttributeError, nbformat.ValidationError) as error:
        raise refused(str(path), "a notebook", str(error), "pass a saved .ipynb file") from error
    notebook.metadata.pop("widgets", None)
    write_whole(path, (nbformat.writes(notebook) + "\n").encode())


PAGE = """# {title}

Every row is a run of its own, with the same seed, the same {steps} steps and, but for what its name
says, the same settings (`{preset}`); all are measured on the same pictures. Cells: gain in {metric}
over doing nothing, and the change in PSNR; for `clean`, where doing nothing is perfect, what came
out.

{table}

![the table as a heat map]({name}.png)

The heads of the rendered sets are test identities, {views} views inside and {views} outside the arc
of their cameras each; `fitted` is made by a recipe that no training pair has. All figures, with
intervals over identities: `table.json`. Made by `python -m helpers {name}`, which goes on where it
was interrupted.
"""
TITLES = {"transfer": "Trained on each kind of pair, tested on each",
          "ablate": "One change at a time"}


def compare_variants(name: str, preset: str, folder: Path, *, base: Path | None = None,
                     steps: int = 0, only: Sequence[str] = (),
                     changes: dict[str, Any] | None = None) -> None:
    """Make a table of variants of a preset, its picture and its page; goes on where it stopped.

    Args:
        name: "transfer" or "ablate".
        preset: whose run all variants change.
        folder: gets `README.md`, `table.json` and the picture; what was trained lies in
            `runs/<name>/` of this repository.
        base: a base in diffusers layout, for one more variant on it.
        steps: of every run; 0 takes the preset's.
        only: names of variants; empty: all.
        changes: to the settings of all of them.
    """
    from . import evaluation
    from .faces import prepare
    from .machine import detect
    from .views import save_figure, transfer_chart

    machine, config = detect(), settings(preset).with_(
        {"data.rendered_views": 2} | ({"optim.steps": steps} if steps else {}) | (changes or {}))
    data, metric = ROOT / "data", "stlpips_alex"
    faces = prepare(config.data, data, device=machine.device, seed=config.run.seed)
    make = {"transfer": evaluation.transfer_variants, "ablate": evaluation.ablation_variants}[name]
    variants = make(config) | ({"another base": {"model.base": str(base)}} if base else {})
    if unknown := set(only) - set(variants):
        raise refused("--only", f"names among {', '.join(variants)}", sorted(unknown), "pick some")
    variants = {one: of for one, of in variants.items() if not only or one in only}
    table = evaluation.run_variants(config, faces, ROOT / "runs" / name, variants, data=data,
                                    device=machine.device, dtype=machine.dtype)
    page = PAGE.format(title=TITLES[name], name=name, preset=preset, steps=config.optim.steps,
                       metric=metric, views=config.data.rendered_views,
                       table=evaluation.format_compared(table, metric=metric, corner="run"))
    save_figure(transfer_chart(table, metric), folder / f"{name}.png")
    write_whole(folder / "table.json", (json.dumps(table, indent=1) + "\n").encode())
    write_whole(folder / "README.md", page.encode())
    print(page)


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and run one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m helpers", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    notebook = commands.add_parser("notebook", help="execute the notebook")
    notebook.add_argument("--preset", choices=sorted(PRESETS), default="demo")
    notebook.add_argument("--out", type=Path, help="folder of the executed copy")
    metrics = commands.add_parser("metrics", help="print the figures of a run")
    metrics.add_argument("folder", type=Path)
    for name, text in (("transfer", "train on each kind of pair, test on each"),
                       ("ablate", "train with one change at a time, test on the same sets")):
        compared = commands.add_parser(name, help=text)
        compared.add_argument("--preset", choices=sorted(PRESETS), default="demo")
        compared.add_argument("--out", type=Path, default=ROOT / "results" / name)
        compared.add_argument("--steps", type=int, default=0, help="of every run; 0: the preset's")
        compared.add_argument("--only", nargs="*", default=(), help="names of variants")
        compared.add_argument("--base", type=Path, help="one more variant: on this base")
        compared.add_argument("--changes", type=json.loads, default={},
                              help='to all, as JSON: {"data.test_images": 8}')
    tidy = commands.add_parser("tidy", help="make a notebook that Colab saved open on GitHub")
    tidy.add_argument("saved", type=Path)
    options = parser.parse_args(arguments)
    if options.command == "notebook":
        folder = options.out or ROOT / "results" / options.preset
        if folder.resolve() == ROOT:
            parser.error("--out: the source notebook lies there, and is not written over")
        execute_notebook(options.preset, ROOT / NOTEBOOK, folder)
        return 0
    try:
        if options.command in TITLES:
            compare_variants(options.command, options.preset, options.out, base=options.base,
                             steps=options.steps, only=options.only, changes=options.changes)
        else:
            tidy_notebook(options.saved) if options.command == "tidy" else _print(options.folder)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return 0


def _print(folder: Path) -> None:
    """The figures of a run, a table for each set of images."""
    from .evaluation import format_table, read_metrics

    for name, figures in read_metrics(folder / "metrics.json")["sets"].items():
        print(f"{name}: {format_table(figures)}\n")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # not every console on Windows has arrows
    sys.exit(main())
