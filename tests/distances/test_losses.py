"""The claims of helpers/distances/losses.py, with random networks: no test downloads anything."""

import warnings
from dataclasses import replace
from pathlib import Path

import lpips
import pytest
import torch
import torchvision
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from helpers.config import LossConfig
from helpers.distances import losses
from helpers.distances.detail import detail
from helpers.distances.losses import EnhancerLoss, mask_loss
from helpers.distances.perceptual import (
    gram_distance,
    gram_matrix,
    load_lpips,
    unit_vectors,
    vgg_distances,
)
from tests.faulty import without_weight

REAL_LPIPS = Path(__file__).parents[3] / "shared" / "lpips"
CONFIG = LossConfig(l1=3.0, lpips=0.7, gram=5.0, clip=0.2, vgg="random")


@pytest.fixture(scope="module")
def loss(tmp_path_factory: pytest.TempPathFactory) -> EnhancerLoss:
    folder = tmp_path_factory.mktemp("clip")
    tiny = CLIPVisionConfig(hidden_size=16, intermediate_size=32, projection_dim=8, patch_size=8,
                            num_hidden_layers=2, num_attention_heads=2, image_size=32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPVisionModelWithProjection(tiny).save_pretrained(folder)
    return EnhancerLoss(CONFIG, device="cpu", clip_name=str(folder))


def test_clip_without_one_of_its_weights_is_refused(loss, tmp_path):
    loss.clip.save_pretrained(tmp_path)
    assert losses.load_clip(str(tmp_path)).config.image_size == 32
    without_weight(tmp_path, "visual_projection.weight")
    with pytest.raises(RuntimeError, match=r"all its weights, got .*visual_projection.*loss\.clip"):
        losses.load_clip(str(tmp_path))


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.rand(3, 3, 32, 48, generator=generator) for _ in range(2))


def test_lpips_term_equals_the_lpips_package_per_sample(images):
    loss = EnhancerLoss(replace(CONFIG, clip=0.0), device="cpu", seed=1)
    with torch.no_grad():
        for head in loss.lpips.lins:  # uneven heads, as the published ones are
            weight = head.model[1].weight
            weight.copy_(torch.linspace(0, 1, weight.numel()).view_as(weight))
        expected = loss.lpips(*images, normalize=True).flatten()
        found = vgg_distances(loss.lpips, *images, dtype=torch.float32, terms=["lpips"])
        torch.testing.assert_close(found, {"lpips": expected}, rtol=1e-5, atol=1e-5)
        assert loss(*images)["lpips"].item() == pytest.approx(expected.mean().item(), abs=1e-5)


def test_lpips_equals_the_package_with_its_own_random_weights(images):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the package's use of torchvision
        package = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False)
    ours = load_lpips("squeeze", pretrained=False)
    ours.load_state_dict(package.state_dict())
    torch.testing.assert_close(ours(*images), package(*images))


@pytest.mark.skipif(not REAL_LPIPS.is_dir(), reason=f"needs SqueezeNet's weights in {REAL_LPIPS}")
def test_pretrained_squeezenet_reproduces_the_documented_value(monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(REAL_LPIPS))
    network = load_lpips("squeeze", pretrained=True)
    with torch.random.fork_rng():  # the example in torchmetrics' documentation
        torch.manual_seed(123)
        pair = [torch.rand(10, 3, 100, 100) * 2 - 1 for _ in range(2)]
    assert network(*pair).mean().item() == pytest.approx(0.1008, abs=1e-4)


def test_pretrained_vgg_takes_torchvision_layers_and_published_heads(monkeypatch):
    with torch.device("meta"):
        shapes = {k: v.shape for k, v in torchvision.models.vgg16().state_dict().items()
                  if k.startswith("features")}
    fake = {name: torch.rand(shape) for name, shape in shapes.items()}
    monkeypatch.setattr(torchvision.models.VGG16_Weights, "get_state_dict", lambda *_, **__: fake)
    network = load_lpips("vgg", pretrained=True)
    assert torch.equal(network.net.slice3[1].weight, fake["features.10.weight"])
    assert network.lin2.model[1].weight.std() > 0 and network.lins[2] is network.lin2


def test_weight_0_loads_nothing(images, monkeypatch):
    monkeypatch.setattr(losses, "load_lpips", lambda *_, **__: pytest.fail("loaded VGG16"))
    monkeypatch.setattr(losses, "load_clip", lambda *_: pytest.fail("loaded CLIP"))
    terms = EnhancerLoss(LossConfig(lpips=0.0, gram=0.0, clip=0.0), device="cpu")(*images)
    assert set(terms) == {"l1", "total"}
    torch.testing.assert_close(terms["total"], 2 * (images[0] - images[1]).abs().mean())


