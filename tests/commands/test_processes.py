"""The command line on two real processes: one run trained, one folder restored, each file once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from helpers import checkpoints
from helpers.config import preset
from helpers.model import SplatEnhancer, export
from helpers.restoring.inputs import find
from helpers.restoring.many import _owner
from tests.commands.test_runs import FLAGS
from tests.launched import launch
from tests.runs import PROMPT, TINY

COUNT = 17


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An export, and a folder of pictures with one in it that cannot be read."""
    folder = tmp_path_factory.mktemp("launched")
    config = preset("demo").with_(TINY)
    export(SplatEnhancer.from_pretrained(config.model, device="cpu", prompt_embedding=PROMPT),
           config, folder / "enhancer")
    for number in range(COUNT):
        place = folder / "renders" / str(number % 3)
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (9 * number, 80, 200)).save(place / f"{number}.png")
    (folder / "renders" / "0" / "broken.png").write_bytes(b"no picture")
    return folder


def enhance(folder, *more):
    done = launch("helpers", "enhance", str(folder / "renders"), "--model",
                  str(folder / "enhancer"), "--json", *more)
    return json.loads(done.stdout), done


def results(folder):
    return {path: path.stat().st_mtime_ns for path in (folder / "renders").rglob("*_restored.png")}


def test_two_processes_restore_each_file_once_and_go_on(folder):
    said, done = enhance(folder)
    assert (said["restored"], said["skipped"], said["failed"]) == (COUNT, 0, 1), done.stderr
    assert said["exit_code"] == 1 and done.returncode != 0 and done.stdout.count("\n") == 1
    assert [*said["errors"]] == [str(folder / "renders" / "0" / "broken.png")]
    made = results(folder)
    assert len(made) == COUNT and {str(path) for path in made} == {*said["results"]}
    lost = [path for path in made if path.parent.name == "1"]
    for path in lost:
        path.unlink()
    (folder / "renders" / "0" / "broken.png").unlink()
    said, done = enhance(folder)
    assert (said["restored"], said["skipped"]) == (len(lost), COUNT - len(lost))
    assert said["exit_code"] == done.returncode == 0
    kept = results(folder)
    assert kept.keys() == made.keys()
    assert all(kept[path] == time for path, time in made.items() if path not in lost)


def test_both_have_a_share_and_it_follows_from_a_file_alone(folder):
    inputs = list(find(folder / "renders", say=None))
    owners = [_owner(one, 2) for one in inputs]
    assert {*owners} == {0, 1} and min(owners.count(rank) for rank in (0, 1)) >= COUNT // 4
    alone = {one.path: owner for one, owner in zip(inputs, owners, strict=True)}
    fewer = [one for one in find(folder / "renders", say=None) if one.path.stem != "3"]
    assert all(_owner(one, 2) == alone[one.path] for one in fewer)


def test_two_processes_train_and_the_first_exports(tmp_path):
    done = launch("helpers", "train", *FLAGS, "--batch_size", "2", "--max_train_steps", "2",
                  "--output_dir", str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout)
    saved, _ = checkpoints.newest([Path(said["checkpoints"])])
    assert saved.step == said["step"] == 2 and saved.history[-1]["losses"] == said["losses"]
    assert Path(said["export"]).is_dir() and done.stderr.count("Exported step 2") == 1
    assert done.stderr.count("preset 'demo'") == 1  # the other says nothing
