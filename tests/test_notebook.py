"""The notebook: its rules, its first cell in places where it is opened, and *Run all* twice."""

from __future__ import annotations

import ast
import copy
import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from tiny import keep_prompt, tiny_config

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = nbformat.read(ROOT / "splat_enhancer.ipynb", as_version=4)
CODE = [cell.source for cell in NOTEBOOK.cells if cell.cell_type == "code"]


def cell_of(title: str) -> str:
    return next(source for source in CODE if source.startswith(f"#@title {title}"))


def fill(source: str, **form: object) -> str:
    """A cell with other values in its form."""
    for name, value in form.items():
        source = re.sub(rf"^{name} = .*?(?=  #@param)", lambda _, n=name, v=value: f"{n} = {v!r}",
                        source, flags=re.MULTILINE)
    return source


def test_cells_are_few_short_and_explained():
    assert len(NOTEBOOK.cells) <= 32 and len(CODE) <= 15
    assert NOTEBOOK.cells[0].source.startswith("# Splat Enhancer")
    for before, cell in zip(NOTEBOOK.cells, NOTEBOOK.cells[1:], strict=False):
        if cell.cell_type == "code":
            lines = [line for line in cell.source.splitlines() if line.strip()]
            assert len(lines) <= 20 and re.match("#@title [A-Z][a-z]+ ?", lines[0]), cell.source
            assert before.cell_type == "markdown", cell.source
            words = re.findall(r"\w[\w'’.-]*", re.sub("^#.*", "", before.source, flags=re.M))
            assert len(words) <= 45, before.source  # a symbol of a formula counts


def test_source_carries_no_outputs_and_no_widget_state():
    assert "widgets" not in NOTEBOOK.metadata
    assert not any(cell.outputs or cell.execution_count for cell in NOTEBOOK.cells
                   if cell.cell_type == "code")


def test_degradation_model_loss_and_training_step_are_in_sight():
    text = "\n".join(CODE)
    for line in ("degraded = degrade(clean, regions, run.degradation, seeds=",
                 "restored = model(degraded)", "def training_step(clean, degraded, skips):",
                 "return loss(repair.decoded, clean, choice=repair.choice(degraded))",
                 "for record in run.train(training_step):"):
        assert line in text


def test_form_fields_are_fields_of_the_config():
    from splat_enhancer.config import Config

    fields = set(re.findall(r"^([A-Z_]+) = .*#@param", cell_of("Choose the settings"), flags=re.M))
    own = {"PRESET", "DEGRADATION", "DEGRADATION_STRENGTH", "USE_DRIVE", "CHANGES"}
    assert {name.lower() for name in fields - own} <= asdict(Config()).keys()


def test_every_cell_uses_only_names_of_cells_above_it():
    known = set(dir(__builtins__)) | set(vars(sys.modules["builtins"])) | {"globals"}
    for source in CODE:
        names = list(ast.walk(ast.parse(source)))
        made = {node.id for node in names if isinstance(node, ast.Name)
                and isinstance(node.ctx, ast.Store)}
        made |= {alias.asname or alias.name.split(".")[0] for node in names
                 if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names}
        made |= {node.name for node in names if isinstance(node, ast.FunctionDef)}
        made |= {node.arg for node in names if isinstance(node, ast.arg)}
        known |= made
        used = {node.id for node in names if isinstance(node, ast.Name)}
        assert used <= known, used - known


@pytest.fixture
def origin(tmp_path):
    """A repository whose module says on which branch it is: main, or a/try."""
    place = tmp_path / "origin"
    place.mkdir()
    git = ["git", "-C", str(place), "-c", "user.name=n", "-c", "user.email=e@e"]
    subprocess.run([*git, "init", "-q", "-b", "main"], check=True)
    for branch in ("main", "a/try"):
        (place / "splat_enhancer.py").write_text(
            "import sys, types\nmodule = types.ModuleType('splat_enhancer.environment')\n"
            "module.detect = lambda: types.SimpleNamespace(place='here')\n"
            f"module.prepare_packages = lambda place: print('branch {branch}') or []\n"
            "sys.modules[module.__name__] = module\n")
        checkout = ["checkout", "-qb", branch] if branch != "main" else ["status", "-s"]
        for command in (checkout, ["add", "."], ["commit", "-qm", branch]):
            subprocess.run([*git, *command], check=True, capture_output=True)
    subprocess.run([*git, "checkout", "-q", "main"], check=True)
    return place


def set_up(folder: Path, repository: str = "", **variables: str) -> subprocess.CompletedProcess:
    """Run the first cell in a folder."""
    folder.mkdir(exist_ok=True)
    source = fill(cell_of("Get the helpers"), REPOSITORY=repository)
    return subprocess.run([sys.executable, "-c", source], cwd=folder, capture_output=True,
                          text=True, env=os.environ | {"GIT_TERMINAL_PROMPT": "0"} | variables,
                          check=False)


