"""The rasterizer: a brute-force reference, batches, gradients, extremes, projection, bad input."""

import math
from dataclasses import fields, replace
from functools import partial

import pytest
import torch

from splat_enhancer.gaussians import rasterizer
from splat_enhancer.gaussians.rasterizer import (
    MAX_ALPHA,
    MIN_ALPHA,
    Camera,
    Splats,
    drawing_device,
    project,
    rasterize,
)

FIELDS = [entry.name for entry in fields(Splats)]


def make_splats(count, height=13, width=21, channels=3):
    rng = torch.Generator().manual_seed(count)
    numbers = [torch.rand(count, n, generator=rng).double() for n in (2, 4, channels, 1, 1)]
    root = 3 * (numbers[1].view(-1, 2, 2) - 0.5)
    return Splats(numbers[0] * torch.tensor([width + 8.0, height + 8.0]) - 4,
                  root @ root.mT + 0.3 * torch.eye(2), numbers[2], numbers[3][:, 0],
                  numbers[4][:, 0])


def make_needles(count, height, width):
    """Thin at any slant, from 3 px to several times as long as the image."""
    plain, rng = make_splats(count, height, width), torch.Generator().manual_seed(0)
    turn, length = (torch.rand(count, generator=rng).double() for _ in range(2))
    along = torch.stack([(math.pi * turn).cos(), (math.pi * turn).sin()])
    along = (3 * 50**length * along).T
    thin = 0.3 * torch.eye(2).double()
    return replace(plain, covariances=along[:, :, None] * along[:, None] + thin)


def make_stack(count, height, width):
    """All near the middle and opaque: after a few of them no light is left."""
    plain = make_splats(count, height, width)
    return replace(plain, centers=torch.tensor([width, height]) / 2 + plain.centers / 20,
                   opacities=torch.ones(count).double())


def as_dtype(splats, dtype):
    return Splats(*(getattr(splats, name).to(dtype) for name in FIELDS))


def as_batch(*samples):
    """Stack samples of unequal count; the padding, of opacity 0, is as bad as it can be."""
    count = max(len(sample.depths) for sample in samples)
    padded = [[torch.cat([part, part.new_full((count - len(part), *part.shape[1:]),
                                              0.0 if name == "opacities" else math.nan)])
               for name in FIELDS for part in [getattr(sample, name)]] for sample in samples]
    return Splats(*(torch.stack(parts) for parts in zip(*padded, strict=True)))


def draw_by_brute_force(splats, height, width, background):
    """Every pixel visits every Gaussian, from front to back."""
    image, light = torch.zeros_like(background), torch.ones(height, width).double()
    pixels = torch.cartesian_prod(torch.arange(height), torch.arange(width)).flip(1) + 0.5
    for i in splats.depths.argsort():
        offset = pixels.view(height, width, 2) - splats.centers[i]
        power = torch.einsum("hwi,ij,hwj->hw", offset, splats.covariances[i].inverse(), offset)
        alpha = (splats.opacities[i] * torch.exp(-0.5 * power)).clamp(max=MAX_ALPHA)
        alpha = torch.where(alpha < MIN_ALPHA, 0.0, alpha)
        image = image + splats.colors[i, :, None, None] * alpha * light
        light = light * (1 - alpha)
    return image + light * background, 1 - light


@pytest.mark.parametrize("make", [make_splats, make_needles, make_stack])
@pytest.mark.parametrize(("count", "size"), [(40, (13, 21)), (30, (32, 9)), (20, (1, 1)),
                                             (0, (5, 7))])
