"""The notebook's text: it keeps the house's rules, and its cells do what they say."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nbformat
import pytest
import torch

from helpers.__main__ import NOTEBOOK, ROOT
from helpers.config import preset
from helpers.degradation import damage
from helpers.machine import detect


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(ROOT / NOTEBOOK, as_version=4)


@pytest.fixture
def names(notebook):
    """What a cell finds once the import cell was run."""
    found = {"machine": detect()}
    exec(cell_of(notebook, "Import"), found)
    return found


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def cell_of(notebook, title):
    return next(c.source for c in code_cells(notebook) if c.source.startswith(f"#@title {title}"))


def test_the_source_carries_no_outputs(notebook):
    assert all(not cell.outputs and cell.execution_count is None for cell in code_cells(notebook))


def test_cells_are_short_and_explained(notebook):
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds[0] == "markdown"
    for before, cell in zip(kinds, notebook.cells[1:], strict=False):
        lines = [line for line in cell.source.splitlines() if line.strip()]
        if cell.cell_type == "code":
            assert before == "markdown", cell.source
            assert len(lines) <= (30 if "PRESET =" in cell.source else 15), cell.source
            assert lines[0].startswith("#@title "), cell.source
        else:
            assert len(cell.source.split()) <= 60, cell.source


def test_the_notebook_defines_no_functions_or_classes(notebook):
    for cell in code_cells(notebook):
        kinds = {type(node) for node in ast.walk(ast.parse(cell.source))}
        assert not kinds & {ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef}, cell.source


def test_every_form_field_reaches_the_config(notebook, names):
    cell = cell_of(notebook, "Choose the settings")
    given = {"RUN_NAME": "'other'", "SEED": "3", "FACES": "'celeba-hq'", "TRAIN_IMAGES": "7",
             "TEST_IMAGES": "5", "STEPS": "11", "BATCH": "4", "LEARNING_RATE": "0.002",
             "DAMAGE": "'heavy'", "STRENGTH": "0.35", "CHANGES": "{'degrade.eyes': 0.25}"}
    fields = set(re.findall(r"^([A-Z_]+) = .*#@param", cell, flags=re.M))
    assert fields - set(given) == {"PRESET", "USE_DRIVE"}
    for name, value in given.items():
        cell = re.sub(rf"^{name} = .*?(?=  #@param)", f"{name} = {value}", cell, flags=re.M)
    exec(cell.replace('PRESET = "auto"', 'PRESET = "demo"'), names)
    config = names["config"]
    assert (config.run.name, config.run.seed, config.data.source) == ("other", 3, "celeba-hq")
    assert (config.data.train_images, config.data.test_images) == (7, 5)
    assert (config.optim.steps, config.optim.batch, config.optim.learning_rate) == (11, 4, 0.002)
    assert (config.degrade.strength, config.degrade.eyes) == (0.35, 0.25)
    assert config.degrade.holes == damage("heavy").holes != config.degrade.eyes
    later = "".join(c.source for c in code_cells(notebook))
    assert len(re.findall(r"\bUSE_DRIVE\b", later)) == 2


def test_tuned_damage_is_taken_over_and_given_up_again_in_any_order_of_cells(
        notebook, names, tmp_path):
    """The sliders' cell, clicks, and the cell that reads them, as people run them again."""
    noise, config = torch.Generator().manual_seed(0), preset("demo")
    names |= {"config": config, "untuned": config.degrade, "drive_folder": None,
              "run_folder": tmp_path, "clean": torch.rand(1, 3, 32, 32, generator=noise),
              "regions": torch.ones(1, 32, 32, dtype=torch.uint8)}

    def tune(settings, again=True):
        if again:
            names["panel"] = eval(cell_of(notebook, "Tune the amounts").split("\n", 1)[1], names)
        if settings:
            names["panel"].set(settings)
        names["panel"].use.click()
        exec(cell_of(notebook, "Take over the tuned damage"), names)
        return names["config"].degrade

    heavy = damage("heavy")
    assert tune(heavy) == heavy
    assert tune(None) == heavy and (tmp_path / "damage.json").is_file()
    names["panel"].reset.click()
    assert tune(None, again=False) == config.degrade and not (tmp_path / "damage.json").exists()


