"""A tiny model that changes what it is given, and a folder of every kind of picture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers import config as settings
from helpers.model import SplatEnhancer, export
from tests.runs import PROMPT, TINY


@pytest.fixture(scope="session")
def enhancer() -> SplatEnhancer:
    """Untrained, but with skips that are heard: no output equals its input."""
    config = settings.preset("demo").with_(TINY)
    model = SplatEnhancer.from_pretrained(config.model, device="cpu", prompt_embedding=PROMPT)
    with torch.no_grad():
        for skip in model.skips:
            skip.weight.fill_(0.01)
    return model.eval()


@pytest.fixture(scope="session")
def exported(enhancer: SplatEnhancer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as an export."""
    config = settings.preset("demo").with_(TINY)
    return export(enhancer, config, tmp_path_factory.mktemp("export") / "enhancer")
