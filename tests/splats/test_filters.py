"""Filters and draws: identities, known values, references, and numbers that follow from seeds."""

import pytest
import torch
import torch.nn.functional as F

from helpers.splats import filters
from helpers.splats.draws import Draws

IMAGE = torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(0))
GREY = filters.luma(IMAGE)


def test_resizing_keeps_means_is_the_identity_at_one_size_and_enlarges_as_torch_does():
    assert filters.resize(IMAGE, (24, 32)) is IMAGE
    small = filters.resize(IMAGE, (12, 16))
    torch.testing.assert_close(small.mean(), IMAGE.mean(), atol=0.01, rtol=0)
    torch.testing.assert_close(filters.resize(small, (24, 32)), F.interpolate(
        small, (24, 32), mode="bilinear", antialias=True))


def test_sampling_at_the_pixel_grid_gives_the_picture_back():
    place = filters.pixel_grid(IMAGE.shape[2:], "cpu").expand(2, -1, -1, -1)
    torch.testing.assert_close(filters.sample(IMAGE, place), IMAGE, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("dy", "dx"), [(0, 0), (3, -2), (-1, 5), (40, 40)])
def test_shifting_moves_down_and_right_and_repeats_the_border(dy, dx):
    rows, columns = ((torch.arange(n) - d).clamp(0, n - 1) for n, d in ((24, dy), (32, dx)))
    expected = IMAGE[:, :, rows][..., columns]
    assert torch.equal(filters.shift(IMAGE, dy, dx), expected)
    each = filters.shift_each(IMAGE, [(dy, dx), (0, 0)])
    assert torch.equal(each[0], expected[0]) and torch.equal(each[1], IMAGE[1])


def test_polar_turns_from_right_over_down():
    assert [filters.polar(2, turns) for turns in (0, 0.25, 0.5, 0.75)] == [
        (0, 2), (2, 0), (0, -2), (-2, 0)]


def test_luma_keeps_grey_and_weighs_green_most():
    torch.testing.assert_close(filters.luma(GREY.expand(-1, 3, -1, -1)), GREY)
    assert filters.luma(torch.eye(3)[:, :, None, None]).flatten().tolist() == pytest.approx(
        [0.299, 0.587, 0.114])


def test_gradient_sums_the_steps_to_left_and_upper_neighbour():
    step = torch.zeros(1, 1, 4, 5)
    step[..., 2:, 3:] = 1
    expected = torch.zeros(4, 5)
    expected[2, 3:] += 1
    expected[2:, 3] += 1
    assert torch.equal(filters.gradient(step)[0, 0], expected)


@pytest.mark.parametrize("factor", [1, 2, 3, 7, 50])
def test_peaks_are_those_of_max_pooling(factor):
    expected = F.max_pool2d(F.pad(IMAGE, (0, 64, 0, 64), value=-1), factor)
    size = [-(-length // factor) for length in IMAGE.shape[2:]]
    assert torch.equal(filters.shrink_to_peaks(IMAGE, factor),
                       expected[..., :size[0], :size[1]])


@pytest.mark.parametrize("size", [(24, 32), (300, 280), (1, 1), (1, 9)])
def test_a_feathered_mask_is_its_mean_over_a_box(size):
    mask = (torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    radius = max(1, round(min(size) / 128))
    expected = F.avg_pool2d(mask, 2 * radius + 1, 1, radius, count_include_pad=False)
    torch.testing.assert_close(filters.feather(mask), expected)
    assert torch.equal(filters.feather(mask) == 0, expected == 0)


def test_blur_is_at_least_as_wide_as_asked_for_in_proportion_and_none_leaves_the_picture():
    dots = torch.zeros(8, 1, 128, 128)
    for i in range(8):  # a pyramid treats places differently: on the average it is even
        dots[i, 0, 60, 60 + i] = 1
    xs = torch.arange(128.0)
    for sigma in (1.0, 2.0, 4.0):
        across = filters.blur(dots, torch.full((8, 1, 1, 1), sigma)).sum(2)[:, 0]
        across = across / across.sum(1, keepdim=True)
        mean = (across * xs).sum(1, keepdim=True)
        width = (across * (xs - mean).square()).sum(1).mean().sqrt()
        assert sigma < width < 1.5 * sigma
    assert torch.equal(filters.blur(IMAGE, torch.zeros(2, 1, 1, 1)), IMAGE)


def test_one_blur_width_is_the_same_as_a_map_of_it_and_each_pixel_has_its_own():
    widths = torch.tensor([0.7, 3.0]).view(2, 1, 1, 1)
    evenly = filters.blur(IMAGE, widths)
    torch.testing.assert_close(filters.blur(IMAGE, widths.expand(-1, -1, 24, 32)), evenly)
    half = torch.zeros(2, 1, 24, 32)
    half[..., 16:] = 2
    assert torch.equal(filters.blur(IMAGE, half)[..., :16], IMAGE[..., :16])


def test_strands_run_along_stripes_and_smears_keep_them():
    stripes = (torch.arange(128) // 4 % 2).float().expand(1, 3, 128, 128)
    for picture, axis in ((stripes, 1), (stripes.transpose(2, 3), 0)):
        along = filters.strands(filters.luma(picture))
        assert along[:, axis].abs()[:, 8:-8, 8:-8].min() > 0.99
        inside = (filters.smear(picture, 0.04) - picture)[..., 8:-8, 8:-8]
        assert inside.abs().mean() < 0.02


def test_mixing_into_a_tensor_equals_lerp_and_overwrites_it():
    weight, other = GREY, IMAGE.flip(3)
    expected = IMAGE.lerp(other, weight)
    mixed = filters.mix_into(other, IMAGE, weight)
    assert torch.equal(mixed, expected) and mixed is other


def test_filters_leave_their_input():
    before = IMAGE.clone()
    for name, *rest in (("luma",), ("gradient",), ("feather",), ("blur", 2 * GREY), ("smear", 0.1),
                        ("strands",), ("shrink_to_peaks", 2)):
        getattr(filters, name)(GREY if name == "strands" else IMAGE, *rest)
    assert torch.equal(IMAGE, before) and torch.equal(GREY, filters.luma(before))


def test_draws_follow_from_seed_and_stage_alone():
    together, alone = Draws([3, 4, 5], "warp", "cpu"), Draws([4], "warp", "cpu")
    for kind, shape in (("uniform", ()), ("normal", (2, 20)), ("uniform", (7,)),
                        ("field", (2, 5, (40, 90)))):
        assert torch.equal(getattr(together, kind)(*shape)[1:2], getattr(alone, kind)(*shape))
    first = [Draws([4], stage, "cpu").uniform(9) for stage in ("warp", "warp", "noise")]
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])


def test_draws_have_their_ranges_shapes_and_moments():
    draws = Draws(range(50), "noise", "cpu")
    even, bell, field = draws.uniform(99), draws.normal(3, 33), draws.field(2, 5, (7, 80))
    assert even.shape == (50, 99) and bell.shape == (50, 3, 33) and field.shape == (50, 2, 7, 80)
    assert even.min() >= 0 and even.max() < 1 and abs(even.mean() - 0.5) < 0.02
    assert abs(bell.mean()) < 0.06 and abs(bell.std() - 1) < 0.05
    assert (field[..., 1:] - field[..., :-1]).abs().max() < 0.5 < field.std() + 0.2
