"""Where am I, which preset, which packages, where to keep things."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from helpers.__main__ import ROOT
from helpers.machine import drive, packages, runtime
from helpers.machine.runtime import Runtime

LOCAL = Runtime(place="local", device=torch.device("cpu"), dtype=torch.float32, gpu=None,
                gpu_gib=0.0, ram_gib=12.7, disk_free_gib=70.0)
COLAB_T4 = replace(LOCAL, place="colab", gpu="Tesla T4", gpu_gib=14.6)


@pytest.mark.parametrize(("variables", "place"), [
    ({}, "local"),
    ({"COLAB_RELEASE_TAG": "r"}, "colab"),
    ({"COLAB_RELEASE_TAG": "r", "KAGGLE_KERNEL_RUN_TYPE": "Interactive"}, "kaggle"),
    ({"COLAB_RELEASE_TAG": "r", "KAGGLE_USERNAME": "someone", "KAGGLE_KEY": "key"}, "colab"),
    ({"COLAB_RELEASE_TAG": "r", "KAGGLEHUB_CACHE": "/root/.cache", "KAGGLEHUB_VERBOSITY": "info"},
     "colab"),
])
def test_place_follows_from_the_environment(monkeypatch, variables, place):
    for name in [n for n in os.environ if n.startswith(("KAGGLE", "COLAB"))]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delattr(os, "sysconf", raising=False)  # Windows has none
    machine = runtime.detect()
    assert machine.place == place and machine.ram_gib > 0.5 and machine.disk_free_gib > 0


def test_every_gpu_works_in_the_precision_that_comes_closest(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert runtime._dtype(torch.device("cuda")) is torch.float16
    assert all(runtime._dtype(torch.device(kind)) is torch.float32 for kind in ("cpu", "mps"))


def test_device_is_the_fastest_one_that_can_add(monkeypatch, capsys):
    real_ones = torch.ones
    def choose(cuda, mps):
        def ones(count, device):
            answer = {"cuda": cuda, "mps": mps}[device.type]
            if answer is None:
                raise RuntimeError("no kernel image")
            return real_ones(count) * answer
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda != "absent")
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps != "absent")
        monkeypatch.setattr(torch, "ones", ones)
        found = runtime._device()
        return str(found), capsys.readouterr().out
    assert choose(1, 1) == ("cuda", "") and choose("absent", 1) == ("mps", "")
    assert choose("absent", "absent") == ("cpu", "")
    chosen, told = choose(None, 1)
    assert chosen == "mps" and "(cuda)" in told and "no kernel image" in told
    chosen, told = choose("absent", 0)  # an MPS that answers, wrongly
    assert chosen == "cpu" and "(mps)" in told and "gave 0.0" in told


def test_a_launched_process_has_the_gpu_of_its_number(monkeypatch):
    real_ones, asked = torch.ones, []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", asked.append)
    monkeypatch.setattr(torch, "ones", lambda count, device: real_ones(count))
    for name, number in (("RANK", 3), ("WORLD_SIZE", 4), ("LOCAL_RANK", 1)):
        monkeypatch.setenv(name, str(number))
    assert str(runtime._device()) == "cuda:1" and asked == [1]
    monkeypatch.setenv("WORLD_SIZE", "1")  # one alone has what torch gives it
    assert str(runtime._device()) == "cuda" and asked == [1]


@pytest.mark.parametrize(("requested", "gpu_gib", "name", "why"), [
    ("auto", 14.6, "t4", "14.6 GiB"), ("auto", 0.0, "demo", "no CUDA GPU"),
    ("auto", 8.0, "demo", "only 8.0 GiB"), ("full", 0.0, "full", "you asked for it"),
    ("demo", 14.6, "demo", "you asked for it"),
])
def test_preset_is_chosen_with_a_reason(requested, gpu_gib, name, why):
    chosen, reason = runtime.choose_preset(requested, replace(LOCAL, gpu_gib=gpu_gib))
    assert chosen == name and why in reason
    with pytest.raises(ValueError, match="expected one of"):
        runtime.choose_preset("huge", COLAB_T4)


def test_colab_and_kaggle_get_distances_and_lose_old_torchao_and_nothing_else_changes(monkeypatch):
    monkeypatch.delitem(sys.modules, "peft", raising=False)
    calls, have = [], {"lpips": "0.1.4", "stlpips-pytorch": "0.0.2"}
    def prepare(place, versions):
        calls.clear()
        return packages.prepare_packages(place, installed=versions,
                                         run=lambda command, **_: calls.append(command[3:]))
    for place in ("colab", "kaggle"):
        assert len(prepare(place, {"torchao": "0.10.0"}.get)) == 3
        assert calls == [["install", "--no-deps", "lpips==0.1.4"],
                         ["install", "--no-deps", "stlpips-pytorch==0.0.2"],
                         ["uninstall", "--yes", "torchao"]]
        assert prepare(place, (have | {"torchao": "0.16.0"}).get) == calls == []
    assert prepare("local", lambda name: "0.10.0") == calls == []
    monkeypatch.setitem(sys.modules, "peft", SimpleNamespace())
    with pytest.raises(RuntimeError, match="restart the session"):
        prepare("colab", (have | {"torchao": "0.10.0"}).get)


def test_local_machine_without_a_package_is_told_what_to_run():
    def installed(name):
        return None if name in ("lpips", "peft") else "1.0"
    with pytest.raises(RuntimeError, match=r'got no peft, lpips; run .*" -m pip install -r '):
        packages.prepare_packages("local", installed=installed)


@pytest.mark.parametrize("name", ["torch", "psutil", "packaging.version"])
def test_local_machine_without_the_first_packages_is_told_the_same(name):
    code = f"import sys; sys.modules[{name!r}] = None; from helpers import machine"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True,
                          encoding="utf-8")
    assert done.returncode == 1
    assert re.search(rf'got no {name}; run ".*" -m pip install -r ".*requirements.txt"',
                     done.stderr.splitlines()[-1])


def test_a_package_that_only_some_need_is_named_with_the_command_that_brings_it(monkeypatch):
    assert packages.needed("json", "read") is json
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"^package av: expected .*videos, got 'none'; run .* "
                                         r"-m pip install av$"):
        packages.needed("av", "read videos")


@pytest.mark.parametrize("variable", ["COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"])
def test_such_a_package_is_brought_where_nobody_can_know_that_it_lacks(monkeypatch, tmp_path,
                                                                      capsys, variable):
    commands = []

    def run(command, **_):
        commands.append(command[1:])
        (tmp_path / "brought.py").write_text("A = 1")

    monkeypatch.setenv(variable, "x")
    monkeypatch.syspath_prepend(tmp_path)
    assert packages.needed("brought", "read films", run=run).A == 1
    assert packages.needed("brought", "read films", run=run).A == 1
    assert commands == [["-m", "pip", "install", "brought"]]
    assert capsys.readouterr().out == "Installing brought, to read films.\n"
    sys.modules.pop("brought")


def test_pip_without_a_network_names_the_setting_that_kaggle_leaves_off():
    def run(command, **_):
        raise subprocess.CalledProcessError(1, command, stderr="No matching distribution found")
    with pytest.raises(RuntimeError, match=r"No matching .* Settings > Internet"):
        packages.prepare_packages("kaggle", run=run, installed=lambda name: None)


def test_drive_is_left_alone_elsewhere_and_when_not_wanted(capsys):
    assert drive.mount_drive(LOCAL, True) is drive.mount_drive(COLAB_T4, False) is None
    assert not capsys.readouterr().out
    assert drive.mount_drive(replace(LOCAL, place="kaggle"), True) is None
    assert "Persistence > Files only" in capsys.readouterr().out


def test_each_place_has_its_own_folder(monkeypatch, tmp_path):
    assert runtime.HOMES["kaggle"].as_posix() == "/kaggle/working"
    assert runtime.HOMES["colab"].as_posix() == "/content/splat_enhancer"
    monkeypatch.setattr(runtime, "HOMES", {place: tmp_path / place for place in runtime.HOMES})
    for place in runtime.HOMES:
        assert runtime.workspace(replace(LOCAL, place=place)) == tmp_path / place


def test_workspace_is_created_or_refused_and_report_is_two_lines(tmp_path):
    assert runtime.workspace(LOCAL, tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeError, match="pass another root"):
        runtime.workspace(LOCAL, tmp_path / "file")
    above, below = runtime.report(COLAB_T4, "t4", "you asked for it").split("\n")
    assert "Tesla T4 14.6 GiB" in above and below == "preset 't4': you asked for it"
