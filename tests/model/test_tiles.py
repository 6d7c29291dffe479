"""The claims of helpers/model/tiles.py."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from helpers.config import preset
from helpers.faces.avatars import render_avatar
from helpers.model.enhancer import SplatEnhancer
from helpers.model.tiles import enhance_tiled, pad_to_multiple, place_tiles

SMALL = {"tile_px": 128, "overlap_px": 48, "multiple": 32}  # cuts whatever is larger than 128 px
SIZES = [(64, 64), (65, 127), (128, 128), (129, 128), (129, 129), (200, 321), (257, 90), (320, 200),
         (511, 513), (700, 699), (2048, 64), (64, 2047)]


def _images(height, width, count=1):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def _blur(images):
    return F.avg_pool2d(F.pad(images, (1, 1, 1, 1)), 3, stride=1)  # zeros outside spoil the rim


class _Recorder:
    """A restoration that changes nothing and remembers what it was given."""

    def __init__(self, offsets=None):
        self.shapes, self.offsets = [], offsets

    def __call__(self, tiles):
        self.shapes.append(tuple(tiles.shape))
        return tiles if self.offsets is None else tiles * 0 + next(self.offsets)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("tile_px", "overlap_px", "multiple", "margin_px"), [
    (128, 48, 32, 0), (128, 64, 64, 16), (192, 1, 64, 0), (256, 100, 8, 40), (768, 128, 64, 16)])
def test_doing_nothing_to_the_tiles_returns_the_image(size, tile_px, overlap_px, multiple,
                                                      margin_px):
    images = _images(*size)
    result = enhance_tiled(lambda tiles: tiles, images, tile_px=tile_px, overlap_px=overlap_px,
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
    assert place_tiles(1408, 768, 128, 64) == (768, [0, 640])
    assert place_tiles(2048, 768, 128, 64) == (768, [0, 640, 1280])


@pytest.mark.parametrize(("overlap_px", "margin_px"), [(32, 0), (64, 0), (64, 20)])
def test_tiles_of_other_tone_meet_without_a_step(overlap_px, margin_px):
    tones = torch.rand(99, generator=torch.Generator().manual_seed(1)).round().tolist()
    result = enhance_tiled(_Recorder(iter(tones)), _images(400, 500), tile_px=128,
                           overlap_px=overlap_px, margin_px=margin_px, multiple=32)
    ramp_px = overlap_px - 2 * margin_px
    steps = torch.cat([result.diff(dim=2).flatten(), result.diff(dim=3).flatten()]).abs()
    assert result.min() < 1e-6 and result.max() > 1 - 1e-6
    assert 0.5 / ramp_px < steps.max() <= math.pi / 2 / ramp_px + 1e-6


def test_margin_hides_what_the_tiles_own_padding_spoils():
    images = _images(300, 213)
    whole = _blur(pad_to_multiple(images, 32))[..., :300, :213]
    tight = {"tile_px": 128, "overlap_px": 32, "multiple": 32}  # all of the overlap is ramp
    clean, spoiled = (enhance_tiled(_blur, images, **tight, margin_px=margin) for margin in (1, 0))
    assert (clean - whole).abs().max() < 1e-6  # at the image's borders, too: full weight there
    assert (spoiled - whole).abs().max() > 1e-4


def test_tiles_lie_where_a_halving_network_sees_the_same_pixels_together():
    def halve(images):
        return F.interpolate(F.avg_pool2d(images, 32), scale_factor=32.0)

    images = _images(320, 256)
    assert (enhance_tiled(halve, images, **SMALL) - halve(images)).abs().max() < 1e-6


@pytest.mark.parametrize(("size", "count", "batch", "shapes"), [
    ((100, 128), 1, 1, [(1, 3, 128, 128)]),
    ((100, 128), 3, 3, [(3, 3, 128, 128)]),
    ((90, 160), 1, 1, [(1, 3, 96, 128)] * 2),
    ((90, 160), 3, 4, [(4, 3, 96, 128), (2, 3, 96, 128)]),
    ((192, 192), 1, 1, [(1, 3, 128, 128)] * 4)])
def test_restored_are_only_as_many_tiles_as_it_takes_a_batch_at_a_time(size, count, batch, shapes):
    recorder = _Recorder()
    images = _images(*size, count=count)
    result = enhance_tiled(recorder, images, **SMALL, batch=batch)
    assert recorder.shapes == shapes
    assert (result - images).abs().max() < 1e-6


def test_image_of_one_tile_is_bit_equal_to_the_restored_padded_image():
    images = _images(100, 97, count=2)
    whole = _blur(F.pad(images, (0, 31, 0, 28), mode="reflect"))[..., :100, :97]
    assert torch.equal(enhance_tiled(_blur, images, **SMALL, batch=2), whole)


def test_padding_repeats_the_border_where_it_cannot_mirror():
    padded = pad_to_multiple(_images(64, 100), 128)
    assert padded.shape[2:] == (128, 128)
    assert torch.equal(padded[:, :, 64:], padded[:, :, 63:64].expand(-1, -1, 64, -1))


def test_result_is_float32_without_gradient_and_the_input_is_left_alone():
    images = _images(150, 150).half().requires_grad_()
    before = images.detach().clone()
    result = enhance_tiled(lambda tiles: tiles * 2, images, **SMALL)
    assert result.dtype == torch.float32 and not result.requires_grad
    assert torch.equal(images, before)
    assert torch.equal(result, enhance_tiled(lambda tiles: tiles * 2, images, **SMALL))


@pytest.mark.parametrize("images", [
    _images(64, 0), _images(64, 64) * 255, _images(64, 64)[0], _images(64, 64)[:, :1],
    _images(64, 64)[:0], (_images(64, 64) * 255).byte()])
def test_what_is_no_image_is_refused(images):
    with pytest.raises(ValueError, match=r"images: expected .*, got .*; "):
        enhance_tiled(_blur, images, **SMALL)


def test_restoration_that_changes_the_size_is_refused():
    with pytest.raises(ValueError, match=r"restore: expected .*\(1, 3, 128, 128\), got "):
        enhance_tiled(lambda tiles: tiles[..., :-1], _images(200, 200), **SMALL)


def _in_tiles(model, images):
    with model.merged():
        restored = enhance_tiled(model, images, tile_px=128, overlap_px=64,
                                 multiple=model.size_multiple, batch=len(images))
    return restored.clamp(0, 1)


def test_enhancer_restores_any_size_and_what_fits_a_tile_exactly_as_whole(build):
    model = build()[0].eval()
    for size in (64, 64), (100, 128), (129, 64), (200, 160):
        images = _images(*size, count=2)
        restored = _in_tiles(model, images)
        assert restored.shape == images.shape and restored.isfinite().all()
        if max(size) <= 128:
            assert torch.equal(restored, model.enhance(images))


def test_tiles_of_the_embedded_base_come_close_to_the_whole_picture():
    model = SplatEnhancer.from_pretrained(preset("demo").model, device="cpu").eval()
    image = render_avatar(5001, 192)[0][None]
    assert (_in_tiles(model, image) - model.enhance(image)).abs().mean() < 4 / 255


def test_pictures_above_2048_pixels_are_restored_and_far_larger_ones_refused():
    images = torch.zeros(1, 3, 16, 2_400)
    images[..., 1_200:] = 0.5
    assert torch.allclose(enhance_tiled(lambda tiles: tiles, images, **SMALL), images, atol=1e-6)
    huge = torch.zeros(()).expand(1, 3, 8_200, 8_200)
    with pytest.raises(ValueError, match="67,108,864 pixels each at most"):
        enhance_tiled(_blur, huge, **SMALL)


def test_tiles_go_to_the_device_and_the_picture_stays_where_it_is():
    seen = []

    def restore(tiles):
        seen.append(tiles.device.type)
        return torch.zeros(tiles.shape)
    enhance_tiled(restore, _images(64, 64), device="meta", **SMALL)
    assert seen == ["meta"] * len(seen) and seen
