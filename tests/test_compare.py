"""A user's files in the notebook: uploads, results with a divider, and a strength that is kept."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from splat_enhancer.config import preset
from splat_enhancer.enhance.restore import find, restore_all
from splat_enhancer.images import read_image, read_png_text, write_png
from splat_enhancer.notebook import compare
from splat_enhancer.notebook.compare import BeforeAfter, ask_for_files, keep_files, show_restored


class Brighter:
    """An enhancer that adds light to the left half."""

    config = preset("demo")

    def enhance_with_mask(self, images, strength=1.0, progress=None):
        changed = torch.zeros_like(images[:, :1])
        changed[..., : images.shape[-1] // 2] = 1
        return (images + 0.2 * strength * changed).clamp(0, 1), changed

    def trained_state(self):
        return {"light": torch.tensor([0.2])}


@pytest.fixture
def folder(tmp_path):
    """Two renders, the second with alpha, and a file that is no picture."""
    write_png(tmp_path / "a.png", torch.full((3, 20, 30), 0.4))
    write_png(tmp_path / "b (1).png", torch.full((3, 20, 30), 0.5), torch.full((1, 20, 30), 0.6))
    (tmp_path / "c.png").write_bytes(b"no picture")
    return tmp_path


def restore(folder):
    return list(restore_all(Brighter(), find(folder), progress=None))


def shown(monkeypatch):
    """What is displayed from here on."""
    found = []
    monkeypatch.setattr(compare, "display", found.append)
    return found


def test_every_file_is_named_and_the_first_picture_has_a_divider(folder, monkeypatch, capsys):
    found = shown(monkeypatch)
    show_restored(restore(folder))
    text = capsys.readouterr().out
    assert "a.png → a_restored.png" in text and "repaired 50 % of the picture" in text
    assert "NOT RESTORED: c.png" in text
    assert len(found) == 1 and found[0].data.count("<img") == 2
    assert 'type="range"' in found[0].data and "aria-label" in found[0].data


def test_a_chosen_strength_is_saved_and_survives_the_next_run(folder):
    outcomes = restore(folder)
    panel = BeforeAfter(Brighter(), outcomes)
    panel.menu.value = 1  # the one with alpha
    panel.strength.value = 0.5
    panel.save.click()
    assert "saved with strength 0.5" in panel.status.value
    path = outcomes[1].files[0]
    rgb, alpha = read_image(path)
    assert rgb[0, 0, 0].item() == pytest.approx(0.6, abs=2 / 255)
    assert alpha.min().item() == pytest.approx(0.6, abs=2 / 255)
    content = path.read_bytes()
    again = restore(folder)
    assert path.read_bytes() == content and again[1].skipped
    assert read_png_text(path)["chosen_strength"] == "0.5"
    later = BeforeAfter(Brighter(), again)
    later.menu.value = 1
    assert later.strength.value == 0.5


def test_less_strength_and_the_overlay_change_what_is_shown(folder):
    panel = BeforeAfter(Brighter(), restore(folder))
    seen = [panel.picture.value]
    for control, value in ((panel.where, True), (panel.strength, 0.3)):
        control.value = value
        seen.append(panel.picture.value)
    assert len(set(seen)) == 3
    before = {re.findall('src="([^"]+)"', value)[0] for value in seen}
    assert len(before) == 1  # the input stays


def test_an_input_that_is_gone_and_results_without_pictures_are_explained(folder):
    outcomes = restore(folder)
    (folder / "b (1).png").unlink()
    panel = BeforeAfter(Brighter(), outcomes)
    panel.menu.value = 1
    assert "b (1).png" in panel.status.value and not panel.picture.value
    panel.save.click()
    assert "No pictures" in BeforeAfter(Brighter(), []).children[0].value


@pytest.mark.parametrize("version", [7, 8])
def test_uploads_of_both_ipywidgets_are_written(tmp_path, monkeypatch, version):
    found = shown(monkeypatch)
    ask_for_files(SimpleNamespace(place="local"), tmp_path / "uploads")
    button, status = found[0].children
    content = memoryview(b"picture")
    new = {"my <b>.png": {"content": content}} if version == 7 else (
        {"name": "my <b>.png", "content": content},)
    handler = next(iter(button._trait_notifiers["value"]["change"]))
    handler({"new": new})
    assert (tmp_path / "uploads" / "my <b>.png").read_bytes() == b"picture"
    assert "my &lt;b&gt;.png" in status.value


def test_an_upload_replaces_no_other_file(tmp_path):
    files = [("x.png", b"1"), ("x.png", b"2"), ("../x.png", b"1"), ("x.png", b"2")]
    names = [path.name for path in keep_files(tmp_path, files)]
    assert names == ["x.png", "x_2.png", "x.png", "x_2.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.png", "x_2.png"]


def test_colab_uploads_into_the_folder(tmp_path, monkeypatch):
    dialogue = SimpleNamespace(upload=lambda: Path("x.png").write_bytes(b"1"))
    monkeypatch.setattr(compare, "browser_files", lambda environment: dialogue)
    ask_for_files(SimpleNamespace(place="colab"), tmp_path / "uploads")
    assert [path.name for path in (tmp_path / "uploads").iterdir()] == ["x.png"]
