"""Settings: presets, JSON, and the refusal of every bad value of every field."""

import dataclasses
import inspect
import json
import math
import os

import pytest

from helpers.config import PRESETS, TINY_BASE, Config, preset

SECTIONS = {f.name: f.default_factory for f in dataclasses.fields(Config) if f.name != "preset"}
FIELDS = [(f"{section}.{f.name}", f) for section, kind in SECTIONS.items()
          for f in dataclasses.fields(kind)]
GOOD = {"int": 7, "float": 0.25, "str": "other", "bool": False}
BAD = {"int": (True, 1.5, "7", None, math.nan, math.inf, -1, 3 * 10**9),
       "float": (True, "0.5", None, math.nan, math.inf, -math.inf, -0.01, 1e7),
       "str": ("", "  ", 3, None, b"text"), "bool": (1, 0, "yes", None)}
DEMO = preset("demo").to_json()


def value_of(config, path):
    section, name = path.split(".")
    return getattr(getattr(config, section), name)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_survive_json_and_differ_only_where_they_say(name):
    config = preset(name)
    assert config.preset == name and Config.from_json(config.to_json()) == config
    changed = {path: value_of(config, path) for path, _ in FIELDS
               if value_of(config, path) != value_of(Config(), path)}
    assert changed.items() <= PRESETS[name].items()


def test_presets_are_those_of_the_design():
    demo, t4, full = map(preset, ("demo", "t4", "full"))
    assert (demo.data.source, demo.data.size_px, demo.model.base) == ("avatars", 128, TINY_BASE)
    assert t4.data == dataclasses.replace(full.data, train_images=300)
    assert (full.data.train_images, full.data.test_images, full.data.size_px) == (450, 50, 512)
    assert (t4.optim.steps, full.optim.steps, t4.optim.batch) == (1_000, 5_000, 2)
    assert (full.loss.l1, full.loss.lpips, full.loss.gram, full.loss.clip) == (2, 0.5, 1.0, 0.5)
    assert (full.model.base, full.model.timestep) == ("stabilityai/sd-turbo", 249)


@pytest.mark.parametrize(("path", "entry"), FIELDS)
def test_every_field_can_be_changed_and_survives_json(path, entry):
    special = {"data.size_px": 256, "loss.vgg_view_px": 64, "optim.memory": "lean",
               "loss.vgg": "stlpips"}
    good, before = special.get(path, GOOD[entry.type]), preset("t4")
    after = before.with_({path: good})
    assert value_of(after, path) == good != value_of(before, path)
    assert Config.from_json(after.to_json()) == after


@pytest.mark.parametrize(("path", "entry"), FIELDS)
def test_every_field_is_frozen_and_refuses_bad_values_by_its_name(path, entry):
    for bad in BAD[entry.type][2 if path == "pairs.own" else 0:]:  # an empty text is no folder
        with pytest.raises(ValueError, match=f"^{path}: expected .*, got .*; "):
            preset("demo").with_({path: bad})
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(getattr(preset("demo"), path.split(".")[0]), entry.name, 1)


@pytest.mark.parametrize(("changes", "named"), [
    ({"data.size_px": 100}, r"data\.size_px: expected a multiple of 64"),
    ({"run.name": "a/b"}, r"run\.name"), ({"run.name": "../up"}, r"run\.name"),
    ({"run.name": "run."}, r"run\.name"), ({"run.name": "Com1.x"}, r"run\.name"),
    ({f"loss.{name}": 0 for name in ("l1", "lpips", "gram", "clip")}, "at least one weight"),
    ({f"pairs.{name}": 0 for name in ("drawn", "fitted", "rendered")}, "at least one share"),
    ({"data.nothing": 1}, r"data\.nothing"), ({"nothing.steps": 1}, r"nothing\.steps"),
    ({"steps": 1}, "section.field"), ({"preset": "t4"}, "section.field"), ({"data": {}}, "data"),
    ({"data.": 1}, "section.field"), ({"": 1}, "section.field"), ({3: 1}, "a dict like"),
    ({"optim.steps", 500}, "a dict like"), (None, "a dict like")])
def test_bad_changes_are_refused(changes, named):
    with pytest.raises(ValueError, match=named):
        preset("demo").with_(changes)


@pytest.mark.parametrize("name", ["huge", "auto", "", None, ["demo"]])
def test_unknown_presets_are_refused(name):
    for build in (preset, Config):
        with pytest.raises(ValueError, match="preset: expected one of"):
            build(name)


@pytest.mark.parametrize(("text", "named"), [
    *((text, "JSON written by") for text in ("", "{", "null", "3", "[]", "{}", '{"data": {}}')),
    ('{"preset": "huge"}', "preset"), ('{"preset": ["demo"]}', "preset"),
    (DEMO[:-9], "JSON written by"),
    ('{"preset": "demo", "data": 3}', "JSON written by"), (DEMO.replace("eyes", "eye"), "eyes"),
    (DEMO.replace('"steps": ', '"steps": -'), r"optim\.steps"),
    (DEMO.replace('"steps": 240', '"steps": NaN'), r"optim\.steps")])
def test_foreign_json_is_refused(text, named):
    with pytest.raises(ValueError, match=named):
        Config.from_json(text)


def test_json_of_an_older_version_takes_what_it_lacks_from_the_preset():
    older = json.loads(preset("t4").with_({"optim.steps": 7}).to_json())
    del older["degrade"]["needles"], older["run"]
    assert Config.from_json(json.dumps(older)) == preset("t4").with_({"optim.steps": 7})


@pytest.mark.parametrize("name", PRESETS)
def test_a_run_from_before_there_were_other_pairs_goes_on_with_drawn_ones_only(name):
    older = json.loads(preset(name).to_json())
    del older["pairs"]
    found = Config.from_json(json.dumps(older)).pairs
    assert (found.drawn, found.fitted, found.rendered, found.own_share) == (1, 0, 0, 0)


def test_save_is_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "config.json"
    preset("demo").save(path)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        preset("t4").save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
    assert Config.from_json(path.read_text()) == preset("demo")


def test_every_field_is_annotated_and_commented():
    for kind in SECTIONS.values():
        lines = inspect.getsource(kind).splitlines()
        for name in (n for n, value in vars(kind).items() if n[0] != "_" and not callable(value)):
            line, = [x for x in lines if x.startswith(f"    {name}: {kind.__annotations__[name]} ")]
            assert "  # " in line, line
