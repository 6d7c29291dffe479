"""The command line: what the notebook does, without opening it.

    python -m helpers notebook --preset demo     # execute the notebook, keep the executed copy
    python -m helpers metrics results/demo       # print the figures of a run
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path

from .config import PRESETS

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
    options = parser.parse_args(arguments)
    if options.command == "notebook":
        execute_notebook(options.preset, ROOT / NOTEBOOK,
                         options.out or ROOT / "results" / options.preset)
    else:
        from .evaluate import format_table, read_metrics
        try:
            content = read_metrics(options.folder / "metrics.json")
        except (OSError, ValueError) as error:
            parser.error(str(error))
        for name, figures in content["sets"].items():
            print(f"{name}: {format_table(figures)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
