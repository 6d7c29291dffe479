"""The command line: what the notebook does, without opening it.

    python -m helpers notebook --preset demo     # execute the notebook, keep the executed copy
    python -m helpers metrics results/demo       # print the figures of a run
    python -m helpers tidy saved.ipynb           # make what Colab saved open on GitHub
    python -m helpers transfer                   # trained on each kind of pair × tested on each
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

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


TRANSFER = """# Trained on each kind of pair, tested on each

Every row is a run of its own, with the same seed, the same {steps} steps and, but for what its name
says, the same settings (`{preset}`); `all` are the preset's shares. Cells: gain in {metric} over
doing nothing, and the change in PSNR; for `clean`, where doing nothing is perfect, what came out.

{table}

![the table as a heat map](transfer.png)

The heads of the rendered sets are test identities, {views} views inside and {views} outside the arc
of their cameras each; `fitted` is made by a recipe that no training pair has. All figures, with
intervals over identities: `table.json`. Made by `python -m helpers transfer`, which goes on where
it was interrupted.
"""


def compare_pairs(preset: str, folder: Path, base: Path | None = None, steps: int = 0,
                  only: Sequence[str] = ()) -> None:
    """Make the transfer table of a preset, its picture and its page; goes on where it stopped.

    Args:
        preset: whose run all variants change.
        folder: gets `README.md`, `table.json` and `transfer.png`; what was trained lies in
            `runs/transfer/` of this repository.
        base: a base in diffusers layout, for a variant on it.
        steps: of every run; 0 takes the preset's.
        only: names of variants; empty: all.
    """
    from .evaluation import format_transfer, standard_variants, transfer
    from .faces import prepare
    from .machine import detect
    from .views import save_figure, transfer_chart

    machine, config = detect(), settings(preset).with_(
        {"data.rendered_views": 2} | ({"optim.steps": steps} if steps else {}))
    data, metric = ROOT / "data", "stlpips_alex"
    faces = prepare(config.data, data, device=machine.device, seed=config.run.seed)
    variants = standard_variants(config) | (
        {"all, another base": {"model.base": str(base)}} if base else {})
    variants = {name: changes for name, changes in variants.items() if not only or name in only}
    table = transfer(config, faces, ROOT / "runs" / "transfer", variants=variants, data=data,
                     device=machine.device, dtype=machine.dtype)
    page = TRANSFER.format(preset=preset, steps=config.optim.steps, metric=metric,
                           table=format_transfer(table, metric), views=config.data.rendered_views)
    save_figure(transfer_chart(table, metric), folder / "transfer.png")
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
    compared = commands.add_parser("transfer", help="train on each kind of pair, test on each")
    compared.add_argument("--preset", choices=sorted(PRESETS), default="demo")
    compared.add_argument("--out", type=Path, default=ROOT / "results" / "transfer")
    compared.add_argument("--steps", type=int, default=0, help="of every run; 0: the preset's")
    compared.add_argument("--only", nargs="*", default=(), help="names of variants")
    compared.add_argument("--base", type=Path, help="one more variant: on the base in this folder")
    tidy = commands.add_parser("tidy", help="make a notebook that Colab saved open on GitHub")
    tidy.add_argument("saved", type=Path)
    options = parser.parse_args(arguments)
    if options.command == "notebook":
        execute_notebook(options.preset, ROOT / NOTEBOOK,
                         options.out or ROOT / "results" / options.preset)
        return 0
    try:
        if options.command == "transfer":
            compare_pairs(options.preset, options.out, options.base, options.steps,
                          options.only)
        else:
            tidy_notebook(options.saved) if options.command == "tidy" else _print(options.folder)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return 0


def _print(folder: Path) -> None:
    """The figures of a run, a table for each set of images."""
    from .evaluation import format_table, read_metrics

    for name, figures in read_metrics(folder / "metrics.json")["sets"].items():
        print(f"{name}: {format_table(figures)}")


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # not every console on Windows has arrows
    sys.exit(main())
