"""Settings: presets, changes, JSON, and which are errors, by name."""

import dataclasses
import subprocess
import sys

import pytest

from splat_enhancer.config import PAIR_KINDS, PRESETS, Config, DegradationConfig, preset

DEMO = preset("demo")


@pytest.mark.parametrize("name", PRESETS)
def test_preset_survives_json(name):
    config = preset(name).replace(**{"seed": 3, "degradation.eyes": 0.4})
    assert config.preset == name and Config.from_json(config.to_json()) == config


def test_published_preset_is_the_recipe_of_the_technical_test():
    config = preset("published")
    assert (config.timestep, config.lora_rank_unet, config.lora_rank_vae, config.blend,
            config.skip_dropout) == (999, 8, 4, "none", 0.3)
    assert (config.lambda_l1, config.lambda_lpips, config.lambda_gram, config.lambda_clipsim,
            config.max_train_steps, config.learning_rate) == (2, 0.5, 0.01, 0.5, 5_000, 5e-5)
    assert config.pair_weights == {"synthetic": 1, "wrong_detail": 0, "fit": 0, "novel_view": 0,
                                   "own": 0}


def test_defaults_are_the_demo_and_every_field_has_a_help_text():
    assert Config() == DEMO
    for field in (*dataclasses.fields(Config), *dataclasses.fields(DegradationConfig)):
        assert field.name == "degradation" or field.metadata["help"]
    groups = {field.metadata["group"] for field in dataclasses.fields(DegradationConfig)}
    assert groups == {"overall", "training", "regions", "splats", "image"}


def test_changes_reach_the_config_and_the_degradation():
    changed = DEMO.replace(learning_rate=1e-4, **{"degradation.eyes": 0.4})
    assert (changed.learning_rate, changed.degradation.eyes) == (1e-4, 0.4)
    assert changed.degradation.mouth == DEMO.degradation.mouth
    heavy = DegradationConfig(eyes=1.0)
    assert DEMO.replace(degradation=heavy, **{"degradation.nose": 0.1}).degradation == \
        DegradationConfig(eyes=1.0, nose=0.1)


@pytest.mark.parametrize(("name", "near"), [
    ("learning_rat", "near it: learning_rate"), ("degradation.eye", "near it: degradation.eyes"),
    ("optim.steps", "config: expected a known field, got 'optim.steps'")])
def test_unknown_field_names_those_near_it(name, near):
    with pytest.raises(ValueError, match=near):
        DEMO.replace(**{name: 1})


@pytest.mark.parametrize(("changes", "message"), [
    ({"timestep": 1_200}, "timestep: expected int from 0 to 999, got 1200"),
    ({"timestep": 1.5}, "timestep: expected int, got 1.5"),
    ({"timestep": True}, "timestep: expected int, got True"),
    ({"learning_rate": float("nan")}, "learning_rate: expected float from 1e-09 to inf, got nan"),
    ({"learning_rate": 0}, "learning_rate: expected float from 1e-09 to inf, got 0"),
    ({"lambda_l1": -1.0}, "lambda_l1: expected float from 0 to inf, got -1.0"),
    ({"source": 3}, "source: expected str, got 3"),
    ({"train_base": "both"}, "train_base: expected 'lora' or 'full', got 'both'"),
    ({"resolution": 100}, "resolution: expected a multiple of 64"),
    ({"train_batch_size": 0}, "train_batch_size: expected int from 1 to inf, got 0"),
    ({"seed": -1}, "seed: expected int from 0 to"),
    ({"lpips_crop": 8}, "lpips_crop: expected 0, or 16"),
    ({"skip_dropout": 1.1}, "skip_dropout: expected float from 0 to 1"),
    ({"preset": "huge"}, "preset: expected one of demo, t4, full, published, got 'huge'"),
    ({"run_name": "a/b"}, "run_name: expected at most 100 letters"),
    ({"run_name": ""}, "run_name: expected"),
    ({"degradation.eyes": 2}, "degradation.eyes: expected float from 0 to 1, got 2"),
    ({"degradation.eyes": "x"}, "degradation.eyes: expected float, got 'x'"),
    ({"weight_own": 0.5}, "own_pairs: expected a folder, since weight_own is above 0"),
    ({f"weight_{kind}": 0 for kind in PAIR_KINDS}, "all 0"),
    (dict.fromkeys(("lambda_l1", "lambda_lpips", "lambda_gram", "lambda_clipsim"), 0), "all 0")])
def test_bad_value_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        DEMO.replace(**changes)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"preset": "demo"}', '{"degradation": 3}'])
def test_other_json_is_refused(text):
    with pytest.raises(ValueError, match="expected JSON of Config"):
        Config.from_json(text)


def test_missing_field_of_a_saved_config_is_the_presets():
    text = preset("t4").to_json().replace('"timestep": 249,', "")
    assert Config.from_json(text) == preset("t4")


# One setting has one meaning: the notebook's form and a flag of the command line set this field
@pytest.mark.parametrize(("weights", "share"), [
    ({"weight_own": 0.5}, 0.5 / 1.5), ({"weight_own": 1.0}, 0.5),
    ({f"weight_{kind}": float(kind == "own") for kind in PAIR_KINDS}, 1)])
def test_weight_of_own_pairs_is_relative_to_the_sum(weights, share):
    weights = DEMO.replace(own_pairs="folder", **weights).pair_weights
    assert weights["own"] == pytest.approx(share) and sum(weights.values()) == pytest.approx(1)


def test_config_imports_no_torch():
    code = "import sys, splat_enhancer.config; sys.exit('torch' in sys.modules)"
    root = __file__.rsplit("tests", 1)[0]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
