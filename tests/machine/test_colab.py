"""Colab's own package, through a stand-in that behaves as it does: see tests/colab."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from threading import Thread

import huggingface_hub
import pytest
import torch
from huggingface_hub.utils import _auth

from helpers import checkpoints
from helpers.machine import drive, runtime
from tests.places import SMALL, STAND_IN, colab_variables, copy_project, run_notebook

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Colab runs on Linux")
COLAB = replace(runtime.detect(), place="colab", device=torch.device("cpu"))


@pytest.fixture
def google(monkeypatch, tmp_path):
    """The stand-in, fresh, with /content in a temporary folder."""
    (tmp_path / "content").mkdir()
    for name, value in colab_variables(tmp_path / "content").items():
        monkeypatch.setenv(name, value)
    for name in [n for n in sys.modules if n.split(".")[0] == "google"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(STAND_IN)
    import google.colab.drive
    import google.colab.userdata
    yield google
    for name in [n for n in sys.modules if n.split(".")[0] == "google"]:
        monkeypatch.delitem(sys.modules, name)
    google.colab.drive._unmount(tmp_path / "content" / "drive")


def mount(tmp_path: Path, **options):
    return drive.mount_drive(COLAB, True, point=tmp_path / "content" / "drive", **options)


@pytest.mark.parametrize(("planned", "calls", "found", "said"), [
    ("granted", 1, True, "Mounted at"), ("failing,granted", 2, True, "Mounted at"),
    ("nothing,granted", 2, True, "Mounted at"), ("refused,granted", 1, False, "credential"),
    ("failing", 2, False, "mount failed"), ("nothing", 2, False, "mount() returned, but")])
def test_without_drive_the_session_goes_on_and_is_told_what_that_means(
        google, monkeypatch, tmp_path, capsys, planned, calls, found, said):
    monkeypatch.setenv("STAND_IN_DRIVE", planned)
    folder = mount(tmp_path)
    told = capsys.readouterr().out
    assert len(google.colab.drive._calls) == calls and said in told
    if found:
        assert folder == tmp_path / "content/drive/MyDrive/splat_enhancer"
        assert (tmp_path / "content-cloud" / "splat_enhancer").is_dir() and "No Google" not in told
    else:
        assert folder is None and told.count("\n") == 1
        assert "lost when the session ends" in told and "kept on Drive is not found" in told
        assert "run this cell again" in told


def test_files_in_the_place_of_drive_are_named_and_left_alone(google, tmp_path, capsys):
    """A local folder that looks like Drive: saving there would look safe, and be lost."""
    mine = tmp_path / "content" / "drive" / "MyDrive" / "splat_enhancer" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.touch()
    assert mount(tmp_path) is None and mine.exists()
    told = capsys.readouterr().out
    assert "Something wrote MyDrive to" in told and "move that elsewhere" in told


def test_drive_outside_the_main_thread_is_no_drive(google, tmp_path, capsys):
    found = []
    thread = Thread(target=lambda: found.append(mount(tmp_path)))
    thread.start()
    thread.join()
    assert found == [None] and "main thread" in capsys.readouterr().out


def test_mounting_again_finds_the_same_drive_also_where_it_died(google, tmp_path, capsys):
    kept = mount(tmp_path) / "kept"
    kept.touch()
    assert mount(tmp_path) == kept.parent and "already mounted" in capsys.readouterr().out
    google.colab.drive._die(tmp_path / "content" / "drive")
    with pytest.raises(OSError):
        kept.stat()
    assert (mount(tmp_path) / "kept").exists()


def test_colab_variables_without_its_package_are_no_drive(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "google.colab", None)  # an editor attached to such a machine
    assert mount(tmp_path) is None
    assert "No Google Drive (import of google.colab" in capsys.readouterr().out


@pytest.mark.parametrize(("secrets", "token"), [
    ('{"HF_TOKEN": "hf_given"}', "hf_given"), ("{}", None), ('{"HF_TOKEN": null}', None)])
def test_hub_takes_its_token_from_the_secrets_and_does_without(
        google, monkeypatch, tmp_path, recwarn, secrets, token):
    monkeypatch.setenv("STAND_IN_SECRETS", secrets)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(_auth, "is_google_colab", lambda: True)
    monkeypatch.setattr(_auth, "_IS_GOOGLE_COLAB_CHECKED", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert huggingface_hub.get_token() == token
    assert bool(recwarn) <= (token is None)


def test_drive_that_dies_stops_no_run_and_what_it_got_is_whole(google, tmp_path):
    """The notebook: mounting fails once, then Drive dies as soon as a checkpoint reached it."""
    content = tmp_path / "content"
    copy_project(content, SMALL | {"optim.steps": 8, "run.save_every_steps": 1})
    _, text = run_notebook(content, colab_variables(content, "failing,dying"), "out")
    with pytest.raises(OSError):
        (content / "drive" / "MyDrive").stat()
    assert "Mounted at" in text and "No Google Drive" not in text and "No copy in" in text
    home = content / "splat_enhancer"
    assert {p.name for p in (home / "results" / "demo").iterdir()} >= {"metrics.json", "enhancer"}
    local, there = (checkpoints.newest([folder / "runs" / "demo"])[0]
                    for folder in (home, tmp_path / "content-cloud" / "splat_enhancer"))
    assert local.step == 8 > there.step
