"""Out of memory: a step is taken again leanly, and nothing of the failed try stays."""

from __future__ import annotations

import gc
import sys
import weakref

import pytest
import torch

from helpers.machine import memory
from helpers.training.loop import train
from tests.runs import run, states_differ

ROOM = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 14.56 GiB"


class FullGPU:
    """A loss for which a GPU has no room at some of its calls; it sees what is kept of them."""

    def __init__(self, loss, calls, error=torch.OutOfMemoryError, said=ROOM, backward=False):
        self.loss, self.calls, self.count = loss, calls, 0
        self.error, self.said, self.backward = error, said, backward
        self.pictures = []

    def __call__(self, restored, clean, **options):
        self.count += 1
        terms = self.loss(restored, clean, **options)
        if self.count in self.calls:
            self.pictures.append(weakref.ref(restored))
            if not self.backward:
                raise self.error(self.said)
            restored.register_hook(self.fail)
        return terms

    def fail(self, _):
        raise self.error(self.said)

    def kept(self):
        gc.collect()
        return [picture for picture in self.pictures if picture() is not None]


@pytest.mark.parametrize(("changes", "calls", "options"), [
    ({}, {2}, {"error": RuntimeError, "said": "CUBLAS_STATUS_ALLOC_FAILED when calling"}),
    ({"optim.accumulate": 2}, {4}, {"backward": True})])
def test_a_step_that_does_not_fit_is_taken_again_leanly_with_equal_results(
        config, build, faces, tmp_path, capsys, changes, calls, options):
    config = config.with_({"optim.steps": 3} | changes)
    run(config, build, faces, tmp_path / "whole")
    model, loss = build()
    full = FullGPU(loss, calls, **options)
    seen = []
    for record in train(config, model, faces, full, folder=tmp_path / "full"):
        seen.append(record.step)
        assert not full.kept()
    assert seen == list(range(1, config.optim.steps + 1)) and model.lean_memory
    said = [line for line in capsys.readouterr().out.splitlines() if "did not fit" in line]
    assert len(said) == 1 and "changes no result" in said[0]
    assert states_differ(tmp_path / "whole", tmp_path / "full") == []


@pytest.mark.parametrize(("asked", "remedy"), [
    ("auto", "with activations recomputed, got out of memory; halve optim.batch"),
    ("full", "in full memory, got out of memory; set optim.memory to 'lean', or halve")])
def test_where_no_way_fits_the_end_is_clear_and_nothing_is_held(config, build, faces, tmp_path,
                                                                asked, remedy):
    config = config.with_({"optim.memory": asked, "optim.steps": 3})
    model, loss = build()
    full = FullGPU(loss, range(3, 99), backward=True)
    with pytest.raises(torch.OutOfMemoryError, match=remedy) as raised:
        list(train(config, model, faces, full, folder=tmp_path))
    assert not full.kept() and raised.value.__context__ is None  # though the error is kept
    _, records = run(config.with_({"optim.batch": 1}), build, faces, tmp_path)
    assert records[0].step == 3


def test_another_error_is_not_taken_for_a_full_gpu(config, build, faces, tmp_path):
    model, loss = build()
    broken = FullGPU(loss, {1}, error=RuntimeError, said="shapes differ")
    with pytest.raises(RuntimeError, match="shapes differ"):
        list(train(config, model, faces, broken, folder=tmp_path))
    assert broken.count == 1 and not model.lean_memory


def test_what_the_last_error_of_a_notebook_holds_is_given_back(monkeypatch):
    class Activations:
        pass

    def step(held):
        kept = Activations()
        held.append(weakref.ref(kept))
        raise ZeroDivisionError

    def cell(held):
        try:
            step(held)
        except ZeroDivisionError as error:
            raise ValueError("what the user sees") from error

    held = []
    with pytest.raises(ValueError) as shown:
        cell(held)
    assert held[0]() is not None
    monkeypatch.setattr(sys, "last_value", shown.value, raising=False)
    memory.free_memory()
    assert held[0]() is None


def test_what_is_free_counts_the_cache_and_what_the_plan_will_count(monkeypatch):
    gib, cuda = 2**30, torch.device("cuda")
    for name, value in (("mem_get_info", (9 * gib, 15 * gib)), ("memory_reserved", 4 * gib),
                        ("memory_allocated", 3 * gib)):
        monkeypatch.setattr(torch.cuda, name, lambda _, value=value: value)
    assert memory.free_gib(cuda) == 10
    assert memory.free_gib(cuda, [torch.zeros(2**20)]) == 10  # it lies elsewhere
    assert memory.free_gib(torch.device("cpu")) == 0


@pytest.mark.parametrize(("system", "own", "expected"), [
    ("linux", {}, "expandable_segments:True"), ("win32", {}, None),
    ("linux", {"PYTORCH_ALLOC_CONF": "backend:native"}, None)])
def test_the_allocator_is_asked_for_growing_segments_unless_somebody_chose(
        monkeypatch, system, own, expected):
    environment = dict(own)
    monkeypatch.setattr(memory.os, "environ", environment)
    monkeypatch.setattr(memory.sys, "platform", system)
    memory.avoid_fragments()
    assert environment.get("PYTORCH_CUDA_ALLOC_CONF") == expected
