"""The notebook in JupyterLab and Chromium: sliders, the divider, and a strength that is saved."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import torch

from splat_enhancer.images import read_png_text, write_png

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
                None)
CELLS = ["""
import sys
from types import SimpleNamespace
import torch
sys.path.insert(0, ROOT)
from splat_enhancer.config import DegradationConfig, preset
from splat_enhancer.enhance.restore import find, restore_all
from splat_enhancer.notebook.compare import BeforeAfter, show_restored
from splat_enhancer.notebook.sliders import DegradationSliders

class Faces:
    train = range(2)
    def load(self, split, rows):
        return torch.rand(len(rows), 3, 64, 64), torch.ones(len(rows), 64, 64, dtype=torch.uint8)

class Brighter:
    config = preset("demo")
    def enhance_with_mask(self, images, strength=1.0, progress=None):
        return (images + 0.3 * strength).clamp(0, 1), torch.ones_like(images[:, :1])
    def trained_state(self):
        return {}
run = SimpleNamespace(config=preset("demo"), degradation=DegradationConfig(), faces=Faces())
""", "sliders = DegradationSliders(run)\nsliders", "run.degradation.noise",
    "outcomes = list(restore_all(Brighter(), find('mine.png'), progress=None))\n"
    "show_restored(outcomes)", "BeforeAfter(Brighter(), outcomes)"]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A notebook with sliders and before/after, run in JupyterLab."""
    pytest.importorskip("jupyterlab", reason="no JupyterLab; pip install jupyterlab")
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    if not CHROMIUM:
        pytest.skip("no Chromium; apt-get install chromium")
    folder = tmp_path_factory.mktemp("lab")
    write_png(folder / "mine.png", torch.full((3, 40, 60), 0.4))
    cells = [nbformat.v4.new_code_cell(text.strip().replace("ROOT", repr(str(ROOT))))
             for text in CELLS]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "small.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR",
             "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")  # nothing of the user's own
    variables = {name: str(folder / ".jupyter" / name) for name in names}
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}",
             "--IdentityProvider.token=t"], cwd=folder, stdout=log, stderr=log,
            env=os.environ | variables)
    try:
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            tab = browser.new_page(viewport={"width": 1300, "height": 1400})
            tab.set_default_timeout(120_000)
            tab.problems = []
            tab.on("pageerror", lambda error: tab.problems.append(str(error)))
            wait_for(lambda: answers(port), "the server")
            tab.goto(f"http://127.0.0.1:{port}/lab/tree/small.ipynb?token=t")
            tab.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
            tab.click(".lm-MenuBar-item:has-text('Run')")
            tab.click(".lm-Menu-itemLabel:has-text('Run All Cells')")
            tab.locator(".divided").nth(1).wait_for()
            tab.folder = folder
            yield tab
            browser.close()
    finally:
        server.terminate()
        server.wait(timeout=30)


def answers(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(reached, what, timeout_s=120, pause=time.sleep):
    end = time.monotonic() + timeout_s
    while not reached():
        assert time.monotonic() < end, what
        pause(0.2)


def pictures(area):
    return area.locator("img").evaluate_all("all => all.map(image => image.src)")


def drag(page, target, pixels):
    target.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    box = target.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + pixels, y, steps=6)
    page.mouse.up()


def test_sliders_change_the_picture_and_before_after_saves_a_strength(page):
    def later(reached, what):
        wait_for(reached, what, pause=lambda s: page.wait_for_timeout(1_000 * s))

    sliders, shown, compared = (page.locator(".jp-CodeCell").nth(place).locator(
        ".jp-Cell-outputWrapper") for place in (1, 3, 4))
    later(lambda: len(pictures(sliders)) == 4, "four pictures")
    before = pictures(sliders)
    drag(page, sliders.locator(".noUi-handle").first, -90)
    later(lambda: pictures(sliders)[-1] != before[-1], "another degraded picture")
    assert pictures(sliders)[0] == before[0]  # the clean one
    sliders.get_by_text("keep these settings", exact=True).click()
    later(lambda: "The run uses these settings" in sliders.text_content(), "a reply")

    divider = shown.locator(".divided")
    divider.scroll_into_view_if_needed()
    shots = [divider.screenshot()]
    for act in (lambda: drag(page, divider, -60), lambda: divider.locator("input").press("End"),
                lambda: divider.locator("input").press("ArrowLeft")):
        act()
        shots.append(divider.screenshot())
    assert len(set(shots)) == len(shots)

    before = pictures(compared)
    drag(page, compared.locator(".noUi-handle").first, -60)
    later(lambda: pictures(compared)[1] != before[1], "another restored picture")
    compared.get_by_text("save with this strength", exact=True).click()
    later(lambda: "saved with strength" in compared.text_content(), "a reply")
    assert 0 < float(read_png_text(page.folder / "mine_restored.png")["chosen_strength"]) < 1
    assert not page.problems
