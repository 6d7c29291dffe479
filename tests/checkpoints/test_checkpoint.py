"""Checkpoints: whole or not at all, and the newest whole one is found whatever happened."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from helpers import checkpoints
from helpers.__main__ import ROOT
from helpers.checkpoints.checkpoint import BEST, LATEST, NAMES, PREVIOUS, Checkpoint
from helpers.config import preset
from helpers.storage.sealed import FORMAT, SEAL, write_sealed
from helpers.storage.whole import SEAL_BYTES
from tests.faulty import faulty

COMPANIONS = ["config.json", "run.json"]


def made(step: int, **changes: object) -> Checkpoint:
    tensors = {"model/a": torch.full((3, 2), float(step)), "exp_avg/a": torch.rand(3, 2),
               "exp_avg_sq/a": torch.rand(3, 2),
               "updates": torch.tensor(float(step)), "half": torch.ones(5, dtype=torch.bfloat16),
               "flag": torch.tensor([True, False, True]), "none": torch.zeros(0, 4)}
    history = [{"step": n, "losses": {"total": 1 / n}} for n in range(1, step + 1)]
    return Checkpoint(step, preset("demo").with_(changes), tensors, {"scale": 2.0}, history,
                      [{"after_step": 0, "changed": {"optim.steps": [300, 500]}}], "6 faces a")


def steps_in(folder) -> dict[str, int]:
    return {name: checkpoints.load(folder / name).step for name in NAMES
            if (folder / name).exists()}


def contents(folder) -> dict:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def content_of(step, folder) -> bytes:
    return checkpoints.save(made(step), folder).read_bytes()


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path):
    saved = made(7)
    loaded = checkpoints.load(checkpoints.save(saved, tmp_path))
    assert loaded.tensors.keys() == saved.tensors.keys()
    for name, tensor in saved.tensors.items():
        assert torch.equal(tensor, loaded.tensors[name])
        assert tensor.dtype == loaded.tensors[name].dtype
    assert {**vars(loaded), "tensors": 0} == {**vars(saved), "tensors": 0}


def test_any_safetensors_reader_opens_the_file_and_a_person_reads_the_rest(tmp_path):
    path = checkpoints.save(made(60), tmp_path, best=True)
    with safe_open(path, "pt") as file:
        assert torch.equal(file.get_tensor("model/a"), torch.full((3, 2), 60.0))
    assert json.loads((tmp_path / "config.json").read_text())["preset"] == "demo"
    told = json.loads((tmp_path / "run.json").read_text())
    mean = sum(1 / n for n in range(11, 61)) / 50
    assert (told["step"], told["of_steps"], told["loss_lately"]) == (60, 240, round(mean, 5))
    assert told["notes"][0]["after_step"] == 0 and "run.name 'demo'" in told["to_resume"]
    digest = hashlib.sha256(path.read_bytes()[:-32]).hexdigest()
    expected = {"step": 60, "bytes": path.stat().st_size, "sha256": digest}
    assert told["files"] == {LATEST: expected, BEST: expected}


def test_saving_keeps_the_one_before_and_the_best(tmp_path):
    for step, best in ((1, False), (2, True), (3, False), (4, False), (4, False)):
        checkpoints.save(made(step), tmp_path, best=best)  # twice: the earlier state stays
    assert steps_in(tmp_path) == {LATEST: 4, PREVIOUS: 3, BEST: 2}
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*NAMES, *COMPANIONS])


def test_best_is_copied_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    checkpoints.save(made(1), tmp_path, best=True)
    assert steps_in(tmp_path) == {LATEST: 1, BEST: 1}


def test_the_bytes_are_on_disk_before_their_name_is(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        original = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, original=original:
                            (calls.append(name), original(*args))[1])
    checkpoints.save(made(1), tmp_path)
    assert calls[:2] == ["fsync", "replace"]
    if sys.platform != "win32":
        assert calls[2] == "fsync"  # of the folder


DAMAGE = {
    "truncated": lambda content: content[:-9],
    "cut in the header": lambda content: content[:100],
    "longer": lambda content: content + b"\0",
    "empty": lambda _: b"",
    "garbage": lambda _: b"PK\x03\x04 not a checkpoint at all",
    "flipped": lambda content: content[:-99] + bytes([content[-99] ^ 4]) + content[-98:],
    "zeros": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("bad", [("local", LATEST), ("drive", LATEST), ("local", PREVIOUS)])
def test_a_bad_file_is_named_and_the_newest_good_one_found(tmp_path, damage, bad):
    for folder, steps in (("local", (3, 5)), ("drive", (2, 4))):
        for step in steps:
            checkpoints.save(made(step), tmp_path / folder)
    path = tmp_path / bad[0] / bad[1]
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    before = contents(tmp_path)
    found, passed_over = checkpoints.newest([tmp_path / "local", tmp_path / "drive"])
    assert found.step == (4 if bad == ("local", LATEST) else 5)
    if bad == ("local", LATEST):
        assert len(passed_over) == 1 and str(path) in passed_over[0]
    assert before == contents(tmp_path)


def test_of_all_files_bad_but_one_that_one_is_found_in_every_place(tmp_path):
    for good in NAMES:
        folder = tmp_path / good
        for step in (1, 2):
            checkpoints.save(made(step), folder, best=step == 2)
        for name in set(NAMES) - {good}:
            (folder / name).unlink()  # best is a hard link
            (folder / name).write_bytes(b"\x10\0\0\0\0\0\0\0 broken ")
        found, passed_over = checkpoints.newest([tmp_path / "none", folder])
        assert found.step == (1 if good == PREVIOUS else 2) and len(passed_over) == 2


def test_files_of_others_are_refused_in_words(tmp_path):
    path = tmp_path / LATEST
    save_file({"x": torch.zeros(1)}, path, {"format": "pt"})
    with pytest.raises(ValueError, match=f"format 'pt' where this version writes '{FORMAT}'"):
        checkpoints.load(path)
    save_file({"x": torch.zeros(1)}, path, {"format": "splat-enhancer-1"})
    assert "format 'splat-enhancer-1'" in checkpoints.newest([tmp_path])[1][0]


def sealed(header: bytes, body: bytes = b"") -> bytes:
    content = len(header).to_bytes(8, "little") + header + body
    return content + hashlib.sha256(content).digest()


STATE = {"loss_scale": {}, "history": [], "notes": []}
ABSURD = {
    "step NaN": {"step": "NaN"}, "step negative": {"step": "-3"}, "step 1.5": {"step": "1.5"},
    "step huge": {"step": "9" * 400}, "no step": {"step": None}, "config a list": {"config": "[]"},
    "config text": {"config": '"demo"'}, "config null": {"config": "null"},
    "config deep": {"config": "[" * 100_000}, "config path": {"config": '{"preset": "../../x"}'},
    "state a list": {"state": b"[]"}, "state deep": {"state": b"[" * 100_000},
    "state not text": {"state": b"\xff\xfe"}, "no state": {"state": None},
    "history a dict": {"state": STATE | {"history": {"a": 1}}},
    "history of numbers": {"state": STATE | {"history": [1, 2]}},
    "notes a text": {"state": STATE | {"notes": "abc"}},
    "loss scale a list": {"state": STATE | {"loss_scale": [1]}},
    "loss scale of texts": {"state": STATE | {"loss_scale": {"scale": "x"}}},
}


@pytest.mark.parametrize("case", ABSURD)
def test_absurd_content_under_a_right_seal_is_a_value_error(tmp_path, case):
    good = {"step": "3", "config": preset("demo").to_json(), "state": STATE, "summary": "{}"}
    parts = {name: value for name, value in (good | ABSURD[case]).items() if value is not None}
    state = parts.pop("state", None)
    text = state if isinstance(state, bytes | None) else json.dumps(state).encode()
    tensors = {checkpoints.STATE: torch.frombuffer(bytearray(text), dtype=torch.uint8)} \
        if text else {}
    write_sealed(tmp_path / LATEST, tensors, parts)
    with pytest.raises(ValueError, match="expected a whole checkpoint"):
        checkpoints.load(tmp_path / LATEST)
    found, passed_over = checkpoints.newest([tmp_path])
    assert found is None and len(passed_over) == 1


@pytest.mark.parametrize("content", [
    b"\xff" * 64, (2**40).to_bytes(8, "little") + b"{}", sealed(b"[" * 200_000), sealed(b"[]"),
    sealed(b"3"), sealed(b"{}"), sealed(b'{"__metadata__": 7}'),
    sealed(b'{"__metadata__": {"format": "splat-enhancer-2", "step": 3}}'),
    sealed(b'{"__metadata__": {"format": "splat-enhancer-2", "step": "3", "config": "{}"}}'),
    sealed(b'{"__metadata__":{"format":"splat-enhancer-2","step":"3"},"a":'
           b'{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,32]}}'),
    sealed(b'{"__metadata__":{"format":"splat-enhancer-2","step":"3"},"~state":'
           b'{"dtype":"U8","shape":[32],"data_offsets":[-5,99999999999999999999]}}'),
])
def test_an_absurd_header_is_a_value_error(tmp_path, content):
    (tmp_path / LATEST).write_bytes(content)
    with pytest.raises(ValueError, match="expected a whole checkpoint"):
        checkpoints.load(tmp_path / LATEST)
    assert checkpoints.newest([tmp_path])[0] is None


def test_names_of_tensors_are_only_names(tmp_path):
    hostile = {name: torch.ones(2) for name in ("../../outside", "/etc/passwd", "nul", SEAL[1:])}
    checkpoints.save(Checkpoint(1, preset("demo"), hostile), tmp_path / "run")
    assert checkpoints.load(tmp_path / "run" / LATEST).tensors.keys() == hostile.keys()
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_no_clock_decides_which_is_newest(tmp_path):
    checkpoints.save(made(9), tmp_path / "a")
    checkpoints.save(made(4), tmp_path / "b")
    os.utime(tmp_path / "a" / LATEST, (0, 0))
    os.utime(tmp_path / "b" / LATEST, (2**31, 2**31))
    for folders in (["a", "b"], ["b", "a"], ["none", "a", "b"]):
        assert checkpoints.newest([tmp_path / name for name in folders])[0].step == 9
    assert checkpoints.newest([tmp_path, tmp_path / "none"]) == (None, [])


def test_a_folder_that_hangs_or_fails_at_once_or_later_is_passed_over(tmp_path):
    for name, step in (("local", 5), ("drive", 9)):
        checkpoints.save(made(step), tmp_path / name)
    folders = [tmp_path / "drive", tmp_path / "local"]
    with faulty(tmp_path / "drive", errno=errno.ENOTCONN) as gone:
        found, passed_over = checkpoints.newest(folders)
    assert found.step == 5 and gone.hits and str(folders[0]) in passed_over[0]
    with faulty(tmp_path / "drive", errno=errno.EIO, after_calls=5) as faults:  # while it is read
        found, passed_over = checkpoints.newest(folders)
    assert found.step == 5 and faults.hits and LATEST in passed_over[0]
    back = threading.Event()
    started = time.monotonic()
    with faulty(tmp_path / "drive", hang=back) as hanging:
        found, passed_over = checkpoints.newest(folders, timeout_s=0.3)
        back.set()
    assert found.step == 5 and hanging.hits and "no answer within 0.3 s" in passed_over[0]
    assert time.monotonic() - started < 5


def test_a_full_disk_leaves_every_file_as_it_was(tmp_path):
    for step in (1, 2):
        checkpoints.save(made(step), tmp_path)
    before, size = contents(tmp_path), (tmp_path / LATEST).stat().st_size
    for room in (0, 1, 100, size // 2, size - SEAL_BYTES, size - 1):
        with faulty(tmp_path, errno=errno.ENOSPC, after_bytes=room) as faults, \
                pytest.raises(OSError, match=r"expected to write step 3.*free some disk") as error:
            checkpoints.save(made(3), tmp_path)
        assert faults.hits and error.value.errno == errno.ENOSPC
        assert contents(tmp_path) == before
    assert steps_in(tmp_path) == {LATEST: 2, PREVIOUS: 1}


@pytest.mark.parametrize("lasting", [True, False])
def test_whichever_call_of_a_save_fails_a_whole_state_is_left(tmp_path, lasting):
    for step in (1, 2):
        checkpoints.save(made(step), tmp_path / "made")
    saved = set()
    for after_calls in range(100):
        shutil.copytree(tmp_path / "made", folder := tmp_path / str(after_calls))
        with faulty(folder, errno=errno.EIO, after_calls=after_calls) as faults:
            faults.until = lambda faults=faults: faults.hits > 0 and not lasting
            try:
                checkpoints.save(made(3), folder, best=True)
                saved.add(step := 3)
            except OSError:
                saved.add(step := 2)
        assert checkpoints.newest([folder])[0].step >= step
        assert checkpoints.whole_step(folder / PREVIOUS) in (1, 2)
        if not faults.hits:
            break
    assert saved == {2, 3} and not faults.hits


@pytest.mark.skipif(sys.platform == "win32", reason="there is no limit on file sizes to set")
def test_a_write_that_the_kernel_cuts_off_leaves_every_file_as_it_was(tmp_path):
    import resource
    checkpoints.save(made(1), tmp_path)
    before = contents(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            checkpoints.save(made(2), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(tmp_path) == before


KILLED = {
    "while the new file is written": ({LATEST: 2, PREVIOUS: 1}, b"half a fi", 2),
    "before the first rename": ({LATEST: 2, PREVIOUS: 1}, 3, 2),
    "between the two renames": ({PREVIOUS: 2}, 3, 2),
    "before the first save was done": ({}, 1, None),
    "before best was linked": ({LATEST: 3, PREVIOUS: 2}, None, 3),
}


@pytest.mark.parametrize("moment", KILLED)
def test_a_kill_at_any_moment_of_a_save_leaves_a_state_to_go_on_from(tmp_path, moment):
    files, leftover, expected = KILLED[moment]
    for name, step in files.items():
        (tmp_path / name).write_bytes(content_of(step, tmp_path / "made" / str(step)))
    partial = tmp_path / (LATEST + ".tmp")
    if leftover:
        partial.write_bytes(leftover if isinstance(leftover, bytes)
                            else content_of(leftover, tmp_path / "made" / "partial"))
        (tmp_path / (BEST + ".tmp")).write_bytes(b"left by a kill")
    found, passed_over = checkpoints.newest([tmp_path])
    assert (found and found.step) == expected and passed_over == []
    checkpoints.save(made(4), tmp_path, best=True)
    assert steps_in(tmp_path) == {LATEST: 4, BEST: 4} | (
        {PREVIOUS: expected} if expected and LATEST in files else
        {PREVIOUS: 2} if PREVIOUS in files else {})
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_bad_latest_does_not_push_a_good_previous_away(tmp_path, damage):
    for step in (1, 2):
        checkpoints.save(made(step), tmp_path)
    (tmp_path / LATEST).write_bytes(DAMAGE[damage]((tmp_path / LATEST).read_bytes()))
    checkpoints.save(made(3), tmp_path)
    assert steps_in(tmp_path) == {LATEST: 3, PREVIOUS: 1}


def test_a_later_state_that_was_not_found_at_the_start_is_not_lost(tmp_path):
    checkpoints.save(made(9), tmp_path)
    with pytest.raises(ValueError, match="expected nothing later than step 1, got step 9"):
        checkpoints.save(made(1), tmp_path)
    assert steps_in(tmp_path) == {LATEST: 9}


def test_what_lies_beside_a_checkpoint_may_fail(tmp_path, capsys):
    (tmp_path / "run.json").mkdir()
    checkpoints.save(made(2), tmp_path)
    assert "Step 2 is saved, but not all" in capsys.readouterr().out
    assert steps_in(tmp_path) == {LATEST: 2}


KILLS = """
import os, random, signal, sys, time, torch
from pathlib import Path
from helpers.checkpoints import Checkpoint, newest, save
from helpers.config import preset
torch.set_num_threads(1)
folder, config, dice = Path(sys.argv[1]), preset("demo"), random.Random(0)

