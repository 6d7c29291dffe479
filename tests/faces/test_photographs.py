"""The degradation on real photographs with true masks; skipped where they are absent."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from helpers.degradation.pipeline import AMOUNTS, DegradeConfig, degrade
from helpers.degradation.presets import damage
from helpers.faces.regions import REGIONS
from tests.measure_damage import SHARED, read_face, squeeze

pytestmark = pytest.mark.skipif(not (SHARED / "faces").is_dir(),
                                reason="../shared/faces, photographs with masks, is absent")
ZERO = DegradeConfig(**dict.fromkeys(AMOUNTS, 0.0))


@pytest.fixture(scope="module")
def faces():
    return [read_face(path) for path in sorted((SHARED / "faces" / "images").iterdir())[::50]]


@pytest.mark.parametrize("region", REGIONS)
def test_a_regions_damage_stays_within_its_true_mask(faces, region):
    settings = dataclasses.replace(ZERO, **{region: 1.0})
    inside = outside = 0.0
    for seed, (clean, regions) in enumerate(faces):
        mask = (regions == REGIONS.index(region)).float()
        change = (degrade(clean, regions, settings, torch.tensor([seed])) - clean).abs().mean(1)
        near = F.max_pool2d(mask, 33, 1, 16)
        assert (change * (1 - near) == 0).all()  # exactly nothing beyond the feathered rim
        inside += float((change * mask).sum())
        outside += float((change * (1 - mask)).sum())
    assert inside > 2 * outside


@pytest.mark.filterwarnings("ignore::UserWarning")  # torchvision on how lpips asks for weights
def test_named_damages_rise_and_medium_lies_where_real_renders_lie(faces):
    distance = squeeze()
    found = {}
    for name in ("light", "medium", "heavy", "splat"):
        with torch.no_grad():
            found[name] = sum(float(distance(
                degrade(clean, regions, damage(name), torch.tensor([seed])), clean,
                normalize=True)) for seed, (clean, regions) in enumerate(faces)) / len(faces)
    assert found["light"] < found["medium"] < found["splat"] < found["heavy"]
    assert 0.07 < found["medium"] < 0.26  # the real pairs; see README