@pytest.mark.parametrize(("tile_px", "chunk"), [(8, 250_000), (5, 900), (33, 250_000)])
def test_pictures_of_hard_scenes_equal_the_composite_in_float64(
        make, count, size, tile_px, chunk, monkeypatch):
    monkeypatch.setattr(rasterizer, "TILE_PX", tile_px)
    monkeypatch.setitem(rasterizer.CHUNK_ELEMENTS, "cpu", chunk)
    splats, background = make(count, *size), torch.ones(3, *size).double()
    expected = draw_by_brute_force(splats, *size, background)
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        drawn = rasterize(as_dtype(splats, dtype), *size, background=background.to(dtype))
        if dtype == torch.float32:
            rounded = as_dtype(as_dtype(splats, dtype), torch.float64)
            expected = draw_by_brute_force(rounded, *size, background)
        for part, known in zip(drawn, expected, strict=True):
            torch.testing.assert_close(part.double(), known, atol=tolerance, rtol=0)


@pytest.mark.parametrize("chunk", [250_000, 2_000])
def test_batch_equals_its_samples_and_so_do_the_gradients(chunk, monkeypatch):
    monkeypatch.setitem(rasterizer.CHUNK_ELEMENTS, "cpu", chunk)
    samples = [as_dtype(x, torch.float32) for x in (
        make_splats(40), make_splats(0), make_needles(25, 13, 21), make_stack(60, 13, 21))]
    backgrounds = torch.rand(4, 3, 13, 21, generator=torch.Generator().manual_seed(0))
    batch = as_batch(*samples)
    inputs = [getattr(batch, name).requires_grad_() for name in FIELDS]
    picture, alpha = rasterize(batch, 13, 21, background=backgrounds)
    assert picture.shape == (4, 3, 13, 21) and alpha.shape == (4, 13, 21)
    for i, sample in enumerate(samples):
        single = [getattr(sample, name).requires_grad_() for name in FIELDS]
        expected = rasterize(sample, 13, 21, background=backgrounds[i])
        torch.testing.assert_close((picture[i], alpha[i]), expected, atol=1e-6, rtol=0)
        from_batch = torch.autograd.grad((picture[i] ** 2).sum() + alpha[i].sum(), inputs[:4],
                                         retain_graph=True)
        alone = torch.autograd.grad((expected[0] ** 2).sum() + expected[1].sum(), single[:4])
        for got, known in zip(from_batch, alone, strict=True):
            torch.testing.assert_close(got[i, :len(known)], known, atol=1e-4, rtol=1e-4)
            got[i, :len(known)] = 0
            assert not got.any()  # neither padding nor another sample


