"""Procedural heads: the C rasteriser, fits, wrong detail, the table of detail, embedded data."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from splat_enhancer.config import ASSETS
from splat_enhancer.degradation.wrong_detail import wrong_detail
from splat_enhancer.gaussians.rasterizer import project
from splat_enhancer.gaussians.rasterizer import rasterize as reference
from tools import detail_table
from tools.heads.person import look_at_head, plain_picture, wide_head
from tools.heads.recipes import draw_recipe

needs_compiler = pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
SIZE_PX = 48


def gaussians(count=250):
    rng = torch.Generator().manual_seed(0)
    values = (0.5 * torch.randn(count, 3, generator=rng),
              0.06 * torch.randn(count, 3, 3, generator=rng),
              torch.rand(count, 3, generator=rng), 0.05 + torch.rand(count, generator=rng) * 0.95)
    return [value.requires_grad_() for value in values]


def photographs(count=3):
    rng = torch.Generator().manual_seed(1)
    clean = torch.nn.functional.interpolate(torch.rand(count, 3, 40, 40, generator=rng), (64, 64),
                                            mode="bilinear")
    matte = torch.zeros(count, 1, 64, 64)
    matte[:, :, 12:, 14:50] = 1
    return clean, matte


@needs_compiler
def test_c_rasterizer_and_its_gradients_equal_the_torch_one():
    from tools.heads.rasterizer import rasterize

    camera = look_at_head(0.4, 0.2, size_px=SIZE_PX)
    backdrop = torch.rand(3, SIZE_PX, SIZE_PX, generator=torch.Generator().manual_seed(2))
    values, gradients = gaussians(), []
    means, axes, colors, opacities = values
    splats = project(means, axes @ axes.mT, colors, opacities, camera)
    expected, alpha = reference(splats, SIZE_PX, SIZE_PX, background=backdrop)
    drawn, light = rasterize(*values, camera, backdrop)
    torch.testing.assert_close(drawn, expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(1 - light, alpha, atol=2e-5, rtol=0)
    for image in (expected, drawn):
        loss = (image - backdrop.flip(0)).abs().sum()
        gradients.append(torch.autograd.grad(loss, values, retain_graph=True))
    for first, second in zip(*gradients, strict=True):
        assert (first - second).norm() < 1e-4 * first.norm()


@needs_compiler
def test_behind_the_camera_and_outside_the_picture_nothing_is_drawn():
    from tools.heads.rasterizer import rasterize

    camera, backdrop = look_at_head(0, 0, size_px=SIZE_PX), torch.full((3, SIZE_PX, SIZE_PX), 0.25)
    means = torch.tensor([[0.0, 0.0, 9.0], [50.0, 0.0, 0.0], [0.0, -50.0, 0.0]])
    axes = 0.1 * torch.eye(3).expand(3, 3, 3)
    drawn, light = rasterize(means, axes, torch.ones(3, 3), torch.ones(3), camera, backdrop)
    assert torch.equal(drawn, backdrop)
    assert bool((light == 1).all())


@needs_compiler
@torch.no_grad()
def test_a_head_follows_from_its_seed_and_embedded_heads_are_those():
    index = json.loads((ASSETS / "heads" / "index.json").read_text())["images"]
    image, regions, matte = plain_picture(7, 128)
    with Image.open(ASSETS / "heads" / index[7]["clean"]) as kept:
        difference = np.asarray(kept.convert("RGB")) / 255 - image.permute(1, 2, 0).numpy()
    assert index[7]["identity"] == "head-7"
    assert np.abs(difference).max() < 1.5 / 255  # rounded differently by another compiler
    with Image.open(ASSETS / "heads" / index[7]["regions"]) as kept:
        assert (np.asarray(kept) != regions.numpy()).mean() < 0.001
    assert 0.2 < float(matte.mean()) < 0.9
    assert torch.equal(plain_picture(3, 32)[0], plain_picture(3, 32)[0])


@torch.no_grad()
def test_a_moved_head_moves_eyes_and_mouth_alone():
    still, moved = (wide_head(2_000_000, amount).cloud for amount in (0.0, 1.0))
    changed = (still.colors - moved.colors).abs().amax(1) > 0.02
    assert len(still.means) == len(moved.means)
    assert 0 < float(changed.float().mean()) < 0.2


@needs_compiler
def test_a_covered_head_has_the_shape_of_the_plain_one_and_the_colours_of_a_picture(tmp_path):
    picture = str(tmp_path / "yellow.png")
    Image.new("RGB", (160, 200), (255, 255, 0)).save(picture)
    plain, covered = (wide_head(2_000_000, picture=file).cloud for file in ("", picture))
    assert torch.equal(plain.means, covered.means)
    blue = covered.colors[:, 2] - plain.colors[:, 2]
    assert (blue <= 0).all() and blue.mean() < -0.1
    assert (covered.colors[:, :2] >= plain.colors[:, :2]).float().mean() > 0.9


def test_pairs_show_the_fit_and_the_truth_from_the_same_places():
    from tools.heads.fit import fit_head
    from tools.heads.pairs import render_pairs

    recipe = replace(draw_recipe(2_000_000), views=4, gaussians=400, steps=25, size_px=48,
                     backdrop="white", floaters=5)
    values = fit_head(recipe)
    assert len(values["means"]) == 405
    rows = render_pairs(recipe, values, 48, 2)
    assert rows["interpolated"].tolist() == [True, False]
    assert rows["degraded"].shape == rows["clean"].shape == (2, 48, 48, 3)
    far = np.abs(rows["degraded"].astype(float) - rows["clean"]).mean()
    assert 0.5 < far < 60  # nearer than to a picture of another head, farther than to itself
    assert torch.equal(values["colors"], fit_head(recipe)["colors"])


def test_recipes_vary_and_follow_from_the_identity():
    recipes = [draw_recipe(identity) for identity in range(2_000_000, 2_000_300)]
    assert recipes[5] == draw_recipe(2_000_005)
    assert 0.4 < np.mean([recipe.backdrop == "white" for recipe in recipes]) < 0.6
    assert {4, 16} <= {recipe.views for recipe in recipes}
    assert max(recipe.arc_deg for recipe in recipes) > 80


def test_wrong_detail_follows_from_each_samples_seed_alone():
    clean, matte = photographs()
    kept = clean.clone()
    before, degraded = wrong_detail(clean, matte, [5, 6, 7])
    alone = wrong_detail(clean[1:2], matte[1:2, 0], torch.tensor([6]))
    torch.testing.assert_close(alone[0], before[1:2])
    torch.testing.assert_close(alone[1], degraded[1:2], atol=1e-6, rtol=0)
    assert torch.equal(clean, kept)
    assert degraded.min() >= 0 and degraded.max() <= 1
    assert not torch.equal(degraded[0], wrong_detail(clean[:1], matte[:1], [8])[1][0])


def test_wrong_detail_grows_with_its_amount_and_none_changes_nothing():
    clean, matte = photographs()
    errors = []
    for amount in (0.0, 0.3, 1.0):
        before, degraded = wrong_detail(clean, matte, [1, 2, 3], amount=amount)
        errors.append(float((degraded - before).abs().mean()))
    assert errors[0] < 1e-5
    assert errors[0] < errors[1] < errors[2] < 0.2


def test_wrong_detail_changes_the_backdrop_only_where_a_matte_is_given():
    clean, matte = photographs()
    assert torch.equal(wrong_detail(clean, None, [1, 2, 3])[0], clean)
    before, _ = wrong_detail(clean, matte, range(3))
    inside = matte.expand_as(clean) > 0
    torch.testing.assert_close(before[inside], clean[inside])
    clean, matte = (side[:1].expand(40, -1, -1, -1) for side in (clean, matte))
    corners = wrong_detail(clean, matte, range(40), amount=0.0)[0][:, :, 0, 0]
    white = (corners == 1).all(1).float().mean()
    assert 0.3 < float(white) < 0.6


@pytest.mark.parametrize("damage, amplitude, correlation",
                         [("none", 1, 1), ("half", 0.5, 1), ("other", 1, 0)])
def test_table_tells_lacking_detail_from_wrong_detail(damage, amplitude, correlation):
    rng = np.random.default_rng(0)
    fine, other = rng.normal(0, 0.1, (2, 64, 64, 1)) * np.ones(3)
    degraded = {"none": fine, "half": 0.5 * fine, "other": other}[damage]
    figures = detail_table.describe(0.5 + degraded, 0.5 + fine, np.ones((64, 64), bool))
    assert figures["amplitude 1 px"] == pytest.approx(amplitude, abs=0.05)
    assert figures["correlation 1 px"] == pytest.approx(correlation, abs=0.05)


def test_table_counts_what_floats_outside_the_head():
    clean, head = np.ones((64, 64, 3)), np.zeros((64, 64), bool)
    head[20:, 20:44] = True
    degraded = clean.copy()
    degraded[2:6, 2:12] = 0.5
    figures = detail_table.describe(degraded, clean, head)
    assert 40 / (~head).sum() <= figures["floaters"] < 0.03
    assert figures["amplitude 1 px"] == 0


def test_table_of_real_heads_is_the_one_that_generators_are_tuned_by(shared):
    path = shared / "real_heads" / "real_heads_256.npz"
    if not path.exists():
        pytest.skip("no true renders of real heads")
    rows = detail_table.measure([path], "head")
    table = detail_table.table(rows)
    assert table.count("\n") == 3
    middle = np.median([row["correlation 1 px"] for row in rows["interpolated"]])
    assert 0.5 < middle < 0.9


@pytest.mark.parametrize("folder, parts, counts", [
    ("heads", {"clean", "regions"}, (192, 24)),
    ("novel_view", {"clean", "degraded"}, (450, 90))])
def test_embedded_folders_are_complete_and_test_heads_are_never_trained_on(folder, parts, counts):
    index = json.loads((ASSETS / folder / "index.json").read_text())["images"]
    identities = {split: {row["identity"] for row in index if row["split"] == split}
                  for split in ("train", "test")}
    assert not identities["train"] & identities["test"]
    for split, count in zip(("train", "test"), counts, strict=True):
        assert sum(row["split"] == split for row in index) >= count
    assert len(identities["test"]) == 24
    files = {row[part] for row in index for part in ("clean", "degraded", "regions") if part in row}
    assert files == {path.name for path in (ASSETS / folder).iterdir()} - {"index.json"}
    for row in index[::60]:
        for part in parts:
            with Image.open(ASSETS / folder / row[part]) as image:
                assert image.size == (128, 128)


def test_half_of_the_novel_test_views_are_interpolated():
    index = json.loads((ASSETS / "novel_view" / "index.json").read_text())["images"]
    views = [row["views"] for row in index if row["split"] == "test"]
    assert views.count("interpolated") == views.count("extrapolated")
