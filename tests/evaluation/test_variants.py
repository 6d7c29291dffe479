"""The transfer table: each variant is trained and measured once, whatever interrupts it."""

from __future__ import annotations

import pytest
import torch

from helpers.config import Config, preset
from helpers.evaluation import format_transfer, standard_variants, transfer
from helpers.evaluation.transfer import KINDS
from helpers.pairs import load_fits
from helpers.views import transfer_chart

VARIANTS = {"as it is": {}, "no skips": {"model.skip_dropout": 1.0}}


@pytest.fixture
def make(config: Config, faces, tmp_path, monkeypatch):
    """A function that makes the table of two variants, two steps each, of two test heads."""
    fits = load_fits("test")[:2]
    monkeypatch.setattr("helpers.evaluation.sets.load_fits", lambda name: fits)
    monkeypatch.setattr("helpers.model.enhancer.embed_prompt",
                        lambda *_: torch.zeros(1, 77, 32))
    short = config.with_({"optim.steps": 2})
    return lambda **options: transfer(short, faces, tmp_path / "runs", data=tmp_path / "data",
                                      **{"variants": VARIANTS} | options)


def test_every_variant_is_measured_on_every_set_and_only_once(make, tmp_path):
    said: list[str] = []
    first = make(variants={"as it is": {}})
    table = make(say=said.append)
    assert said[0] == "as it is: there already" and len(said) == 2
    assert list(table) == list(VARIANTS) and table["as it is"] == first["as it is"]
    assert set(table["no skips"]) == {"rendered_outside", "rendered_inside", "fitted", "drawn",
                                      "clean"}
    assert (tmp_path / "runs" / "table.json").is_file()
    lines = format_transfer(table).splitlines()
    assert len(lines) == 4 and all(line.count("|") == 7 for line in lines)
    assert len(transfer_chart(table).axes[0].texts) == 2 * 4  # clean has no gain


def test_results_of_other_settings_are_refused(make):
    make(variants={"as it is": {}})
    with pytest.raises(ValueError, match="a result of these settings"):
        make(variants={"as it is": {"optim.warmup_steps": 1}})


def test_each_kind_of_pair_is_tried_alone_and_each_change_by_itself():
    variants = standard_variants(preset("demo"))
    assert set(KINDS) < set(variants)
    for kind in KINDS:
        shares = preset("demo").with_(variants[kind]).pairs
        assert [getattr(shares, k) for k in KINDS] == [float(k == kind) for k in KINDS]
    assert variants["all"] == {} and variants["all, no mask"] == {"model.mask": False}
    assert {variants[f"all, timestep {t}"]["model.timestep"] for t in (199, 999)} == {199, 999}