def test_vgg_runs_once_per_batch_of_images(loss, images):
    calls = []
    blocks = [getattr(loss.lpips.net, f"slice{i}") for i in range(1, 6)]
    handles = [block.register_forward_hook(lambda *_, i=i: calls.append(i))
               for i, block in enumerate(blocks)]
    loss(images[0].clone().requires_grad_(), images[1])["total"].backward()
    for handle in handles:
        handle.remove()
    assert sorted(calls) == sorted([*range(5)] * 2)


def test_total_is_the_weighted_sum(loss, images):
    terms = loss.train()(*images)
    expected = sum(getattr(CONFIG, name) * terms[name] for name in ("l1", "lpips", "gram", "clip"))
    torch.testing.assert_close(terms.pop("total"), expected)
    assert len(terms) == 4 and all(value > 0 for value in terms.values())


def test_the_description_names_the_weights_and_the_network(loss):
    part = EnhancerLoss(LossConfig(l1=2, lpips=0.5, gram=0, clip=0, mask=0,
                                   vgg="stlpips", vgg_view_px=64), device="cpu")
    assert part.describe() == \
        "2 × L1 + 0.5 × LPIPS; VGG16 (stlpips_vgg) sees a random square of 64 px"
    assert loss.describe().endswith("sees the whole image")
    plain = EnhancerLoss(LossConfig(l1=1, lpips=0, gram=0, clip=0), device="cpu")
    assert plain.describe() == "1 × L1 + 0.1 × mask"


def test_the_mask_is_judged_where_there_is_one(loss, images):
    restored, clean = images
    open_mask = torch.full_like(clean[:, :1], 2.0)
    terms = loss(restored, clean, choice=(restored, clean, open_mask))
    without = loss(restored, clean)
    assert "mask" not in without and terms["mask"] > 0
    torch.testing.assert_close(terms["total"], without["total"] + CONFIG.mask * terms["mask"])


def textured(seed: int) -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("better", "worse"), [
    (lambda clean: clean, lambda clean: clean * 0.2 + 0.4),  # detail lost
    (lambda clean: clean * 0.2 + 0.4, lambda clean: clean * 0.2 + 0.6),  # the wrong colour, too
    (lambda clean: clean * 0.8 + 0.1, lambda clean: 3 * clean - 1)])  # too much
def test_the_mask_learns_which_picture_is_closer(better, worse):
    clean = textured(0)
    for degraded, decoded, sign in ((worse, better, 1), (better, worse, -1)):
        logits = torch.zeros(2, 1, 32, 32, requires_grad=True)
        mask_loss(degraded(clean), decoded(clean), logits, clean).backward()
        assert (sign * logits.grad < 0).all()


def test_a_closed_mask_can_be_opened_again():
    clean = textured(0)
    logits = torch.full((2, 1, 32, 32), -8.0, requires_grad=True)
    mask_loss(clean * 0.2 + 0.4, clean, logits, clean).backward()
    assert -logits.grad.sum() > 0.9


def test_equal_pictures_leave_the_mask_undecided():
    logits = torch.zeros(2, 1, 32, 32, requires_grad=True)
    mask_loss(textured(1), textured(1), logits, textured(0)).backward()
    assert logits.grad.abs().max() < 1e-6


