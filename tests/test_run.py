"""A run: trained, resumed, exported, tuned; what is kept for it and what is an error."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image
from tiny import (
    DEGRADATION,
    differences,
    keep_prompt,
    saved_step,
    tiny_config,
    tiny_data,
    train_some,
)

from splat_enhancer.config import DegradationConfig, preset
from splat_enhancer.environment import detect
from splat_enhancer.model.export import load, read
from splat_enhancer.run import Run
from splat_enhancer.training.checkpoint import newest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def environment():
    return replace(detect(), device=torch.device("cpu"), dtype=torch.float32)


@pytest.fixture
def run(folder, environment, tmp_path):
    """Of a fresh work folder."""
    def make(**changes) -> Run:
        config = tiny_config(folder, **changes)
        keep_prompt(config, tmp_path / "runs" / config.run_name)
        options = {"drive_dir": tmp_path / "drive"} if (tmp_path / "drive").is_dir() else {}
        return Run(config, environment=environment, output_dir=tmp_path, **options)
    return make


def test_a_run_is_trained_resumed_exported_and_restores(run, folder, tmp_path):
    first = run(test_fit_samples=1, max_test_pairs=2)
    assert first.latest() is None and first.folder == tmp_path / "runs" / "test"
    with pytest.raises(ValueError, match=r"expected a checkpoint in .* train it first"):
        first.export()
    for record in first.train():
        if record.step == 3:
            break  # what is open is closed by the next call, of another run of this name as well
    assert record.held_out.keys() == {"degraded", "filtered", "restored"}
    assert record.held_out["filtered"] != record.held_out["degraded"]
    again = run(test_fit_samples=1, max_test_pairs=2)
    assert [r.step for r in again.train()] == [4, 5, 6] and list(again.train()) == []
    train_some(first.config, tiny_data(first.config, folder), tmp_path / "plain",
               trained_on=first.pairs.trained_on)
    history = [r | {"held_out": None} for r in newest([again.folder]).history]
    assert differences(tmp_path / "plain", replace(newest([again.folder]), history=history)) == []

    export = again.export()
    saved = again.latest()
    assert export == tmp_path / "results" / "test" / "enhancer" and saved.step == 6
    exported = load(export).trained_state()
    assert all(torch.equal(exported[name], p) for name, p in saved.trained.items())
    again.evaluate()
    assert {"metrics.json", "metrics.csv", "report.html"} <= {
        path.name for path in again.results.iterdir()}
    assert read(export)[0]["metrics"].keys() >= {"novel_view_extrapolated", "synthetic", "clean"}
    picture = folder / "faces" / "images" / "0.png"
    (outcome,) = again.restore(picture, output_dir=tmp_path / "restored", strength=0.5)
    assert not outcome.error and outcome.files[0].parent == tmp_path / "restored"


def test_the_training_step_of_a_notebook_is_the_one_that_trains(run):
    run = run()
    model, loss, seen = run.model, run.loss, []

    def training_step(clean, degraded, skips):
        seen.append(clean.shape)
        repair = model(degraded, skips, parts=True)
        return loss(repair.decoded, clean, choice=repair.choice(degraded))
    list(run.train(training_step))
    assert seen == [(1, 3, 64, 64)] * 6 and saved_step(run.folder) == 6


def test_held_out_images_are_fixed_and_never_those_of_training(run):
    run = run()
    clean, degraded = run.held_out(5)
    assert len(clean) == len(degraded) == 2  # all there are
    assert all(map(torch.equal, run.held_out(5), (clean, degraded)))
    trained = run.faces.load("train", range(6))[0]
    assert not any(torch.equal(a, b) for a in clean for b in trained)


def test_tuned_sliders_are_kept_for_later_runs_until_settings_change(run, tmp_path):
    (tmp_path / "drive" / "runs").mkdir(parents=True)
    first, tuned = run(), replace(DEGRADATION, eyes=0.4)
    assert first.degradation == DEGRADATION
    first.degradation = tuned
    assert first.pairs.config.degradation == first.degradation == run().degradation == tuned
    shutil.rmtree(tmp_path / "runs")
    assert run().degradation == tuned  # from Drive
    heavier = DegradationConfig()
    assert run(degradation=heavier).degradation == heavier
    second = run()
    second.degradation = DEGRADATION  # back
    assert run().degradation == DEGRADATION
    (tmp_path / "runs" / "test" / "config.json").write_text("{")
    assert run().degradation == DEGRADATION


def test_results_and_checkpoints_are_on_drive_and_a_gone_drive_stops_nothing(run, tmp_path, capsys):
    (tmp_path / "drive").mkdir()
    first = run()
    list(first.train())
    first.export()
    assert (first.drive / "results" / "enhancer").is_dir() and saved_step(first.drive) == 6
    shutil.rmtree(tmp_path / "drive")
    first.export()
    assert "No copy of results" in capsys.readouterr().out
    assert not (tmp_path / "drive").exists()


def test_a_trained_photograph_is_never_measured_as_held_out(run, folder, environment, tmp_path):
    shutil.copytree(folder / "faces", tmp_path / "photos")
    first = run(source=str(tmp_path / "photos"))
    list(first.train())
    for number in (0, 1):
        Image.new("RGB", (64, 64), (number, 9, 9)).save(tmp_path / f"photos/images/{number}.png")
    other = run(source=str(tmp_path / "photos"))
    with pytest.raises(ValueError, match=r"train on the 6 faces .* it was started with"):
        other.evaluate()
    with pytest.raises(ValueError, match="expected to train on the 6 faces"):
        next(other.train())


def test_precision_and_preset_are_those_asked_for(environment, tmp_path):
    run = Run("auto", environment=environment, output_dir=tmp_path)
    assert run.config == preset("demo") and "no CUDA GPU" in run.reason
    half = preset("demo").replace(mixed_precision="bf16")
    run = Run(half, environment=environment, output_dir=tmp_path)
    assert run.environment.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="mixed_precision: expected 'no' or 'bf16' on a CPU"):
        Run(half.replace(mixed_precision="fp16"), environment=environment, output_dir=tmp_path)


@pytest.fixture
def own_pairs(folder, tmp_path):
    """Photographs of one person, and renders that are a little too dark."""
    for part in ("renders", "photos"):
        (tmp_path / "own" / part).mkdir(parents=True)
    for path in (folder / "faces" / "images").iterdir():
        photo = Image.open(path)
        photo.save(tmp_path / "own" / "photos" / path.name)
        photo.point(lambda value: value * 0.6).save(tmp_path / "own" / "renders" / path.name)
    return str(tmp_path / "own")


@pytest.mark.parametrize("helps", [True, False])
def test_a_tuned_enhancer_is_exported_only_if_it_is_better(run, own_pairs, helps, monkeypatch,
                                                          capsys):
    start = run(run_name="start", timestep=3, max_train_steps=1)
    list(start.train())
    export = start.export()
    keep = {"weight_synthetic": 0.0, "weight_own": 1.0, "own_pairs": own_pairs,
            "own_held_out": 0.4, "run_name": "tuned", "max_train_steps": 2}
    tuned = run(init_from=str(export), **keep)
    assert tuned.config.timestep == 3  # of the export
    start_weights = read(export)[1]
    assert all(torch.equal(start_weights[name], p) for name, p in tuned.model.trainable().items())
    list(tuned.train())
    distances = iter([0.5, 0.4, 0.3 if helps else 0.4] * 2)
    monkeypatch.setattr(tuned, "_distance", lambda *_: next(distances))
    if helps:
        assert tuned.export().is_dir()
        assert "Tuning helped: on 2 held-out renders" in capsys.readouterr().out
    else:
        with pytest.raises(ValueError, match=r"Not exported, for tuning did not help: .* 0\.4000"):
            tuned.export()
        assert not (tuned.results / "enhancer").exists()
