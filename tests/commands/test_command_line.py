"""`python -m helpers`: flags, exit codes, JSON; figures of a run, the executed notebook."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from unittest.mock import Mock

import nbclient
import nbformat
import pytest

from helpers import commands
from helpers.commands import COMMANDS, NOTEBOOK, ROOT, command, execute_notebook, main
from helpers.commands.runs import PUBLISHED, SECTIONS, Prepare, Train
from helpers.config import preset
from helpers.evaluation import Result, format_table
from helpers.evaluation.files import FIELDS
from helpers.machine import Stopped

RESULT = Result({"psnr": [20.0, 22.0], "ssim": [0.5, 0.6]}, {"psnr": [23.0, 24.0],
                                                             "ssim": [0.7, 0.7]})


@pytest.mark.parametrize(("arguments", "said"), [
    ([], "expected a command"), (["nothing"], "got 'nothing'"), (["metrics"], "PATH"),
    (["metrics", "a", "b"], "b"), (["notebook", "--steps", "3"], "--steps"),
    (["ablate", "--changes", "{"], "--changes"), (["enhance"], "expected files, folders"),
    (["enhance", "a.png", "--strength", "2"], "expected a number from 0 to 1, got 2.0"),
    (["train", "--preset", "huge"], "got 'huge'"), (["train", "--preset"], "got ''"),
    (["train", "--batch_size", "two"], "--optim.batch"),
    (["train", "--batch-size=0"], "expected a whole number from 1 to"),
    (["train", "--mixed_precision", "fp8"], "fp8"), (["train", "--max_steps", "3"], "--max_steps")])
def test_wrong_usage_exits_2_and_says_what_is_wrong(arguments, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    printed = capsys.readouterr()
    assert stopped.value.code == 2 and not printed.out
    assert said in " ".join(printed.err.replace("│", " ").split())


@pytest.mark.parametrize("arguments", [
    ["metrics", "no/such/folder"], ["tidy", "no/such.ipynb"], ["notebook", "--preset", "huge"],
    ["enhance", "no/such.png"], ["evaluate", "--work_dir", "{}"],
    ["head", "--identity", "3"], ["evaluate", "--output_dir", "{}"],
    ["train", "--mixed_precision", "fp16", "--preset", "demo"]])
def test_what_cannot_be_done_exits_1_with_one_line(arguments, tmp_path, capsys):
    arguments = [argument.format(tmp_path) for argument in arguments]
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert not printed.out and printed.err.count("\n") == 1
    assert printed.err.startswith(f"python -m helpers {arguments[0]}: error: ")


def test_on_colab_the_packages_are_mended_before_a_command_and_json_stays_alone(
        monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("COLAB_RELEASE_TAG", "x")
    monkeypatch.setattr(commands, "prepare_packages", lambda place: print(f"mended on {place}"))
    assert main(["head", str(tmp_path / "head.ply"), "--json"]) == 0
    printed = capsys.readouterr()
    assert printed.err.startswith("mended on colab\n")
    assert json.loads(printed.out) == {"exit_code": 0, "head": str(tmp_path / "head.ply")}
    assert (tmp_path / "head.ply").read_bytes().startswith(b"ply\n")


def test_a_published_name_reaches_the_field_it_is_published_for():
    flags = ["--preset", "demo", "--batch_size", "3", "--max-train-steps=7", "--learning_rate",
             "1e-3", "--lambda_l1", "1.5", "--lambda_lpips=0.25", "--lambda-gram", "0.5",
             "--lambda_clipsim", "0", "--resolution", "256", "--seed", "5", "--lora_rank_unet",
             "16", "--lora_rank_vae", "2", "--gradient_accumulation_steps", "4",
             "--pretrained_model_name_or_path", "a/b", "--checkpointing_steps", "50",
             "--dataset_folder", "photos", "--eyes", "0.4", "--degrade.mouth", "0.3",
             "--model.no_mask", "--mixed_precision", "no", "--output-dir", "work"]
    parsed = Train.parse(flags, "train")
    assert parsed.config == preset("demo").with_({
        "optim.batch": 3, "optim.steps": 7, "optim.learning_rate": 1e-3, "loss.l1": 1.5,
        "loss.lpips": 0.25, "loss.gram": 0.5, "loss.clip": 0.0, "data.size_px": 256, "run.seed": 5,
        "model.unet_rank": 16, "model.vae_rank": 2, "optim.accumulate": 4, "model.base": "a/b",
        "run.save_every_steps": 50, "data.source": "photos", "degrade.eyes": 0.4,
        "degrade.mouth": 0.3, "model.mask": False})
    assert (parsed.mixed_precision, str(parsed.output_dir)) == ("no", "work")
    assert Train.parse(["--train_batch_size", "3"], "train").config.optim.batch == 3
    assert set(PUBLISHED.values()) <= SECTIONS
    table = re.findall(r"^\| (`--.*?) \|", (ROOT / "README.md").read_text("utf-8"), re.M)
    named = set(re.findall(r"--(\w+)", " ".join(table)))
    assert len(table) == 6 and named <= PUBLISHED.keys() | {"mixed_precision", "output_dir"}
    assert Prepare.parse([], "prepare").config == preset("demo")  # auto, without a GPU


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_its_flags(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    told = capsys.readouterr().out
    assert stopped.value.code == 0 and "--json" in told and len(told) > 300
    assert name != "train" or ("images that pass through the network at once" in told
                               and "--batch_size is --optim.batch" in " ".join(told.split()))


def test_only_json_is_on_stdout_and_a_stop_exits_130(tmp_path, capsys, monkeypatch):
    @dataclass(frozen=True, kw_only=True)
    class Talk(command.Command):
        does: object = None

        def run(self):
            print("words")
            return self.does()

    assert Talk(json=True, does=lambda: {"folder": tmp_path}).carry_out("talk") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"exit_code": 0, "folder": str(tmp_path)}
    assert printed.err == "words\n"
    stop = Mock(side_effect=Stopped("Stopped after step 7."))
    assert Talk(does=stop).carry_out("talk") == 130
    assert capsys.readouterr().err == "talk: Stopped after step 7.\n"
    assert Talk(json=True, does=Mock(side_effect=ValueError("bad"))).carry_out("talk") == 1
    assert json.loads(capsys.readouterr().out) == {"exit_code": 1, "error": "bad"}
    with pytest.raises(ValueError, match="bad"):
        Talk(debug=True, does=Mock(side_effect=ValueError("bad"))).carry_out("talk")


def test_metrics_prints_the_table_of_every_set(tmp_path, capsys):
    sets = {"drawn": RESULT.summary(), "clean": RESULT.summary()}
    text = json.dumps(dict.fromkeys(FIELDS, "") | {"sets": sets})
    (tmp_path / "metrics.json").write_text(text)
    assert main(["metrics", str(tmp_path)]) == 0
    table = format_table(RESULT)
    assert capsys.readouterr().out == f"drawn: {table}\n\nclean: {table}\n\n"


def test_a_foreign_metrics_file_exits_1(tmp_path, capsys):
    (tmp_path / "metrics.json").write_text('{"psnr": NaN}')
    assert main(["metrics", str(tmp_path)]) == 1
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
    assert main(["tidy", str(tmp_path / "a.ipynb")]) == 1
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


def test_nothing_of_a_user_is_written_over(tmp_path, capsys):
    (tmp_path / "head.ply").write_bytes(b"mine")
    assert main(["head", str(tmp_path / "head.ply")]) == 1
    with pytest.raises(SystemExit) as stopped:
        main(["enhance", "a.png", "--zip", str(tmp_path / "head.ply")])
    assert stopped.value.code == 2 and (tmp_path / "head.ply").read_bytes() == b"mine"
    said = capsys.readouterr().err
    assert "a name that is free" in said and "a file called .zip" in said
