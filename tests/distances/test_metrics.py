"""Each metric equals its library, regions add up to the whole, the unmeasurable is refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from helpers.config import LossConfig
from helpers.distances import Metrics, spatial
from helpers.distances.losses import clip_embedding
from helpers.distances.metrics import psnr, ssim
from helpers.distances.perceptual import load_lpips
from helpers.distances.stlpips import load_stlpips
from helpers.faces import REGIONS

NAMES = ("stlpips_alex", "psnr", "ssim")
REAL_LPIPS = Path(__file__).parents[3] / "shared" / "lpips"
DICE = torch.Generator().manual_seed(0)
CLEAN, OTHER = torch.rand(2, 3, 3, 47, 64, generator=DICE)
MAPS = torch.randint(0, 5, (3, 47, 64), generator=DICE).byte()  # no hair


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    return Metrics(LossConfig(vgg="random", clip=0.0), device="cpu")


def test_psnr_of_a_known_error():
    clean = torch.full((2, 3, 16, 16), 0.5)
    offset = torch.tensor([0.1, 0.01]).view(2, 1, 1, 1)
    torch.testing.assert_close(psnr(clean + offset, clean), torch.tensor([20.0, 40.0]).double(),
                               rtol=1e-5, atol=0)


def test_psnr_and_ssim_equal_scikit_image():
    a, b = OTHER[1].double().numpy(), CLEAN[1].double().numpy()
    assert psnr(OTHER, CLEAN)[1].item() == pytest.approx(
        peak_signal_noise_ratio(b, a, data_range=1))
    assert ssim(OTHER, CLEAN)[1].item() == pytest.approx(structural_similarity(
        a, b, data_range=1, channel_axis=0, gaussian_weights=True, use_sample_covariance=False))


def test_identical_images_are_at_distance_0_with_ssim_1(metrics):
    same = metrics(CLEAN, CLEAN.clone())
    assert same["stlpips_alex"] == [0.0] * 3 and same["psnr"] == [math.inf] * 3
    assert same["ssim"] == pytest.approx([1.0] * 3)


def test_the_perceptual_distance_is_the_networks_own(metrics):
    network = load_stlpips("alex")
    expected = network(OTHER, CLEAN, normalize=True).flatten()
    assert metrics(OTHER, CLEAN)["stlpips_alex"] == pytest.approx(expected.tolist(), rel=1e-5)


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_the_map_has_the_mean_of_lpips_whatever_the_sizes_of_its_taps(net):
    network = load_lpips(net, pretrained=False)
    for sides in ((64, 64), (47, 83)):
        images, clean = torch.rand(2, 1, 3, *sides, generator=torch.Generator().manual_seed(1))
        found = spatial.distance_map(network, images, clean)
        assert found.shape == (1, *sides)
        torch.testing.assert_close(found.mean((1, 2)),
                                   network(images, clean, normalize=True).flatten())


@pytest.mark.skipif(not REAL_LPIPS.is_dir(), reason=f"needs SqueezeNet's weights in {REAL_LPIPS}")
def test_the_map_of_trained_lpips_has_its_mean(monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(REAL_LPIPS))
    network = load_lpips("squeeze", pretrained=True)
    torch.testing.assert_close(spatial.distance_map(network, OTHER, CLEAN).mean((1, 2)),
                               network(OTHER, CLEAN, normalize=True).flatten())


def test_the_regions_agree_with_the_whole(metrics):
    """The mean of the regions, weighted by their areas, is the figure of the whole picture."""
    found = metrics(OTHER, CLEAN, regions=MAPS, labels=REGIONS)
    for i in range(3):
        shares = {name: float((MAPS[i] == place).float().mean())
                  for place, name in enumerate(REGIONS)}
        parts = [share * found[f"stlpips_alex/{name}"][i]
                 for name, share in shares.items() if share]
        assert sum(parts) == pytest.approx(found["stlpips_alex"][i], rel=1e-5)
        assert math.isnan(found["stlpips_alex/hair"][i])


def test_a_region_is_measured_where_it_lies(metrics):
    regions = torch.zeros(1, 96, 96, dtype=torch.uint8)
    regions[:, :, 48:] = 1
    clean = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(2))
    spoiled = clean.clone()
    spoiled[..., 56:] = 0.5
    found = metrics(spoiled, clean, regions=regions, labels=REGIONS)
    assert found["stlpips_alex/skin"][0] > 4 * found["stlpips_alex/background"][0]


@pytest.mark.parametrize(("cells", "size"), [((3, 5), (7, 5)), ((31, 31), (128, 100)),
                                             ((4, 4), (3, 2))])
def test_spreading_keeps_the_mean_and_is_exact_where_cells_are_whole(cells, size):
    values = torch.rand(1, 2, *cells, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(spatial.spread(values, size).mean((2, 3)), values.mean((2, 3)))
    doubled = spatial.spread(values, (2 * cells[0], 3 * cells[1]))
    torch.testing.assert_close(doubled, values.repeat_interleave(2, 2).repeat_interleave(3, 3))


def test_figures_depend_on_no_neighbour_and_no_order(metrics):
    options = {"regions": MAPS, "labels": REGIONS}
    together = metrics(OTHER, CLEAN, **options)
    assert tuple(together)[:3] == metrics.names == NAMES
    for i in (2, 0):
        alone = metrics(OTHER[i:i + 1], CLEAN[i:i + 1], regions=MAPS[i:i + 1], labels=REGIONS)
        assert [alone[n][0] for n in alone] == pytest.approx([together[n][i] for n in alone],
                                                             rel=1e-5, nan_ok=True)


def test_kinds_are_measured_at_once_as_they_are_alone(metrics):
    kinds = metrics.each({"a": OTHER, "b": 0.5 * OTHER}, CLEAN)
    for name in NAMES:
        assert kinds["b"][name] == pytest.approx(metrics(0.5 * OTHER, CLEAN)[name], rel=1e-5)


def test_the_ranking_network_is_never_the_losss_and_all_are_named(monkeypatch):
    monkeypatch.setattr("helpers.distances.metrics.load_lpips",
                        lambda *_, **__: torch.nn.Identity())
    names = {vgg: Metrics(LossConfig(vgg=vgg), device="cpu").names for vgg in ("lpips", "stlpips")}
    assert names == {"lpips": ("stlpips_alex", "lpips_alex", "lpips_vgg", "psnr", "ssim"),
                     "stlpips": NAMES}


def test_identity_is_the_cosine_of_clip_embeddings_where_clip_is_at_hand(metrics, tmp_path):
    tiny = CLIPVisionConfig(hidden_size=16, intermediate_size=32, projection_dim=8, patch_size=8,
                            num_hidden_layers=1, num_attention_heads=2, image_size=32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPVisionModelWithProjection(tiny).save_pretrained(tmp_path)
    known = Metrics(LossConfig(vgg="random"), device="cpu", clip_name=str(tmp_path))
    assert known.names == (*NAMES, "identity", "identity_to_input") and known.absent == {}
    assert metrics.absent.keys() == {"identity"} and "identity" not in metrics(OTHER, CLEAN)
    found = known(OTHER, CLEAN, degraded=OTHER)
    ours, truth = (clip_embedding(known.clip, x, dtype=torch.float32) for x in (OTHER, CLEAN))
    expected = torch.nn.functional.cosine_similarity(ours, truth).tolist()
    assert found["identity"] == pytest.approx(expected, rel=1e-5)
    assert found["identity_to_input"] == pytest.approx([1.0] * 3)


@pytest.mark.parametrize(("images", "complaint"), [
    (255 * OTHER, r"finite values in \[0, 1\]"), (OTHER - 0.5, r"finite values in \[0, 1\]"),
    (OTHER * math.nan, r"finite values in \[0, 1\]"), (OTHER[:, :, :40], "shape of clean"),
    (OTHER[:2], "shape of clean"), (OTHER[:, :1], r"\(B, 3, H, W\)"),
    (OTHER[..., :16], "sides of 32"), (OTHER.mul(255).byte(), "floats")])
def test_a_wrong_range_size_or_type_is_refused(metrics, images, complaint):
    with pytest.raises(ValueError, match=complaint):
        metrics(images, CLEAN)
