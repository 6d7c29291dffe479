"""The house: who may import whom, and what only one module knows."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import pytest

from helpers.__main__ import ROOT

ORDER = ("files", "patience", "progress", "config", "damage", "runtime", "splat", "snapshots",
         "regions", "head", "hair", "avatars", "sources", "store", "sealed", "keep", "data",
         "draws", "filters", "gaussians", "effects", "resplat", "degrade", "adapters", "base",
         "tiles", "model", "export", "hub", "pix2pix_turbo", "perceptual", "losses", "metrics",
         "downloads", "fit", "summary", "checkpoint", "claim", "publish", "stop",
         "trainer", "autosave", "train", "budget", "evaluate", "pictures", "show",
         "sliders", "__main__")
SOURCES = {path.stem: path.read_text(encoding="utf-8")
           for path in sorted((ROOT / "helpers").glob("*.py")) if path.stem != "__init__"}


def imported(source: str) -> tuple[set[str], set[str]]:
    """Siblings and outside packages that a module imports, wherever in the file."""
    siblings, outside = set(), set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level:
            siblings |= {node.module} if node.module else {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            outside.add(node.module)
        elif isinstance(node, ast.Import):
            outside |= {alias.name for alias in node.names}
    return siblings, outside


def test_every_module_has_its_place():
    assert set(SOURCES) == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_nothing_imports_upwards(name):
    siblings, outside = imported(SOURCES[name])
    assert siblings <= set(ORDER[:ORDER.index(name)])
    assert not any(package.startswith("helpers") for package in outside)


@pytest.mark.parametrize(("package", "owners"), [
    ("google", {"runtime"}), ("IPython", {"progress", "show"}), ("ipywidgets", {"sliders"}),
    ("matplotlib", {"show"}), ("nbclient", {"__main__"}), ("pickle", set())])
def test_some_packages_are_known_to_one_module_only(package, owners):
    users = {name for name, source in SOURCES.items()
             if any(p.split(".")[0] == package for p in imported(source)[1])}
    assert users == owners


def test_nothing_is_unpickled():
    for name, source in SOURCES.items():
        for call in re.findall(r"(?<!safetensors.)\btorch\.load\([^)]*\)", source):
            assert "weights_only=True" in call, name


def test_nobody_but_runtime_and_its_tests_looks_for_colab():
    users = {name for name, source in SOURCES.items() if "COLAB" in source}
    assert users <= {"runtime"}


def test_ruff_is_clean_over_code_and_notebook():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", "."], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