def test_autocast_costs_no_precision():
    splats = as_dtype(make_splats(40), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        picture, _ = rasterize(splats, 13, 21)
    assert torch.equal(picture, rasterize(splats, 13, 21)[0])


@pytest.mark.parametrize(("samples", "count"), [(0, 5), (2, 0), (0, 0)])
def test_batches_without_samples_or_gaussians_are_drawn_empty(samples, count):
    empty = Splats(*(torch.zeros(samples, count, *n) for n in ((2,), (2, 2), (3,), (), ())))
    picture, alpha = rasterize(empty, 9, 11)
    assert picture.shape == (samples, 3, 9, 11) and alpha.shape == (samples, 9, 11)
    assert not picture.any() and not alpha.any()


def test_indexing_picks_gaussians_or_samples():
    batch = as_batch(make_splats(5), make_splats(4))
    assert batch[1].centers.shape == (5, 2) and batch[:1].centers.shape == (1, 5, 2)
    assert batch[batch.opacities > 0].centers.shape == (9, 2)


def test_gradients_of_every_input_are_right():
    splats, background = make_splats(4, 4, 6, channels=2), torch.ones(2, 4, 6).double()
    inputs = [*(getattr(splats, name) for name in FIELDS[:3]), 0.3 + splats.opacities / 2]
    assert torch.autograd.gradcheck(
        lambda *x: rasterize(Splats(*x[:4], splats.depths), 4, 6, background=x[4]),
        [x.requires_grad_() for x in (*inputs, background)])


def test_one_gaussian_has_known_values_and_hides_what_is_behind_whatever_the_order():
    pair = Splats(torch.full((2, 2), 4.5), torch.eye(2).expand(2, 2, 2), torch.eye(2),
                  torch.ones(2), torch.tensor([1.0, 2.0]))
    image, alpha = rasterize(pair[:1], 9, 9)
    known = torch.tensor([MAX_ALPHA, *(math.exp(-0.5 * x * x) for x in (1, 2, 3)), 0])  # 0: < 1/255
    torch.testing.assert_close(alpha[4, 4:], known)
    torch.testing.assert_close(image, torch.stack([alpha, 0 * alpha]))
    image, alpha = rasterize(pair, 9, 9)
    assert torch.equal(image, rasterize(pair[torch.tensor([1, 0])], 9, 9)[0])
    assert image[:, 4, 4].tolist() == pytest.approx([MAX_ALPHA, (1 - MAX_ALPHA) * MAX_ALPHA])


@pytest.mark.parametrize(("field", "value"), [
    *((name, bad) for name in FIELDS for bad in (math.nan, -math.inf)), ("covariances", 0.0),
    ("centers", 90.0), ("opacities", 0.9 * MIN_ALPHA)])  # degenerate; off-screen; too faint
def test_gaussians_that_cannot_be_seen_change_neither_picture_nor_gradients(field, value):
    good = make_splats(10)
    bad = replace(good, **{field: torch.full_like(getattr(good, field), value)})
    both = [torch.cat([getattr(x, name) for x in (bad, good)]).requires_grad_() for name in FIELDS]
    image, alpha = rasterize(Splats(*both), 13, 21)
    assert torch.equal(image, rasterize(good, 13, 21)[0])
    (image.sum() + alpha.sum()).backward()
    assert not any(part.grad[:10].any() for part in both[:4])


def test_backdrops_of_wrong_shapes_are_errors():
    good = make_splats(3)
    for splats, shape in ((good, (3, 4, 1)), (as_batch(good, good), (3, 4, 4))):
        with pytest.raises(ValueError, match=r"background: expected .*, got"):
            rasterize(splats, 4, 4, background=torch.zeros(shape))


def test_projection_of_known_points_drops_those_behind_the_camera():
    camera = Camera(torch.eye(3), torch.tensor([0.0, 0.0, 5.0]), 100.0, 60, 80)
    means = torch.tensor([[0.0, 0, 0], [1, 1, 0], [0, 0, 6], [0, 0, 5], [math.nan, 0, 0]])
    splats = project(means, 0.01 * torch.eye(3).expand(5, 3, 3), means, torch.ones(5), camera)
    torch.testing.assert_close(splats.centers, torch.tensor([[40.0, 30.0], [60.0, 10.0]]))
    torch.testing.assert_close(splats.covariances[0], (4 + 0.3) * torch.eye(2))  # (0.1·100/5)²
    assert torch.equal(splats.colors, means[:2]) and splats.depths.tolist() == [5, 5]


def test_projected_covariance_follows_the_jacobian_of_the_projection():
    rng = torch.Generator().manual_seed(0)
    turn, root, mean = (torch.randn(n, 3, generator=rng).double() for n in (3, 3, 1))
    turn = torch.linalg.qr(turn).Q
    camera = Camera(turn, 9 * turn[2], 120.0, 64, 96)
    project_at = partial(project, covariances=(root @ root.T)[None], colors=mean,
                         opacities=mean[:, 0], camera=camera)
    jacobian = torch.autograd.functional.jacobian(lambda x: project_at(x).centers[0], mean)[:, 0]
    jacobian = jacobian @ root
    torch.testing.assert_close(project_at(mean).covariances[0],
                               jacobian @ jacobian.T + 0.3 * torch.eye(2).double())


@pytest.mark.parametrize(("kind", "expected"), [("cpu", "cpu"), ("mps", "cpu"), ("cuda", "cuda")])
def test_drawing_happens_where_float64_exists(kind, expected):
    assert drawing_device(torch.device(kind)).type == expected
