"""`python -m helpers`: figures of a run, the executed notebook, one line for bad arguments."""

import json
import os
import subprocess
import sys

import nbclient
import nbformat
import pytest

from helpers.__main__ import NOTEBOOK, ROOT, execute_notebook, main
from helpers.evaluation import Result, format_table
from helpers.evaluation.files import FIELDS

RESULT = Result({"psnr": [20.0, 22.0], "ssim": [0.5, 0.6]}, {"psnr": [23.0, 24.0],
                                                             "ssim": [0.7, 0.7]})


@pytest.mark.parametrize("arguments", [
    [], ["nothing"], ["metrics"], ["metrics", "a", "b"], ["notebook", "--preset", "huge"],
    ["notebook", "--steps", "3"], ["ablate", "--changes", "{"], ["metrics", "no/such/folder"],
    ["tidy", "no/such.ipynb"]])
def test_bad_arguments_exit_2_with_one_line_that_says_why(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    printed = capsys.readouterr()
    assert stopped.value.code == 2 and not printed.out
    assert ": error: " in printed.err.splitlines()[-1]


def test_metrics_prints_the_table_of_every_set(tmp_path, capsys):
    sets = {"drawn": RESULT.summary(), "clean": RESULT.summary()}
    text = json.dumps(dict.fromkeys(FIELDS, "") | {"sets": sets})
    (tmp_path / "metrics.json").write_text(text)
    assert main(["metrics", str(tmp_path)]) == 0
    table = format_table(RESULT)
    assert capsys.readouterr().out == f"drawn: {table}\n\nclean: {table}\n\n"


def test_a_foreign_metrics_file_exits_2(tmp_path, capsys):
    (tmp_path / "metrics.json").write_text('{"psnr": NaN}')
    with pytest.raises(SystemExit, match="2"):
        main(["metrics", str(tmp_path)])
    assert "expected JSON with finite numbers" in capsys.readouterr().err


def test_a_tidied_notebook_of_colab_can_be_rendered_and_keeps_its_pictures(tmp_path):
    nbconvert = pytest.importorskip("nbconvert", reason="no renderer; pip install nbconvert")
    saved = nbformat.read(ROOT / "results" / "demo" / NOTEBOOK, as_version=4)
    cells = [dict(cell) for cell in saved.cells]
    saved.metadata.widgets = {  # as Colab writes it: without "state"
        "application/vnd.jupyter.widget-state+json": {"3f91": {"model_name": "VBoxModel"}}}
    path = tmp_path / "saved é.ipynb"
    nbformat.write(saved, path)
    render = nbconvert.HTMLExporter()
    with pytest.raises(KeyError, match="state"):
        render.from_filename(str(path))
    assert main(["tidy", str(path)]) == 0
    assert render.from_filename(str(path))[0].count("<img ") >= 7
    assert [dict(cell) for cell in nbformat.read(path, as_version=4).cells] == cells
    once = path.read_bytes()
    main(["tidy", str(path)])
    assert path.read_bytes() == once


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"nbformat": 4}', "\x00"])
def test_what_is_no_notebook_is_refused_and_left_as_it_was(tmp_path, capsys, text):
    (tmp_path / "a.ipynb").write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit, match="2"):
        main(["tidy", str(tmp_path / "a.ipynb")])
    assert "expected a notebook" in capsys.readouterr().err
    assert (tmp_path / "a.ipynb").read_text(encoding="utf-8") == text


def test_module_runs_as_a_command_and_prints_figures_where_the_console_has_no_arrows():
    """Windows, with the output in a file or a pipe."""
    done = subprocess.run([sys.executable, "-m", "helpers", "metrics", "results/demo"], cwd=ROOT,
                          env=os.environ | {"PYTHONIOENCODING": "cp1252"}, capture_output=True)
    assert done.returncode == 0 and b"| ssim ? " in done.stdout and not done.stderr, done.stderr


def test_a_failing_notebook_still_leaves_its_copy_and_the_source_alone(
        tmp_path, monkeypatch, capsys):
    def fail(client):
        for index, cell in enumerate(client.nb.cells):
            client.on_cell_start(cell=cell, cell_index=index)
        raise RuntimeError("cell 2 failed")
    monkeypatch.setattr(nbclient.NotebookClient, "execute", fail)
    new, source = nbformat.v4, tmp_path / "book.ipynb"
    cells = [new.new_markdown_cell("Hello"), new.new_code_cell("#@title Choose\nPRESET = \"auto\""),
             new.new_code_cell("2")]
    nbformat.write(new.new_notebook(cells=[*cells, new.new_code_cell("")]), source)
    before = source.read_bytes()
    with pytest.raises(RuntimeError, match="cell 2 failed"):
        execute_notebook("t4", source, tmp_path / "out")
    copy = nbformat.read(tmp_path / "out" / "book.ipynb", as_version=4)
    assert 'PRESET = "t4"' in copy.cells[1].source and source.read_bytes() == before
    titles = [line.split(" s  ")[1] for line in capsys.readouterr().out.splitlines()]
    assert titles == ["Choose", "2"]
