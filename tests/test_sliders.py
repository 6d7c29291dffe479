"""The settings of the notebook: what its form means, and the sliders of the degradation."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from splat_enhancer.config import DegradationConfig, preset
from splat_enhancer.degradation.pipeline import degradation_preset
from splat_enhancer.notebook.sliders import FIELDS, TOOLTIP, DegradationSliders, config_from_form

QUICK = DegradationConfig(**dict.fromkeys((
    "sparsity", "oversize", "needles", "holes", "floaters", "translucency", "doubling",
    "color_error", "surface_blur"), 0.0))  # without what takes long


class Faces:
    train = range(9)

    def load(self, split, rows):
        assert split == "train"
        noise = torch.Generator().manual_seed(0)
        regions = torch.zeros(len(rows), 32, 32, dtype=torch.uint8)
        regions[:, 8:24, 8:24] = 1
        return torch.rand(len(rows), 3, 32, 32, generator=noise), regions


@pytest.fixture
def run():
    config = preset("demo").replace(degradation=QUICK)
    return SimpleNamespace(config=config, degradation=QUICK, faces=Faces())


@pytest.fixture
def sliders(run):
    return DegradationSliders(run)


def test_every_field_has_a_slider_with_its_text(sliders):
    assert list(sliders.sliders) == [field.name for field in dataclasses.fields(DegradationConfig)]
    for name, slider in sliders.sliders.items():
        assert getattr(slider, TOOLTIP) == FIELDS[name]["help"]


def test_sliders_begin_at_the_settings_of_the_run(run, sliders):
    assert sliders.settings == run.degradation == QUICK
    assert sliders.menu.value == "start" and "The run uses" in sliders.status.value
    run.degradation = dataclasses.replace(QUICK, noise=0.7)
    assert DegradationSliders(run).settings.noise == 0.7


def test_moving_a_slider_changes_the_picture_and_not_yet_the_run(run, sliders):
    before = sliders.pictures.value
    sliders.sliders["noise"].value = 0.9
    assert sliders.pictures.value != before and sliders.settings.noise == 0.9
    assert sliders.menu.value == "custom" and run.degradation == QUICK
    assert "does not use these settings yet" in sliders.status.value


def test_the_button_keeps_the_settings_and_reset_goes_back_to_the_start(run, sliders):
    sliders.sliders["noise"].value = 0.15000000000000002  # as browsers send it
    sliders.keep.click()
    assert run.degradation.noise == 0.15 and "The run uses" in sliders.status.value
    sliders.reset.click()
    assert sliders.settings == QUICK and run.degradation.noise == 0.15


def test_a_failing_disk_is_reported(run, sliders):
    class FullDisk(SimpleNamespace):
        def __setattr__(self, name, value):
            raise OSError("no space <left>")

    sliders.run = FullDisk(**vars(run))
    sliders.keep.click()
    assert "not saved: no space &lt;left&gt;" in sliders.status.value


def test_menu_moves_all_sliders_with_one_new_picture(sliders, monkeypatch):
    drawn = []
    monkeypatch.setattr(sliders, "_preview", lambda settings, seed: drawn.append(settings) or {
        "clean": sliders.clean[:1], "degraded": sliders.clean[:1]})
    sliders.menu.value = "light"
    assert drawn == [degradation_preset("light")] and sliders.settings == drawn[0]
    assert sliders.menu.value == "light"


def test_seed_face_and_overlay_change_the_picture(sliders):
    seen = {sliders.pictures.value}
    for control, value in ((sliders.seed, 5), (sliders.picker, 2), (sliders.overlay, "regions"),
                           (sliders.overlay, "variation"), (sliders.all_stages, True)):
        control.value = value
        seen.add(sliders.pictures.value)
    assert len(seen) == 6
    assert sliders.pictures.value.count("<img") > 4 and "after noise" in sliders.pictures.value


def test_an_empty_form_is_the_preset():
    form = {"PRESET": "demo", "RUN_NAME": "", "SEED": 0, "MAX_TRAIN_STEPS": None, "DEGRADATION": "",
            "DEGRADATION_STRENGTH": 1.0, "WEIGHT_OWN": None, "CHANGES": {}, "np": 1}
    assert config_from_form("demo", form) == preset("demo")


def test_every_form_field_has_the_meaning_of_its_config_field(tmp_path):
    form = {"RUN_NAME": "other", "SEED": 3, "MAX_TRAIN_STEPS": 7, "LEARNING_RATE": 0.002,
            "WEIGHT_OWN": 0.5, "OWN_PAIRS": str(tmp_path), "WEIGHT_FIT": 0.0,
            "DEGRADATION": "heavy", "DEGRADATION_STRENGTH": 0.35,
            "CHANGES": {"degradation.eyes": 0.25, "resolution": 256}}
    config = config_from_form("demo", form)
    assert (config.run_name, config.seed, config.max_train_steps) == ("other", 3, 7)
    assert config.learning_rate == 0.002 and config.resolution == 256
    assert config.pair_weights["own"] == pytest.approx(0.5 / (0.18 + 0.28 + 0.43 + 0.5))
    assert (config.degradation.strength, config.degradation.eyes) == (0.35, 0.25)
    assert config.degradation.holes == degradation_preset("heavy").holes
