"""Pictures in the notebook: grids, regions, stages, and the training while it runs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from splat_enhancer.config import DegradationConfig, preset
from splat_enhancer.data.regions import REGIONS
from splat_enhancer.notebook import plots
from splat_enhancer.notebook.plots import (
    PALETTE,
    LiveTraining,
    color_regions,
    image_grid,
    region_legend,
    show_effects,
    show_rows,
    show_stages,
    titled,
)
from splat_enhancer.training.train import Record

IMAGES = torch.rand(3, 3, 32, 32)
REGION_MAPS = torch.ones(1, 32, 32, dtype=torch.uint8)


@pytest.fixture
def shown(monkeypatch):
    """The figures that are shown, with their texts."""
    found = []
    monkeypatch.setattr(plots, "show", lambda figure, alt: found.append((figure, alt)))
    return found


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes if axes.images]


def test_rows_are_titled_once_and_may_differ_in_length():
    figure = image_grid(titled({"novel_view": IMAGES, "clean": IMAGES[:2]}))
    assert titles(figure) == ["novel view", "", "", "clean", ""]


def test_images_are_shown_whatever_their_range_and_gradient(shown):
    show_rows({"restored": (2 * IMAGES - 0.5).requires_grad_()})
    assert shown[0][0].axes[0].images[0].get_array().max() <= 1
    assert shown[0][1] == "rows of images: restored"


def test_only_stages_that_change_something_are_shown(shown):
    none = {name: 0.0 for name in vars(DegradationConfig()) if name != "strength"}
    settings = DegradationConfig(**none | {"noise": 0.5, "color_jitter": 0.5})
    show_stages(IMAGES[:1], REGION_MAPS, settings)
    assert titles(shown[0][0]) == ["clean", "after color jitter", "after noise"]


def test_every_effect_is_shown_with_its_name(shown, monkeypatch):
    monkeypatch.setattr(plots, "degrade", lambda clean, *_: clean)
    show_effects(IMAGES[:1], REGION_MAPS)
    names = titles(shown[0][0])
    assert names[:2] == ["clean", "regions"] and {"holes", "color error", "noise"} < set(names)


def test_every_region_has_a_colour_and_a_place_in_the_legend():
    assert len(PALETTE) == len(REGIONS)
    colors = color_regions(torch.arange(6, dtype=torch.uint8).view(1, 2, 3))
    assert colors.shape == (1, 3, 2, 3) and torch.equal(colors[0, :, 0, 1], PALETTE[1])
    assert all(name in region_legend() for name in REGIONS)


def run_of(enhance=lambda images: images, history=()):
    """A run with held-out images."""
    return SimpleNamespace(
        config=preset("demo").replace(max_train_steps=5), model=SimpleNamespace(enhance=enhance),
        held_out=lambda count: (IMAGES[:count], IMAGES[:count]),
        latest=lambda: SimpleNamespace(history=list(history)) if history else None)


def record(step, held_out=None):
    return Record(step, {"total": 1.0}, 1e-4, 1.0, False, 0.1, 10.0, 0.0, held_out)


def test_live_picture_changes_with_each_held_out_measurement(monkeypatch, capsys):
    slots, distances = [], {"degraded": 0.3, "filtered": 0.2, "restored": 0.25}

    def display(*_, **__):
        slots.append([])
        return SimpleNamespace(update=slots[-1].append)

    monkeypatch.setattr(plots, "display", display)
    watched = LiveTraining(run_of(history=[{"step": 1, "held_out": distances}]))
    line, picture = slots
    assert len(picture) == 1  # of the earlier session
    for step in range(2, 6):
        watched.update(record(step, distances | {"restored": 0.1 * step} if step % 2 else None))
    watched.close()
    assert line[0].data.startswith("step 1 of 5,") and line[-1].data.startswith("step 5 of 5,")
    assert len({html.data for html in picture}) == len(picture) == 3
    assert all("held-out" in html.data for html in picture)
    assert capsys.readouterr() == ("", "")  # a stream would grow by a line per step


def test_no_picture_stops_a_training(monkeypatch, capsys):
    def fail(images):
        raise RuntimeError("no pictures today")

    monkeypatch.setattr(plots, "display", lambda *_, **__: None)
    watched = LiveTraining(run_of(enhance=fail))
    for step in range(1, 4):
        watched.update(record(step, {"degraded": 0.3, "filtered": 0.2, "restored": 0.25}))
    assert capsys.readouterr().out.count("no pictures today") == 1
