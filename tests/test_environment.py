"""Where a run is, which preset, which packages, Drive on Colab; stops; processes."""

import os
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from splat_enhancer import environment
from splat_enhancer.distributed import processes
from splat_enhancer.environment import (
    Environment,
    StopRequests,
    browser_files,
    choose_preset,
    detect,
    free_memory,
    mount_drive,
    prepare_packages,
    progress,
    report,
    workspace,
)

STAND_IN = Path(__file__).parent / "colab"
LOCAL = Environment(place="local", device=torch.device("cpu"), dtype=torch.float32, gpu=None,
                    gpu_gib=0.0, ram_gib=12.7, disk_free_gib=70.0)
COLAB = replace(LOCAL, place="colab", gpu="Tesla T4", gpu_gib=14.56)


@pytest.mark.parametrize(("variables", "place"), [
    ({}, "local"), ({"COLAB_RELEASE_TAG": "r"}, "colab"),
    ({"COLAB_RELEASE_TAG": "r", "KAGGLE_KERNEL_RUN_TYPE": "Interactive"}, "kaggle"),
    ({"COLAB_RELEASE_TAG": "r", "KAGGLE_USERNAME": "someone", "KAGGLE_KEY": "key"}, "colab"),
    ({"COLAB_RELEASE_TAG": "r", "KAGGLEHUB_CACHE": "/root/.cache"}, "colab")])
def test_place_follows_from_the_variables(monkeypatch, variables, place):
    for name in [n for n in os.environ if n.startswith(("KAGGLE", "COLAB"))]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = detect()
    assert found.place == place and found.ram_gib > 0.5 and found.disk_free_gib > 0


def test_gpu_is_used_if_it_works_and_each_process_has_its_own(monkeypatch, capsys):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch, "ones", lambda *_, **__: torch.zeros(1))
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert str(environment._device()) == "cuda:1"

    def fail(*_, **__):
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(torch, "ones", fail)
    assert str(environment._device()) == "cpu" and "no kernel image" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "gpu_gib", "preset", "reason"), [
    ("auto", 14.56, "t4", "14.6 GiB"), ("auto", 0.0, "demo", "no CUDA GPU"),
    ("auto", 8.0, "demo", "has 8.0 GiB"), ("full", 0.0, "full", "you asked for it"),
    ("published", 14.6, "published", "you asked for it")])
def test_preset_is_chosen_with_a_reason(name, gpu_gib, preset, reason):
    chosen, why = choose_preset(name, replace(LOCAL, gpu_gib=gpu_gib))
    assert chosen == preset and reason in why
    with pytest.raises(ValueError, match="preset: expected one of"):
        choose_preset("huge", COLAB)


@pytest.mark.parametrize("path", ["~/never", "'~/never'", "~"])
def test_workspace_expands_the_tilde_that_no_shell_expands(monkeypatch, tmp_path, path):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert workspace(LOCAL, path) == tmp_path / "home" / path.strip("'~/")
    assert not list((tmp_path / "here").iterdir())


def test_workspace_is_the_places_own_or_an_error_names_it(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert set(environment.HOMES) == {"colab", "kaggle"}
    monkeypatch.setitem(environment.HOMES, "colab", tmp_path / "colab")
    assert workspace(LOCAL) == tmp_path / "work" and workspace(COLAB) == tmp_path / "colab"
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeError, match=r"output_dir: expected a folder .*choose another one"):
        workspace(LOCAL, tmp_path / "file")
    above, below = report(COLAB, "t4", "you asked for it").split("\n")
    assert "Tesla T4 14.6 GiB" in above and below == "preset 't4': you asked for it"


def test_colab_and_kaggle_get_what_is_missing_and_lose_an_old_torchao(monkeypatch):
    calls, versions = [], {"lpips": "0.1.4", "stlpips-pytorch": "0.0.2"}
    monkeypatch.delitem(sys.modules, "peft", raising=False)
    monkeypatch.setattr(environment, "_pip", lambda *arguments: calls.append(arguments))

    def prepare(place, installed):
        calls.clear()
        monkeypatch.setattr(environment, "installed_version", installed.get)
        return prepare_packages(place)

    for place in ("colab", "kaggle"):
        assert len(prepare(place, {"torchao": "0.10.0"})) == 3
        assert calls == [("install", "--no-deps", "lpips==0.1.4"),
                         ("install", "--no-deps", "stlpips-pytorch==0.0.2"),
                         ("uninstall", "--yes", "torchao")]
        assert prepare(place, versions | {"torchao": "0.16.0"}) == calls == []
    monkeypatch.setitem(sys.modules, "peft", SimpleNamespace())
    with pytest.raises(RuntimeError, match="restart the session"):
        prepare("colab", versions | {"torchao": "0.10.0"})
    assert prepare("local", {}) == calls == []


