"""The house: a room imports only rooms below it, and some packages are known to one room only."""

from __future__ import annotations

import ast
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from helpers.__main__ import ROOT

HOUSE = ROOT / "helpers"
FLOORS = ("errors", "storage", "pictures", "config", "machine", "checkpoints", "distances",
          "model", "splats", "faces", "restoring", "degradation", "pairs", "training", "evaluation",
          "plans", "views", "commands", "__main__")
MODULES = [path for path in sorted(HOUSE.rglob("*.py")) if path != HOUSE / "__init__.py"]


def room_of(path: Path) -> str:
    """The first part of a module's place in the house."""
    return path.relative_to(HOUSE).with_suffix("").parts[0]


def imported(path: Path) -> tuple[set[str], set[str], set[str]]:
    """What a module imports, wherever in the file: own siblings, rooms, outside packages."""
    siblings, rooms, outside = set(), set(), set()
    deep = path.parent != HOUSE
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            names = [node.module.split(".")[0]] if node.module else [a.name for a in node.names]
            (siblings if deep and node.level == 1 else rooms).update(names)
            assert node.level <= 1 + deep, f"{path}: outside the house"
        elif isinstance(node, ast.ImportFrom):
            outside.add(node.module)
        elif isinstance(node, ast.Import):
            outside |= {alias.name for alias in node.names}
    return siblings, rooms, outside


def cycles(graph: dict[str, set[str]]) -> set[str]:
    """What is left of a graph when leaves are taken away until there are none."""
    while leaves := {name for name, after in graph.items() if not after & graph.keys()}:
        graph = {name: after for name, after in graph.items() if name not in leaves}
    return set(graph)


def test_every_room_has_its_floor_and_says_what_it_is_for():
    assert {room_of(path) for path in MODULES} == set(FLOORS)
    for folder in (path for path in HOUSE.iterdir() if (path / "__init__.py").is_file()):
        front = ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))
        assert len(ast.get_docstring(front)) > 60, folder
        assert not any(path.is_dir() and (path / "__init__.py").exists()
                       for path in folder.iterdir()), f"{folder}: a third level"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_a_room_imports_only_rooms_below_it(path):
    _, rooms, outside = imported(path)
    assert rooms <= set(FLOORS[:FLOORS.index(room_of(path))])
    assert not any(package.startswith("helpers") for package in outside)


def test_within_a_room_nothing_imports_in_a_circle():
    for floor in FLOORS:
        own = {path.stem: imported(path)[0] for path in MODULES
               if room_of(path) == floor and path.stem != "__init__"}
        assert not cycles(own), floor
    assert cycles({"a": {"b"}, "b": {"a"}, "c": {"a"}}) == {"a", "b", "c"}  # it can fail


@pytest.mark.parametrize(("package", "owners"), [
    ("google", {"machine"}), ("IPython", {"machine", "views"}), ("ipywidgets", {"views"}),
    ("matplotlib", {"views"}), ("nbclient", {"commands"}), ("tyro", {"commands"}),
    ("pickle", set()), ("accelerate", {"machine"})])
def test_some_packages_are_known_to_one_room_only(package, owners):
    assert {room_of(path) for path in MODULES
            if any(p.split(".")[0] == package for p in imported(path)[2])} == owners


def test_nothing_is_unpickled():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert "weights_only=True" in map(ast.unparse, node.keywords), path


def test_nobody_but_machine_looks_for_colab():
    assert {room_of(path) for path in MODULES
            if "COLAB" in path.read_text(encoding="utf-8")} <= {"machine"}


def test_the_floors_of_the_tour_are_those_of_the_house():
    """`helpers/README.md` lists the rooms from the top floor down."""
    text = (HOUSE / "README.md").read_text(encoding="utf-8")
    places = [text.index(f"`{room}/`") for room in FLOORS if (HOUSE / room).is_dir()]
    assert all(above < below for below, above in pairwise(places))


def test_ruff_is_clean_over_code_and_notebook():
    done = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", "."], cwd=ROOT,
                          capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout
