"""A tiny base, tiny faces and a tiny run that the tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers import config as settings
from helpers.distances.losses import EnhancerLoss
from helpers.faces import data
from helpers.model.enhancer import SplatEnhancer

GOLDEN = Path(__file__).parent / "fixtures" / "golden" / "base"


@pytest.fixture
def config() -> settings.Config:
    """Eight steps on 64-pixel avatars and a random base, with no VGG to wait for."""
    return settings.preset("demo").with_({
        "data.size_px": 64, "data.train_images": 6, "data.test_images": 2,
        "pairs.drawn": 1.0, "pairs.fitted": 0.0, "pairs.rendered": 0.0,
        "model.base": str(GOLDEN), "loss.lpips": 0.0, "loss.gram": 0.0,
        "optim.steps": 8, "optim.learning_rate": 1e-3, "optim.warmup_steps": 2,
        "run.name": "test", "run.save_every_steps": 3,
    })


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> data.Faces:
    """Six avatars to train on and two to test with, 64 pixels."""
    small = settings.DataConfig(size_px=64, train_images=6, test_images=2)
    return data.prepare(small, tmp_path_factory.mktemp("faces"), progress=None)


@pytest.fixture
def build(config: settings.Config):
    """A function that builds the same fresh model each time, and its loss."""
    def fresh(dtype: torch.dtype = torch.float32) -> tuple[SplatEnhancer, EnhancerLoss]:
        model = SplatEnhancer.from_pretrained(config.model, device="cpu", dtype=dtype,
                                              prompt_embedding=torch.zeros(1, 77, 32))
        return model, EnhancerLoss(config.loss, device="cpu")
    return fresh
