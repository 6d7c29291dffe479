"""Degradation: identity, effect, range, independence, confinement, scale, preview, presets."""

import dataclasses
import random

import pytest
import torch
import torch.nn.functional as F

from splat_enhancer.config import DegradationConfig
from splat_enhancer.degradation import effects, pipeline, splat_effects
from splat_enhancer.degradation.effects import REGIONS
from splat_enhancer.degradation.pipeline import (
    AMOUNTS,
    DEGRADATION_PRESETS,
    STAGES,
    Preview,
    degradation_preset,
    degrade,
    draw_amounts,
)

ZERO = DegradationConfig(**dict.fromkeys(AMOUNTS, 0.0))
NOT_AMOUNTS = {"strength", "strength_min", "amount_min", "clean_share", "variation"}


def make_faces(count=3, height=64, width=64):
    """Smooth colours with a fine texture; on an oval, a map holds every region as a band."""
    rng = torch.Generator().manual_seed(0)
    smooth = F.interpolate(torch.rand(count, 3, 7, 7, generator=rng), (height, width))
    clean = 0.7 * smooth + 0.3 * torch.rand(count, 3, height, width, generator=rng)
    ys, xs = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width),
                            indexing="ij")
    bands = (1 + torch.arange(height)[:, None] * 5 // height) * (ys**2 + xs**2 < 0.7)
    return clean, bands.expand(count, -1, -1).to(torch.uint8), torch.arange(count) + 5


def only(name, amount=1.0):
    return dataclasses.replace(ZERO, **{name: amount})


def draw_mixed_amounts(count):
    """Amounts of which about a third are 0."""
    numbers = torch.rand(count, len(AMOUNTS), generator=torch.Generator().manual_seed(1))
    return (1.5 * numbers - 0.5).clamp(min=0)


@pytest.fixture
def calls(monkeypatch):
    """Names of the stages applied, and the length of their batch, in order."""
    names = []

    def watched(stage):
        def apply(image, *rest):
            names.append((stage.name, len(image)))
            return stage.apply(image, *rest)
        return stage._replace(apply=apply)
    monkeypatch.setattr(pipeline, "STAGES", tuple(map(watched, STAGES)))
    return names


def test_every_amount_of_the_config_drives_one_stage():
    fields = {entry.name for entry in dataclasses.fields(DegradationConfig)}
    assert fields - set(AMOUNTS) == NOT_AMOUNTS and len(set(AMOUNTS)) == len(AMOUNTS)


@pytest.mark.parametrize("settings", [ZERO, DegradationConfig(strength=0.0, strength_min=0.0)])
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


@pytest.mark.parametrize("settings", [None, DegradationConfig()])
@pytest.mark.parametrize("size", [(64, 64), (7, 13)])
def test_a_sample_is_bit_equal_alone_and_in_any_batch(settings, size):
    clean, regions, seeds = make_faces(3, *size)

    def degraded(order):  # without settings each has amounts of its own
        amounts = None if settings else draw_mixed_amounts(3)[order]
        return degrade(clean[order], regions[order], settings or DegradationConfig(), seeds[order],
                       amounts=amounts)
    together = degraded([0, 1, 2])
    assert all(torch.equal(degraded(order), together[order]) for order in ([2, 0], [1]))


@pytest.mark.parametrize("size", [(64, 64), (7, 13), (1, 1), (300, 270)])
def test_a_batch_of_any_size_at_once_as_on_a_gpu_is_close_to_its_samples_alone(size):
    clean, regions, seeds = make_faces(3, *size)
    for stage in STAGES:
        amounts = draw_mixed_amounts(3) * torch.tensor([a in stage.amounts for a in AMOUNTS])
        amounts[1] = 0
        named = pipeline._named(amounts, 0.7, torch.device("cpu"))
        batch = pipeline._apply(stage, clean, regions, named, seeds.tolist())
        alone = degrade(clean, regions, DegradationConfig(variation=0.7), seeds, amounts=amounts)
        torch.testing.assert_close(batch, alone, atol=2e-5, rtol=0)
        assert torch.equal(batch[1], clean[1])


def test_stages_that_no_sample_uses_are_skipped_and_the_cpu_goes_one_by_one(calls):
    clean, regions, seeds = make_faces()
    degrade(clean, regions, dataclasses.replace(ZERO, warp=0.5, noise=0.5), seeds)
    assert calls == [("warp", 1), ("noise", 1)] * 3  # what one image needs is freed for the next


def test_images_in_any_memory_layout_are_degraded_alike():
    clean, regions, seeds = make_faces()
    strided = clean.contiguous(memory_format=torch.channels_last)
    expected = degrade(clean, regions, DegradationConfig(), seeds)
    assert torch.equal(degrade(strided, regions, DegradationConfig(), seeds), expected)
    same = degrade(clean[:1].expand(3, -1, -1, -1), regions, DegradationConfig(), seeds)
    assert torch.equal(same[0], expected[0]) and not torch.equal(same[1], expected[1])


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
    rng, preview = random.Random(3), Preview(clean, regions)
    settings, seed = DegradationConfig(strength=0.7, warp=0.0), 0
    pictures = preview(settings, seed)
    assert list(pictures) == ["clean", *(stage.name for stage in STAGES), "degraded"]
    assert torch.equal(pictures["clean"], clean)
    assert torch.equal(pictures["warp"], pictures["splat"])
    for _ in range(12):
        name = rng.choice([*AMOUNTS, "strength", "variation", "seed"])
        if name == "seed":
            seed = rng.randrange(3)
        else:
            settings = dataclasses.replace(settings, **{name: rng.choice([0.0, 0.4, 1.0])})
        moved, fresh = preview(settings, seed), Preview(clean, regions)(settings, seed)
        assert all(torch.equal(moved[key], fresh[key]) for key in fresh)
    expected = degrade(clean, regions, settings, torch.tensor([seed]))
    assert torch.equal(moved["degraded"], expected)


def test_a_preview_computes_only_from_the_first_change_on(calls):
    preview, settings = Preview(*make_faces(1)[:2]), DegradationConfig()
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
    assert computed(dataclasses.replace(settings, variation=0.1)) == names
    assert computed(settings, seed=1) == names
    assert computed(dataclasses.replace(ZERO, noise=0.5), seed=1) == ["noise"]


def test_training_amounts_lie_in_their_ranges_and_follow_from_the_seed_alone():
    settings = DegradationConfig(strength=0.8, strength_min=0.5, amount_min=0.25, clean_share=0.0)
    drawn = draw_amounts(settings, torch.arange(2_000))
    shares = drawn / torch.tensor([getattr(settings, name) for name in AMOUNTS])
    assert shares.min() >= 0.8 * 0.5 * 0.25 and 0.75 < shares.max() <= 0.8 + 1e-6
    assert shares.amax(1).min() > 0.8 * 0.5 * 0.5
    assert 0.25 <= (shares.amin(1) / shares.amax(1)).min() < 0.3
    assert torch.equal(drawn[7:9], draw_amounts(settings, torch.tensor([7, 8])))
    fixed = dataclasses.replace(settings, strength_min=1.0, amount_min=1.0)
    expected = torch.tensor([0.8 * getattr(fixed, name) for name in AMOUNTS]).expand(3, -1)
    torch.testing.assert_close(draw_amounts(fixed, torch.arange(3)), expected)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 1.0])
