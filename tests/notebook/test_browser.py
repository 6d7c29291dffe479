"""The notebook in a real browser: run, dragged, clicked, stopped and reloaded as people do it."""

from __future__ import annotations

import importlib.util
import os
import re
import sys

import nbformat
import pytest
from PIL import Image

from helpers.__main__ import NOTEBOOK, ROOT
from tests.browser import STEPS, Classic, Lab, find_browser, opened

pytest.importorskip("playwright", reason="no browser driver; pip install playwright")
PLACES = {"jupyterlab": (Lab, sys.executable),
          "notebook6": (Classic, os.environ.get("NOTEBOOK6_PYTHON"))}
TUNE, TAKE = "Tune the amounts", "Take over the tuned damage"
CHOOSE, RESTORE, COMPARE, LAST = ("Choose your renders", "Restore your renders",
                                  "Compare before and after", "Download the results")


@pytest.fixture(scope="module", params=PLACES)
def live(request, tmp_path_factory):
    """The notebook, run once from first to last cell; `seen` holds what the training showed."""
    kind, python = PLACES[request.param]
    if not find_browser():
        pytest.skip("no Chromium; apt-get install chromium")
    if kind is Classic and not python:
        pytest.skip("NOTEBOOK6_PYTHON names no interpreter with notebook 6 and ipywidgets 7")
    if kind is Lab and not importlib.util.find_spec("jupyterlab"):
        pytest.skip("no JupyterLab; pip install jupyterlab")
    with opened(kind, tmp_path_factory.mktemp(request.param), python) as page:
        page.seen = run_all(page)
        yield page


def run_all(page):
    """Run all to the end; each (step, picture) that the training showed on the way."""
    seen = []
    page.run_all()

    def done():
        now = page.step(), *page.pictures("Train")
        seen.extend([now] if now not in seen[-1:] else [])
        return page.is_done("Train")

    page.wait(done, "the training", 300)
    page.wait(lambda: page.is_done(LAST), "the last cell", 200)
    return seen


def train_for_long(page):
    """Raise the steps in the form, run all, and come back in mid-training."""
    page.write("Choose the settings", "STEPS", "10_000")
    page.run_all()
    page.wait(lambda: page.is_running("Train") and page.step(), "a new bar")
    later = page.step() + 3
    page.wait(lambda: page.step() >= later and page.pictures("Train"), "steps and a picture")


def shown_in(saved):
    """What a saved notebook keeps of the training."""
    return str(next(c.outputs for c in saved.cells if c.source.startswith("#@title Train")))


def stop(page):
    """Press Stop, and wait until nothing runs."""
    page.page.locator(page.stop).first.click()
    page.page.locator(page.idle).first.wait_for(state="attached", timeout=60_000)


def test_the_bar_and_the_picture_move_while_the_training_runs(live):
    steps = [step for step, *_ in live.seen if step]
    assert steps == sorted(steps) and len(set(steps)) > 3 and steps[-1] == STEPS
    pictures = [picture for step, *pictures in live.seen for picture in pictures if step < STEPS]
    assert len(set(pictures)) >= 3


def test_no_output_exceeds_a_screen(live):
    screen = live.page.locator(live.screen).first.bounding_box()["height"]
    heights = live.heights()
    assert {"Train", TUNE, RESTORE, COMPARE} < set(heights)
    assert 100 < max(heights.values()) <= screen


def test_every_picture_loads_and_has_a_text(live):
    pictures = live.page.locator(f"{live.cell} img").evaluate_all(
        "all => all.map(img => [img.alt.trim(), img.naturalWidth, img.width / img.height])")
    assert len(pictures) >= 11
    assert all(text and width > 0 and ratio > 0.5 for text, width, ratio in pictures), pictures


def test_dragging_a_slider_changes_the_picture_it_degrades(live):
    before = live.pictures(TUNE)
    live.drag(live.output(TUNE).locator(live.handle).first, -0.3)
    live.wait(lambda: live.pictures(TUNE)[-1] != before[-1], "another picture")
    assert live.pictures(TUNE)[0] == before[0]  # the clean one


def test_the_next_cell_takes_what_the_button_hands_over(live):
    live.drag(live.output(TUNE).locator(live.handle).first, 0.2)
    live.output(TUNE).get_by_text("use these for training", exact=True).click()
    live.wait(lambda: "Training will use your own" in live.output(TUNE).text_content(), "a reply")
    shown = float(live.output(TUNE).locator(".widget-readout").first.text_content())
    live.run(TAKE)
    taken = re.compile(rf"your own damage.*strength={shown:g}\b", re.S)
    live.wait(lambda: taken.search(live.output(TAKE).text_content()), taken.pattern)


