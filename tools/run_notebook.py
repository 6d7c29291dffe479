"""Execute the notebook without a browser, and keep the executed copy.

    python -m tools.run_notebook    # the preset demo; the copy lies in work/results/demo
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = "splat_enhancer.ipynb"


def execute(source: Path, folder: Path, form: dict[str, str]) -> Path:
    """Execute a notebook from first to last cell, printing the title of each code cell.

    Args:
        source: the notebook; it runs in its own folder and is left as it is.
        folder: gets the executed copy, also after a cell that fails.
        form: form field → Python expression that replaces its value.

    Returns:
        The executed copy.
    """
    notebook = nbformat.read(source, as_version=4)
    code = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    for cell in notebook.cells:
        for field, value in form.items():
            cell.source = re.sub(rf"^{field} = .*?(?=  #@|$)", f"{field} = {value}",
                                 cell.source, flags=re.MULTILINE)
    started = time.monotonic()

    def announce(cell: nbformat.NotebookNode, cell_index: int) -> None:
        if cell_index in code:
            title = re.sub(r"#@title |\{.*\}", "", cell.source.strip().splitlines()[0]).strip()
            print(f"[{code.index(cell_index) + 1:2}/{len(code)}] "
                  f"{time.monotonic() - started:5.0f} s  {title}", flush=True)

    client = NotebookClient(notebook, kernel_name="python3", timeout=None, on_cell_start=announce,
                            store_widget_state=False, coalesce_streams=True,
                            resources={"metadata": {"path": str(source.parent)}})
    try:
        client.execute()
    finally:
        for output in (o for i in code for o in notebook.cells[i].outputs if "text" in o):
            output.text = output.text.replace(str(source.parent.resolve()), ".")
        folder.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, executed := folder / source.name)
    print(f"Executed in {time.monotonic() - started:.0f} s: {executed}")
    return executed


def main() -> None:
    """Execute the project's own notebook with the preset demo."""
    execute(ROOT / NOTEBOOK, ROOT / "work" / "results" / "demo", {"PRESET": "'demo'"})


if __name__ == "__main__":
    main()