def test_the_share_of_clean_training_samples_is_the_settings(share):
    drawn = draw_amounts(DegradationConfig(clean_share=share), torch.arange(2_000))
    clean = (drawn == 0).all(1).float().mean()
    assert abs(clean - share) <= 4 * (share * (1 - share) / 2_000) ** 0.5
    assert ((drawn == 0).all(1) | (drawn > 0).all(1)).all()


def test_larger_amounts_degrade_more():
    clean, regions, seeds = make_faces()
    full = torch.tensor([getattr(DegradationConfig(), name) for name in AMOUNTS]).expand(3, -1)
    errors = [(degrade(clean, regions, DegradationConfig(), seeds, amounts=share * full)
               - clean).square().mean() for share in (0.0, 0.3, 0.6, 1.0)]
    assert errors[0] == 0 and errors == sorted(errors)


def test_variation_mask_is_patchy_per_region_and_flat_without_contrast():
    _, regions, seeds = make_faces(2)
    mask, other = (pipeline.variation_mask((regions + k) % 6, DegradationConfig(variation=1.0),
                                           seeds) for k in (0, 1))
    assert mask.shape == regions.shape and mask.min() >= 0 and mask.max() <= 1 and mask.std() > 0.2
    assert (mask != other).float().mean() > 0.99 and not torch.equal(mask[0], mask[1])
    assert (pipeline.variation_mask(regions, DegradationConfig(variation=0.0), seeds) == 1).all()


