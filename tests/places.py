"""The demo preset, twice in a row, in places that are rebuilt here, as far as they can be.

    make colab     Colab's package versions, variables and own package (`tests/colab`)
    make kaggle    the same packages, from which Kaggle's images are made, and Kaggle's variables
    make oldest    the lowest versions that requirements.txt allows

Each writes what it ran to results/places/. A folder takes the place of /content or /kaggle/working.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import nbformat
from packaging.requirements import Requirement

from helpers.__main__ import NOTEBOOK, ROOT
from helpers.pairs.fits import HEADS, load_fits, write_fits
from helpers.storage.whole import write_whole

STAND_IN = ROOT / "tests" / "colab"
BESIDES = ("numpy", "pillow", "torchao")  # what the named packages bring, or must do without
SMALL = {"data.size_px": 64, "data.train_images": 4, "data.test_images": 2,
         "data.strength_images": 1, "optim.steps": 3}
SAID = {  # by each of two runs
    "colab": (("colab: 3 packages mended", "Installed lpips", "Installed stlpips-pytorch",
               "Removed torchao"), ("finished",)),
    "kaggle": (("kaggle: 3 packages mended", "Persistence"), ("finished",)),
    "oldest": (("local: 0 packages mended",), ("finished",))}


def copy_project(folder: Path, changes: dict[str, Any] | None = None) -> None:
    """Copy notebook and helpers to what they take for the place's own.

    With changed settings fewer heads are measured, too: three instead of 32.
    """
    shutil.copytree(ROOT / "helpers", folder / "helpers",
                    ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / NOTEBOOK, folder)
    for name in (NOTEBOOK, "helpers/machine/runtime.py", "helpers/machine/drive.py"):
        text = (folder / name).read_text(encoding="utf-8")
        text = text.replace('"/content/', f'"{folder.as_posix()}/')
        text = text.replace('"/kaggle/working"', f'"{folder.as_posix()}"')
        text = text.replace("CHANGES = {}", f"CHANGES = {changes or {}}")
        (folder / name).write_text(text, encoding="utf-8")
    if changes:
        write_fits(folder / (HEADS / "test.safetensors").relative_to(ROOT), load_fits("test")[:3])


def colab_variables(folder: Path, drive: str = "granted") -> dict[str, str]:
    """The environment of a Colab kernel whose person answers as `tests/colab` reads it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KAGGLE")}
    return kept | {
        "COLAB_RELEASE_TAG": "release-colab-external", "PYTHONPATH": str(STAND_IN),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "STAND_IN_CLOUD": str(folder.with_name(folder.name + "-cloud")), "STAND_IN_DRIVE": drive}


def kaggle_variables(folder: Path) -> dict[str, str]:
    """The environment of a Kaggle kernel: made from Colab's image, it has Colab's variable too.

    Source: github.com/Kaggle/docker-python, Dockerfile.tmpl and patches/.
    """
    return colab_variables(folder) | {
        "KAGGLE_KERNEL_RUN_TYPE": "Interactive", "KAGGLE_URL_BASE": "https://www.kaggle.com",
        "KAGGLE_USER_SECRETS_TOKEN": "secret", "KAGGLE_DATA_PROXY_TOKEN": "secret"}


def run_notebook(folder: Path, variables: dict[str, str], out: str) -> tuple[float, str]:
    """Execute the notebook of a folder; returns the seconds it took and what it printed."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "helpers", "notebook", "--preset", "demo", "--out", out],
                   cwd=folder, env=variables, check=True)
    return time.monotonic() - started, printed(folder / out / NOTEBOOK)


def printed(notebook: Path) -> str:
    """All that the cells of an executed notebook printed and showed."""
    cells = nbformat.read(notebook, as_version=4).cells
    return "\n".join(o.get("text", "") or str(o.get("data", {}))
                     for cell in cells for o in cell.get("outputs", []))


def versions() -> dict[str, str]:
    """The versions of the packages this project names, and of a few they bring."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    names = [Requirement(line).name for line in lines if line and not line.startswith("#")]
    known = {d.metadata["Name"].lower(): d.version for d in metadata.distributions()}
    return {name: known[name] for name in (*names, *BESIDES) if name in known}


def visit(place: str, folder: Path) -> dict[str, Any]:
    """Run the demo twice as if in a place: versions, seconds, and the gain on held-out faces.

    Raises:
        RuntimeError: a run did not say what it must.
    """
    copy_project(folder)
    rebuilt = {"colab": colab_variables, "kaggle": kaggle_variables}
    variables = rebuilt[place](folder) if place in rebuilt else dict(os.environ)
    before, seconds = versions(), []
    for number, said in enumerate(SAID[place], start=1):
        took, text = run_notebook(folder, variables, f"out{number}")
        missing = [words for words in said if words not in text]
        if missing:
            raise RuntimeError(f"{place}, run {number}: expected {missing} in its output, got "
                               f"{text[:2000]}")
        seconds.append(round(took, 1))
    after = versions()
    results = next(folder.glob("**/results/demo/metrics.json"))
    gain = json.loads(results.read_text(encoding="utf-8"))["sets"]["drawn"]["gain"]
    return {"place": place, "system": platform.platform(), "python": platform.python_version(),
            "versions": after, "changed_by_the_first_run": {
                name: [before.get(name), after.get(name)] for name in sorted({*before, *after})
                if before.get(name) != after.get(name)},
            "said": SAID[place], "seconds": seconds,
            "gain": {name: of["mean"] for name, of in gain.items()}}


def main(place: str) -> None:
    """Visit a place and write results/places/<place>.json."""
    with tempfile.TemporaryDirectory() as folder:
        content = Path(folder).resolve() / "content"
        content.mkdir()
        report = visit(place, content)
    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    print(f"{place}: {write_whole(ROOT / 'results' / 'places' / f'{place}.json', text.encode())}")


if __name__ == "__main__":
    main(sys.argv[1])