def setup_cell(notebook, repository=""):
    given = f'REPOSITORY = "{repository}"'
    return "\n".join(cell_of(notebook, title) for title in (
        "Find where", "Find the helpers", "Clone the helpers")).replace('REPOSITORY = ""', given)


def run_setup(source: str, folder: Path, **variables: str):
    return subprocess.run([sys.executable, "-c", source], cwd=folder, capture_output=True,
                          text=True, env=os.environ | variables)


@pytest.fixture
def origin(tmp_path):
    """A repository with helpers that say on which branch they are: main, or a/try."""
    place = tmp_path / "origin"
    (place / "helpers").mkdir(parents=True)
    git = ["git", "-C", str(place), "-c", "user.name=n", "-c", "user.email=e@e"]
    subprocess.run([*git, "init", "-q", "-b", "main"], check=True)
    for branch in ("main", "a/try"):
        (place / "helpers" / "config.py").write_text(f"# {branch}")
        (place / "helpers" / "beside.py").write_text("")
        new = ["checkout", "-qb", branch] if branch != "main" else ["status", "-s"]
        for command in (new, ["add", "."], ["commit", "-qm", branch]):
            subprocess.run([*git, *command], check=True, capture_output=True)
    subprocess.run([*git, "checkout", "-q", "main"], check=True)
    return place


