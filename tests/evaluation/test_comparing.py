"""Other tools on the same sets: what is written out is what is measured, what came back fits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.filters import gaussian

from helpers.config import LossConfig
from helpers.distances import Metrics
from helpers.evaluation import Filter, compare, measure, write_sets
from helpers.evaluation.filters import CANDIDATES, choose_filter
from tests.evaluation.test_measuring import CLEAN, batches


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    return Metrics(LossConfig(vgg="random", clip=0.0), device="cpu")


@pytest.fixture
def sets():
    degraded = (0.6 * CLEAN + 0.1).mul(255).round().div(255)
    big = torch.nn.functional.interpolate(degraded, (64, 64))  # files have 64 px or more
    clean = torch.nn.functional.interpolate(CLEAN, (64, 64))
    pairs = [type(one)(clean[i * 4:i * 4 + 4], big[i * 4:i * 4 + 4], one.identities, one.images)
             for i, one in enumerate(batches())]
    return {"drawn": pairs, "fitted": pairs[:1]}


def test_a_folder_of_the_inputs_is_doing_nothing_to_the_last_bit(metrics, sets, tmp_path):
    files = write_sets(sets, tmp_path)
    assert len(files) == 14 and files[0] == tmp_path / "drawn" / "0000.png"
    found = compare(tmp_path, sets, metrics)
    assert list(found) == ["drawn", "fitted"]
    assert found["drawn"].restored == found["drawn"].degraded
    ours = measure("drawn", lambda one: one.degraded, sets["drawn"], metrics).result
    assert found["drawn"] == ours


def test_a_set_that_is_missing_is_left_out_and_one_that_is_not_whole_is_refused(
        metrics, sets, tmp_path):
    write_sets(sets, tmp_path)
    for file in (tmp_path / "drawn").iterdir():
        file.unlink()
    (tmp_path / "drawn").rmdir()
    assert list(compare(tmp_path, sets, metrics)) == ["fitted"]
    (tmp_path / "fitted" / "0002.png").rename(tmp_path / "fitted" / "0002.old.png")
    with pytest.raises(ValueError, match=r"none for 0002'; restore all of the set"):
        compare(tmp_path, sets, metrics)
    with pytest.raises(ValueError, match="a folder for one of the sets drawn, fitted"):
        compare(tmp_path / "nowhere", sets, metrics)


def test_pictures_of_another_size_are_refused_by_name(metrics, sets, tmp_path):
    write_sets(sets, tmp_path)
    Image.new("RGB", (256, 256)).save(tmp_path / "fitted" / "0001.png")
    with pytest.raises(ValueError, match=r"0001\.png.*64 x 64 pixels.*scale it back"):
        compare(tmp_path, {"fitted": sets["fitted"]}, metrics)


def test_unsharp_masking_adds_what_scikit_images_gaussian_takes():
    image = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    ours = Filter("unsharp", 2.0, 0.7)(image)[0].numpy()
    soft = np.stack([gaussian(channel, sigma=2.0) for channel in image[0].numpy()])
    theirs = (image[0].numpy() + 0.7 * (image[0].numpy() - soft)).clip(0, 1)
    assert abs(ours - theirs)[:, 10:-10, 10:-10].max() < 0.005
    assert abs(ours - image[0].numpy()).mean() > 0.05


@pytest.mark.parametrize("one", CANDIDATES, ids=str)
def test_filters_keep_flat_pictures_shape_and_range(one):
    flat = torch.full((2, 3, 48, 64), 0.3)
    torch.testing.assert_close(one(flat), flat)
    noise = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    assert one(noise).min() >= 0 and one(noise).max() <= 1 and one(noise).shape == noise.shape


def test_a_bilateral_filter_takes_noise_and_leaves_an_edge():
    edge = torch.zeros(1, 3, 128, 128)
    edge[..., 64:] = 1
    noisy = (edge + 0.05 * torch.rand(edge.shape, generator=torch.Generator().manual_seed(0))
             ).clamp(0, 1)
    smooth = Filter("bilateral", 1.0, 0.1)(noisy)
    assert smooth[..., 4:60].std() < 0.6 * noisy[..., 4:60].std()
    assert (smooth[..., 64] - smooth[..., 63]).mean() > 0.9


def test_the_filter_that_leaves_least_is_chosen_on_training_faces_alone(
        metrics, config, faces, monkeypatch):
    loaded = []
    load = type(faces).load
    monkeypatch.setattr(type(faces), "load", lambda self, split, rows: loaded.append(split) or load(
        self, split, rows))
    chosen, left = choose_filter(config, faces, {}, metrics)
    assert set(loaded) == {"train"} and left.keys() == {"nothing", *map(str, CANDIDATES)}
    assert left[str(chosen)] == min(left[str(one)] for one in CANDIDATES)
