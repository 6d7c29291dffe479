"""The page of an evaluation: complete, offline, and literally true."""

from __future__ import annotations

import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from splat_enhancer.config import preset
from splat_enhancer.evaluation.evaluate import Evaluation, choose_shown
from splat_enhancer.evaluation.report import (
    comparison,
    draw_held_out,
    image_tag,
    verdict,
    write_report,
)
from splat_enhancer.evaluation.test_sets import UnsharpMask

HISTORY = [{"step": 1, "held_out": None},
           {"step": 2, "held_out": {"degraded": 0.3, "filtered": 0.25, "restored": 0.28}},
           {"step": 4, "held_out": {"degraded": 0.3, "filtered": 0.25, "restored": 0.2}}]


def rows_of(name, restored, count=9):
    """Rows of a set whose input is 0.2 and whose unsharp mask leaves 0.18."""
    values = {"degraded": [0.2] * count, "filtered": [0.18] * count, "restored": restored}
    return [(name, f"{i:04}", f"person {i}", kind, metric, value)
            for kind, of_kind in values.items() for i, distance in enumerate(of_kind)
            for metric, value in (("stlpips_alex", distance), ("psnr", 20 - 10 * distance),
                                  ("ssim", 1 - distance))]


def evaluation_of(sets, effects=(), **changes):
    """An evaluation whose pictures are noise."""
    rows = [row for name, restored in {**sets, **dict(effects)}.items()
            for row in rows_of(name, restored)]
    table = pd.DataFrame(rows, columns=["set", "image", "identity", "kind", "metric", "value"])
    shown = {name: {reason: {image: {part: torch.rand(1 if part == "changed" else 3, 32, 32)
                                     for part in ("degraded", "filtered", "restored", "clean",
                                                  "changed")} for image in images}
                    for reason, images in choose_shown(table[table["set"] == name]).items()}
             for name in sets}
    return Evaluation(table, preset("demo").replace(**changes), 240, "abc" * 9,
                      UnsharpMask(1.0, 0.5), "cpu", HISTORY, {"identity": "no <CLIP>"}, shown)


BETTER, WORSE = np.linspace(0.05, 0.1, 9), np.linspace(0.25, 0.3, 9)


@pytest.fixture
def evaluation():
    return evaluation_of({"fit": BETTER, "clean": WORSE},
                         {"effect holes": WORSE, "effect blur": BETTER})


def test_page_needs_no_other_file_and_says_what_is_measured(evaluation, tmp_path):
    text = write_report(tmp_path, evaluation).read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", text) and "@import" not in text
    for words in ("width=device-width", "@media print", "step 240", "radius 1, amount 0.5",
                  "worse by stlpips_alex / PSNR / SSIM", "no &lt;CLIP&gt;", "degradation.eyes"):
        assert words in text
    pictures = re.findall("<img [^>]*>", text)
    assert len(pictures) == 4 + 5 * (1 + 2 * 8)  # charts, the first picture, eight of each set
    assert all(re.search('alt="[^"]+"', picture) for picture in pictures)


def test_effects_that_are_not_repaired_are_named(evaluation, tmp_path):
    text = write_report(tmp_path, evaluation).read_text(encoding="utf-8")
    assert "Not clearly improved: holes." in text
    page = write_report(tmp_path, evaluation_of({"fit": BETTER})).read_text(encoding="utf-8")
    assert "effect of the degradation" not in page


def test_names_from_outside_are_escaped(tmp_path):
    text = write_report(tmp_path, evaluation_of(
        {"fit": BETTER}, pretrained_model_name_or_path="<script>")).read_text(encoding="utf-8")
    assert "<script>" not in text and "&lt;script&gt;" in text


def test_verdict_follows_the_intervals(evaluation):
    beside_input, beside_mask = verdict(evaluation.summary()["sets"], "stlpips_alex")
    assert "better on fit (+62 %)" in beside_input and "worse on clean (-37 %)" in beside_input
    assert "better on fit (+52 %)" in beside_mask
    noise = evaluation_of({"fit": 0.2 + np.resize([-0.1, 0.1], 9)}).summary()["sets"]
    assert "not clearly different on fit" in verdict(noise, "stlpips_alex")[0]


def test_captions_carry_the_figures_of_their_picture(evaluation):
    text = comparison(evaluation, "fit")
    assert "worst · 0008 · 0.200 → 0.100 (unsharp mask 0.180) · PSNR 18.0 → 19.0 dB" in text
    assert [text.count(reason) for reason in ("random ·", "best ·", "worst ·")] == [3, 2, 3]


def test_held_out_curve_has_the_input_and_the_baseline_as_lines():
    drawn = []
    axes = SimpleNamespace(axhline=lambda y, **_: drawn.append(y), set=lambda **_: None,
                           plot=lambda x, y, *_, **__: drawn.append((x, y)),
                           legend=lambda **_: None)
    draw_held_out(axes, HISTORY)
    assert drawn == [0.3, 0.25, ([2, 4], [0.28, 0.2])]


def test_large_pictures_are_sent_smaller():
    image = torch.rand(3, 400, 200)
    assert len(image_tag(image, "x", 100)) < len(image_tag(image, "x", 400)) / 4
