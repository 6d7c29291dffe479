"""The layout: which package may import which, how large it is, and one import name."""

from __future__ import annotations

import ast
import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HELPERS = ROOT / "helpers"
# A package imports only what stands in rows above its own
LAYERS = (
    {"config"}, {"files", "distributed"}, {"images", "environment"}, {"gaussians"},
    {"losses"}, {"degradation", "model"}, {"data"}, {"training"}, {"evaluation", "enhance"},
    {"run"}, {"notebook", "cli"}, {"__init__", "__main__"})


def modules() -> list[Path]:
    return sorted(HELPERS.rglob("*.py"))


def owner(path: Path) -> str:
    """The package, or the module beside the packages, that a file belongs to."""
    return path.relative_to(HELPERS).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The packages and modules of ours that a file imports, wherever in it."""
    depth, names = len(path.relative_to(HELPERS).parts), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            names |= {node.module.split(".")[0]} if node.module else {a.name for a in node.names}
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(HELPERS)))
def test_package_imports_only_packages_below_it(path: Path) -> None:
    layer = {name: number for number, names in enumerate(LAYERS) for name in names}
    higher = {name for name in imported(path) - {owner(path)}
              if layer[name] >= layer[owner(path)]}
    assert not higher


def test_every_layer_exists() -> None:
    assert {owner(path) for path in modules()} == set(chain(*LAYERS))


def test_helpers_stay_small() -> None:
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in modules())
    assert lines <= 8_500
    assert len([path for path in modules() if path.name != "__init__.py"]) <= 50
    assert len({path.parent for path in modules()} - {HELPERS}) <= 10


def test_package_has_one_import_name() -> None:
    helpers = re.compile(r"^\s*(from|import) helpers\b", re.MULTILINE)
    files = chain(modules(), ROOT.glob("tests/*.py"), ROOT.glob("tools/**/*.py"),
                  [ROOT / "splat_enhancer.ipynb", ROOT / "README.md"])
    assert [path.name for path in files if helpers.search(path.read_text(encoding="utf-8"))] == [
        "test_install.py"]  # where a user has a module of that name


def test_installed_packages_are_the_packages_of_the_folder() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {path.parent.relative_to(HELPERS).as_posix() for path in modules()}
    expected = {".".join(("splat_enhancer", *Path(f).parts)) for f in folders}
    assert set(settings["tool"]["setuptools"]["packages"]) == expected


def test_nothing_names_what_is_not_the_projects_own() -> None:
    patterns = ("*.md", "*.toml", "Makefile", "*/**/*.py", "*/**/*.md")
    texts = [path for pattern in patterns for path in ROOT.glob(pattern)
             if ".venv" not in path.parts[len(ROOT.parts)]]
    outside = re.compile(r"(?<![\w.])/(work|root)/\w")
    assert not [path for path in texts if path.name != Path(__file__).name
                and outside.search(path.read_text(encoding="utf-8"))]
