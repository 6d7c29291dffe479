"""The package as pip installs it, under its own name, beside anybody's `helpers`."""

import json
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image

from helpers.commands import ROOT
from tests.pictures.files import every_kind

ABOUT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CODE = """
import runpy, sys
from splat_enhancer import load, restore
model = load(sys.argv[1])
restore(model, sys.argv[2]).save("by_lines.png")
import helpers
assert helpers.MINE and not [name for name in sys.modules if name.startswith("helpers.")]
sys.argv = ["splat_enhancer", "enhance", sys.argv[2], "--model", sys.argv[1], "--json"]
runpy.run_module("splat_enhancer", run_name="__main__")
"""


def test_every_room_is_installed_and_there_is_one_list_of_dependencies():
    rooms = {path.parent.name for path in (ROOT / "helpers").glob("*/__init__.py")}
    assert set(ABOUT["tool"]["setuptools"]["packages"]) == {
        "splat_enhancer", *(f"splat_enhancer.{room}" for room in rooms)}
    assert ABOUT["project"]["dynamic"] == ["dependencies"]
    assert "license" not in ABOUT["project"]


@pytest.mark.skipif(not find_spec("setuptools"), reason="no setuptools to build with")
@pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="no clone")
def test_an_installed_clone_restores_by_three_lines_and_by_its_command(model_folder, tmp_path):
    clone, place, empty = tmp_path / "clone", tmp_path / "place", tmp_path / "empty"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
                    "--no-build-isolation", "--target", place, clone], check=True)
    assert {path.name for path in place.iterdir() if "dist-info" not in path.name} == {
        "splat_enhancer", "bin"}
    said = (next(place.glob("*.dist-info")) / "METADATA").read_text(encoding="utf-8")
    assert "Requires-Dist: torch>=" in said and "Requires-Dist: tyro" in said
    empty.mkdir()
    (empty / "helpers.py").write_text("MINE = True")
    (empty / "rgba.png").write_bytes(every_kind()["rgba.png"])
    done = subprocess.run([sys.executable, "-c", CODE, model_folder, "rgba.png"], cwd=empty,
                          env={"PYTHONPATH": str(place), "PATH": "", "HOME": str(empty)},
                          capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["restored"] == 1
    by_lines, by_command = (np.asarray(Image.open(empty / name), dtype=int)
                            for name in ("by_lines.png", "rgba_restored.png"))
    assert by_lines.shape == (24, 32, 4) and np.abs(by_lines - by_command).max() <= 1


@pytest.fixture
def model_folder(tmp_path):
    """An export of the embedded base."""
    from helpers.config import preset
    from helpers.model import SplatEnhancer, export

    config = preset("demo")
    return export(SplatEnhancer.from_pretrained(config.model, device="cpu"), config,
                  tmp_path / "enhancer")
