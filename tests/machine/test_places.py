"""The whole notebook, small, where its users are: Colab without Drive, Kaggle, an odd folder."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch

from helpers.__main__ import NOTEBOOK, ROOT
from helpers.checkpoints import checkpoint
from helpers.config import TINY_BASE, DataConfig
from helpers.faces import data
from helpers.faces.store import PartialStore
from helpers.model.base import embed_prompt
from tests.places import colab_variables, copy_project, kaggle_variables, run_notebook

SMALL = {"data.size_px": 64, "data.train_images": 4, "data.test_images": 2, "optim.steps": 3}
RESULTS = {"comparison.jpg", "enhancer", "metrics.json", "restored.png", "training.jpg"}
BYTE_OPENERS = ("Image.open", "tarfile.open", "os.open")


@pytest.fixture(scope="module")
def without_drive(tmp_path_factory):
    """Colab, whose person refuses Drive; then again, and mounting brings nothing."""
    content = tmp_path_factory.mktemp("colab") / "content"
    content.mkdir()
    copy_project(content, SMALL)
    return content, [run_on_colab(content, drive) for drive in ("refused", "nothing")]


def run_on_colab(content: Path, drive: str) -> str:
    variables = colab_variables(content, drive) | {"OMP_NUM_THREADS": "1"}
    return run_notebook(content, variables, f"out-{drive}")[1]


@pytest.fixture(scope="module")
def kaggle(tmp_path_factory):
    """Kaggle in a folder with a name people do give, a home that is empty, and a loader process."""
    home = tmp_path_factory.mktemp("home")
    working = home.with_name("kaggle") / "splat enhancer é"
    working.mkdir(parents=True)
    copy_project(working, SMALL | {"run.loader_workers": 1})
    variables = kaggle_variables(working) | {"OMP_NUM_THREADS": "1", "HOME": str(home)}
    return home, working, run_notebook(working, variables, "out")[1]


def results_of(home: Path) -> set[str]:
    return {path.name for path in (home / "results" / "demo").iterdir()}


@pytest.mark.skipif(sys.platform == "win32", reason="Colab runs on Linux")
def test_colab_without_drive_runs_to_the_end_and_says_what_is_lost(without_drive):
    content, texts = without_drive
    for text, why in zip(texts, ("credential propagation", "mount() returned, but"), strict=True):
        assert text.count("No Google Drive") == 1 and why in text
        assert "lost when the session ends" in text and "no copy in" not in text.lower()
    home = content / "splat_enhancer"
    assert results_of(home) == RESULTS
    assert {path.name for path in home.iterdir()} == {"data", "results", "runs"}
    assert not (content / "drive" / "MyDrive").exists()
    assert not content.with_name("content-cloud").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Colab runs on Linux")
def test_colab_without_drive_goes_on_from_its_disk(without_drive):
    _, (first, second) = without_drive
    assert "is finished (3 steps)" in second and "is finished" not in first


@pytest.mark.skipif(sys.platform == "win32", reason="Colab runs on Linux")
def test_colab_brings_everything_to_drive_once_it_is_there(without_drive):
    content, _ = without_drive
    text = run_on_colab(content, "granted")
    assert "is finished (3 steps)" in text and "No Google Drive" not in text
    here, there = content / "splat_enhancer", content.with_name("content-cloud") / "splat_enhancer"
    run = Path("runs") / "demo"
    saved = run / checkpoint.LATEST
    assert (there / saved).read_bytes() == (here / saved).read_bytes()
    assert {path.name for path in (there / run / "results").iterdir()} == RESULTS - {"enhancer"}
    assert len(list((there / run / "enhancer").iterdir())) == 2
    assert len(list((there / "data").glob("*.tar"))) == 1


def test_kaggle_is_no_colab_and_keeps_all_in_its_folder(kaggle):
    home, working, text = kaggle
    assert "kaggle: 0 packages mended" in text and "Persistence > Files only" in text
    assert "Mounted at" not in text and not working.with_name(working.name + "-cloud").exists()
    assert results_of(working) == RESULTS
    assert {path.name for path in working.iterdir()} == {
        "data", "helpers", "out", "results", "runs", NOTEBOOK}
    own = {"matplotlib", ".matplotlib", ".ipython"}  # settings of Jupyter and its fonts
    assert [path for path in home.rglob("*") if path.is_file() and not own & {*path.parts}] == []


def test_loader_process_started_by_a_kernel_changes_no_step(kaggle, without_drive):
    """It is spawned, as everywhere: what Windows and macOS do of themselves."""
    paths = [home / "runs" / "demo" / checkpoint.LATEST
             for home in (kaggle[1], without_drive[0] / "splat_enhancer")]
    spawned, alone = (checkpoint.load(path).tensors for path in paths)
    assert spawned.keys() == alone.keys()
    assert all(torch.equal(spawned[name], alone[name]) for name in alone)


def test_command_line_prints_figures_where_the_console_has_no_arrows():
    """Windows, with the output in a file or a pipe."""
    done = subprocess.run([sys.executable, "-m", "helpers", "metrics", "results/demo"], cwd=ROOT,
                          env=os.environ | {"PYTHONIOENCODING": "cp1252"}, capture_output=True)
    assert done.returncode == 0 and b"| ssim ? " in done.stdout, done.stderr


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells")
def test_no_file_stays_mapped_that_may_vanish_or_must_be_deleted(monkeypatch, tmp_path):
    """A mapped page of a Drive that died kills the process; Windows deletes no mapped file."""
    def mapped():
        return [line for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
                if str(tmp_path) in line]
    kept = [embed_prompt(TINY_BASE, "a face", [tmp_path]) for _ in range(2)]
    assert torch.equal(*kept) and not mapped()
    groups, discard = [], PartialStore.discard
    monkeypatch.setattr(PartialStore, "discard", lambda store: (groups.append(mapped()),
                                                                discard(store)))
    small = DataConfig(size_px=64, train_images=5, test_images=1)
    faces = data.prepare(small, tmp_path, progress=None)
    assert groups == [[]] and len(faces.train) == 5 and mapped()


def lines_of_nameless_text(source: str) -> list[int]:
    """The lines of calls that read or write text without naming its encoding."""
    return [node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)
            and not any(keyword.arg == "encoding" for keyword in node.keywords) and is_text(node)]


def is_text(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    if name.endswith("open"):
        return name not in BYTE_OPENERS and not re.search("'(.b|rb\\+)'", ast.unparse(call))
    return name.endswith((".read_text", ".write_text")) \
        or any(keyword.arg == "text" for keyword in call.keywords)


def test_text_files_name_their_encoding():
    """Windows would take its own."""
    assert lines_of_nameless_text("p.write_text('é')\nopen(p)\nrun(c, text=True)") == [1, 2, 3]
    assert not lines_of_nameless_text("p.open('rb+')\np.open(encoding='utf-8')")
    sources = {str(path): path.read_text(encoding="utf-8")
               for path in (ROOT / "helpers").rglob("*.py")}
    sources |= {cell.id: cell.source for cell in nbformat.read(ROOT / NOTEBOOK, as_version=4).cells
                if cell.cell_type == "code"}
    found = {name: lines_of_nameless_text(source) for name, source in sources.items()}
    assert {name: lines for name, lines in found.items() if lines} == {}
