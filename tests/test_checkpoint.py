"""Checkpoints: whole or not at all, and the newest good one is found."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open

from helpers import checkpoint as checkpoints
from helpers.checkpoint import LATEST, PREVIOUS, Checkpoint
from helpers.config import preset


def made(step: int) -> Checkpoint:
    tensors = {"model/a": torch.full((3, 2), float(step)), "exp_avg/a": torch.rand(3, 2)}
    return Checkpoint(step, preset("demo"), tensors, {"scale": 2.0}, [{"step": step, "loss": 0.5}])


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path):
    saved = made(7)
    loaded = checkpoints.load(checkpoints.save(saved, tmp_path))
    assert all(torch.equal(saved.tensors[n], loaded.tensors[n]) for n in saved.tensors)
    assert (loaded.step, loaded.config, loaded.loss_scale, loaded.history) == (
        7, saved.config, saved.loss_scale, saved.history)


def test_the_file_is_safetensors_and_the_config_readable(tmp_path):
    path = checkpoints.save(made(1), tmp_path)
    with safe_open(path, "pt") as file:
        assert file.metadata()["format"] == checkpoints.FORMAT
    assert json.loads((tmp_path / "config.json").read_text())["preset"] == "demo"


def test_saving_keeps_the_one_before(tmp_path):
    for step in (1, 2, 3):
        checkpoints.save(made(step), tmp_path)
    steps = {name: checkpoints.load(tmp_path / name).step for name in (LATEST, PREVIOUS)}
    assert steps == {LATEST: 3, PREVIOUS: 2}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", LATEST, PREVIOUS]


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-9])


def _empty(path):
    path.write_bytes(b"")


def _garbage(path):
    path.write_bytes(b"PK\x03\x04 not a checkpoint at all")


def _foreign(path):
    from safetensors.torch import save_file
    save_file({"x": torch.zeros(1)}, path, {"format": "pt"})


@pytest.mark.parametrize("damage", [_truncate, _empty, _garbage, _foreign])
def test_a_bad_newer_file_is_named_and_the_good_older_one_found(tmp_path, damage):
    checkpoints.save(made(1), tmp_path)
    damage(checkpoints.save(made(2), tmp_path))
    found, skipped = checkpoints.newest([tmp_path])
    assert found.step == 1 and len(skipped) == 1 and LATEST in skipped[0]


def test_the_newest_of_several_folders_wins(tmp_path):
    checkpoints.save(made(4), tmp_path / "local")
    checkpoints.save(made(9), tmp_path / "drive")
    found, _ = checkpoints.newest([tmp_path / name for name in ("local", "drive", "none")])
    assert found.step == 9


def test_nothing_saved_is_nothing_found(tmp_path):
    assert checkpoints.newest([tmp_path]) == (None, [])


def test_a_failed_save_leaves_the_old_files_alone(tmp_path, monkeypatch):
    checkpoints.save(made(1), tmp_path)

    def full(tensors, path, metadata):
        path.write_bytes(b"half a fi")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        checkpoints.save(made(2), tmp_path)
    assert checkpoints.load(tmp_path / LATEST).step == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", LATEST]


def test_publishing_compares_before_it_replaces(tmp_path, monkeypatch):
    first = checkpoints.save(made(1), tmp_path / "local")
    assert checkpoints.publish(first, tmp_path / "drive") is None
    second = checkpoints.save(made(2), tmp_path / "local")
    monkeypatch.setattr(checkpoints.shutil, "copyfile",
                        lambda source, target: target.write_bytes(source.read_bytes()[:-1]))
    assert "differs" in checkpoints.publish(second, tmp_path / "drive")
    assert checkpoints.newest([tmp_path / "drive"])[0].step == 1
