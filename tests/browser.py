"""The notebook as people see it: JupyterLab or Notebook 6 in a headless Chromium."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat

from helpers.__main__ import NOTEBOOK
from tests.places import copy_project

SMALL = {"data.size_px": 64, "data.train_images": 6, "data.test_images": 6,
         "data.fitted_images": 1, "data.strength_images": 1, "run.preview_every_steps": 5}
STEPS = 30
WIDE = {"width": 1400, "height": 1000}
TOKEN = "browser"
CONTRASTS = """areas => areas.flatMap(area => {
  const lit = css => (css.match(/[\\d.]+/g) || []).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    const color = element ? lit(getComputedStyle(element).backgroundColor) : [255, 255, 255];
    return color.length == 4 && color[3] < 0.5 ? behind(element.parentElement) : color;
  };
  const walker = document.createTreeWalker(area, NodeFilter.SHOW_TEXT);
  const found = [];
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement;
    if (!text || ["STYLE", "SCRIPT", "OPTION"].includes(element.tagName)) continue;
    const [a, b] = [lit(getComputedStyle(element).color), behind(element)].map(light);
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), text.slice(0, 60)]);
  }
  return found;
})"""
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class Page:
    """One open notebook; what differs between JupyterLab and Notebook 6 is named in subclasses."""

    module = path = cell = area = prompt = stop = line = handle = idle = screen = disk = ""
    contents = False  # whether it has a table of contents, and themes

    def __init__(self, page: Any, address: str, folder: Path) -> None:
        self.page, self.folder, self.problems = page, folder, []
        self.url = f"{address}{self.path}{NOTEBOOK}"
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda message: message.type == "error"
                and self.problems.append(f"{message.text} ({message.location['url']})"))
        page.on("dialog", lambda dialog: dialog.accept())

    def open(self) -> None:
        """Load the page and wait for its kernel."""
        self.load()
        self.page.locator(self.idle).first.wait_for(state="attached", timeout=120_000)
        self.page.wait_for_timeout(2_000)  # the first answer may be an earlier kernel's

    def load(self) -> None:
        """Load the page, also again, in mid-run."""
        self.page.goto(f"{self.url}?token={TOKEN}")
        self.page.locator(self.cell).first.wait_for(timeout=120_000)

    def find(self, title: str) -> Any:
        """The code cell of that title."""
        return self.page.locator(self.cell, has_text=f"#@title {title}")

    def output(self, title: str) -> Any:
        """What that cell shows."""
        return self.find(title).locator(self.area)

    def run(self, title: str) -> None:
        """Run one cell."""
        self.find(title).locator(self.line).first.click()
        self.page.keyboard.press("Control+Enter")

    def is_done(self, title: str) -> bool:
        """Whether a cell has run to its end."""
        return bool(re.search(r"\d", self.find(title).locator(self.prompt).text_content()))

    def is_running(self, title: str) -> bool:
        """Whether a cell waits or runs."""
        return "*" in self.find(title).locator(self.prompt).text_content()

    def write(self, title: str, name: str, value: str) -> None:
        """Fill in a form field, `name = …  #@param`."""
        self.find(title).locator(self.line, has_text=f"{name} = ").click()
        self.page.keyboard.press("Home")
        self.page.keyboard.press("Shift+End")
        self.page.keyboard.insert_text(f"{name} = {value}")

    def step(self) -> int:
        """How far the bar of the training is; 0 before it shows."""
        found = re.search(r"Training: (\d+)/", self.output("Train").text_content())
        return int(found[1]) if found else 0

    def pictures(self, title: str) -> list[str]:
        """The sources of a cell's pictures."""
        return self.output(title).locator("img").evaluate_all("all => all.map(img => img.src)")

    def wait(self, done: Callable[[], bool], what: str, timeout_s: float = 120) -> None:
        """Wait until something is so; a picture of the page and AssertionError if it never is."""
        end = time.monotonic() + timeout_s
        while not done():
            if time.monotonic() > end:
                self.page.screenshot(path=self.folder / "page.png")
                raise AssertionError(f"{what}: not within {timeout_s} s; see page.png in "
                                     f"{self.folder}")
            self.page.wait_for_timeout(100)

    def heights(self) -> dict[str, float]:
        """What each code cell shows takes so many pixels from top to bottom, by its title."""
        rows = self.page.locator(self.cell).evaluate_all(
            "(all, [line, area]) => all.map(cell => [cell.querySelector(line).textContent, "
            "cell.querySelector(area).getBoundingClientRect().height])", [self.line, self.area])
        return {re.sub(r"#@title |\{.*", "", title).strip(): height for title, height in rows}

    def contrasts(self) -> list[tuple[float, str]]:
        """The contrast (1 to 21) of each text in the outputs with what lies behind it."""
        return self.page.locator(f"{self.cell} {self.area}").evaluate_all(CONTRASTS)

    def save(self) -> nbformat.NotebookNode:
        """Save; the notebook that then lies in the folder."""
        file = self.folder / NOTEBOOK
        before = file.stat().st_mtime_ns
        self.page.locator(self.disk).first.click()
        self.wait(lambda: file.stat().st_mtime_ns > before, "the saved notebook")
        self.page.wait_for_timeout(1_000)
        return nbformat.read(file, as_version=4)

    def scroll_to(self, target: Any) -> dict[str, float]:
        """Bring an element onto the screen; where it is, once cells above take their height."""
        box: list[dict[str, float]] = []
        while len(box) < 2 or box[-1] != box[-2]:
            target.scroll_into_view_if_needed()
            self.page.wait_for_timeout(300)
            box.append(target.bounding_box())
        return box[-1]

    def drag(self, target: Any, share: float) -> None:
        """Drag with the mouse from the middle of an element, by a share of 300 pixels."""
        box = self.scroll_to(target)
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x + 300 * share, y, steps=8)
        self.page.mouse.up()


