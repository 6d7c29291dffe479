"""Degradation: identity, effect, range, independence, confinement, scale, refusals."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from helpers.config import DegradeConfig
from helpers.degrade import REGIONS, STAGES, degrade, sample_strengths, stages, variation_mask

AMOUNTS = [name for stage in STAGES for name in stage.amounts]
ZERO = DegradeConfig(**dict.fromkeys(AMOUNTS, 0.0))


def make_faces(count=3, height=64, width=64):
    """Smooth colours with a fine texture, and a map that holds every region as a band."""
    noise = torch.Generator().manual_seed(0)
    smooth = F.interpolate(torch.rand(count, 3, 7, 7, generator=noise), (height, width))
    clean = 0.7 * smooth + 0.3 * torch.rand(count, 3, height, width, generator=noise)
    bands = torch.arange(height)[:, None] * 6 // height
    return clean, bands.expand(count, height, width).to(torch.uint8), torch.arange(count) + 5


def only(name, amount=1.0):
    return dataclasses.replace(ZERO, **{name: amount})


def test_every_amount_of_the_config_drives_a_stage():
    fields = {entry.name for entry in dataclasses.fields(DegradeConfig)}
    assert fields - set(AMOUNTS) == {"strength", "strength_min", "variation"}


@pytest.mark.parametrize("settings", [ZERO, DegradeConfig(strength=0.0, strength_min=0.0)])
def test_zero_amounts_or_zero_strength_is_bit_exact_identity(settings):
    clean, regions, seeds = make_faces()
    assert torch.equal(degrade(clean, regions, settings, seeds), clean)


@pytest.mark.parametrize("name", AMOUNTS)
def test_each_amount_alone_changes_the_image_within_range_and_leaves_the_input(name):
    clean, regions, seeds = make_faces()
    before = clean.clone()
    slight, full = (degrade(clean, regions, only(name, amount), seeds) for amount in (0.2, 1.0))
    assert (full - clean).abs().amax((1, 2, 3)).min() > 0.01 and torch.equal(clean, before)
    assert 0 < (slight - clean).abs().mean() < (full - clean).abs().mean()
    assert full.shape == clean.shape and full.dtype == clean.dtype
    assert full.min() >= 0 and full.max() <= 1


@pytest.mark.parametrize("settings", [DegradeConfig(), *map(only, AMOUNTS)])
def test_a_sample_is_bit_equal_alone_and_in_any_batch(settings):
    clean, regions, seeds = make_faces()
    together = degrade(clean, regions, settings, seeds)
    for order in ([2, 0], [1]):
        again = degrade(clean[order], regions[order], settings, seeds[order])
        assert torch.equal(again, together[order])


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (7, 13), (1, 1), (300, 270)])
def test_any_size_is_accepted_and_another_seed_gives_another_image(size):
    clean, regions, seeds = make_faces(1, *size)
    first, second = (degrade(clean, regions, DegradeConfig(), seeds + k) for k in (0, 1))
    assert first.shape == clean.shape and not torch.equal(first, second)


@pytest.mark.parametrize("name", ["brightness", "color_jitter", "noise"])
def test_a_stage_draws_the_same_numbers_whatever_the_others_do(name):
    grey, regions, seeds = torch.full((1, 3, 64, 64), 0.5), *make_faces(1)[1:]
    others = dict.fromkeys(("skin", "warp", "blur", "blocks"), 1.0)  # they leave grey as it is
    crowd = dataclasses.replace(only(name, 0.1), **others)
    alone = degrade(grey, regions, only(name, 0.1), seeds)
    assert (degrade(grey, regions, crowd, seeds) - alone).abs().max() < 5e-3


@pytest.mark.parametrize("region", REGIONS)
def test_a_region_amount_stays_in_its_feathered_mask(region):
    clean, _, seeds = make_faces(1, 128, 128)
    value = REGIONS.index(region)
    regions = torch.full((1, 128, 128), (value + 1) % 6, dtype=torch.uint8)
    regions[:, 40:88, 40:88] = value
    changed = (degrade(clean, regions, only(region), seeds) != clean).any(1)[0]
    assert changed[44:84, 44:84].float().mean() > 0.9
    changed[36:92, 36:92] = False
    assert not changed.any()


def test_stages_lead_from_clean_to_what_degrade_returns():
    clean, regions, seeds = make_faces(1)
    settings = DegradeConfig(strength=0.7, warp=0.0)
    pictures = stages(clean, regions, settings, int(seeds))
    assert list(pictures) == ["clean", *(stage.name for stage in STAGES), "degraded"]
    assert torch.equal(pictures["clean"], clean)
    assert torch.equal(pictures["warp"], pictures["regions"])
    assert torch.equal(pictures["degraded"], degrade(clean, regions, settings, seeds))


def test_strengths_are_drawn_by_seed_and_scale_the_damage():
    clean, regions, seeds = make_faces()
    settings = DegradeConfig(strength=0.8, strength_min=0.5)
    drawn = sample_strengths(settings, torch.arange(500))
    assert 0.4 <= drawn.min() < 0.41 and 0.79 < drawn.max() <= 0.8
    assert torch.equal(drawn[7:9], sample_strengths(settings, torch.tensor([7, 8])))
    damage = [(degrade(clean, regions, DegradeConfig(), seeds, strengths=torch.full((3,), s))
               - clean).square().mean() for s in (0.0, 0.3, 0.6, 1.0)]
    assert damage[0] == 0 and damage == sorted(damage)


def test_variation_mask_is_patchy_per_region_and_flat_without_contrast():
    _, regions, seeds = make_faces(2)
    mask, other = (variation_mask((regions + k) % 6, DegradeConfig(variation=1.0), seeds)
                   for k in (0, 1))
    assert mask.shape == regions.shape and mask.min() >= 0 and mask.max() <= 1 and mask.std() > 0.2
    assert (mask != other).float().mean() > 0.99 and not torch.equal(mask[0], mask[1])
    assert (variation_mask(regions, DegradeConfig(variation=0.0), seeds) == 1).all()


def test_a_seed_looks_alike_at_two_sizes():
    large = F.interpolate(make_faces(1, 16, 16)[0], (256, 256), mode="bilinear")
    small, seeds = F.avg_pool2d(large, 4), torch.tensor([9])
    fine, coarse = (degrade(image, torch.ones_like(image[:, 0], dtype=torch.uint8),
                            DegradeConfig(), seeds) for image in (large, small))
    assert (F.avg_pool2d(fine, 4) - coarse).abs().mean() < 0.4 * (coarse - small).abs().mean()


@pytest.mark.parametrize(("change", "message"), [
    (lambda c, r, s: (c[0], r, s), "clean: expected float32"),
    (lambda c, r, s: (c[:, :1], r, s), "clean: expected float32"),
    (lambda c, r, s: (c.half(), r, s), "clean: expected float32"),
    (lambda c, r, s: (c[:0], r[:0], s[:0]), "clean: expected float32"),
    (lambda c, r, s: (c + 1, r, s), "clean: expected finite values"),
    (lambda c, r, s: (c - 1, r, s), "clean: expected finite values"),
    (lambda c, r, s: (c * float("nan"), r, s), "clean: expected finite values"),
    (lambda c, r, s: (c, r[:, :-1], s), "regions: expected"),
    (lambda c, r, s: (c, r.long(), s), "regions: expected uint8"),
    (lambda c, r, s: (c, r + 1, s), "regions: expected values 0 to 5"),
    (lambda c, r, s: (c, r, s[:-1]), "seeds: expected int64"),
    (lambda c, r, s: (c, r, s.float()), "seeds: expected int64"),
    (lambda c, r, s: (c, r, s, torch.ones(3, 1)), "strengths: expected 3 values"),
    (lambda c, r, s: (c, r, s, torch.full((3,), 1.5)), "strengths: expected 3 values"),
])
def test_bad_input_raises_one_clear_error(change, message):
    clean, regions, seeds, *strengths = change(*make_faces())
    with pytest.raises(ValueError, match=message):
        degrade(clean, regions, DegradeConfig(), seeds, strengths=next(iter(strengths), None))
