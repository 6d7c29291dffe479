"""Run the demo twice in a row on other platforms, as far as they can be rebuilt here.

    make colab     Colab's package versions, variables and own package (tests/colab)
    make kaggle    the same packages, from which Kaggle's images are made, and Kaggle's variables
    make oldest    the lowest versions that requirements.txt allows

Each writes what it ran to results/places/. A temporary folder takes the place of /content or
/kaggle/working.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import nbformat
from packaging.requirements import Requirement

from tools.run_notebook import NOTEBOOK, ROOT, execute

BESIDES = ("numpy", "pillow", "torchao")  # what the named packages bring, or must do without
MESSAGES = {  # of the first run and of the second
    "colab": (("Installed lpips", "Installed stlpips-pytorch", "Removed torchao"), ("finished",)),
    "kaggle": (("Installed lpips", "Installed stlpips-pytorch", "Removed torchao"), ("finished",)),
    "oldest": ((), ("finished",))}


def copy_project(folder: Path) -> None:
    """Copy notebook and helpers, with `folder` in the place of /content and /kaggle/working."""
    shutil.copytree(ROOT / "helpers", folder / "helpers",
                    ignore=shutil.ignore_patterns("__pycache__"))
    for name in (NOTEBOOK, "splat_enhancer.py"):
        shutil.copy(ROOT / name, folder)
    for path in (folder / NOTEBOOK, folder / "helpers" / "environment.py"):
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace('"/content', f'"{folder.as_posix()}').replace(
            '"/kaggle/working"', f'"{folder.as_posix()}"'), encoding="utf-8")


def colab_variables(folder: Path, drive: str = "granted") -> dict[str, str]:
    """The environment of a Colab kernel; its user answers the request for Drive with `drive`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KAGGLE")}
    return kept | {
        "COLAB_RELEASE_TAG": "release-colab-external",
        "PYTHONPATH": str(ROOT / "tests" / "colab"),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "STAND_IN_CLOUD": str(folder.with_name(folder.name + "-cloud")), "STAND_IN_DRIVE": drive}


def kaggle_variables(folder: Path) -> dict[str, str]:
    """The environment of a Kaggle kernel: made from Colab's image, it has Colab's variable too.

    Source: github.com/Kaggle/docker-python, Dockerfile.tmpl and patches/.
    """
    return colab_variables(folder) | {
        "KAGGLE_KERNEL_RUN_TYPE": "Interactive", "KAGGLE_URL_BASE": "https://www.kaggle.com",
        "KAGGLE_USER_SECRETS_TOKEN": "secret", "KAGGLE_DATA_PROXY_TOKEN": "secret"}


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
    """Run the demo twice: versions, seconds, and the gain on held-out faces.

    Raises:
        RuntimeError: a run did not print what it must.
    """
    copy_project(folder)
    rebuilt = {"colab": colab_variables, "kaggle": kaggle_variables}
    os.environ.update(rebuilt[place](folder) if place in rebuilt else {})
    before, seconds = versions(), []
    for number, messages in enumerate(MESSAGES[place], start=1):
        started = time.monotonic()
        text = printed(execute(folder / NOTEBOOK, folder / f"out{number}", {"PRESET": "'demo'"}))
        if missing := [words for words in messages if words not in text]:
            raise RuntimeError(f"{place}, run {number}: expected {missing} in its output, got "
                               f"{text[:2000]}")
        seconds.append(round(time.monotonic() - started, 1))
    after = versions()
    results = next(folder.glob("**/results/demo/metrics.json"))
    sets = json.loads(results.read_text(encoding="utf-8"))["sets"]
    return {"place": place, "system": platform.platform(), "python": platform.python_version(),
            "versions": after, "changed_by_the_first_run": {
                name: [before.get(name), after.get(name)] for name in sorted({*before, *after})
                if before.get(name) != after.get(name)},
            "messages": MESSAGES[place], "seconds": seconds,
            "gain": {name: gain["stlpips_alex"]["mean"] for name, figures in sets.items()
                     if "stlpips_alex" in (gain := figures.get("gain", {}))}}


def main(place: str) -> None:
    """Visit a place and write results/places/<place>.json."""
    with tempfile.TemporaryDirectory() as folder:
        content = Path(folder).resolve() / "content"
        content.mkdir()
        report = visit(place, content)
    path = ROOT / "results" / "places" / f"{place}.json"
    path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{place}: {path}")


if __name__ == "__main__":
    main(sys.argv[1])
