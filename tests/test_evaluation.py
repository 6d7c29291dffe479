"""Evaluation: what is measured on which pictures, and how it is summed up."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny import tiny_config, tiny_data, tiny_model

from splat_enhancer.data import pairs as pair_module
from splat_enhancer.evaluation import test_sets as test_set_module
from splat_enhancer.evaluation.evaluate import (
    Evaluation,
    choose_baseline,
    choose_shown,
    compare,
    describe,
    evaluate,
    gain,
    measure_set,
    summarise,
)
from splat_enhancer.evaluation.test_sets import (
    Batch,
    TestSets,
    UnsharpMask,
    single_effects,
    write_sets,
)
from splat_enhancer.images import write_png
from splat_enhancer.losses.metrics import Metrics

MASK = UnsharpMask(1.0, 0.5)
SETS = ["novel_view_extrapolated", "novel_view_interpolated", "fit", "synthetic",
        "synthetic_heavy", "clean"]


def table(values, metric="stlpips_alex", identities=None, name="fit"):
    """Rows of one set: image → (degraded, filtered, restored)."""
    rows = [(name, image, (identities or {}).get(image, image), kind, metric, value)
            for image, of_image in values.items()
            for kind, value in zip(("degraded", "filtered", "restored"), of_image, strict=True)]
    return pd.DataFrame(rows, columns=["set", "image", "identity", "kind", "metric", "value"])


@pytest.fixture(scope="module")
def novel_views(tmp_path_factory):
    """A folder of four novel-view pairs of two heads, 64 px."""
    folder, entries = tmp_path_factory.mktemp("novel_view"), []
    for number in range(4):
        image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(number))
        for part, shown in (("degraded", 0.5 * image), ("clean", image)):
            write_png(folder / f"{number}.{part}.png", shown)
        Image.new("L", (64, 64), 1).save(folder / f"{number}.regions.png")
        entries.append({"degraded": f"{number}.degraded.png", "clean": f"{number}.clean.png",
                        "regions": f"{number}.regions.png", "split": "test",
                        "identity": f"head {number // 2}",
                        "views": ("interpolated", "extrapolated")[number % 2]})
    (folder / "index.json").write_text(json.dumps({"images": entries}))
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, novel_views):
    """Config, faces, pairs, model and metrics of a tiny run, and its folder."""
    folder = tmp_path_factory.mktemp("tiny")
    config = tiny_config(folder, test_fit_samples=1)
    pair_module.NOVEL_VIEWS, before = novel_views, pair_module.NOVEL_VIEWS
    yield config, *tiny_data(config, folder), tiny_model(config), Metrics(config, device="cpu"), \
        folder
    pair_module.NOVEL_VIEWS = before


@pytest.fixture
def test_sets(tiny):
    config, faces, pairs, _, _, folder = tiny
    return TestSets(config, faces, pairs, device="cpu", folder=folder / "held_out")


def test_gain_of_a_distance_is_relative_and_of_psnr_a_difference():
    before, after = np.array([0.2, 0.4]), np.array([0.1, 0.4])
    assert gain("stlpips_alex", before, after) == pytest.approx([100 / 3, 0])
    assert gain("psnr", 100 * before, 100 * after) == pytest.approx([-10, 0])
    assert np.isnan(gain("psnr", np.array([np.inf]), np.array([30.0]))).all()
    assert np.isnan(gain("stlpips_alex", np.zeros(2), np.ones(2))).all()  # nothing was degraded


def test_mean_gain_is_the_decrease_of_the_mean_and_shares_are_named_by_metric():
    rows = pd.concat([
        table({"a": (0.4, 0.3, 0.1), "b": (0.1, 0.2, 0.2), "c": (0.1, 0.1, 0.1)}),
        table({"a": (20, 21, 19), "b": (30, 29, 31), "c": (np.inf, 30, 40)}, "psnr")])
    summary = summarise(rows)
    assert (summary["n"], summary["identities"]) == (3, 3)
    assert summary["gain"]["stlpips_alex"]["mean"] == pytest.approx(100 * (0.2 - 0.4 / 3) / 0.2)
    assert summary["gain_filtered"]["stlpips_alex"]["mean"] == pytest.approx(0)
    assert summary["gain_over_filtered"]["psnr"]["mean"] == pytest.approx(0)
    assert summary["share_worse"] == pytest.approx({"stlpips_alex": 1 / 3, "psnr": 1 / 2})
    assert summary["degraded"]["psnr"]["mean"] == 25  # of the finite ones


def test_interval_is_over_identities_and_always_the_same():
    values = np.array([0.0, 0.0, 1.0, 1.0, 0.5, 0.4])
    apart = describe(values, np.arange(6))
    together = describe(values, np.array(list("aabbcc")))
    low, high = apart["ci95"]
    assert together["ci95"][0] < low < apart["mean"] < high < together["ci95"][1]
    assert describe(values, np.arange(6)) == apart
    assert describe(values, np.zeros(6))["ci95"] == pytest.approx([values.mean()] * 2)
    assert apart["median"] == pytest.approx(0.45) and apart["std"] == pytest.approx(values.std())


@pytest.mark.parametrize("count", [1, 3, 5, 20])
def test_three_worst_are_the_three_worst_and_no_picture_is_shown_twice(count):
    gains = np.random.default_rng(0).permutation(count)
    chosen = choose_shown(table({f"{i:02}": (0, 0, -g) for i, g in enumerate(gains)}))
    order = [f"{i:02}" for i in np.argsort(gains)]
    assert chosen["worst"] == order[:3]
    assert chosen["best"] == order[3:][::-1][:2]
    shown = [image for images in chosen.values() for image in images]
    assert len(shown) == len(set(shown)) == min(count, 8)


def test_unsharp_mask_sharpens_edges_alone_and_grows_with_the_picture():
    flat, edge = torch.full((1, 3, 64, 64), 0.5), torch.full((1, 3, 64, 64), 0.3)
    edge[..., 32:] = 0.7
    assert torch.allclose(MASK(flat), flat)
    sharpened = MASK(edge)
    assert sharpened[..., 32].max() > 0.71 and sharpened[..., 31].min() < 0.29
    twice = torch.nn.functional.interpolate(edge, scale_factor=2)
    changed = [(MASK(x) - x).abs().mean(1)[0, 32].gt(0.01).sum() for x in (edge, twice)]
    assert changed[1] >= 2 * changed[0] - 1


def test_sets_are_8_bit_pictures_made_once(tiny, test_sets, monkeypatch):
    assert list(test_sets) == SETS
    first = {name: list(test_sets[name]) for name in test_sets}
    for batches in first.values():
        for batch in batches:
            for images in (batch.clean, batch.degraded):
                assert torch.allclose(images * 255, (images * 255).round(), atol=1e-4)
    for name in ("degrade", "fit_splats"):
        monkeypatch.setattr(test_set_module, name, None)
    config, faces, pairs, _, _, folder = tiny
    again = TestSets(config, faces, pairs, device="cpu", folder=folder / "held_out")
    assert again.recipe == test_sets.recipe
    for name, batches in first.items():
        for a, b in zip(batches, again[name], strict=True):
            assert torch.equal(a.degraded, b.degraded) and a.names == b.names


def test_sets_are_held_out_faces_and_differ_by_degradation(tiny, test_sets):
    batches = {name: next(test_sets[name]) for name in test_sets}
    clean, _ = tiny[1].load("test", range(2))
    assert torch.equal(batches["clean"].degraded, clean)
    assert torch.equal(batches["synthetic"].clean, clean)
    assert not torch.equal(batches["synthetic"].degraded[:1], batches["synthetic_heavy"].degraded)
    assert batches["novel_view_extrapolated"].identities == ["head 0", "head 1"]
    assert batches["novel_view_extrapolated"].regions.unique().tolist() == [1]
    other = TestSets(tiny[0].replace(**{"degradation.noise": 0.2}), *tiny[1:3], device="cpu",
                     folder=tiny[5] / "held_out")
    assert other.recipe != test_sets.recipe


def test_single_effects_have_one_amount_each_in_full():
    effects = single_effects()
    assert {"regions", "holes", "noise"} <= effects.keys()
    assert effects["holes"].holes == 1 and effects["holes"].noise == effects["holes"].skin == 0
    assert effects["regions"].eyes == effects["regions"].skin == 1


def test_evaluation_goes_on_where_it_was_interrupted(tiny, test_sets, tmp_path, monkeypatch):
    _, _, _, model, metrics, _ = tiny
    evaluation = evaluate(model, test_sets, metrics, baseline=MASK, folder=tmp_path, step=6)
    assert list(evaluation.table["set"].unique()) == SETS
    assert list(evaluation.table["kind"].unique()) == ["degraded", "filtered", "restored"]
    assert len(list(tmp_path.iterdir())) == len(SETS)
    next(tmp_path.glob("clean-*")).unlink()
    measured = []

    def each(images, *arguments, **options):
        measured.append(images)
        return Metrics.each(metrics, images, *arguments, **options)

    monkeypatch.setattr(metrics, "each", each)
    again = evaluate(model, test_sets, metrics, baseline=MASK, folder=tmp_path, step=6)
    assert len(measured) == 1
    pd.testing.assert_frame_equal(evaluation.table, again.table)
    with torch.no_grad():
        next(iter(model.trainable().values())).add_(0.01)
    evaluate(model, test_sets, metrics, baseline=MASK, folder=tmp_path)
    assert len(measured) > len(SETS)


def test_metrics_json_has_its_published_shape_and_only_finite_numbers(tiny, test_sets, tmp_path):
    _, _, _, model, metrics, _ = tiny
    evaluation = evaluate(model, test_sets, metrics, baseline=MASK, step=6)
    evaluation.write(tmp_path)
    summary = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert {"config", "seed", "step", "base", "versions", "device", "sets"} <= summary.keys()
    clean, fit = summary["sets"]["clean"], summary["sets"]["fit"]
    assert "psnr" not in clean["degraded"] and "psnr" not in clean["gain"]
    assert fit["n"] == 1 and set(fit["gain"]["psnr"]) == {"mean", "median", "std", "ci95"}
    assert any(name.startswith("stlpips_alex/") for name in fit["restored"])
    csv = pd.read_csv(tmp_path / "metrics.csv")
    assert len(csv) == 3 * sum(of_set["n"] for of_set in summary["sets"].values())
    overview = evaluation.overview()
    assert list(overview.index) == [name.replace("_", " ") for name in SETS]
    assert "worse by stlpips_alex / PSNR / SSIM" in overview.columns
    assert overview.loc["clean", "PSNR"].startswith("restored: ")


def test_baseline_is_chosen_by_the_ranking_metric_on_training_pairs(tiny, test_sets):
    _, _, _, _, metrics, _ = tiny

    class Fake:
        names = ("stlpips_alex",)

        def each(self, images, clean):
            return {name: {"stlpips_alex": [float("amount=1.0" not in name or "radius=2" in name)]}
                    for name in images}

    assert choose_baseline(test_sets, Fake()) == UnsharpMask(1.0, 1.0)
    assert choose_baseline(test_sets, metrics, samples=1).amount in (0.5, 1.0)


def test_another_tool_is_measured_on_what_was_written(test_sets, tiny, tmp_path):
    metrics = tiny[4]
    write_sets(test_sets, tmp_path)
    rows = compare(tmp_path, test_sets, metrics, MASK)
    assert list(rows["set"].unique()) == SETS
    wide = rows.pivot(index=["set", "image", "metric"], columns="kind", values="value")
    assert np.allclose(wide["degraded"], wide["restored"], equal_nan=True)
    write_png(tmp_path / "fit" / "0000.png", torch.zeros(3, 32, 64))
    with pytest.raises(ValueError, match=r"fit.*0000.png: expected \(3, 64, 64\), got"):
        compare(tmp_path, test_sets, metrics, MASK)


def test_enlarged_inputs_are_measured_in_the_size_of_their_clean_pictures(tiny):
    clean = torch.nn.functional.interpolate(torch.rand(1, 3, 4, 4), 64, mode="bilinear")
    large = torch.nn.functional.interpolate(clean, scale_factor=2, mode="bicubic").clamp(0, 1)
    rows = measure_set("x", [Batch(clean, large, ["a"], ["0"])], lambda batch: batch.degraded,
                       tiny[4], MASK)
    psnr = rows[(rows["metric"] == "psnr") & (rows["kind"] == "restored")]["value"].item()
    assert psnr > 40


def test_effects_are_kept_apart_from_the_sets(tiny):
    rows = pd.concat([table({"a": (0.2, 0.2, 0.1)}),
                      table({"a": (0.2, 0.2, 0.3)}, name="effect holes")])
    summary = Evaluation(rows, tiny[0], 1, "0", MASK, "cpu").summary()
    assert list(summary["sets"]) == ["fit"] and list(summary["effects"]) == ["effect holes"]