def test_a_seed_looks_alike_at_two_sizes():
    large = F.interpolate(make_faces(1, 16, 16)[0], (256, 256), mode="bilinear")
    small, seeds = F.avg_pool2d(large, 4), torch.tensor([9])
    fine, coarse = (degrade(image, torch.ones_like(image[:, 0], dtype=torch.uint8),
                            DegradationConfig(), seeds) for image in (large, small))
    assert (F.avg_pool2d(fine, 4) - coarse).abs().mean() < 0.5 * (coarse - small).abs().mean()


@pytest.mark.parametrize(("change", "message"), [
    (lambda c, r, s: (c[0], r, s), "clean: expected float"),
    (lambda c, r, s: (c.half(), r, s), "clean: expected float32"),
    (lambda c, r, s: (c * float("nan"), r, s), "clean: expected finite values"),
    (lambda c, r, s: (c, r[:, :-1], s), "regions: expected"),
    (lambda c, r, s: (c, r.long(), s), "regions: expected torch.uint8"),
    (lambda c, r, s: (c, r + 1, s), "regions: expected values 0 to 5"),
    (lambda c, r, s: (c, r, s.float()), "seeds: expected torch.int64"),
])
def test_bad_input_raises_one_clear_error(change, message):
    with pytest.raises(ValueError, match=message):
        clean, regions, seeds = change(*make_faces(1))
        degrade(clean, regions, DegradationConfig(), seeds)


def test_a_preview_is_of_one_image():
    with pytest.raises(ValueError, match="seeds: expected"):
        Preview(*make_faces()[:2])


def test_medium_is_the_default_and_lies_between_light_and_heavy():
    light, medium, heavy = (vars(degradation_preset(name)) for name in ("light", "medium", "heavy"))
    assert medium == vars(DegradationConfig())
    assert all(light[name] <= medium[name] <= heavy[name] for name in medium)
    assert sum(light.values()) < sum(medium.values()) < sum(heavy.values())


def test_the_preset_splat_is_of_gaussians_only():
    used = {name for name, value in vars(degradation_preset("splat")).items() if value}
    assert used - NOT_AMOUNTS == set(splat_effects.DEFECTS)


def test_an_unknown_preset_is_an_error_that_names_those_that_exist():
    with pytest.raises(ValueError, match=", ".join(DEGRADATION_PRESETS)):
        degradation_preset("huge")


@pytest.mark.parametrize(("dy", "dx"), [(0, 0), (3, -2), (-1, 5), (90, 90)])
def test_shifting_moves_down_and_right_and_repeats_the_border(dy, dx):
    image = make_faces(2)[0]
    rows, columns = ((torch.arange(64) - d).clamp(0, 63) for d in (dy, dx))
    each = effects.shift_each(image, [(dy, dx), (0, 0)])
    assert torch.equal(each[0], image[:, :, rows][..., columns][0])
    assert torch.equal(each[1], image[1])


@pytest.mark.parametrize("size", [(24, 32), (300, 280), (1, 9)])
def test_a_feathered_mask_is_its_mean_over_a_box(size):
    mask = (torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    radius = max(1, round(min(size) / 128))
    expected = F.avg_pool2d(mask, 2 * radius + 1, 1, radius, count_include_pad=False)
    torch.testing.assert_close(effects.feather(mask), expected)
    assert torch.equal(effects.feather(mask) == 0, expected == 0)


def test_strands_run_along_stripes_and_smears_keep_them():
    stripes = (torch.arange(128) // 4 % 2).float().expand(1, 3, 128, 128)
    for picture, axis in ((stripes, 1), (stripes.transpose(2, 3), 0)):
        along = effects.strands(picture[:, :1])
        assert along[:, axis].abs()[:, 8:-8, 8:-8].min() > 0.99
        inside = (effects.smear(picture, 0.04) - picture)[..., 8:-8, 8:-8]
        assert inside.abs().mean() < 0.02
