"""Degradation: identity, effect, range, independence, confinement, scale, preview, refusals."""

import dataclasses
import random

import pytest
import torch
import torch.nn.functional as F

from helpers.config import DegradeConfig
from helpers.degradation import pipeline
from helpers.degradation.pipeline import AMOUNTS, STAGES, Preview, degrade, draw_amounts
from helpers.faces.regions import REGIONS

ZERO = DegradeConfig(**dict.fromkeys(AMOUNTS, 0.0))


def make_faces(count=3, height=64, width=64):
    """Smooth colours with a fine texture; on an oval, a map holds every region as a band."""
    noise = torch.Generator().manual_seed(0)
    smooth = F.interpolate(torch.rand(count, 3, 7, 7, generator=noise), (height, width))
    clean = 0.7 * smooth + 0.3 * torch.rand(count, 3, height, width, generator=noise)
    ys, xs = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width),
                            indexing="ij")
    bands = (1 + torch.arange(height)[:, None] * 5 // height) * (ys**2 + xs**2 < 0.7)
    return clean, bands.expand(count, -1, -1).to(torch.uint8), torch.arange(count) + 5


def only(name, amount=1.0):
    return dataclasses.replace(ZERO, **{name: amount})


def draw_mixed_amounts(count):
    """Amounts of which about a third are 0."""
    drawn = torch.rand(count, len(AMOUNTS), generator=torch.Generator().manual_seed(1))
    return (1.5 * drawn - 0.5).clamp(min=0)


@pytest.fixture
def calls(monkeypatch):
    """Names of the stages applied, and the length of their batch, in order."""
    seen = []

    def watched(stage):
        def apply(image, *rest):
            seen.append((stage.name, len(image)))
            return stage.apply(image, *rest)
        return dataclasses.replace(stage, apply=apply)
    monkeypatch.setattr(pipeline, "STAGES", tuple(map(watched, STAGES)))
    return seen


def test_every_amount_of_the_config_drives_one_stage():
    fields = {entry.name for entry in dataclasses.fields(DegradeConfig)}
    others = {"strength", "strength_min", "amount_min", "clean_share", "variation"}
    assert fields - set(AMOUNTS) == others and len(set(AMOUNTS)) == len(AMOUNTS)


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


@pytest.mark.parametrize("settings", [None, DegradeConfig(), *map(only, AMOUNTS)])
@pytest.mark.parametrize("size", [(64, 64), (7, 13)])
def test_a_sample_is_bit_equal_alone_and_in_any_batch(settings, size):
    clean, regions, seeds = make_faces(3, *size)

    def degraded(order):  # without settings each has amounts of its own
        own = None if settings else draw_mixed_amounts(3)[order]
        return degrade(clean[order], regions[order], settings or DegradeConfig(), seeds[order],
                       amounts=own)
    together = degraded([0, 1, 2])
    assert all(torch.equal(degraded(order), together[order]) for order in ([2, 0], [1]))


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (7, 13), (1, 1), (300, 270)])
def test_a_batch_of_any_size_at_once_as_on_a_gpu_is_close_to_its_samples_alone(size):
    clean, regions, seeds = make_faces(3, *size)
    for stage in STAGES:
        amounts = draw_mixed_amounts(3) * torch.tensor([a in stage.amounts for a in AMOUNTS])
        amounts[1] = 0
        batch = pipeline.degrade_batch(clean, regions, amounts, 0.7, seeds.tolist())
        alone = degrade(clean, regions, DegradeConfig(variation=0.7), seeds, amounts=amounts)
        torch.testing.assert_close(batch, alone, atol=2e-5, rtol=0)
        assert torch.equal(batch[1], clean[1])
    first, second = (degrade(clean, regions, DegradeConfig(), seeds + k) for k in (0, 1))
    assert first.shape == clean.shape and not torch.equal(first, second)


def test_stages_that_no_sample_uses_are_skipped_and_the_cpu_goes_one_by_one(calls):
    clean, regions, seeds = make_faces()
    degrade(clean, regions, dataclasses.replace(ZERO, warp=0.5, noise=0.5), seeds)
    assert calls == [("warp", 1), ("noise", 1)] * 3  # what one image needs is freed for the next


def test_images_in_any_memory_layout_are_degraded_alike():
    clean, regions, seeds = make_faces()
    strided = clean.contiguous(memory_format=torch.channels_last)
    expected = degrade(clean, regions, DegradeConfig(), seeds)
    assert torch.equal(degrade(strided, regions, DegradeConfig(), seeds), expected)
    one = degrade(clean[:1].expand(3, -1, -1, -1), regions, DegradeConfig(), seeds)
    assert torch.equal(one[0], expected[0]) and not torch.equal(one[1], expected[1])


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


