"""Sliders and the live display, without a browser."""

import ast
import re
from types import SimpleNamespace

import torch

from helpers import show
from helpers.checkpoint import Checkpoint, save
from helpers.config import preset
from helpers.train import Record

CLEAN = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
REGIONS = torch.arange(6, dtype=torch.uint8).repeat(3, 32, 6)[..., :32]
CONFIG = preset("demo").with_({"optim.steps": 5, "run.preview_every_steps": 2})


def record(step):
    return Record(step, {"l1": 0.5, "total": 1.0}, 1e-4, 1.0, False, 1.0, 2.0, 0.0)


def walk(widget):
    return [widget, *(w for child in getattr(widget, "children", ()) for w in walk(child))]


def test_sliders_change_the_picture_name_what_to_write_into_changes_and_go_back():
    parts = walk(show.degradation_sliders(CLEAN, REGIONS, CONFIG.degrade))
    controls = {w.description: w for w in parts if getattr(w, "description", "")}
    assert set(vars(CONFIG.degrade)) - {"strength_min"} <= set(controls)
    kinds = {type(w).__name__: w for w in parts}
    picture, line = kinds["Image"], kinds["HTML"]
    first = picture.value, line.value
    moves = {"eyes": 0.05, "noise": 0.95, "variation": 0.0, "strength": 0.5}
    for name, value in moves.items():
        before, controls[name].value = picture.value, value
        assert picture.value != before and f"degrade.{name}" in line.value
    changes = ast.literal_eval(re.search(r"CHANGES = (\{.*\})", line.value)[1])
    assert changes == {f"degrade.{name}": value for name, value in moves.items()}
    assert CONFIG.with_(changes).degrade.noise == 0.95
    controls["reset"].click()
    assert (picture.value, line.value) == first
    for name in ("seed", "show"):
        before, controls[name].value = picture.value, 1
        assert picture.value != before and line.value == first[1]


def test_live_training_works_outside_a_notebook_and_goes_on_from_a_checkpoint(tmp_path, capsys):
    save(Checkpoint(1, CONFIG, {"a": torch.zeros(1)}, history=[vars(record(1))]), tmp_path)
    seen = []
    model = SimpleNamespace(enhance=lambda images: seen.append(len(images)) or images)
    live = show.LiveTraining(CONFIG, model, CLEAN[:1], CLEAN[1:2], folders=[tmp_path, None])
    for step in range(2, 6):
        live.update(record(step))
    live.close()
    assert seen == [1, 1, 1] and live.bar.n == 5  # drawn after steps 2 and 4, and at the end
    assert [entry["step"] for entry in live.history] == [1, 2, 3, 4, 5]
    assert "5/5" in capsys.readouterr().err


def test_live_training_draws_curve_and_grid_in_one_slot(monkeypatch):
    shown, slot = [], SimpleNamespace(update=lambda picture: shown.append(picture))
    monkeypatch.setattr(show, "display", lambda *_, **__: slot)
    model = SimpleNamespace(enhance=torch.clone)
    live = show.LiveTraining(CONFIG, model, CLEAN[:1], CLEAN[1:2])
    live.draw()  # before the first step there is no curve yet
    live.update(record(1))
    live.close()
    assert len(shown) == 2 and all(picture.data[:2] == b"\xff\xd8" for picture in shown)
    assert shown[0].data != shown[1].data and "loss" in shown[1].alt


def test_shown_figures_are_jpeg_with_a_text_for_those_who_cannot_see(monkeypatch):
    shown = []
    monkeypatch.setattr(show, "display", shown.append)
    show.show(show.grid({"a": CLEAN[:1]}), alt="a face")
    assert shown[0].alt == "a face" and shown[0].data[:2] == b"\xff\xd8"
