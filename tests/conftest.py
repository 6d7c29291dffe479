"""A tiny base, tiny faces and a tiny run that the tests share; in which order files are run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # one core each, for what a test starts, too
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from helpers import config as settings
from helpers.distances.losses import EnhancerLoss
from helpers.faces import data
from helpers.model.enhancer import SplatEnhancer
from tests.runs import PROMPT, TINY

HERE = Path(__file__).parent
LONGEST_FIRST = ("storage/test_hub.py", "notebook/test_browser.py", "training/test_survival.py",
                 "notebook/test_runs.py", "machine/test_colab.py", "model/test_exports.py",
                 "model/test_tiny_base.py", "faces/test_store.py", "checkpoints/test_publisher.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take minutes, so that no core waits for another at the end."""
    begin = {HERE / name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: begin.get(item.path, len(begin)))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how to run a part, above pytest's own last line."""
    rooms = sorted(folder.parent.name for folder in HERE.glob("*/__init__.py"))
    terminalreporter.write_line(f"\nOne room's tests: make test ROOM={rooms[0]} (or "
                                f"{', '.join(rooms[1:])})")


@pytest.fixture
def config() -> settings.Config:
    """Of a tiny, quick run."""
    return settings.preset("demo").with_(TINY)


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> data.Faces:
    """Six avatars to train on and two to test with, 64 pixels."""
    small = settings.preset("demo").with_(TINY).data
    return data.prepare(small, tmp_path_factory.mktemp("faces"), progress=None)


@pytest.fixture
def build(config: settings.Config):
    """A function that builds the same fresh model each time, and its loss."""
    def fresh(dtype: torch.dtype = torch.float32,
              seed: int = 0) -> tuple[SplatEnhancer, EnhancerLoss]:
        model = SplatEnhancer.from_pretrained(config.model, device="cpu", dtype=dtype,
                                              prompt_embedding=PROMPT, seed=seed)
        return model, EnhancerLoss(config.loss, device="cpu")
    return fresh