def save_on_and_on(step, told):
    while True:
        step += 1
        tensors = {"a": torch.full((400_000,), float(step))}
        save(Checkpoint(step, config, tensors), folder, best=step % 3 == 0)
        os.write(told, b".")

last = inside = 0
for kill in range(20):
    told, telling = os.pipe()
    if not (child := os.fork()):
        save_on_and_on(last, telling)
    os.close(telling)
    done = len(os.read(told, 1))  # the first save is through
    time.sleep(dice.random() * 0.06)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while more := os.read(told, 4096):
        done += len(more)
    os.close(told)
    inside += (folder / "latest.safetensors.tmp").exists()
    found, passed_over = newest([folder])
    assert found.step in (last + done, last + done + 1), (last, done, found.step)
    assert torch.equal(found.tensors["a"], torch.full((400_000,), float(found.step)))
    assert passed_over == []
    last = found.step
print(inside)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the kills are those of forked processes")
def test_twenty_kills_while_saving_lose_no_save_that_was_done(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLS, str(tmp_path)], cwd=ROOT, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1  # so many fell inside a save


def test_binding_settings_are_refused_with_both_values_and_the_others_listed():
    saved = made(3, **{"optim.batch": 2})
    checkpoints.refuse_other_run(saved, saved.config.with_({"optim.steps": 900}))
    for path, value in {"model.base": "x", "model.timestep": 3, "model.unet_rank": 2,
                        "model.vae_rank": 2, "model.mask": False, "model.prompt": "x",
                        "data.source": "x",
                        "data.size_px": 64, "data.train_images": 5, "run.seed": 5}.items():
        with pytest.raises(ValueError, match=rf"{path}: .* then, {value!r} now.*set them back"):
            checkpoints.refuse_other_run(saved, saved.config.with_({path: value}))
    assert checkpoints.harmless_changes(saved.config, saved.config) == {}
    changes = {"optim.steps": 900, "optim.learning_rate": 1e-3, "degrade.noise": 0.5,
               "run.seed": 5}
    assert checkpoints.harmless_changes(saved.config, saved.config.with_(changes)) == {
        "optim.steps": [240, 900], "optim.learning_rate": [8e-4, 1e-3],
        "degrade.noise": [0.05, 0.5]}


def test_other_training_faces_are_refused_where_both_are_known():
    for then, now in (("", "6 faces b"), ("6 faces a", ""), ("6 faces a", "6 faces a")):
        saved = replace(made(3), faces=then)  # older files know nothing of theirs
        checkpoints.refuse_other_run(saved, saved.config, now)
    with pytest.raises(ValueError, match=r"the 6 faces a that .* got 6 faces b; .*run\.name"):
        checkpoints.refuse_other_run(saved, saved.config, "6 faces b")


def test_the_images_of_a_step_may_be_divided_anew_but_not_their_number():
    saved = made(3, **{"optim.batch": 2})
    divided = saved.config.with_({"optim.batch": 1, "optim.accumulate": 2})
    checkpoints.refuse_other_run(saved, divided)
    assert checkpoints.harmless_changes(saved.config, divided) == {
        "optim.batch": [2, 1], "optim.accumulate": [1, 2]}
    with pytest.raises(ValueError, match=r"optim.accumulate: 2 then, 1 now"):
        checkpoints.refuse_other_run(saved, saved.config.with_({"optim.batch": 1}))