def test_a_preview_leads_from_clean_to_degraded_whatever_was_moved_before():
    clean, regions, _ = make_faces(1, 40, 32)
    dice, preview = random.Random(3), Preview(clean, regions)
    settings, seed = DegradeConfig(strength=0.7, warp=0.0), 0
    pictures = preview(settings, seed)
    assert list(pictures) == ["clean", *(stage.name for stage in STAGES), "degraded"]
    assert torch.equal(pictures["clean"], clean)
    assert torch.equal(pictures["warp"], pictures["splat"])
    for _ in range(12):
        name = dice.choice([*AMOUNTS, "strength", "variation", "seed"])
        if name == "seed":
            seed = dice.randrange(3)
        else:
            settings = dataclasses.replace(settings, **{name: dice.choice([0.0, 0.4, 1.0])})
        moved, fresh = preview(settings, seed), Preview(clean, regions)(settings, seed)
        assert list(moved) == list(fresh)
        assert all(torch.equal(moved[key], fresh[key]) for key in fresh)
    assert torch.equal(moved["degraded"],
                       degrade(clean, regions, settings, torch.tensor([seed])))


def test_a_preview_computes_only_from_the_first_change_on(calls):
    preview, settings = Preview(*make_faces(1)[:2]), DegradeConfig()
    names = [stage.name for stage in STAGES]

    def computed(settings, seed=0):
        calls.clear()
        preview(settings, seed)
        return [name for name, _ in calls]
    assert computed(settings) == names and computed(settings) == []
    for stage in STAGES:
        moved = dataclasses.replace(settings, **{stage.amounts[-1]: 0.9})
        assert computed(moved) == names[names.index(stage.name):]
        computed(settings)
    varied = dataclasses.replace(settings, variation=0.1)
    assert computed(varied) == names[names.index("regions"):]
    assert computed(varied, seed=1) == names
    assert computed(dataclasses.replace(varied, strength=0.9), seed=1) == names
    assert computed(dataclasses.replace(ZERO, noise=0.5), seed=1) == ["noise"]
    assert computed(dataclasses.replace(ZERO, noise=0.5, variation=1.0), seed=1) == []


def test_training_amounts_lie_in_their_ranges_and_follow_from_the_seed_alone():
    settings = DegradeConfig(strength=0.8, strength_min=0.5, amount_min=0.25, clean_share=0.0)
    drawn = draw_amounts(settings, torch.arange(2_000))
    shares = drawn / torch.tensor([getattr(settings, name) for name in AMOUNTS])
    assert shares.min() >= 0.8 * 0.5 * 0.25 and shares.max() <= 0.8 + 1e-6
    assert shares.amax(1).min() > 0.8 * 0.5 * 0.5 and shares.max() > 0.75
    assert 0.25 <= (shares.amin(1) / shares.amax(1)).min() < 0.3
    assert torch.equal(drawn[7:9], draw_amounts(settings, torch.tensor([7, 8])))
    fixed = dataclasses.replace(settings, strength_min=1.0, amount_min=1.0)
    expected = torch.tensor([0.8 * getattr(fixed, name) for name in AMOUNTS]).expand(3, -1)
    torch.testing.assert_close(draw_amounts(fixed, torch.arange(3)), expected)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 1.0])
def test_the_share_of_clean_training_samples_is_the_settings(share):
    drawn = draw_amounts(DegradeConfig(clean_share=share), torch.arange(2_000))
    clean = (drawn == 0).all(1).float().mean()
    assert abs(clean - share) <= 4 * (share * (1 - share) / 2_000) ** 0.5
    assert ((drawn == 0).all(1) | (drawn > 0).all(1)).all()


def test_larger_amounts_do_more_damage():
    clean, regions, seeds = make_faces()
    full = torch.tensor([getattr(DegradeConfig(), name) for name in AMOUNTS]).expand(3, -1)
    damage = [(degrade(clean, regions, DegradeConfig(), seeds, amounts=share * full)
               - clean).square().mean() for share in (0.0, 0.3, 0.6, 1.0)]
    assert damage[0] == 0 and damage == sorted(damage)


def test_variation_mask_is_patchy_per_region_and_flat_without_contrast():
    _, regions, seeds = make_faces(2)
    mask, other = (pipeline.variation_mask((regions + k) % 6, DegradeConfig(variation=1.0), seeds)
                   for k in (0, 1))
    assert mask.shape == regions.shape and mask.min() >= 0 and mask.max() <= 1 and mask.std() > 0.2
    assert (mask != other).float().mean() > 0.99 and not torch.equal(mask[0], mask[1])
    assert (pipeline.variation_mask(regions, DegradeConfig(variation=0.0), seeds) == 1).all()


def test_a_seed_looks_alike_at_two_sizes():
    large = F.interpolate(make_faces(1, 16, 16)[0], (256, 256), mode="bilinear")
    small, seeds = F.avg_pool2d(large, 4), torch.tensor([9])
    fine, coarse = (degrade(image, torch.ones_like(image[:, 0], dtype=torch.uint8),
                            DegradeConfig(), seeds) for image in (large, small))
    assert (F.avg_pool2d(fine, 4) - coarse).abs().mean() < 0.5 * (coarse - small).abs().mean()


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
])
def test_bad_input_raises_one_clear_error(change, message):
    clean, regions, seeds = change(*make_faces(1))
    with pytest.raises(ValueError, match=message):
        degrade(clean, regions, DegradeConfig(), seeds)
    if "seeds" not in message:
        with pytest.raises(ValueError, match=message):
            Preview(clean, regions)


def test_a_preview_is_of_one_image():
    with pytest.raises(ValueError, match="clean: expected one image"):
        Preview(*make_faces()[:2])
