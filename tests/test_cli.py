"""The command line: flags by their published names, exit codes, one JSON object, sentences."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tiny import DEGRADATION, TINY, keep_prompt, saved_step, write_faces

from splat_enhancer import cli
from splat_enhancer.cli import COMMANDS, DONE, FAILED, STOPPED, WRONG_USAGE, main, parse
from splat_enhancer.config import preset
from splat_enhancer.environment import Stopped

ROOT = Path(__file__).resolve().parents[1]
WRONG = [
    ([""], "expected a command"), (["nothing"], "got 'nothing'"), (["evaluate", "a"], "a"),
    (["enhance"], "inputs: expected files, folders or patterns, got none"),
    (["enhance", "a.png", "--strength", "2"], "strength: expected a number from 0 to 1, got 2.0"),
    (["enhance", "a.png", "--up", "w"], "up: expected one of"),
    (["enhance", "a.png", "--zip", "a.png"], "expected a file called .zip"),
    (["train", "--preset", "huge"], "preset: expected one of"),
    (["train", "--preset"], "preset: expected one of"),
    (["train", "--train_batch_size", "two"], "--train_batch_size"),
    (["train", "--train-batch-size=0"], "train_batch_size: expected"),
    (["train", "--degradation.eyes", "2"], "degradation.eyes: expected"),
    (["train", "--mixed_precision", "fp8"], "fp8"), (["train", "--max_steps", "3"], "--max_steps")]


@pytest.mark.parametrize(("arguments", "text"), WRONG)
@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_wrong_usage_exits_2_and_says_what_is_wrong(arguments, text, flags, capsys):
    assert main([*arguments, *flags]) == WRONG_USAGE
    printed = capsys.readouterr()
    assert text in printed.err and printed.err.count("\n") == 1
    if flags:
        result = json.loads(printed.out)
        assert result["exit_code"] == 2 and text in result["error"]
    else:
        assert not printed.out


@pytest.mark.parametrize("arguments", [
    ["enhance", "no/such.png"], ["enhance", "a/*.png"], ["evaluate", "--work_dir", "{}"],
    ["train", "--mixed_precision", "fp16", "--preset", "demo", "--work_dir", "{}"],
    ["train", "--preset", "demo", "--work_dir", "{}/file"]])
def test_what_cannot_be_done_exits_1_with_one_sentence(arguments, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main([argument.format(tmp_path) for argument in [*arguments, "--json"]]) == FAILED
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert printed.err.endswith(f"error: {result['error']}\n")
    assert not result["error"].startswith("[Errno")


def test_flags_are_the_fields_of_the_config():
    command = parse("train", [
        "--preset", "demo", "--train_batch_size", "3", "--max-train-steps=7", "--learning_rate",
        "1e-3", "--lambda_l1", "1.5", "--resolution=256", "--seed", "5", "--lora_rank_unet", "16",
        "--pretrained_model_name_or_path", "a/b", "--source", "photos", "--degradation.eyes", "0.4",
        "--blend", "none", "--work-dir", "~/work", "--init_from", "shipped"], "train")
    assert command.config == preset("demo").replace(**{
        "train_batch_size": 3, "max_train_steps": 7, "learning_rate": 1e-3, "lambda_l1": 1.5,
        "resolution": 256, "seed": 5, "lora_rank_unet": 16, "source": "photos", "blend": "none",
        "pretrained_model_name_or_path": "a/b", "degradation.eyes": 0.4, "init_from": "shipped"})
    assert command.work_dir == Path.home() / "work"
    assert parse("train", ["--preset=t4"], "train").config == preset("t4")


@pytest.mark.parametrize("flags", [["--up", "-z"], ["--up=-z"], ["--up", "-z", "--views", "3"]])
def test_an_axis_may_be_negative(flags):
    command = parse("enhance", ["a.ply", *flags, "--arc_deg", "90"], "enhance")
    assert (command.settings.up, command.settings.arc_deg, command.inputs) == ("-z", 90, ("a.ply",))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_its_flags_without_importing_torch(name):
    code = ("import sys; from splat_enhancer import cli; assert not cli.main([sys.argv[1], "
            "'--help']); slow = {'torch', 'diffusers', 'pandas', 'peft'} & {*sys.modules}; "
            "sys.exit(str(slow) if slow else 0)")
    done = subprocess.run([sys.executable, "-c", code, name], cwd=ROOT, capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    assert "print one JSON object" in done.stdout
    assert name != "train" or "images that pass through the network at once" in done.stdout
    assert name != "enhance" or "the shipped one" in " ".join(
        done.stdout.replace("│", "").split())


def test_results_and_errors_become_one_object_and_an_exit_code(monkeypatch, capsys):
    def outcome(does):
        monkeypatch.setattr(cli.Evaluate, "run", does)
        code = main(["evaluate", "--json"])
        printed = capsys.readouterr()
        return code, json.loads(printed.out), printed.err

    def failing(error):
        def run(_):
            print("words")
            raise error
        return run
    assert outcome(lambda _: {"folder": ROOT}) == (DONE, {
        "exit_code": 0, "folder": str(ROOT)}, "")
    assert outcome(lambda _: {"failed": 1})[0] == FAILED
    for error, text in ((ValueError("bad"), "bad"),
                        (FileExistsError(17, "File exists", "a"), "a: file exists"),
                        (TypeError("no len()"), "unexpected TypeError (no len()); the same with")):
        code, result, printed = outcome(failing(error))
        assert code == result["exit_code"] == FAILED and text in result["error"]
        assert printed.startswith("words\n") and printed.count("\n") == 2
    code, result, _ = outcome(failing(Stopped("Stopped after step 7.")))
    assert (code, result["error"]) == (STOPPED, "Stopped after step 7.")
    monkeypatch.setattr(cli.Evaluate, "run", failing(ValueError("bad")))
    with pytest.raises(ValueError, match="bad"):
        main(["evaluate", "--debug"])


def test_one_process_of_several_is_refused(monkeypatch, capsys):
    for name in ("ACCELERATE_MIXED_PRECISION", "MASTER_PORT"):  # as `accelerate launch` leaves it
        monkeypatch.setenv(name, "x")
    assert main(["train"]) == WRONG_USAGE and "add --multi_gpu" in capsys.readouterr().err


def tiny_flags(folder: Path) -> list[str]:
    flags = [f"--{name}={value}" for name, value in TINY.items() if name != "degradation"]
    flags += [f"--degradation.{name}={value}" for name, value in vars(DEGRADATION).items()]
    config = preset("demo").replace(**TINY)
    keep_prompt(config, folder / "runs" / "test")
    return ["--preset=demo", f"--source={write_faces(folder / 'faces')}", f"--work_dir={folder}",
            *flags]


def test_a_run_is_trained_stopped_resumed_and_its_export_restores(tmp_path, capsys):
    flags = [*tiny_flags(tmp_path), "--json"]
    process = subprocess.Popen([sys.executable, "-m", "splat_enhancer", "train", *flags,
                                "--max_train_steps=500"], cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env=os.environ | {"OMP_NUM_THREADS": "1"})
    for line in process.stderr:
        if line.startswith("Training") and "loss=" in line:
            break
    process.send_signal(signal.SIGTERM)
    result = json.loads(process.communicate()[0])
    reached = saved_step(tmp_path / "runs" / "test")
    assert process.returncode == result["exit_code"] == STOPPED
    assert f"Stopped after step {reached} and saved" in result["error"]

    assert main(["train", *flags, f"--max_train_steps={reached + 1}"]) == DONE
    result = json.loads(capsys.readouterr().out)
    assert result["step"] == reached + 1 and result["losses"]["l1"] > 0
    for name in ("a (1).png", "broken.png"):
        Image.new("RGB", (64, 64), (9, 80, 200)).save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    command = ["enhance", str(tmp_path / "*.png"), f"--model={result['export']}", "--json",
               f"--output_dir={tmp_path / 'out'}", f"--zip={tmp_path / 'all.zip'}"]
    for restored, skipped in ((1, 0), (0, 1)):
        assert main(command) == FAILED  # for one is no picture
        result = json.loads(capsys.readouterr().out)
        assert (result["restored"], result["skipped"], result["failed"]) == (restored, skipped, 1)
        assert result["results"] == [str(tmp_path / "out" / "a (1)_restored.png")]
        assert [*result["errors"]] == [str(tmp_path / "broken.png")]
    assert (tmp_path / "all.zip").is_file()
