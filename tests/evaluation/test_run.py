"""The evaluation of a run: whose weights, on what, in files that say so; and its report."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
from dataclasses import replace

import pytest
import torch
from PIL import Image

from helpers.checkpoints import Checkpoint
from helpers.distances import Metrics
from helpers.evaluation import (
    KINDS,
    STRENGTHS,
    HeldOut,
    evaluate_run,
    format_sets,
    pick,
    read_metrics,
    write_metrics,
)
from helpers.evaluation.strengths import damages
from helpers.pairs import load_fits
from helpers.views import report, sheets
from tests.evaluation.test_sets import NAMES

CONFIG = {"data.strength_images": 1, "data.fitted_images": 1}


@pytest.fixture(scope="module")
def patch():
    with pytest.MonkeyPatch.context() as own:
        yield own


@pytest.fixture(scope="module")
def parts(faces, tmp_path_factory, patch):
    """A tiny untrained model, its checkpoint, the sets of three heads, and a folder."""
    from helpers.config import preset
    from helpers.model import SplatEnhancer
    from tests.runs import PROMPT, TINY
    fits = load_fits("test")[:3]
    patch.setattr("helpers.evaluation.sets.load_fits", lambda name: fits)
    patch.setattr("helpers.evaluation.strengths.AMOUNTS", ("warp", "noise"))
    patch.setattr("helpers.evaluation.strengths.STAGES", [
        stage for stage in damages.__globals__["STAGES"] if stage.name in ("warp", "noise")])
    config = preset("demo").with_(TINY | CONFIG | {"model.mask": True})
    model = SplatEnhancer.from_pretrained(config.model, device="cpu", prompt_embedding=PROMPT)
    history = [{"step": n, "losses": {"l1": 1 / n, "total": 2 / n}} for n in range(1, 8)]
    saved = Checkpoint(7, config, {f"model/{name}": tensor for name, tensor
                                   in model.trained_state().items()}, history=history)
    folder = tmp_path_factory.mktemp("run")
    held_out = HeldOut(config, faces, device="cpu", folder=folder / "held_out")
    return config, model, faces, Metrics(config.loss, device="cpu"), held_out, saved, folder


@pytest.fixture(scope="module")
def measured(parts):
    *own, folder = parts
    return evaluate_run(*own, folder=folder / "measured", say=lambda line: None)


def test_all_sets_regions_strengths_and_stages_are_there(measured):
    assert [*measured.sets] == NAMES and set(measured.seconds) == {
        "filter", *NAMES, "by strength"}
    assert [*measured.strengths] == [*(f"strength {s:g}" for s in STRENGTHS), "warp", "noise"]
    for name, result in measured.sets.items():
        assert set(result.summary()) >= {"n", "identities", *KINDS, "gain", "gain_filtered",
                                         "share_worse", "worst", "undefined"}, name
        assert {"eyes", "mouth", "nose", "hair", "skin"} <= set(result.regions())
        shown = measured.measured[name].pictures
        assert shown.keys() == {i for images in pick(result).values() for i in images}
        assert all(one.mask is not None for one in shown.values())
    stronger = [result.summary()["degraded"]["stlpips_alex"]["mean"]
                for result in measured.strengths.values()][:5]
    assert stronger == sorted(stronger) and stronger[0] < stronger[-1]
    assert any("CLIP is not on this machine" in line for line in measured.notes())


def test_a_second_evaluation_measures_nothing_again_and_finds_the_same(parts, measured, patch):
    *own, folder = parts
    said = []
    with pytest.MonkeyPatch.context() as context:
        context.setattr("helpers.evaluation.measuring._measured",
                        lambda *_: pytest.fail("measured again"))
        again = evaluate_run(*own, folder=folder / "measured", say=said.append)
    assert said[0].startswith(f"{sum(r.n for r in measured.sets.values()) + 7} rows were")
    assert again.sets == measured.sets and again.strengths == measured.strengths
    for name in again.sets:
        assert again.measured[name].pictures.keys() == measured.measured[name].pictures.keys()


def test_a_model_with_other_weights_than_the_checkpoint_is_refused(parts):
    config, model, faces, metrics, held_out, saved, _ = parts
    name, tensor = next(iter(saved.tensors.items()))
    other = replace(saved, tensors=saved.tensors | {name: tensor + 1})
    with pytest.raises(ValueError, match="the weights of step 7, as they were saved"):
        evaluate_run(config, model, faces, metrics, held_out, other)


def test_metrics_json_says_whose_weights_these_are_and_holds_finite_numbers(
        measured, parts, tmp_path):
    written = write_metrics(tmp_path, measured)
    content = read_metrics(tmp_path / "metrics.json")
    assert content == json.loads(json.dumps(written))
    assert (content["step"], content["weights"]["run"], content["device"]) == (7, "test", "cpu")
    assert len(content["weights"]["sha256"]) == 64 and content["base"] == parts[0].model.base
    assert content["config"] == json.loads(json.dumps(dataclasses.asdict(parts[0])))
    assert content["filter"]["chosen"] in content["filter"]["on_training_faces"]
    assert set(content["regions"]) == set(content["sets"]) == set(NAMES)
    assert set(content["strengths"]) == set(measured.strengths)
    assert "no judge" not in content["metrics"]["stlpips_alex"]
    assert "guard" in content["metrics"]["psnr"] and "versions" in content
    assert format_sets(content["sets"]) == format_sets(measured.sets)


def test_metrics_csv_has_a_row_for_each_image_and_kind(measured, tmp_path):
    write_metrics(tmp_path, measured)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * sum(result.n for result in measured.sets.values())
    drawn = measured.sets["drawn"]
    own = [row for row in rows if (row["set"], row["kind"]) == ("drawn", "restored")]
    assert [row["image"] for row in own] == drawn.images
    assert [float(row["psnr"]) for row in own] == pytest.approx(drawn.restored["psnr"], rel=1e-4)
    clean = [row for row in rows if (row["set"], row["kind"]) == ("clean", "degraded")]
    assert {row["psnr"] for row in clean} == {"inf"}


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"sets": math.nan})])
def test_foreign_json_is_refused(tmp_path, text):
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(ValueError, match="expected"):
        read_metrics(tmp_path / "metrics.json")


def test_the_report_is_one_page_that_asks_for_nothing_else(measured, tmp_path):
    path = report.write_report(tmp_path, measured)
    text = path.read_text(encoding="utf-8")
    assert path.stat().st_size <= 5_000_000
    assert 'name="viewport"' in text and "@media print" in text
    assert not re.search(r"https?://|url\(|<link|<script|@import", text)
    assert all(source.startswith("data:image/") for source in re.findall(r'src="([^"]*)', text))
    assert all(re.search('alt="[^"]+"', tag) for tag in re.findall("<img [^>]*>", text))
    for name in NAMES:
        with Image.open(tmp_path / "comparisons" / f"{name}.png") as picture:
            picture.load()
        assert name.replace("_", " ") in text
    assert {p.stem for p in (tmp_path / "displays").iterdir()} == set(report.DISPLAYS)
    for word in ("Worst case", "step 7", "doing nothing", "learning_rate", "CLIP is not on"):
        assert word in text, word
    assert text.count("random ·") >= len(NAMES)


def test_a_page_that_would_be_too_large_gets_smaller_pictures(measured, tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr(report, "to_page", lambda evaluation, charts, tile_px: tried.append(
        tile_px) or "x" * (50 * tile_px))
    monkeypatch.setattr(report, "LARGEST_BYTES", 5_000)
    monkeypatch.setattr(report, "DISPLAYS", {})
    monkeypatch.setattr(report, "sheet", lambda *_: b"")
    report.write_report(tmp_path, measured)
    assert tried == [160, 128, 96]


def test_names_that_look_like_html_are_shown_as_they_are(measured):
    strange = replace(measured, config=measured.config.with_({"model.prompt": "<b>&</b>"}))
    page = report.to_page(strange, {})
    assert "&lt;b&gt;&amp;&lt;/b&gt;" in page and "<b>" not in page


def test_comparisons_are_drawn_by_lot_first_then_best_then_worst(measured):
    texts = [text for text, _ in sheets.comparisons("rendered_outside", measured)]
    kinds = [text.split(" · ")[0] for text in texts]
    assert kinds == sorted(kinds, key=["random", "best", "worst"].index) and kinds[0] == "random"
    assert re.search(r"stlpips_alex 0\.\d{3} → 0\.\d{3} \(filter 0\.\d{3}\) · psnr .* dB", texts[0])


def test_a_block_shows_pictures_above_a_detail_of_the_damaged_feature(measured):
    image, shown = next(iter(measured.measured["rendered_outside"].pictures.items()))
    block = sheets.block(shown, 256)
    side, gap = shown.clean.shape[1], sheets.GAP_PX
    assert block.shape == (3, 2 * side + gap, 4 * side + 3 * gap) and block.dtype == torch.uint8
    for place, part in enumerate((shown.degraded, shown.restored, shown.clean)):
        left = place * (side + gap)
        assert torch.equal(block[:, :side, left:left + side], part), image
    top, left, size = sheets._detail(shown)
    inside = shown.regions[top:top + size, left:left + size]
    assert ((inside == 2) | (inside == 4)).any()
    assert sheets.block(shown, 32).shape == (3, 2 * 32 + gap, 4 * 32 + 3 * gap)