def test_less_strength_and_the_mask_change_what_is_compared_and_the_button_writes_it(live):
    output, shots = live.output(COMPARE), [live.pictures(COMPARE)]
    for act in (lambda: output.get_by_text("where it repaired", exact=True).click(),
                lambda: live.drag(output.locator(live.handle).first, -0.2)):
        act()
        live.wait(lambda: live.pictures(COMPARE) != shots[-1], "another picture")
        shots.append(live.pictures(COMPARE))
    assert len({before for before, _ in shots}) == 1
    file = live.folder / "results" / "demo" / "held_out_restored.png"
    earlier = file.read_bytes()
    output.get_by_text("save with this strength", exact=True).click()
    live.wait(lambda: file.read_bytes() != earlier, "the picture, written again")
    live.wait(lambda: "held_out.png → held_out_restored.png" in output.text_content(), "a word")


def test_what_is_uploaded_is_restored_by_the_cell_below(live, tmp_path):
    mine = tmp_path / "my render (1).png"
    Image.new("RGBA", (70, 50), (200, 150, 120, 128)).save(mine)
    live.write(CHOOSE, "UPLOAD", "True")
    live.run(CHOOSE)
    button = live.output(CHOOSE).locator(".widget-upload, .jupyter-button").first
    with live.page.expect_file_chooser() as chooser:
        button.click()
    chooser.value.set_files(mine)
    live.wait(lambda: "uploaded: my-render--1-.png" in live.output(CHOOSE).text_content(), "a file")
    live.run(RESTORE)
    result = live.folder / "uploads" / "my-render--1-_restored.png"
    live.wait(lambda: result.exists() and result.name in live.output(RESTORE).text_content(),
              "its restoration")
    with Image.open(result) as restored:
        assert (restored.size, restored.mode) == ((70, 50), "RGBA")


def test_the_divider_follows_mouse_and_keys(live):
    divided = live.output(RESTORE).locator(".divided")
    live.scroll_to(divided)
    shots = [divided.screenshot()]
    for act in (lambda: live.drag(divided, -0.3),
                lambda: divided.locator("input").press("Home"),
                lambda: divided.locator("input").press("End"),
                lambda: divided.locator("input").press("ArrowLeft")):
        act()
        shots.append(divided.screenshot())
    assert len(set(shots)) == len(shots)
    assert "input" in live.page.evaluate("document.activeElement.ariaLabel")


def test_the_table_of_contents_lists_the_headings(live):
    if not live.contents:
        pytest.skip("Notebook 6 has no table of contents")
    cells = nbformat.read(ROOT / NOTEBOOK, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    assert live.headings() == re.findall(r"^#+ (.+)$", text, flags=re.M)


@pytest.mark.parametrize("theme", ["Dark", "Light"])
def test_every_line_can_be_read_in_both_themes(live, theme):
    if not live.contents:
        pytest.skip("Notebook 6 has one theme")
    live.choose_theme(theme)
    unreadable = [(ratio, text) for ratio, text in live.contrasts() if ratio < 4.5]
    assert not unreadable


def test_a_saved_notebook_is_small_and_free_of_widget_state(live):
    saved = live.save()
    assert "widgets" not in saved.metadata
    assert (live.folder / NOTEBOOK).stat().st_size < 2_000_000
    assert f"Training: {STEPS}/{STEPS}" in shown_in(saved)  # a widget's bar would be lost


def test_a_stopped_training_goes_on_from_its_step(live):
    train_for_long(live)
    stop(live)
    shown = live.output("Train").text_content()
    step = int(re.search(r"Stopped after step (\d+)", shown)[1])
    assert "Traceback" not in shown
    assert step >= STEPS + 3 and not live.is_running(RESTORE)
    live.run("Train")
    live.wait(lambda: f"goes on after step {step}" in live.output("Train").text_content(), "more")
    live.wait(lambda: live.step() >= step + 2, "two steps")
    stop(live)


def test_a_page_reloaded_in_mid_run_finds_its_outputs_and_the_run_goes_on(live):
    train_for_long(live)
    kept = shown_in(live.save())
    live.load()
    live.wait(lambda: live.pictures("Train"), "the saved picture")
    step = live.step()
    assert f"Training: {step}/" in kept and live.pictures("Train")[0] in kept
    stop(live)
    live.run("Train")
    live.wait(lambda: "goes on after step" in live.output("Train").text_content(), "the run")
    later = int(re.search(r"goes on after step (\d+)", live.output("Train").text_content())[1])
    assert later > step
    live.wait(lambda: len(live.pictures(TUNE)) == 4, "the sliders")


def test_the_page_reported_no_error(live):
    assert not live.problems