@pytest.fixture
def colab(origin):
    """Colab's server: what it says of the open notebook, and the variables that lead there.

    An address on GitHub leads git to a folder on this machine.
    """
    answer = [b""]

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/api/sessions" else 404)
            self.end_headers()
            self.wfile.write(answer[0])

        def log_message(self, *_):
            """Nothing on the terminal."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield answer, {
            "COLAB_JUPYTER_IP": "127.0.0.1", "KMP_TARGET_PORT": str(server.server_port),
            "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_VALUE_0": "https://github.com/owner/splats",
            "GIT_CONFIG_KEY_0": f"url.{origin.as_uri()}.insteadOf"}
        server.shutdown()


def opened_at(branch: str) -> bytes:
    path = f"fileId=https%3A//github.com/owner/splats/blob/{branch}/splat_enhancer.ipynb"
    return json.dumps([{"id": "1", "path": path, "type": "notebook", "name": "a/b.ipynb"}]).encode()


@pytest.mark.parametrize("branch", ["main", "a/try"])
def test_notebook_opened_from_github_clones_its_own_branch_with_nothing_typed(
        colab, tmp_path, branch):
    colab[0][0] = opened_at(branch)
    for _ in range(2):  # the second time the clone is there
        done = set_up(tmp_path / "content", **colab[1])
        assert done.returncode == 0 and f"branch {branch}" in done.stdout, done.stderr


@pytest.mark.parametrize("answer", [
    b"", b"[]", b"\xff\xfe", opened_at("main").replace(b"github", b"gitlab")])
def test_where_colab_is_silent_the_remedies_are_named(colab, tmp_path, answer):
    colab[0][0] = answer
    done = set_up(tmp_path / "content", **colab[1])
    assert done.returncode == 1
    assert "set REPOSITORY, or copy the repository to /content/drive/MyDrive" in done.stderr


def test_typed_address_is_cloned_and_what_lies_here_is_used_as_it_is(origin, tmp_path):
    assert "branch main" in set_up(tmp_path / "content", origin.as_uri()).stdout
    (tmp_path / "content" / "splat_enhancer.py").write_text(
        (origin / "splat_enhancer.py").read_text().replace("branch main", "beside me"))
    assert "beside me" in set_up(tmp_path / "content", "https://nowhere.invalid/x.git").stdout


def test_failing_clone_shows_what_git_says(origin, tmp_path):
    done = set_up(tmp_path / "content", str(tmp_path / "nothing"))
    assert done.returncode == 1 and "does not exist" in done.stderr
    (tmp_path / "content" / "splat-enhancer").mkdir()
    (tmp_path / "content" / "splat-enhancer" / "rest").touch()  # of a clone that broke off
    assert "already exists" in set_up(tmp_path / "content", origin.as_uri()).stderr


def test_run_all_twice_in_a_row(tmp_path):
    """Tiny, in one kernel: the second time the run is finished, and everything is shown again."""
    config = tiny_config(tmp_path, test_fit_samples=1, max_test_pairs=2, max_train_steps=3,
                         run_name="demo")
    keep_prompt(config, tmp_path / "work" / "runs" / "demo")
    (tmp_path / "splat_enhancer.py").symlink_to(ROOT / "splat_enhancer.py")
    changes = {name: value for name, value in asdict(config).items()
               if name not in ("preset", "degradation")}
    changes |= {f"degradation.{name}": v for name, v in asdict(config.degradation).items()}
    notebook = copy.deepcopy(NOTEBOOK)
    for cell in notebook.cells:
        cell.source = fill(cell.source, PRESET="demo", CHANGES=changes, USE_DRIVE=False)
    notebook.cells = [nbformat.v4.new_code_cell(cell.source) for _ in range(2)
                      for cell in notebook.cells if cell.cell_type == "code"]
    NotebookClient(notebook, kernel_name="python3", timeout=300, store_widget_state=False,
                   resources={"metadata": {"path": str(tmp_path)}}).execute()
    count = len(notebook.cells) // 2
    first, second = ("".join(str(cell.outputs) for cell in part)
                     for part in (notebook.cells[:count], notebook.cells[count:]))
    assert "is finished (3 steps)" in second and "is finished" not in first
    assert "Warning" not in first + second
    for text in (first, second):
        assert text.count("<img") >= 12 and "held_out_restored.png" in text
        assert "novel view extrapolated" in text
    results = {path.name for path in (tmp_path / "work" / "results" / "demo").iterdir()}
    assert results >= {"metrics.json", "metrics.csv", "report.html", "enhancer", "restored.zip",
                       "held_out_restored.png"}
