"""One way to know that a thing is whole, whatever it is; what an older tree made still opens."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch

from helpers import checkpoints
from helpers import config as settings
from helpers.faces import data, sources, store
from helpers.model import exports
from helpers.storage import whole
from helpers.storage.copies import put, take_back
from tests.faulty import faulty

OLD = Path(__file__).parents[1] / "fixtures" / "old"
STORE = "avatars-64px-1+1-seed0-685f4f37"


@pytest.fixture
def old(tmp_path):
    """What the tree before the rooms made: see the README beside it."""
    made = Path(shutil.copytree(OLD, tmp_path / "old"))
    assert take_back(made / STORE, made / "drive")
    return made


KINDS = {  # a file of each kind of thing that is kept, who opens the thing, what the error says
    "checkpoint": ("run/latest.safetensors", lambda old: checkpoints.load(
        old / "run" / "latest.safetensors"), "whole checkpoint, .*; use another copy"),
    "kept": (f"drive/{STORE}.tar", lambda old: whole.read_seal(
        old / "drive" / f"{STORE}.tar"), r"\.tar: .*do not fit their SHA-256"),
    "export": (f"enhancer/{exports.WEIGHTS}", lambda old: exports.read(
        old / "enhancer"), "sha256 .*; export the model again"),
    **{name: (f"{STORE}/{name}", lambda old: data.Faces(old / STORE), "delete this folder and run")
       for name in ("data-00000-of-00001.arrow", "state.json", "dataset_info.json")}}


@pytest.mark.parametrize("kind", KINDS)
def test_any_byte_that_changed_is_found_and_the_thing_named(old, kind):
    name, read, words = KINDS[kind]
    path, dice = old / name, random.Random(kind)
    content = path.read_bytes()
    read(old)
    places = [0, 7, 8, len(content) - 33, len(content) - 1,
              *(dice.randrange(len(content)) for _ in range(30))]
    flips = [content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1:] for at in places]
    for damaged in (*flips, b"", content[:-9], content + b"\0", bytes(len(content)), b"foreign"):
        path.write_bytes(damaged)
        with pytest.raises(whole.DamagedFile, match=words):
            read(old)
    path.write_bytes(content)
    read(old)


@pytest.mark.parametrize("content", [None, b"", b"[]", b"{}", b'{"sha256": 3}', b"[" * 100_000])
@pytest.mark.parametrize(("name", "kind"), [(f"{STORE}/{store.CONTENTS}", "state.json"),
                                            (f"enhancer/{exports.CARD}", "export")])
def test_a_list_of_digests_that_is_gone_or_absurd_is_damage(old, name, kind, content):
    (old / name).write_bytes(content) if content is not None else (old / name).unlink()
    with pytest.raises(whole.DamagedFile, match=r"(run|the model) again"):
        KINDS[kind][1](old)


def test_a_checkpoint_of_the_older_tree_is_found_and_comes_back_as_it_was(old):
    found, passed_over = checkpoints.newest([old / "run"])
    assert found.step == 3 and passed_over == []
    assert checkpoints.load(old / "run" / checkpoints.PREVIOUS).step == 2
    assert torch.equal(found.trained["a"], torch.full((3, 2), 3.0))
    assert (found.faces, found.loss_scale) == ("6 faces a", {"scale": 2.0})
    assert found.notes == [{"after_step": 1, "changed": {"optim.steps": [300, 500]}}]
    then = {"model.timestep": 50, "model.mask": False}  # the preset has others now
    checkpoints.refuse_other_run(found, settings.preset("demo").with_(then), "6 faces a")
    checkpoints.save(found, old / "run")  # which changes nothing but the time in the summary
    assert checkpoints.load(old / "run" / checkpoints.LATEST).config == found.config


def test_faces_of_the_older_tree_are_found_by_their_name_and_not_made_again(old, monkeypatch):
    monkeypatch.setattr(sources, "AVATARS", "685f4f37")  # what it was then
    monkeypatch.setattr(data, "_fill", None)
    small = settings.DataConfig(size_px=64, train_images=1, test_images=1)
    for place in (old, old / "new"):  # prepared here, and kept on Drive by an earlier session
        faces = data.prepare(small, place, drive=old / "drive", progress=None)
        assert faces.store == place / STORE and faces.skipped == {}
        assert faces.trained_on == "1 faces 396f8d16f0d301ac"
        assert faces.load("train", [0])[0].shape == (1, 3, 64, 64)


def test_an_export_of_the_older_tree_is_read(old):
    card, tensors = exports.read(old / "enhancer")
    assert card["training"]["steps"] == 300 and card["metrics"] == {"avatars": {"psnr": 25.93}}
    assert tensors.keys() == {exports.PROMPT, "unet.conv_in.weight", "vae.a.lora_A.vae_skip.weight",
                              "unet.a.lora_A.default.weight"}


def test_a_seal_and_a_list_are_the_sha256_that_any_tool_computes(tmp_path):
    (path := tmp_path / "a").write_bytes(content := bytes(range(256)) * 3_000)
    expected = hashlib.sha256(content)
    assert whole.digest(path) == whole.digest(content) == expected.hexdigest()
    assert whole.list_digests(tmp_path) == {"a": expected.hexdigest()}
    whole.seal(path)
    assert path.read_bytes() == content + expected.digest()
    assert whole.read_seal(path) == whole.read_seal(path.read_bytes()) == expected.digest()


def test_what_is_put_on_drive_again_deletes_nothing_there(tmp_path, capsys):
    made, drive, owned = tmp_path / "results", tmp_path / "drive", set()
    (made / "folder").mkdir(parents=True)
    for text in ("first", "second", "third"):
        (made / "metrics.json").write_text(json.dumps(text))
        put(made, drive)
        assert json.loads((drive / "metrics.json").read_text()) == text
        inodes = {path.stat().st_ino for path in drive.iterdir()}
        assert owned <= inodes
        owned = inodes
    assert {path.name for path in drive.iterdir()} == {"metrics.json", "metrics.json.part"}
    with faulty(drive, errno=5):
        put(made, drive)
    put(made, None)
    told = capsys.readouterr().out
    assert told.count("is in") == 3 and told.count("no copy in") == 1 and os.strerror(5) in told
