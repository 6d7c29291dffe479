"""The notebook without a browser: executed, or mended after Colab has saved it."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from ..config import preset as settings
from ..errors import refused
from ..machine import ROOT
from ..storage import write_whole
from .command import Command

NOTEBOOK = "splat_enhancer.ipynb"


@dataclass(frozen=True, kw_only=True)
class Notebook(Command):
    """Execute the notebook from first to last cell, and keep the executed copy."""

    preset: str = "demo"  # "demo", "t4" or "full"
    out: Path | None = None  # folder of the executed copy; none: results/ and the preset

    def run(self) -> dict[str, Any]:
        """Execute it."""
        out = self.out or ROOT / "results" / settings(self.preset).preset
        if not (ROOT / NOTEBOOK).is_file():
            raise refused("notebook", f"{NOTEBOOK} beside the package", f"none in {ROOT}",
                          "run it in a clone of the repository")
        return {"notebook": str(execute_notebook(self.preset, ROOT / NOTEBOOK, out))}


@dataclass(frozen=True, kw_only=True)
class Tidy(Command):
    """Make a notebook that Colab saved open on GitHub."""

    saved: tyro.conf.Positional[Path]  # the .ipynb file

    def run(self) -> dict[str, Any]:
        """Tidy it."""
        tidy_notebook(self.saved)
        return {"notebook": str(self.saved)}


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
