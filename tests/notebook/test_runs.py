"""The whole notebook, small, where its users are: Colab without and with Drive, Kaggle."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat
import pytest
import torch

from helpers import checkpoints
from helpers.__main__ import NOTEBOOK
from helpers.evaluation import read_metrics
from tests.places import SMALL, colab_variables, copy_project, kaggle_variables, run_notebook

SETS = ["rendered_outside", "rendered_inside", "fitted", "drawn", "drawn_heavy", "clean"]
RESULTS = {"enhancer", "metrics.json", "metrics.csv", "report.html",
           "held_out.png", "held_out_restored.png",
           "held_out_overlay_restored.png", "restored.zip", "displays", "comparisons"}
RUN = Path("runs") / "demo"
on_colab = pytest.mark.skipif(sys.platform == "win32", reason="Colab runs on Linux")


@pytest.fixture(scope="module")
def colab(tmp_path_factory):
    """Colab, whose person refuses Drive; then again, and grants it: the folder, what was said."""
    content = tmp_path_factory.mktemp("colab") / "content"
    content.mkdir()
    copy_project(content, SMALL)
    return content, [run_notebook(content, colab_variables(content, drive), f"out-{drive}")[1]
                     for drive in ("refused", "granted")]


@pytest.fixture(scope="module")
def copies(colab):
    """The two executed copies."""
    return [nbformat.read(path, as_version=4) for drive in ("refused", "granted")
            for path in [colab[0] / f"out-{drive}" / NOTEBOOK]]


@pytest.fixture(scope="module")
def kaggle(tmp_path_factory):
    """Kaggle in a folder with a name people do give, a home that is empty, and a loader process."""
    home = tmp_path_factory.mktemp("home")
    working = home.with_name("kaggle") / "splat enhancer é"
    working.mkdir(parents=True)
    copy_project(working, SMALL | {"run.loader_workers": 1})
    return home, working, run_notebook(
        working, kaggle_variables(working) | {"HOME": str(home)}, "out")[1]


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@on_colab
def test_colab_without_drive_runs_to_the_end_and_says_what_is_lost(colab, copies):
    content, (text, _) = colab
    assert all(cell.execution_count for cell in copies[0].cells if cell.cell_type == "code")
    assert text.count("No Google Drive") == 1 and "credential propagation" in text
    assert "lost when the session ends" in text and "no copy in" not in text.lower()
    home = content / "splat_enhancer"
    assert names_in(home) == {"data", "results", "runs"}
    assert names_in(home / "results" / "demo") == RESULTS
    sets = read_metrics(home / "results" / "demo" / "metrics.json")["sets"]
    assert [*sets] == SETS and sets["drawn"]["n"] == sets["clean"]["n"] == 2


@on_colab
def test_a_second_run_finds_the_first_one_finished_and_brings_everything_to_drive(colab):
    content, (first, second) = colab
    assert "is finished (3 steps)" in second and "is finished" not in first
    assert "No Google Drive" not in second
    here, there = content / "splat_enhancer", content.with_name("content-cloud") / "splat_enhancer"
    saved = RUN / checkpoints.LATEST
    assert (there / saved).read_bytes() == (here / saved).read_bytes()
    kept = {name for name in names_in(there / RUN / "results") if not name.endswith(".part")}
    assert kept == RESULTS - {"enhancer"}  # .part: written over by the next copy, never in a trash
    assert len(names_in(there / RUN / "enhancer")) == 2
    tars = sorted(path.name.split("-")[0] for path in (there / "data").glob("*.tar"))
    assert tars == ["avatars", "fitted"]


@on_colab
def test_the_executed_copy_is_small_quiet_and_without_widget_state(colab, copies):
    content, texts = colab
    assert (content / "out-refused" / NOTEBOOK).stat().st_size < 2_000_000
    for copy, text in zip(copies, texts, strict=True):
        assert "widgets" not in copy.metadata
        assert "Warning" not in text and f"{content.resolve()}/" not in text


@on_colab
def test_pictures_carry_a_text_for_those_who_cannot_see_them(copies):
    pages = "".join(o.get("data", {}).get("text/html", "")
                    for cell in copies[0].cells for o in cell.get("outputs", []))
    pictures = re.findall("<img [^>]*>", pages)
    assert len(pictures) >= 9  # six grids, two under the divider, and one beside it
    assert all(re.search('alt="[^"]+"', tag) for tag in pictures)


def test_kaggle_is_no_colab_and_keeps_all_in_its_folder(kaggle):
    home, working, text = kaggle
    assert "kaggle: 0 packages mended" in text and "Persistence > Files only" in text
    assert "Mounted at" not in text and not working.with_name(working.name + "-cloud").exists()
    assert names_in(working / "results" / "demo") == RESULTS
    assert names_in(working) == {"data", "helpers", "out", "results", "runs", NOTEBOOK}
    own = {"matplotlib", ".matplotlib", ".ipython"}  # settings of Jupyter and its fonts
    assert [path for path in home.rglob("*") if path.is_file() and not own & {*path.parts}] == []


@on_colab
def test_loader_process_started_by_a_kernel_changes_no_step(kaggle, colab):
    """It is spawned, as everywhere: what Windows and macOS do of themselves."""
    spawned, alone = (checkpoints.load(home / RUN / checkpoints.LATEST).tensors
                      for home in (kaggle[1], colab[0] / "splat_enhancer"))
    assert spawned.keys() == alone.keys()
    assert all(torch.equal(spawned[name], alone[name]) for name in alone)
