"""Tables of variants: each is trained and measured once, on the same sets, whatever interrupts."""

from __future__ import annotations

import pytest
import torch

from helpers.config import Config, preset
from helpers.evaluation import (
    HeldOut,
    ablation_variants,
    format_compared,
    run_variants,
    transfer_variants,
)
from helpers.evaluation.variants import KINDS
from helpers.pairs import load_fits
from helpers.views import transfer_chart

VARIANTS = {"as it is": {}, "no warp": {"degrade.warp": 0.0}}


@pytest.fixture
def make(config: Config, faces, tmp_path, monkeypatch):
    """A function that makes the table of two variants, two steps each, of two test heads."""
    fits = load_fits("test")[:2]
    monkeypatch.setattr("helpers.evaluation.sets.load_fits", lambda name: fits)
    monkeypatch.setattr("helpers.model.enhancer.embed_prompt",
                        lambda *_: torch.zeros(1, 77, 32))
    short = config.with_({"optim.steps": 2, "data.fitted_images": 1})
    return lambda variants=VARIANTS, **options: run_variants(
        short, faces, tmp_path / "runs", variants, data=tmp_path / "data", **options)


def test_every_variant_is_measured_on_the_same_sets_and_only_once(make, tmp_path, monkeypatch):
    said: list[str] = []
    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr("helpers.evaluation.variants.Metrics", interrupt)
        make(say=said.append)  # trained, but not measured yet
    first = make({"as it is": {}}, say=said.append)
    table = make(say=said.append)
    assert said.count("as it is: there already") == 1 and list(table) == list(VARIANTS)
    assert table["as it is"] == first["as it is"]
    sets = list(table["no warp"])
    assert sets == ["rendered_outside", "rendered_inside", "fitted", "drawn", "drawn_heavy",
                    "clean"]
    for name in sets:  # also where the change is one of the damage
        assert table["no warp"][name]["degraded"] == table["as it is"][name]["degraded"]
    assert (tmp_path / "runs" / "table.json").is_file()
    lines = format_compared(table).splitlines()
    assert len(lines) == 4 and all(line.count("|") == 8 for line in lines)
    assert len(transfer_chart(table).axes[0].texts) == 2 * 5  # clean has no gain
    with pytest.raises(ValueError, match="a result of these settings"):
        make({"as it is": {"optim.warmup_steps": 1}})


def interrupt(*_, **__):
    raise KeyboardInterrupt


def test_each_kind_of_pair_is_tried_alone_and_each_change_by_itself():
    variants = transfer_variants(preset("demo"))
    assert set(KINDS) < set(variants)
    for kind in KINDS:
        shares = preset("demo").with_(variants[kind]).pairs
        assert [getattr(shares, k) for k in KINDS] == [float(k == kind) for k in KINDS]
    assert variants["all"] == {}


def test_an_ablation_takes_away_one_part_at_a_time():
    config = preset("demo")
    changed = {}
    for name, changes in ablation_variants(config).items():
        own = config.with_(changes)
        changed[name] = {part for part in ("model", "loss", "degrade", "pairs")
                         if getattr(own, part) != getattr(config, part)}
    assert changed.pop("as it is") == set()
    assert all(len(parts) == 1 for parts in changed.values()), changed
    assert {"no skips", "no skip dropout", "Gram", "no mask", "no blur of regions",
            "timestep 199", "timestep 999", "no drawn pairs", "no fitted pairs",
            "no rendered pairs"} <= set(changed)
    assert "no Gram" in ablation_variants(preset("t4"))


def test_the_sets_of_a_variant_are_those_of_the_run(config, faces, tmp_path):
    held_out = [HeldOut(one, faces, device="cpu", folder=tmp_path).origin
                for one in (config, config.with_({"model.mask": True, "pairs.fitted": 1.0}))]
    assert held_out[0] == held_out[1]
