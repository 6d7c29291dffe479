"""The command line: what the notebook does, without opening it.

    python -m helpers notebook --preset demo     # execute the notebook, keep the executed copy
    python -m helpers metrics results/demo       # print the figures of a run
    python -m helpers tidy saved.ipynb           # make what Colab saved open on GitHub
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path

from .config import PRESETS
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
    tidy = commands.add_parser("tidy", help="make a notebook that Colab saved open on GitHub")
    tidy.add_argument("saved", type=Path)
    options = parser.parse_args(arguments)
    if options.command == "notebook":
        execute_notebook(options.preset, ROOT / NOTEBOOK,
                         options.out or ROOT / "results" / options.preset)
        return 0
    try:
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
