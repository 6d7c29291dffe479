"""A run by commands and by the notebook's calls is one run; what it leaves can be used."""

import json
import os
import signal
from functools import partial
from pathlib import Path

import pytest

from helpers import evaluation
from helpers.checkpoints import LATEST
from helpers.commands import main, runs
from helpers.config import preset
from helpers.degradation import as_changes, damage, keep_damage
from helpers.distances import EnhancerLoss
from helpers.evaluation import evaluate_run, read_metrics
from helpers.faces import prepare
from helpers.machine import Bar
from helpers.model import SplatEnhancer
from helpers.pairs import prepare_pairs
from helpers.training import train
from tests.pictures.files import every_kind
from tests.runs import saved_step, states_differ

SMALL = {"data.size_px": 64, "data.train_images": 4, "data.test_images": 2, "optim.batch": 1,
         "data.fitted_images": 1, "pairs.fitted": 0.0, "pairs.rendered": 0.0, "loss.lpips": 0.0,
         "optim.steps": 4, "optim.warmup_steps": 1, "run.save_every_steps": 1}
FLAGS = ["--preset", "demo", "--resolution", "64", "--train_images", "4", "--test_images", "2",
         "--batch_size", "1", "--fitted_images", "1", "--fitted", "0", "--rendered", "0",
         "--lambda_lpips", "0", "--max_train_steps", "4", "--lr_warmup_steps", "1",
         "--checkpointing_steps", "1"]


def as_the_notebook_does(work: Path) -> list[int]:
    """The calls of its cells from the settings to the training; the steps that were taken."""
    config = preset("demo").with_(SMALL)
    run_folder = work / "runs" / config.run.name
    faces = prepare(config.data, work / "data", device="cpu", seed=config.run.seed)
    sources = prepare_pairs(config, faces, work / "data", device="cpu", drive=None)
    model = SplatEnhancer.from_pretrained(config.model, device="cpu", caches=[run_folder, None],
                                          seed=config.run.seed)
    loss = EnhancerLoss(config.loss, device="cpu", seed=config.run.seed)
    return [record.step for record in train(config, model, faces, loss, folder=run_folder,
                                            drive=None, sources=sources)]


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A work folder in which a command was stopped by Ctrl-C after two of four steps."""
    work = tmp_path_factory.mktemp("work")

    class Stopping(Bar):
        def update(self, n=1):
            super().update(n)
            if self.n == 2:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "Bar", Stopping)
        code = main(["train", *FLAGS, "--output_dir", str(work)])
    return work, code, saved_step(work / "runs" / "demo")


def test_a_run_begun_by_a_command_goes_on_in_the_notebook_bit_for_bit(begun, tmp_path, capsys):
    work, code, step = begun
    assert (code, step) == (130, 2)
    assert as_the_notebook_does(work) == [3, 4]
    assert as_the_notebook_does(tmp_path) == [1, 2, 3, 4]
    assert states_differ(work / "runs" / "demo", tmp_path / "runs" / "demo") == []
    capsys.readouterr()
    assert main(["train", *FLAGS, "--output_dir", str(work), "--json"]) == 0  # and back
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert told["step"] == 4 and "is finished (4 steps)" in printed.err
    assert {path.name for path in Path(told["export"]).iterdir()} == {
        "card.json", "splat_enhancer.safetensors"}
    assert states_differ(work / "runs" / "demo", tmp_path / "runs" / "demo") == []


def test_damage_tuned_in_the_notebook_is_taken_over(tmp_path, capsys):
    folder = tmp_path / "runs" / "demo"
    folder.mkdir(parents=True)
    keep_damage(damage("heavy"), [folder])
    prepared = runs.Prepare.parse([*FLAGS, "--output_dir", str(tmp_path)], "prepare")
    assert prepared.start().config.degrade == preset("demo").with_(
        as_changes(damage("heavy"))).degrade
    assert "training uses your own damage" in capsys.readouterr().out


def test_the_newest_run_is_measured_with_its_own_settings(begun, capsys, monkeypatch):
    work = begun[0]  # two sets of seven: the others take half a minute
    monkeypatch.setattr(evaluation.HeldOut, "__iter__", lambda held_out: iter(["drawn", "clean"]))
    monkeypatch.setattr(evaluation, "evaluate_run", partial(evaluate_run, strengths=False))
    assert main(["evaluate", "--output_dir", str(work), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    figures = read_metrics(Path(told["metrics"]))
    assert told["run"] == "demo" and figures["config"]["data"]["size_px"] == 64
    assert figures["step"] == told["step"] == saved_step(work / "runs" / "demo")
    assert Path(told["report"]).is_file() and told["sets"].keys() == figures["sets"].keys()
    card = json.loads((work / "results" / "demo" / "enhancer" / "card.json").read_text("utf-8"))
    assert card["metrics"] == figures["sets"]
    older = work / "runs" / "older"
    older.mkdir()
    (older / LATEST).write_bytes(b"")
    os.utime(older / LATEST, (1, 1))
    assert runs.newest_run(work) == "demo"


def test_enhance_takes_the_newest_model_and_says_which(begun, tmp_path, capsys, monkeypatch):
    work = begun[0]
    (tmp_path / "a.png").write_bytes(every_kind()["rgba.png"])
    (tmp_path / "b.png").write_bytes(b"no picture")
    card = work / "results" / "demo" / "enhancer" / "card.json"
    command = ["enhance", str(tmp_path), "--work_dir", str(work), "--json"]
    for newest, origin, restored in ((card, str(card.parent), 1),
                                     (work / "runs" / "demo" / LATEST, "run 'demo', step 4", 0)):
        os.utime(newest)
        assert main(command) == 1
        printed = capsys.readouterr()
        told = json.loads(printed.out)
        assert told["model"] == origin and f"2 to restore by {origin}" in printed.err
        assert told["results"] == [str(tmp_path / "a_restored.png")]
        assert (told["restored"], told["skipped"], told["failed"]) == (restored, 1 - restored, 1)
        assert list(told["errors"]) == [str(tmp_path / "b.png")]
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    assert main([*command, "--output_dir=~/out"]) == 1  # no shell puts a home there
    assert json.loads(capsys.readouterr().out)["results"] == [
        str(tmp_path / "home" / "out" / "a_restored.png")]
    assert main([*command[:2], "--work_dir", str(tmp_path)]) == 1
    assert "expected an export, a hub name, or a run in" in capsys.readouterr().err


def test_bench_measures_what_a_user_waits_for(begun, capsys):
    assert main(["bench", "--work_dir", str(begun[0]), "--size_px", "64", "--rounds", "1",
                 "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert all(told[name] > 0 for name in ("enhance_images_per_s", "degrade_images_per_s",
                                           "checkpoint_save_s"))
