"""Each metric equals its library, regions add up to the whole, the unmeasurable is an error."""

import math

import pytest
import torch

from splat_enhancer.config import preset
from splat_enhancer.losses.metrics import Metrics, psnr, ssim
from splat_enhancer.losses.perceptual import clip_embedding, load_stlpips

NAMES = ("stlpips_alex", "psnr", "ssim")
LABELS = ("background", "skin", "eyes", "nose", "mouth", "hair")
RNG = torch.Generator().manual_seed(0)
CLEAN, OTHER = torch.rand(2, 3, 3, 47, 64, generator=RNG)
REGIONS = torch.randint(0, 5, (3, 47, 64), generator=RNG).byte()  # no hair


@pytest.fixture(scope="module")
def metrics(tmp_path_factory):
    empty = tmp_path_factory.mktemp("no_clip")
    return Metrics(preset("demo"), device="cpu", clip_name=str(empty))


def measure(metrics, images, clean=CLEAN, **options):
    return metrics.each({"images": images}, clean, **options)["images"]


def test_psnr_of_a_known_error():
    clean = torch.full((2, 3, 16, 16), 0.5)
    offset = torch.tensor([0.1, 0.01]).view(2, 1, 1, 1)
    torch.testing.assert_close(psnr(clean + offset, clean), torch.tensor([20.0, 40.0]).double(),
                               rtol=1e-5, atol=0)


def test_psnr_and_ssim_equal_scikit_image():
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is the reference")
    a, b = OTHER[1].double().numpy(), CLEAN[1].double().numpy()
    expected = metrics.peak_signal_noise_ratio(b, a, data_range=1)
    assert psnr(OTHER, CLEAN)[1].item() == pytest.approx(expected)
    expected = metrics.structural_similarity(a, b, data_range=1, channel_axis=0,
                                             gaussian_weights=True, use_sample_covariance=False)
    assert ssim(OTHER, CLEAN)[1].item() == pytest.approx(expected, rel=1e-9)


def test_identical_images_are_at_distance_0_with_ssim_1(metrics):
    same = measure(metrics, CLEAN.clone())
    assert same["stlpips_alex"] == [0.0] * 3 and same["psnr"] == [math.inf] * 3
    assert same["ssim"] == pytest.approx([1.0] * 3)


def test_perceptual_distance_is_the_networks_own_alone_and_beside_others(metrics):
    network = load_stlpips("alex")
    expected = network(OTHER, CLEAN, normalize=True).flatten().tolist()
    kinds = metrics.each({"a": 0.5 * OTHER, "b": OTHER}, CLEAN)
    assert kinds["b"]["stlpips_alex"] == pytest.approx(expected, rel=1e-5)
    alone = measure(metrics, OTHER.flip(0)[:1], CLEAN.flip(0)[:1])
    for name in NAMES:
        assert alone[name] == pytest.approx(kinds["b"][name][-1:], rel=1e-5)


def test_regions_agree_with_the_whole(metrics):
    """The mean of the regions, weighted by their areas, is the figure of the whole picture."""
    values = measure(metrics, OTHER, regions=REGIONS, labels=LABELS)
    for i in range(3):
        areas = {label: float((REGIONS[i] == number).float().mean())
                 for number, label in enumerate(LABELS)}
        parts = [area * values[f"stlpips_alex/{label}"][i] for label, area in areas.items() if area]
        assert sum(parts) == pytest.approx(values["stlpips_alex"][i], rel=1e-5)
        assert math.isnan(values["stlpips_alex/hair"][i])


def test_region_is_measured_where_it_lies(metrics):
    regions = torch.zeros(1, 96, 96, dtype=torch.uint8)
    regions[:, :, 48:] = 1
    clean = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(2))
    spoiled = clean.clone()
    spoiled[..., 56:] = 0.5
    values = measure(metrics, spoiled, clean, regions=regions, labels=LABELS)
    assert values["stlpips_alex/skin"][0] > 4 * values["stlpips_alex/background"][0]


def test_ranking_network_is_never_the_losss_and_all_are_named(metrics, monkeypatch, tmp_path):
    monkeypatch.setattr("splat_enhancer.losses.metrics.load_lpips", lambda _: torch.nn.Identity())
    config = preset("demo").replace(lpips_weights="lpips")
    assert Metrics(config, device="cpu", clip_name=str(tmp_path)).names == (
        "stlpips_alex", "lpips_alex", "lpips_vgg", "psnr", "ssim")
    assert metrics.names == NAMES and metrics.absent.keys() == {"identity"}


def test_identity_is_the_cosine_of_clip_embeddings_where_clip_is_at_hand(tmp_path):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPVisionModelWithProjection(CLIPVisionConfig(
            hidden_size=16, intermediate_size=32, projection_dim=8, patch_size=8, image_size=32,
            num_hidden_layers=1, num_attention_heads=2)).save_pretrained(tmp_path)
    metrics = Metrics(preset("demo"), device="cpu", clip_name=str(tmp_path))
    assert metrics.names == (*NAMES, "identity") and metrics.absent == {}
    a, b = (clip_embedding(metrics.clip, x, dtype=torch.float32) for x in (OTHER, CLEAN))
    expected = torch.nn.functional.cosine_similarity(a, b).tolist()
    assert measure(metrics, OTHER)["identity"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("images", "complaint"), [
    (255 * OTHER, r"finite values in \[0, 1\]"), (OTHER * math.nan, r"finite values in \[0, 1\]"),
    (OTHER[:, :, :40], "shape of clean"), (OTHER[:2], "shape of clean"),
    (OTHER[:, :1], r"\(B, 3, H, W\)"), (OTHER[..., :16], "sides of 32"),
    (OTHER.mul(255).byte(), "floats")])
def test_wrong_range_size_or_type_is_refused(metrics, images, complaint):
    with pytest.raises(ValueError, match=complaint):
        measure(metrics, images)