class Lab(Page):
    """JupyterLab with ipywidgets 8."""

    contents = True
    module, path, cell, area, prompt = ("jupyterlab", "/lab/tree/", ".jp-CodeCell",
                                        ".jp-Cell-outputWrapper", ".jp-InputPrompt")
    line, handle = ".cm-line", ".noUi-handle"
    idle = ".jp-Notebook-ExecutionIndicator[data-status=idle]"
    stop = ".jp-NotebookPanel-toolbar [data-jp-item-name=interrupt] jp-button"
    disk = ".jp-NotebookPanel-toolbar [data-jp-item-name=save] jp-button"
    screen = ".jp-NotebookPanel-notebook"

    def run_all(self) -> None:
        """Run > Run All Cells."""
        self.page.click(".lm-MenuBar-item:has-text('Run')")
        self.page.click(".lm-Menu-itemLabel:has-text('Run All Cells')")

    def headings(self) -> list[str]:
        """What the table of contents lists."""
        self.page.click("[data-id=table-of-contents]")
        listed = self.page.locator(".jp-tocItem-content")
        listed.first.wait_for()
        return listed.all_text_contents()

    def choose_theme(self, name: str) -> None:
        """Settings > Theme > JupyterLab Dark, or Light."""
        self.page.click(".lm-MenuBar-item:has-text('Settings')")
        self.page.hover(".lm-Menu-itemLabel:text-is('Theme')")
        self.page.click(f".lm-Menu-itemLabel:text-is('JupyterLab {name}')")
        light = str(name == "Light").lower()
        self.page.locator(f"body[data-jp-theme-light='{light}']").wait_for(state="attached")


class Classic(Page):
    """Notebook 6 with ipywidgets 7."""

    module, path, cell, area, prompt = ("notebook", "/notebooks/", ".code_cell",
                                        ".output_wrapper", ".input_prompt")
    line, handle = ".CodeMirror-line", ".ui-slider-handle"
    idle = "#kernel_indicator_icon.kernel_idle_icon"
    stop = "[data-jupyter-action='jupyter-notebook:interrupt-kernel']"
    disk = "[data-jupyter-action='jupyter-notebook:save-notebook']"
    screen = "#site"

    def run_all(self) -> None:
        """Cell > Run All."""
        self.page.click("#menus a:text-is('Cell')")
        self.page.click("#run_all_cells")


def find_browser() -> str | None:
    """The system's Chromium, if there is one."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@contextmanager
def opened(kind: type[Page], folder: Path, python: str = sys.executable) -> Iterator[Page]:
    """A small copy of the notebook beside its helpers, served, and open in a browser."""
    from playwright.sync_api import sync_playwright
    copy_project(folder, SMALL)
    text = (folder / NOTEBOOK).read_text(encoding="utf-8")
    for old, new in (("STEPS = 0", f"STEPS = {STEPS}"),
                     ('PRESET = \\"auto\\"', 'PRESET = \\"demo\\"')):
        assert old in text
        text = text.replace(old, new)
    (folder / NOTEBOOK).write_text(text, encoding="utf-8")
    with _served(kind, folder, python) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_browser(), args=["--no-sandbox"])
        page = kind(browser.new_page(viewport=WIDE), address, folder)
        page.open()
        yield page
        browser.close()


@contextmanager
def _served(kind: type[Page], folder: Path, python: str) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = folder / ".jupyter"  # nothing of the user's own settings
    news = own / "JUPYTERLAB_SETTINGS_DIR/@jupyterlab/apputils-extension"
    news.mkdir(parents=True)
    (news / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR",
             "JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR")
    environment = os.environ | {name: str(own / name) for name in names} | {
        "JUPYTER_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"}  # the browser wants a core
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen([python, "-m", kind.module, "--no-browser", "--allow-root",
                                   f"--port={port}"], cwd=folder, env=environment, stdout=log,
                                  stderr=subprocess.STDOUT)
        try:
            _await_port(port, server)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(timeout=30)


def _await_port(port: int, server: subprocess.Popen, timeout_s: float = 180) -> None:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise RuntimeError(f"server: expected port {port} to answer, got none; read server.log")
