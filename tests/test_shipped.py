"""The enhancer that comes with the package, as users meet it."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import interpolate

from splat_enhancer.data.pairs import load_novel_views
from splat_enhancer.losses.metrics import psnr
from splat_enhancer.losses.perceptual import load_stlpips
from splat_enhancer.model.export import load, read

# Of the mean change of the same head at 128 and 256 px
SIZE_RATIO = 1.5


@pytest.fixture(scope="module")
def shipped():
    return load()


@pytest.fixture(scope="module")
def pairs():
    stored = load_novel_views("test", 128)
    return stored.load(range(0, len(stored), max(1, len(stored) // 8)))


def test_shipped_enhancer_is_named_nowhere_and_says_where_it_comes_from(shipped):
    card, _ = read(None)
    assert card["model"]["pretrained_model_name_or_path"] == "tiny-restorer"
    assert card["training"]["steps"] > 0


def test_shipped_enhancer_improves_heads_that_it_was_not_trained_on(shipped, pairs):
    degraded, clean = pairs
    alex = load_stlpips("alex")
    restored = shipped.enhance(degraded)
    with torch.no_grad():
        before, after = (alex(images, clean, normalize=True).mean()
                         for images in (degraded, restored))
    assert after < 0.85 * before
    assert psnr(restored, clean).mean() > psnr(degraded, clean).mean()


def test_shipped_enhancer_leaves_clean_pictures_as_they_are(shipped, pairs):
    _, clean = pairs
    assert psnr(shipped.enhance(clean), clean).mean() > 40


def test_shipped_enhancer_changes_a_head_alike_at_two_sizes(shipped, pairs):
    small = pairs[0][:2]
    large = interpolate(small, scale_factor=2, mode="bicubic").clamp(0, 1)
    changes = [float((shipped.enhance(images) - images).abs().mean()) for images in (small, large)]
    assert max(changes) < SIZE_RATIO * min(changes)


def test_shipped_enhancer_restores_in_half_precision_as_on_a_gpu(shipped, pairs):
    degraded = pairs[0][:2]
    half = load(dtype=torch.float16).enhance(degraded)
    assert (half - shipped.enhance(degraded)).abs().max() < 0.02
