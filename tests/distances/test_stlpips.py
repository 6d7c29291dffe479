"""Shift-tolerant LPIPS: equal to the package that publishes it, and usable in its two places."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import pytest
import torch
from torch.nn.functional import avg_pool2d, interpolate

from helpers.distances import stlpips
from helpers.distances.perceptual import vgg_distances
from helpers.distances.stlpips import MIN_SIZE_PX, load_stlpips
from helpers.faces.avatars import render_avatar

NETS = sorted(MIN_SIZE_PX)


@pytest.fixture(scope="module", params=NETS)
def network(request):
    return load_stlpips(request.param)


@pytest.fixture(scope="module")
def heads():
    """Two clean heads and the same ones softened, (2, 3, 64, 64) in [0, 1]."""
    clean = torch.stack([render_avatar(seed, 64)[0] for seed in (1, 2)])
    return clean, interpolate(avg_pool2d(clean, 4), scale_factor=4, mode="bilinear")


@pytest.fixture
def published(monkeypatch):
    """The package's own module, which asks for `torchsummary` only to print a table."""
    try:
        importlib.import_module("torchsummary")
    except ModuleNotFoundError:
        stub = ModuleType("torchsummary")
        stub.summary = None
        monkeypatch.setitem(sys.modules, "torchsummary", stub)
    return importlib.import_module("stlpips_pytorch.stlpips")


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("sides", [(21, 33), (64, 50)])
def test_equals_the_published_forward(published, net, sides):
    theirs = published.LPIPS(net=net, variant="shift_tolerant", verbose=False)
    images, clean = torch.rand(2, 2, 3, *sides, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(images, clean, normalize=True)
        wide = theirs(2 * images - 1, 2 * clean - 1)
    ours = load_stlpips(net)
    torch.testing.assert_close(ours(images, clean, normalize=True), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours(2 * images - 1, 2 * clean - 1), wide, atol=1e-5, rtol=0)


def test_the_loss_walks_it_to_the_same_distance(network, heads):
    clean, soft = heads
    values = vgg_distances(network, soft, clean, dtype=torch.float32)
    whole = network(soft, clean, normalize=True)
    assert whole.shape == (2, 1, 1, 1)
    torch.testing.assert_close(values["lpips"], whole.flatten(), atol=1e-6, rtol=1e-5)
    assert values["gram"].shape == (2,) and bool((values["gram"] > 0).all())


def test_half_precision_hardly_changes_the_distance(heads):
    clean, soft = (images[..., :32, :32] for images in heads)  # slow on a CPU
    network = load_stlpips("vgg")
    whole = network(soft, clean, normalize=True).flatten()
    network.net.half()
    half = vgg_distances(network, soft, clean, dtype=torch.float16, terms=("lpips",))["lpips"]
    torch.testing.assert_close(half, whole, atol=0, rtol=0.01)


def test_it_is_zero_for_equal_images_symmetric_and_grows_with_softness(network, heads):
    clean, soft = heads
    assert float(network(clean, clean, normalize=True).abs().max()) == 0
    there, back = (network(*pair, normalize=True) for pair in ((soft, clean), (clean, soft)))
    torch.testing.assert_close(there, back)
    slightly = network(torch.lerp(clean, soft, 0.5), clean, normalize=True)
    assert bool((slightly > 0.01).all() and (slightly < there).all() and (there < 1).all())


def test_a_shift_by_one_pixel_costs_far_less_than_softness(network, heads):
    clean, soft = heads
    shifted = clean.roll(1, -1)
    assert bool((network(shifted, clean, normalize=True)
                 < network(soft, clean, normalize=True) / 2).all())


def test_the_gradient_is_finite_and_reaches_the_images_alone(network, heads):
    clean, soft = heads
    soft = soft.clone().requires_grad_()
    vgg_distances(network, soft, clean, dtype=torch.float32, terms=("lpips",))["lpips"].sum(
    ).backward()
    assert bool(soft.grad.isfinite().all()) and float(soft.grad.abs().sum()) > 0
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_loading_draws_nothing_and_leaves_no_weight_unset(network):
    torch.manual_seed(3)
    load_stlpips("alex")
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))
    tensors = list(network.state_dict().values())
    assert not any(tensor.is_meta for tensor in tensors)
    assert not network.training


def test_the_smallest_image_passes_and_a_smaller_one_is_refused(network):
    side = network.min_size_px
    network(torch.rand(1, 3, side, side), torch.rand(1, 3, side, side))
    small = torch.rand(1, 3, side, side - 1)
    with pytest.raises(ValueError, match=f"sides of {side} px or more"):
        network(small, small)


@pytest.mark.parametrize("images, clean", [((1, 1, 32, 32), (1, 1, 32, 32)),
                                           ((3, 32, 32), (3, 32, 32)),
                                           ((2, 3, 32, 32), (1, 3, 32, 32))])
def test_other_shapes_are_refused(network, images, clean):
    with pytest.raises(ValueError, match=r"expected .*, got .*; pass"):
        network(torch.rand(images), torch.rand(clean))


def test_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match="expected 'vgg' or 'alex', got 'squeeze'"):
        load_stlpips("squeeze")


def test_without_the_package_the_error_names_the_command(monkeypatch):
    monkeypatch.setattr(stlpips, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"expected the package stlpips_pytorch, got none; "
                                           r"run pip install --no-deps stlpips-pytorch"):
        load_stlpips("vgg")
