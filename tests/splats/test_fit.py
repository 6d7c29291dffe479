"""Underfitted splats: closer with effort, and reproducible."""

import pytest
import torch
import torch.nn.functional as F

from helpers.faces.avatars import render_avatar
from helpers.splats.fit import fit_splats

FACES = torch.stack([render_avatar(seed, 32)[0] for seed in range(3)])
SEEDS = torch.tensor([5, 6, 7])


def distance(count, steps):
    return float((fit_splats(FACES, count, steps, seeds=SEEDS) - FACES).abs().mean())


def test_more_steps_and_gaussians_come_closer_and_no_step_returns_the_start():
    far = [distance(60, steps) for steps in (0, 6, 20)]
    assert far[0] > 1.5 * far[1] > 1.5 * 1.2 * far[2] > 0
    assert distance(10, 12) > 1.2 * distance(200, 12)
    start = fit_splats(FACES, 60, 0, seeds=SEEDS)
    grey = FACES.mean((2, 3), keepdim=True).expand_as(FACES)
    assert not torch.equal(start, grey) and F.l1_loss(start, grey) < F.l1_loss(start, FACES) / 2


def test_a_render_follows_from_its_seed_alone_and_leaves_all_else_as_it_was():
    clean, before = FACES.clone().requires_grad_(), torch.get_rng_state()
    with torch.no_grad():
        together = fit_splats(clean, 40, 4, seeds=SEEDS)
    assert torch.equal(clean, FACES) and clean.grad is None and not together.requires_grad
    assert torch.equal(torch.get_rng_state(), before)
    alone = [fit_splats(FACES[i:i + 1], 40, 4, seeds=SEEDS[i:i + 1]) for i in (2, 0, 1)]
    assert torch.equal(together[[2, 0, 1]], torch.cat(alone))
    assert not torch.equal(together, fit_splats(FACES, 40, 4, seeds=SEEDS + 1))


@pytest.mark.parametrize("image", [torch.zeros(1, 3, 16, 40), torch.ones(1, 3, 40, 16),
                                   torch.rand(1, 3, 1, 1), FACES[:1].flip(-1).mT])
def test_renders_are_float_pictures_of_the_same_shape_in_range(image):
    found = fit_splats(image, 7, 3, seeds=SEEDS[:1])
    assert found.shape == image.shape and found.dtype == torch.float32 and found.is_contiguous()
    assert found.min() >= 0 and found.max() <= 1