def test_pip_without_a_network_names_the_setting_that_kaggle_leaves_off(monkeypatch):
    failed = SimpleNamespace(returncode=1, stderr="No matching distribution found")
    monkeypatch.setattr(environment.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RuntimeError, match=r"No matching .* Settings > Internet"):
        environment._pip("install", "lpips")


@pytest.fixture
def google(monkeypatch, tmp_path):
    """The stand-in for Colab's own package, fresh, with /content in a temporary folder."""
    (tmp_path / "content").mkdir()
    monkeypatch.setenv("STAND_IN_CLOUD", str(tmp_path / "cloud"))
    for name in [n for n in sys.modules if n.split(".")[0] == "google"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(STAND_IN)
    import google.colab.drive
    yield google
    google.colab.drive._unmount(tmp_path / "content" / "drive")
    for name in [n for n in sys.modules if n.split(".")[0] == "google"]:
        del sys.modules[name]


def mount(tmp_path):
    return mount_drive(COLAB, True, mount_point=tmp_path / "content" / "drive")


@pytest.mark.parametrize(("outcome", "mounted", "message"), [
    ("granted", True, "Mounted at"), ("refused", False, "credential"),
    ("failing", False, "mount failed"), ("nothing", False, "No such file")])
def test_without_drive_the_session_goes_on_and_one_line_says_what_that_means(
        google, monkeypatch, tmp_path, capsys, outcome, mounted, message):
    monkeypatch.setenv("STAND_IN_DRIVE", outcome)
    folder = mount(tmp_path)
    printed = capsys.readouterr().out
    assert message in printed
    if mounted:
        assert folder == tmp_path / "content/drive/MyDrive/splat_enhancer" and folder.is_dir()
    else:
        assert folder is None and printed.count("\n") == 1
        assert "lost when the session ends" in printed and "run this cell again" in printed


def test_files_in_the_place_of_drive_are_named_and_left_alone(google, tmp_path, capsys):
    mine = tmp_path / "content" / "drive" / "MyDrive" / "splat_enhancer" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.touch()
    assert mount(tmp_path) is None and mine.exists()
    assert "already contain files). " in capsys.readouterr().out


def test_drive_that_died_is_mounted_again(google, tmp_path):
    kept = mount(tmp_path) / "kept"
    kept.touch()
    google.colab.drive._die(tmp_path / "content" / "drive")
    with pytest.raises(OSError):
        kept.stat()
    assert (mount(tmp_path) / "kept").exists()


def test_drive_is_left_alone_elsewhere_and_where_colabs_package_is_not(monkeypatch, capsys):
    assert mount_drive(LOCAL, True) is mount_drive(COLAB, False) is browser_files(LOCAL) is None
    assert not capsys.readouterr().out
    assert mount_drive(replace(LOCAL, place="kaggle"), True) is None
    assert "Persistence > Files only" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "google.colab", None)  # an editor attached to such a machine
    assert mount_drive(COLAB, True) is browser_files(COLAB) is None
    assert "No Google Drive (" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_is_a_question_and_the_second_is_obeyed(number):
    before = signal.signal(number, signal.default_int_handler)
    try:
        dropped = StopRequests().__enter__()
        with StopRequests() as stop:
            dropped.__exit__()  # of a loop that was never closed
            os.kill(os.getpid(), number)
            assert stop.asked and not dropped.asked
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)


def test_other_threads_leave_signals_alone():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work():
        with StopRequests() as stop:
            seen.extend([signal.getsignal(signal.SIGINT), stop.asked])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before, False]


def test_memory_of_a_broken_step_is_given_back():
    held = []

    class Held:
        def __del__(self):
            held.append("freed")

    def step():
        activations = Held()
        raise ValueError(str(activations))

    try:
        step()
    except ValueError as error:
        free_memory(error)
        assert held == ["freed"]


def test_one_process_is_the_first_and_imports_no_accelerate(capsys):
    alone = processes()
    assert alone.first and alone.count == 1 and alone.rows(3) == slice(0, 3)
    assert alone.any(True) and not alone.any(False) and alone.broadcast("a") == "a"
    assert list(progress(range(3), desc="Steps")) == [0, 1, 2]
    assert "Steps" in capsys.readouterr().err
