"""The package as pip installs it: one import name, beside anybody's own `helpers`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
CODE = """
import runpy, sys
from splat_enhancer import load, restore
restore(load(), "rgba.png").save("by_lines.png")
import helpers
assert helpers.MINE and not [name for name in sys.modules if name.startswith("helpers.")]
for heavy in ("datasets", "pandas", "matplotlib", "lpips", "IPython"):
    assert heavy not in sys.modules, heavy
sys.argv = ["splat_enhancer", "enhance", "rgba.png", "--json"]
runpy.run_module("splat_enhancer", run_name="__main__")
"""


@pytest.mark.skipif(not find_spec("setuptools"), reason="no setuptools to build with")
@pytest.mark.skipif(not shutil.which("git") or not (ROOT / ".git").exists(), reason="no clone")
def test_installed_package_restores_by_three_lines_and_by_its_command(tmp_path: Path) -> None:
    clone, place, empty = tmp_path / "clone", tmp_path / "place", tmp_path / "empty"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
                    "--no-build-isolation", "--target", place, clone], check=True)
    assert {path.name for path in place.iterdir() if "dist-info" not in path.name} == {
        "splat_enhancer", "bin"}
    assert (place / "splat_enhancer" / "py.typed").is_file()
    metadata = (next(place.glob("*.dist-info")) / "METADATA").read_text(encoding="utf-8")
    assert "Requires-Dist: torch>=" in metadata and "Version: 0.2.0" in metadata
    assert not [line for line in metadata.splitlines() if line.startswith("Requires-Dist: plyfile")]
    empty.mkdir()
    (empty / "helpers.py").write_text("MINE = True")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 4)).astype(np.uint8)
    Image.fromarray(pixels).save(empty / "rgba.png")
    done = subprocess.run([sys.executable, "-c", CODE], cwd=empty,
                          env={"PYTHONPATH": str(place), "PATH": "", "HOME": str(empty)},
                          capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["restored"] == 1
    by_lines, by_command = (np.asarray(Image.open(empty / name), dtype=int)
                            for name in ("by_lines.png", "rgba_restored.png"))
    assert by_lines.shape == (64, 96, 4) and np.abs(by_lines - by_command).max() <= 1