@pytest.fixture
def sessions(tmp_path, origin):
    """Colab's server: what it says of the open notebook, and the variables that lead there.

    Its address on GitHub leads git to a folder on this machine.
    """
    said = [b""]

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/api/sessions" else 404)
            self.end_headers()
            self.wfile.write(said[0])

        def log_message(self, *_):
            """Nothing on the terminal."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield said, {
            "COLAB_JUPYTER_IP": "127.0.0.1", "KMP_TARGET_PORT": str(server.server_port),
            "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_VALUE_0": "https://github.com/owner/splats",
            "GIT_CONFIG_KEY_0": f"url.{origin.as_uri()}.insteadOf"}
        server.shutdown()


def opened_at(branch):
    path = f"https%3A//github.com/owner/splats/blob/{branch}/{NOTEBOOK}"
    return json.dumps([{"id": "1", "name": NOTEBOOK, "path": f"fileId={path}", "type": "notebook",
                        "kernel": {"id": "2", "name": "python3"}}]).encode()


@pytest.mark.parametrize("branch", ["main", "a/try"])
def test_a_notebook_opened_from_github_clones_its_own_branch_with_nothing_typed(
        notebook, sessions, tmp_path, branch):
    said, variables = sessions
    said[0] = opened_at(branch)
    (place := tmp_path / "content").mkdir()
    for _ in range(2):
        done = run_setup(setup_cell(notebook), place, **variables)
        assert done.returncode == 0, done.stderr
    assert (place / "splat-enhancer" / "helpers" / "config.py").read_text() == f"# {branch}"
    assert [path.name for path in place.iterdir()] == ["splat-enhancer"]


@pytest.mark.parametrize("answer", [
    b"", b"no JSON", b"[]", opened_at("main").replace(b"github", b"drive"), b"\xff\xfe"])
def test_where_colab_is_silent_the_remedies_are_named(notebook, sessions, tmp_path, answer):
    said, variables = sessions
    said[0] = answer
    (place := tmp_path / "content").mkdir()
    done = run_setup(setup_cell(notebook), place, **variables)
    assert done.returncode == 1 and "set REPOSITORY to its clone address" in done.stderr


@pytest.mark.parametrize("loss", ["helpers/beside.py", "helpers/config.py", ".git"])
def test_a_broken_clone_is_named_and_made_anew_and_what_was_there_is_kept(
        notebook, origin, tmp_path, loss):
    (place := tmp_path / "content").mkdir()
    cell = setup_cell(notebook, origin.as_uri())
    assert run_setup(cell, place).returncode == 0
    clone, kept = place / "splat-enhancer", place / "splat-enhancer.broken"
    (clone / "mine.txt").touch()
    shutil.rmtree(clone / loss) if loss == ".git" else (clone / loss).unlink()
    done = run_setup(cell, place)
    assert done.returncode == 0, done.stderr
    whole = loss == ".git"  # a folder that somebody copied there
    assert ("is a broken clone" in done.stdout) != whole == (clone / "mine.txt").exists()
    assert (clone / "helpers" / "beside.py").exists() and (kept / "mine.txt").exists() != whole


def test_setup_without_helpers_names_the_two_remedies(notebook, tmp_path):
    done = run_setup(setup_cell(notebook), tmp_path)
    assert done.returncode == 1
    assert "set REPOSITORY" in done.stderr and "copy the folder" in done.stderr


def test_setup_clones_the_repository_that_was_typed(notebook, origin, tmp_path):
    (place := tmp_path / "place").mkdir()
    for _ in range(2):  # the second time it finds the clone
        done = run_setup(setup_cell(notebook, origin.as_uri()), place)
        assert done.returncode == 0, done.stderr
    assert (place / "splat-enhancer" / "helpers" / "config.py").is_file()


@pytest.mark.parametrize("starts_elsewhere", [False, True])
def test_setup_finds_helpers_beside_the_notebook(notebook, tmp_path, starts_elsewhere):
    (tmp_path / "helpers").mkdir()
    (tmp_path / "helpers" / "config.py").write_text("")
    (tmp_path / "elsewhere").mkdir()
    cell, place = setup_cell(notebook), tmp_path
    if starts_elsewhere:  # VS Code names the notebook, and may start in another folder
        named = f"__vsc_ipynb_file__ = {str(tmp_path / NOTEBOOK)!r}"
        cell, place = f"{named}\n{cell}", tmp_path / "elsewhere"
    done = run_setup(cell, place)
    assert done.returncode == 0 and str(tmp_path) in done.stdout


@pytest.mark.parametrize("value", ["0.0", "0.1", "1.0"])
def test_a_strength_of_the_form_is_taken_as_it_is(notebook, names, value):
    cell = cell_of(notebook, "Choose the settings").replace('PRESET = "auto"', 'PRESET = "demo"')
    exec(cell.replace("STRENGTH = 1.0", f"STRENGTH = {value}"), names)
    assert names["config"].degrade.strength == float(value)


def test_a_mix_that_was_put_back_leaves_nothing(notebook, names, monkeypatch):
    exec(cell_of(notebook, "Choose the settings").replace('"auto"', '"demo"', 1), names)
    names |= {"work": ROOT, "faces": None, "faces_on_drive": None,
              "prepare_pairs": lambda *_, **__: {}}
    before, cell = names["config"], cell_of(notebook, "Mix the pairs")
    exec(cell.replace("OWN = 0.0", "OWN = 0.5").replace('OWN_PAIRS = ""', 'OWN_PAIRS = "x"'), names)
    assert names["config"].pairs.own_share == 0.5 and names["config"].pairs.drawn == 0
    exec(cell, names)
    assert names["config"] == before


def test_a_clone_that_fails_says_what_git_said(notebook, tmp_path):
    done = run_setup(setup_cell(notebook, "'/nowhere/at/all'"), tmp_path)
    assert done.returncode == 1 and "/nowhere/at/all'" in done.stderr
    subprocess.run(["git", "init", "-q", str(tmp_path / "origin")], check=True)
    (tmp_path / "splat-enhancer").mkdir()
    (tmp_path / "splat-enhancer" / "rest").write_text("of a clone that broke off")
    done = run_setup(setup_cell(notebook, str(tmp_path / "origin")), tmp_path)
    assert "couldn't find remote ref" in done.stderr and done.returncode == 1
    assert "set aside as splat-enhancer.broken" in done.stdout
    hostile = "ext::sh -c touch% made"
    run_setup(setup_cell(notebook, hostile), tmp_path)
    assert not (tmp_path / "made").exists()
