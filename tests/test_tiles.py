"""Tiles: any size, no seam, few and equal ones on the network's grid."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from splat_enhancer.model.tiles import pad_to_multiple, place_tiles, restore_in_tiles

SMALL = {"tile_px": 128, "overlap_px": 48, "margin_px": 0, "multiple": 32}
SIZES = [(64, 64), (65, 127), (129, 128), (200, 321), (257, 90), (511, 513), (2048, 64)]


def draw(height, width, count=1):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def blur(images):
    return F.avg_pool2d(F.pad(images, (1, 1, 1, 1)), 3, stride=1)  # zeros outside spoil the rim


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("tile_px", "overlap_px", "multiple", "margin_px"), [
    (128, 48, 32, 0), (128, 64, 64, 16), (256, 100, 8, 40), (768, 128, 64, 16)])
def test_unchanged_tiles_give_the_image(size, tile_px, overlap_px, multiple, margin_px):
    images = draw(*size)
    result = restore_in_tiles(lambda tiles: tiles, images, tile_px=tile_px, overlap_px=overlap_px,
                              multiple=multiple, margin_px=margin_px)
    assert result.shape == images.shape and (result - images).abs().max() < 1e-6


@pytest.mark.parametrize("multiple", [8, 64])
def test_tiles_cover_the_axis_evenly_on_the_grid_and_overlap_enough(multiple):
    for length in range(multiple, 2049, multiple):
        side, starts = place_tiles(length, 256, 100, multiple)
        gaps = [b - a for a, b in itertools.pairwise(starts)]
        assert starts[0] == 0 and starts[-1] + side == length and side <= 256
        assert all(number % multiple == 0 for number in (side, *starts))
        assert all(0 < gap <= side - 100 for gap in gaps)
        assert not gaps or max(gaps) - min(gaps) <= multiple


def test_tiles_are_as_few_and_as_small_as_possible():
    assert place_tiles(768, 768, 128, 64) == (768, [0])
    assert place_tiles(832, 768, 128, 64) == (512, [0, 320])
    assert place_tiles(2048, 768, 128, 64) == (768, [0, 640, 1280])


def test_tiles_of_other_tone_meet_without_a_step():
    tones = iter(torch.rand(99, generator=torch.Generator().manual_seed(1)).round().tolist())
    result = restore_in_tiles(lambda tiles: tiles * 0 + next(tones), draw(400, 500),
                              **SMALL | {"overlap_px": 64})
    steps = torch.cat([result.diff(dim=2).flatten(), result.diff(dim=3).flatten()]).abs()
    assert result.min() == 0 and result.max() == 1
    assert 0.5 / 64 < steps.max() <= math.pi / 64


def test_margin_hides_what_the_tiles_own_padding_spoils():
    images = draw(300, 213)
    whole = blur(pad_to_multiple(images, 32))[..., :300, :213]
    clean, spoiled = (restore_in_tiles(blur, images, **SMALL | {"margin_px": margin})
                      for margin in (1, 0))
    assert (clean - whole).abs().max() < 1e-6  # at the image's borders, too: full weight there
    assert (spoiled - whole).abs().max() > 1e-5


def test_tiles_lie_where_a_halving_network_sees_the_same_pixels_together():
    def halve(images):
        return F.interpolate(F.avg_pool2d(images, 32), scale_factor=32.0)

    images = draw(320, 256)
    assert (restore_in_tiles(halve, images, **SMALL) - halve(images)).abs().max() < 1e-6


@pytest.mark.parametrize(("size", "count", "shapes"), [
    ((100, 128), 3, [(3, 3, 128, 128)]), ((90, 160), 2, [(2, 3, 96, 128)] * 2),
    ((192, 192), 1, [(1, 3, 128, 128)] * 4)])
def test_restored_are_only_as_many_tiles_as_it_takes_and_progress_is_told(size, count, shapes):
    seen, reports = [], []

    def restore(tiles):
        seen.append(tuple(tiles.shape))
        return tiles
    restore_in_tiles(restore, draw(*size, count), **SMALL, progress=lambda *n: reports.append(n))
    assert seen == shapes and reports == [(i + 1, len(shapes)) for i in range(len(shapes))]


def test_image_of_one_tile_is_bit_equal_to_the_restored_padded_image():
    images = draw(100, 97, count=2)
    whole = blur(F.pad(images, (0, 31, 0, 28), mode="reflect"))[..., :100, :97]
    assert torch.equal(restore_in_tiles(blur, images, **SMALL), whole)


def test_padding_repeats_the_border_where_it_cannot_mirror():
    padded = pad_to_multiple(draw(64, 100), 128)
    assert padded.shape[2:] == (128, 128)
    assert torch.equal(padded[:, :, 64:], padded[:, :, 63:64].expand(-1, -1, 64, -1))


def test_result_is_float32_without_gradient_where_the_picture_is():
    images, seen = draw(150, 150).half().requires_grad_(), []

    def restore(tiles):
        seen.append(tiles.device.type)
        return torch.zeros(tiles.shape)
    result = restore_in_tiles(restore, images, device="meta", **SMALL)
    assert result.dtype == torch.float32 and not result.requires_grad
    assert set(seen) == {"meta"} and result.device.type == "cpu"
