"""The command line on two real processes: one run trained, one folder restored, each file once."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from helpers import checkpoints
from helpers.commands import main
from helpers.commands.command import STOPPED
from helpers.config import preset
from helpers.model import SplatEnhancer, export
from helpers.restoring.inputs import find
from helpers.restoring.many import _owner
from tests.commands.test_runs import FLAGS
from tests.launched import finish, start, workers
from tests.runs import PROMPT, TINY, saved_step, wait_for

COUNT, LONG_S = 17, 200


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


def enhance(folder):
    return start("helpers", "enhance", str(folder / "renders"), "--model",
                 str(folder / "enhancer"), "--json")


def results(folder):
    return {str(path): path.stat().st_mtime_ns
            for path in (folder / "renders").rglob("*_restored.png")}


def test_two_processes_restore_each_file_once_and_go_on_after_a_kill(folder):
    killed = enhance(folder)
    wait_for(lambda: len(results(folder)) > 2, LONG_S)
    workers(killed)[1].kill()
    assert finish(killed)[0] != 0
    before = results(folder)
    code, said, errors = finish(enhance(folder))
    found, made = json.loads(said), results(folder)
    assert said.count("\n") == 1, errors  # the first process speaks for both
    assert len(made) == COUNT and {*found["results"]} == {*made}
    assert all(made[path] == time for path, time in before.items())  # nothing was made again
    assert (found["restored"], found["skipped"]) == (COUNT - len(before), len(before))
    assert [*found["errors"]] == [str(folder / "renders" / "0" / "broken.png")]
    assert found["failed"] == found["exit_code"] == 1 and code != 0


def test_both_have_a_share_and_it_follows_from_a_file_alone(folder):
    inputs = list(find(folder / "renders", say=None))
    owners = [_owner(one, 2) for one in inputs]
    assert {*owners} == {0, 1} and min(owners.count(rank) for rank in (0, 1)) >= COUNT // 4
    alone = {one.path: owner for one, owner in zip(inputs, owners, strict=True)}
    fewer = [one for one in find(folder / "renders", say=None) if one.path.stem != "3"]
    assert all(_owner(one, 2) == alone[one.path] for one in fewer)


def test_all_stop_after_the_step_in_which_one_is_asked_to_and_one_process_goes_on(tmp_path):
    flags = [*FLAGS, "--batch_size", "2", "--output_dir", str(tmp_path), "--json"]
    run = tmp_path / "runs" / "demo"
    launched = start("helpers", "train", *flags, "--max_train_steps", "500")
    wait_for(lambda: (saved_step(run) or 0) > 1, LONG_S)
    workers(launched)[1].terminate()
    code, said, errors = finish(launched)
    reached = saved_step(run)
    assert f"Stopped after step {reached} and saved in {run}" in errors and code != 0
    assert json.loads(said)["exit_code"] == STOPPED
    assert errors.count("Stopped after") == errors.count("preset 'demo'") == 1  # the first speaks
    assert main(["train", *flags, "--max_train_steps", str(reached + 1)]) == 0
    saved, _ = checkpoints.newest([run])
    assert [record["step"] for record in saved.history] == [*range(1, reached + 2)]
    assert len(saved.notes) == 1 and (tmp_path / "results" / "demo" / "enhancer").is_dir()