def test_detail_is_counted_by_its_size():
    """Stripes of one pixel are finer than all three sizes, of six than the last alone."""
    x = torch.arange(64)
    fine, coarse = ((x // width % 2).float().expand(1, 3, 64, -1) for width in (1, 6))
    flat = detail(torch.full((1, 3, 64, 64), 0.5))
    assert flat.std() < 1e-6 and (detail(fine) - flat).amin() > 3
    gain = (detail(coarse) - flat).mean((0, 2, 3))
    assert gain[2] > gain[1] > gain[0]


def test_equal_images_cost_nothing(loss, images):
    assert all(abs(value.item()) < 1e-6 for value in loss(images[0], images[0]).values())


def test_gradient_reaches_restored_only_and_is_not_clamped(loss, images):
    restored, clean = (3 * images[0] - 1).requires_grad_(), images[1].requires_grad_()
    terms = loss(restored, clean)
    for name in ("l1", "lpips", "gram", "clip"):
        gradient, = torch.autograd.grad(terms[name], restored, retain_graph=True)
        assert (gradient[(restored < 0) | (restored > 1)] != 0).float().mean() > 0.9
    terms["total"].backward()
    assert clean.grad is None and all(p.grad is None for p in loss.parameters())


def test_gradient_is_finite_where_every_feature_is_zero(loss, images):
    flat = ((1 + loss.lpips.scaling_layer.shift) / 2).expand_as(images[0]).clone().requires_grad_()
    loss(flat, images[1])["total"].backward()
    assert flat.grad.isfinite().all()


@pytest.mark.parametrize("scale", [1.0, 65536.0])
def test_the_direction_of_a_zero_vector_has_a_finite_gradient(scale):
    """Of one pixel of one tap there is nothing: the package's root has no slope there."""
    noise = torch.Generator().manual_seed(0)
    features, others = torch.rand(2, 2, 8, 4, 4, generator=noise).half()
    features[:, :, 1, 2] = 0
    features.requires_grad_()
    difference = unit_vectors(features.float()) - unit_vectors(others.float())
    (scale * difference.square().mean()).backward()
    assert features.grad.isfinite().all() and features.grad[:, :, 1, 2].abs().sum() > 0
    theirs = features.detach().float().requires_grad_()
    lpips.normalize_tensor(theirs).square().sum().backward()
    assert not theirs.grad.isfinite().all()  # it can fail
    assert torch.equal(unit_vectors(theirs), lpips.normalize_tensor(theirs))


def test_gram_matches_its_formula_and_does_not_mix_samples():
    a, b = torch.rand(2, 2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    expected = torch.einsum("chw,dhw->cd", a[1], a[1]) / (3 * 4 * 5)
    torch.testing.assert_close(gram_matrix(a)[1], expected)
    together, alone = gram_distance(a, b), gram_distance(a[:1], b[:1])
    torch.testing.assert_close(together[:1], alone)
    assert gram_matrix(torch.full((1, 3, 300, 300), 100.0, dtype=torch.float16)).isfinite().all()


def test_gram_has_the_gradient_of_its_formula():
    features, slope = torch.rand(2, 2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    features.requires_grad_()
    slope = slope[:, :, :3, 0].contiguous()
    plain = torch.einsum("bchw,bdhw->bcd", features, features) / (3 * 4 * 5)
    expected, found = (torch.autograd.grad(gram, features, slope)[0]
                       for gram in (plain, gram_matrix(features)))
    torch.testing.assert_close(found, expected)


def test_random_network_depends_on_its_seed_only(loss):
    state = torch.get_rng_state()
    same, other = (load_lpips("vgg", pretrained=False, seed=s).state_dict() for s in (0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, same[k]) for k, v in loss.lpips.state_dict().items())
    assert not torch.equal(same["net.slice1.0.weight"], other["net.slice1.0.weight"])


def test_half_precision_features_stay_close(loss, images):
    small = [x[:1, :, :16, :16] for x in images]
    half = EnhancerLoss(replace(CONFIG, clip=0.0), device="cpu", dtype=torch.float16)(*small)
    assert half["lpips"].dtype == torch.float32
    assert half["lpips"].item() == pytest.approx(loss(*small)["lpips"].item(), rel=0.01)


def test_unreachable_weights_say_which_and_what_to_do(monkeypatch, tmp_path):
    def fail(*_, **__):
        raise OSError("no route to host")
    monkeypatch.setattr(torchvision.models.VGG16_Weights, "get_state_dict", fail)
    with pytest.raises(RuntimeError, match=r"vgg16.*no route.*loss\.vgg='stlpips'"):
        EnhancerLoss(LossConfig(), device="cpu")
    with pytest.raises(RuntimeError, match=r"CLIP.*loss\.clip to 0"):
        EnhancerLoss(LossConfig(lpips=0.0, gram=0.0), device="cpu", clip_name=str(tmp_path))
    with pytest.raises(ValueError, match="expected 'vgg'"):
        load_lpips("resnet", pretrained=False)


@pytest.mark.parametrize("bad", [torch.rand(3, 32, 48), torch.rand(3, 1, 32, 48),
                                 torch.rand(3, 3, 8, 48), torch.rand(2, 3, 32, 48),
                                 torch.zeros(3, 3, 32, 48, dtype=torch.uint8)])
def test_bad_images_are_refused(loss, images, bad):
    with pytest.raises(ValueError, match="expected"):
        loss(bad, images[1])
