"""Two alternating checkpoint files: whatever happens to one, the run goes on from a good one."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file

from splat_enhancer.config import preset
from splat_enhancer.training import checkpoint as checkpoints
from splat_enhancer.training.checkpoint import (
    BINDING,
    NAMES,
    Checkpoint,
    DamagedFile,
    TakenOver,
    compare_settings,
    digest,
    load,
    lock,
    newest,
    save,
)

A, B = NAMES
DAMAGE = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[:-9],
    "bit flipped": lambda content: content[:-99] + bytes([content[-99] ^ 4]) + content[-98:],
    "metadata changed": lambda content: content.replace(b'\\"seed\\": 0', b'\\"seed\\": 1'),
    "foreign": lambda content: b"PK\x03\x04 not a checkpoint at all",
    "huge header": lambda content: b"\xff" * 64,
    "zeros": lambda content: bytes(len(content)),
}


def made(step: int, **changes) -> Checkpoint:
    tensors = {"model/a": torch.full((500,), float(step)), "updates": torch.tensor(float(step))}
    return Checkpoint(step, preset("demo"), tensors, {"scale": 4.0}, [{"step": step}],
                      trained_on="6 faces", session="s", started=1.0, **changes)


def steps_in(folder):
    return {name: load(folder / name).step for name in NAMES if (folder / name).exists()}


def test_saves_alternate_and_what_is_read_is_what_was_saved(tmp_path):
    for step, expected in ((1, {A: 1}), (2, {A: 1, B: 2}), (3, {A: 3, B: 2}), (4, {A: 3, B: 4})):
        save(made(step), tmp_path)
        assert steps_in(tmp_path) == expected
    found, last = newest([tmp_path / "none", tmp_path]), made(4)
    assert {n: t.tolist() for n, t in found.tensors.items()} == {
        n: t.tolist() for n, t in last.tensors.items()}
    assert replace(found, tensors={}) == replace(last, tensors={})
    assert found.trained["a"].tolist() == [4.0] * 500


def test_no_clock_and_no_order_of_folders_decides_which_is_newest(tmp_path):
    for name, step in (("a", 9), ("b", 4)):
        save(made(step), tmp_path / name)
    os.utime(tmp_path / "a" / A, (0, 0))
    for folders in (["a", "b"], ["b", "a"]):
        assert newest([tmp_path / name for name in folders]).step == 9
    assert newest([tmp_path]) is None


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named_passed_over_and_overwritten_first(tmp_path, damage, capsys):
    for step in (1, 2):
        save(made(step), tmp_path)
    (tmp_path / B).write_bytes(DAMAGE[damage]((tmp_path / B).read_bytes()))
    with pytest.raises(DamagedFile, match="expected a whole checkpoint"):
        load(tmp_path / B)
    assert newest([tmp_path]).step == 1
    assert f"Passed over {tmp_path / B}" in capsys.readouterr().out
    save(made(3), tmp_path)
    assert steps_in(tmp_path) == {A: 1, B: 3}


def test_a_file_of_a_version_with_other_settings_is_neither_read_nor_overwritten(tmp_path):
    path = save(made(2), tmp_path)
    texts = {"config": made(2).config.to_json().replace("timestep", "time"), "state": "{}"}
    tensors = load_file(path)
    save_file(tensors, path, texts | {"digest": digest(tensors, texts)})
    with pytest.raises(ValueError, match="expected a known field"):
        save(made(3), tmp_path)
    assert newest([tmp_path]) is None


def test_a_later_state_is_never_overwritten(tmp_path):
    for step in (8, 9):
        save(made(step), tmp_path)
    with pytest.raises(ValueError, match="expected nothing later than step 8, got step 9"):
        save(made(8), tmp_path)
    assert steps_in(tmp_path) == {A: 8, B: 9}


def test_a_session_that_began_earlier_finds_that_it_was_taken_over(tmp_path):
    save(made(4), tmp_path)
    later = replace(made(4), session="later", started=2.0)
    save(later, tmp_path)  # of two sessions the one that began later goes on
    with pytest.raises(TakenOver, match="another that began later"):
        save(made(9), tmp_path)
    assert save(replace(later, step=5), tmp_path).name == A


def test_a_write_that_the_disk_cuts_off_leaves_the_newer_file(tmp_path):
    for step in (1, 2):
        save(made(step), tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))
    try:
        with pytest.raises(OSError, match="expected to write step 3, got File too large"):
            save(made(3), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert newest([tmp_path]).step == 2
    save(made(3), tmp_path)
    assert steps_in(tmp_path) == {A: 3, B: 2}


def test_a_folder_that_hangs_is_passed_over(tmp_path, monkeypatch, capsys):
    save(made(5), tmp_path / "local")
    awake, read = threading.Event(), checkpoints.load
    monkeypatch.setattr(checkpoints, "load", lambda path: (
        awake.wait() if "drive" in str(path) else None, read(path))[1])
    started = time.monotonic()
    assert newest([tmp_path / "drive", tmp_path / "local"], timeout_s=0.3).step == 5
    awake.set()
    assert "no answer within 0.3 s" in capsys.readouterr().out and time.monotonic() - started < 5


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the kills are those of forked processes")
def test_twenty_kills_while_saving_lose_no_save_that_was_done(tmp_path):
    last = 0
    for kill in range(20):
        reading, writing = os.pipe()
        if not (child := os.fork()):
            for step in range(last + 1, sys.maxsize):
                save(replace(made(step), tensors={"a": torch.full((400_000,), float(step))}),
                     tmp_path)
                os.write(writing, b".")
        os.close(writing)
        done = len(os.read(reading, 1))  # the first save is through
        time.sleep(kill % 7 * 0.008)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while more := os.read(reading, 4096):
            done += len(more)
        os.close(reading)
        found = newest([tmp_path])
        assert found.step in (last + done, last + done + 1)
        assert torch.equal(found.tensors["a"], torch.full((400_000,), float(found.step)))
        last = found.step


def test_the_second_session_of_a_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "FileLock", lambda path, **options: FileLock(
        path, **options | {"timeout": 0.1}))
    with lock(tmp_path), pytest.raises(RuntimeError, match=r"only session .* another run_name"), \
            lock(tmp_path):
        pass
    with lock(tmp_path):
        pass


def test_binding_settings_are_refused_and_the_others_listed():
    saved = made(3)
    assert compare_settings(saved, saved.config.replace(run_name="other")) == {}
    changes = {"max_train_steps": 900, "degradation.noise": 0.5}
    assert compare_settings(saved, saved.config.replace(**changes)) == {
        "max_train_steps": [240, 900], "degradation.noise": [0.05, 0.5]}
    others = {"source": "x", "resolution": 64, "max_train_samples": 5, "timestep": 3, "seed": 5,
              "pretrained_model_name_or_path": "x", "lora_rank_unet": 2, "lora_rank_vae": 2,
              "train_base": "full", "blend": "none", "prompt": "x", "init_from": "x"}
    assert others.keys() == {*BINDING} - {"images per step"}
    for name, value in others.items():
        with pytest.raises(ValueError, match=rf"{name}: .* then, {value!r} now; set them back"):
            compare_settings(saved, saved.config.replace(**{name: value}))


def test_the_images_of_a_step_may_be_divided_anew_but_not_their_number():
    saved = made(3)
    divided = saved.config.replace(train_batch_size=1, gradient_accumulation_steps=2)
    assert compare_settings(saved, divided) == {
        "train_batch_size": [2, 1], "gradient_accumulation_steps": [1, 2]}
    with pytest.raises(ValueError, match="images per step: 2 then, 1 now"):
        compare_settings(saved, saved.config.replace(train_batch_size=1))


def test_other_training_images_are_refused_and_a_moved_folder_is_not():
    saved = made(3)
    assert compare_settings(saved, saved.config.replace(source="moved"), "6 faces") == {}
    with pytest.raises(ValueError, match=r"the 6 faces that .* got 7 faces; give heads the"):
        compare_settings(saved, saved.config, "7 faces")
