"""Each term of the loss equals its reference; gradients are finite; weights are found or named."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import lpips
import pytest
import torch
import torchvision

from splat_enhancer.config import preset
from splat_enhancer.losses import loss as loss_module
from splat_enhancer.losses.loss import EnhancerLoss, detail, mask_loss, random_crop
from splat_enhancer.losses.perceptual import (
    distance_map,
    gram_distance,
    load_lpips,
    load_stlpips,
    perceptual_distances,
    spread,
    unit_vectors,
)

REAL_LPIPS = Path(__file__).resolve().parents[2] / "shared" / "lpips"
CONFIG = preset("demo").replace(lambda_l1=3.0, lambda_lpips=0.7, lambda_gram=5.0, lpips_crop=0,
                                lambda_clipsim=0.2)
WITHOUT_CLIP = CONFIG.replace(lambda_clipsim=0.0)
TERMS = {"l1": 3.0, "lpips": 0.7, "gram": 5.0, "clip": 0.2}


def textured(seed):
    return torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(seed))


RESTORED, CLEAN = textured(0), textured(1)


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    folder = tmp_path_factory.mktemp("clip")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPVisionModelWithProjection(CLIPVisionConfig(
            hidden_size=16, intermediate_size=32, projection_dim=8, patch_size=8, image_size=32,
            num_hidden_layers=2, num_attention_heads=2)).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def loss(tiny_clip):
    return EnhancerLoss(CONFIG, device="cpu", clip_name=tiny_clip)


@pytest.fixture(scope="module")
def random_net():
    network = load_lpips("squeeze", pretrained=False, seed=1)
    for head in network.lins:  # uneven heads, as the published ones are
        weight = head.model[1].weight
        weight.copy_(torch.linspace(0, 1, weight.numel()).view_as(weight))
    return network


@pytest.fixture(scope="module", params=["alex", "vgg"])
def stlpips(request):
    """The published network and ours."""
    with pytest.MonkeyPatch.context() as patch:
        stub = ModuleType("torchsummary")  # the package asks for it only to print a table
        stub.summary = None
        patch.setitem(sys.modules, "torchsummary", stub)
        published = importlib.import_module("stlpips_pytorch.stlpips")
        return (published.LPIPS(net=request.param, variant="shift_tolerant", verbose=False),
                load_stlpips(request.param))


def test_lpips_term_equals_the_lpips_package_per_sample(random_net):
    with torch.no_grad():
        expected = random_net(RESTORED, CLEAN, normalize=True).flatten()
        found = perceptual_distances(random_net, RESTORED, CLEAN, dtype=torch.float32,
                                     terms=["lpips"])
    torch.testing.assert_close(found, {"lpips": expected}, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not REAL_LPIPS.is_dir(), reason="needs SqueezeNet's weights in ../shared/lpips")
def test_pretrained_squeezenet_reproduces_the_documented_value(monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(REAL_LPIPS))
    network = load_lpips("squeeze")
    with torch.random.fork_rng():  # the example in torchmetrics' documentation
        torch.manual_seed(123)
        pair = [torch.rand(10, 3, 100, 100) * 2 - 1 for _ in range(2)]
    assert network(*pair).mean().item() == pytest.approx(0.1008, abs=1e-4)


@pytest.mark.parametrize("sides", [(21, 33), (64, 50)])
def test_stlpips_equals_the_published_forward_and_both_of_our_walks(stlpips, sides):
    theirs, ours = stlpips
    images, clean = torch.rand(2, 2, 3, *sides, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(images, clean, normalize=True)
        walk = perceptual_distances(ours, images, clean, dtype=torch.float32)
    torch.testing.assert_close(ours(images, clean, normalize=True), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(walk["lpips"], expected.flatten(), atol=1e-5, rtol=0)
    torch.testing.assert_close(distance_map(ours, images, clean).mean((1, 2)), expected.flatten(),
                               atol=1e-5, rtol=0)


def test_stlpips_without_its_package_names_the_command(monkeypatch):
    monkeypatch.setattr("splat_enhancer.losses.perceptual.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install --no-deps stlpips-pytorch"):
        load_stlpips("vgg")


def test_weight_0_loads_nothing(monkeypatch):
    for name in ("load_lpips", "load_stlpips", "load_clip"):
        monkeypatch.setattr(loss_module, name, lambda *_, **__: pytest.fail("loaded a network"))
    config = CONFIG.replace(lambda_lpips=0.0, lambda_gram=0.0, lambda_clipsim=0.0)
    terms = EnhancerLoss(config, device="cpu")(RESTORED, CLEAN)
    assert set(terms) == {"l1", "total"}
    torch.testing.assert_close(terms["total"], 3 * (RESTORED - CLEAN).abs().mean())


def test_vgg_runs_once_per_batch_of_images(loss):
    calls = []
    handles = [getattr(loss.lpips.net, f"slice{i}").register_forward_hook(
        lambda *_, i=i: calls.append(i)) for i in range(1, 6)]
    loss(RESTORED.clone().requires_grad_(), CLEAN)["total"].backward()
    for handle in handles:
        handle.remove()
    assert sorted(calls) == sorted([*range(1, 6)] * 2)


def test_total_is_the_weighted_sum_of_the_active_terms(loss):
    logit = torch.full((2, 1, 32, 48), 2.0)
    terms = loss.train()(RESTORED, CLEAN)
    torch.testing.assert_close(terms["total"], sum(w * terms[name] for name, w in TERMS.items()))
    masked = loss(RESTORED, CLEAN, choice=(RESTORED, CLEAN, logit))
    torch.testing.assert_close(masked["total"],
                               terms["total"] + CONFIG.lambda_mask * masked["mask"])
    assert set(terms) == {*TERMS, "total"} and all(value > 0 for value in masked.values())


def test_equal_images_cost_nothing(loss):
    assert all(abs(value.item()) < 1e-6 for value in loss(CLEAN, CLEAN).values())


def test_crop_is_the_same_square_of_both_and_follows_its_seed():
    torch.testing.assert_close(*random_crop(CLEAN, CLEAN.clone(), 16, 3), atol=0, rtol=0)
    crops = [random_crop(CLEAN, CLEAN, 16, seed)[0] for seed in (3, 3, 4)]
    assert crops[0].shape[2:] == (16, 16)
    assert torch.equal(crops[0], crops[1]) and not torch.equal(crops[0], crops[2])
    assert random_crop(CLEAN, CLEAN, 33, 0)[0] is CLEAN
    loss = EnhancerLoss(WITHOUT_CLIP.replace(lpips_crop=24), device="cpu")
    named = loss(RESTORED, CLEAN, crop_seed=4)["lpips"]
    loss.crop_seed = 4  # as training sets it
    assert torch.equal(loss(RESTORED, CLEAN)["lpips"], named)


def test_gradient_reaches_restored_only_and_is_not_clamped(loss):
    restored, clean = (3 * RESTORED - 1).requires_grad_(), CLEAN.clone().requires_grad_()
    terms = loss(restored, clean)
    for name in TERMS:
        gradient, = torch.autograd.grad(terms[name], restored, retain_graph=True)
        assert (gradient[(restored < 0) | (restored > 1)] != 0).float().mean() > 0.9
    terms["total"].backward()
    assert clean.grad is None and all(p.grad is None for p in loss.parameters())


def test_gradient_is_finite_where_every_feature_is_zero(random_net):
    flat = ((1 + random_net.scaling_layer.shift) / 2).expand_as(CLEAN).clone().requires_grad_()
    terms = perceptual_distances(random_net, flat, CLEAN, dtype=torch.float32)
    sum(value.sum() for value in terms.values()).backward()
    assert flat.grad.isfinite().all()


@pytest.mark.parametrize("scale", [1.0, 65536.0])
def test_direction_of_a_zero_vector_has_a_finite_gradient(scale):
    features, others = torch.rand(2, 2, 8, 4, 4, generator=torch.Generator().manual_seed(0)).half()
    features[:, :, 1, 2] = 0
    features.requires_grad_()
    difference = unit_vectors(features.float()) - unit_vectors(others.float())
    (scale * difference.square().mean()).backward()
    assert features.grad.isfinite().all() and features.grad[:, :, 1, 2].abs().sum() > 0
    theirs = features.detach().float().requires_grad_()
    lpips.normalize_tensor(theirs).square().sum().backward()
    assert not theirs.grad.isfinite().all()  # the package's root has no slope there
    assert torch.equal(unit_vectors(theirs), lpips.normalize_tensor(theirs))


def test_gram_matches_its_formula_in_fp32_and_does_not_mix_samples():
    pair = torch.rand(2, 2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    first, second = torch.einsum("kbchw,kbdhw->kbcd", pair, pair) / (3 * 4 * 5)
    torch.testing.assert_close(gram_distance(*pair), (first - second).square().mean((1, 2)))
    large = torch.full((1, 3, 300, 300), 100.0, dtype=torch.float16)
    assert gram_distance(large, 0 * large).isfinite().all()


def test_half_precision_features_stay_close(loss):
    small = [x[:1, :, :24, :24] for x in (RESTORED, CLEAN)]
    half = EnhancerLoss(WITHOUT_CLIP, device="cpu", dtype=torch.float16)(*small)
    assert half["lpips"].dtype == torch.float32
    assert half["lpips"].item() == pytest.approx(loss(*small)["lpips"].item(), rel=0.01)


@pytest.mark.parametrize(("better", "worse"), [
    (lambda clean: clean, lambda clean: clean * 0.2 + 0.4),  # detail lost
    (lambda clean: clean * 0.2 + 0.4, lambda clean: clean * 0.2 + 0.6),  # the wrong colour, too
    (lambda clean: clean * 0.8 + 0.1, lambda clean: 3 * clean - 1)])  # too much
def test_mask_learns_which_picture_is_closer(better, worse):
    for degraded, decoded, sign in ((worse, better, 1), (better, worse, -1)):
        logit = torch.zeros(2, 1, 32, 48, requires_grad=True)
        mask_loss(degraded(CLEAN), decoded(CLEAN), logit, CLEAN).backward()
        assert (sign * logit.grad < 0).all()


def test_closed_mask_can_be_opened_and_equal_pictures_leave_it_undecided():
    logit = torch.full((2, 1, 32, 48), -8.0, requires_grad=True)
    mask_loss(CLEAN * 0.2 + 0.4, CLEAN, logit, CLEAN).backward()
    assert -logit.grad.sum() > 0.9
    logit = torch.zeros(2, 1, 32, 48, requires_grad=True)
    mask_loss(RESTORED, RESTORED, logit, CLEAN).backward()
    assert logit.grad.abs().max() < 1e-6


def test_detail_is_counted_by_its_size():
    """Stripes of one pixel are finer than all three sizes, of six than the last alone."""
    x = torch.arange(64)
    fine, coarse = ((x // width % 2).float().expand(1, 3, 64, -1) for width in (1, 6))
    flat = detail(torch.full((1, 3, 64, 64), 0.5))
    assert flat.std() < 1e-6 and (detail(fine) - flat).amin() > 3
    gain = (detail(coarse) - flat).mean((0, 2, 3))
    assert gain[2] > gain[1] > gain[0]


@pytest.mark.parametrize(("cells", "size"), [((3, 5), (7, 5)), ((31, 31), (128, 100)),
                                             ((4, 4), (3, 2))])
def test_spreading_keeps_the_mean_and_is_exact_where_cells_are_whole(cells, size):
    values = torch.rand(1, 2, *cells, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(spread(values, size).mean((2, 3)), values.mean((2, 3)))
    doubled = spread(values, (2 * cells[0], 3 * cells[1]))
    torch.testing.assert_close(doubled, values.repeat_interleave(2, 2).repeat_interleave(3, 3))


def test_random_network_depends_on_its_seed_only():
    state = torch.get_rng_state()
    first, same, other = (load_lpips("squeeze", pretrained=False, seed=s).state_dict()
                          for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, same[name]) for name, value in first.items())
    assert not torch.equal(first["net.slice1.0.weight"], other["net.slice1.0.weight"])


def test_unreachable_weights_say_which_and_what_to_do(monkeypatch, tmp_path):
    def fail(*_, **__):
        raise OSError("no route to host")
    monkeypatch.setattr(torchvision.models, "vgg16", fail)
    with pytest.raises(ConnectionError, match=r"vgg.*no route.*lpips_weights='stlpips'"):
        EnhancerLoss(CONFIG.replace(lpips_weights="lpips"), device="cpu")
    with pytest.raises(ConnectionError, match=r"CLIP.*lambda_clipsim to 0"):
        EnhancerLoss(CONFIG.replace(lambda_lpips=0.0, lambda_gram=0.0), device="cpu",
                     clip_name=str(tmp_path))


@pytest.mark.parametrize("bad", [CLEAN[0], CLEAN[:, :1], CLEAN[:1]])
def test_other_shapes_are_refused(loss, bad):
    with pytest.raises(ValueError, match=r"expected \(B, 3, H, W\)"):
        loss(bad, CLEAN)
