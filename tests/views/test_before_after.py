"""Before and after, uploads and what is handed back, without a browser."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image

from helpers import machine
from helpers.pictures import read_picture
from helpers.restoring import Outcome, RestoreConfig, find, restore_all
from helpers.views import before_after, uploads
from helpers.views.before_after import BeforeAfter, show_restored
from helpers.views.uploads import UploadButton, offer, take_uploads
from tests.places import STAND_IN
from tests.restoring.conftest import enhancer  # noqa: F401 (a fixture)

LOCAL = machine.detect()
COLAB = replace(LOCAL, place="colab")


@pytest.fixture
def renders(tmp_path):
    """Two pictures of different content."""
    folder = tmp_path / "renders"
    folder.mkdir()
    for number in range(2):
        noise = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(number))
        pixels = noise.mul(255).byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def board(enhancer, renders):  # noqa: F811
    how = RestoreConfig(strength=0.5)
    outcomes = list(restore_all(enhancer, find(renders), how, progress=None))
    return BeforeAfter(enhancer, outcomes, how)


def test_what_is_shown_at_a_strength_is_what_is_written_with_it(board, renders, monkeypatch):
    shown = []
    monkeypatch.setattr(before_after, "divided", lambda *both: shown.append(both) or "")
    board.strength.value = 0.3
    board.save.click()
    written = read_picture(renders / "0_restored.png").rgb
    before, after = shown[-1]
    assert "0.png → 0_restored.png" in board.status.value
    assert (written - after).abs().max() <= 0.5 / 255 + 1e-6
    assert (written - before).abs().max() > 0.01


def test_another_picture_and_the_mask_change_what_is_shown(board):
    values = [board.image.value]
    board.where.value = True
    values.append(board.image.value)
    board.menu.value = 1
    values.append(board.image.value)
    assert len(set(values)) == 3 and board.status.value == ""


def test_a_picture_that_is_gone_is_named_in_the_board(board, renders):
    (renders / "1.png").unlink()
    board.menu.value = 1
    assert "1.png" in board.status.value and board.image.value == ""


def test_a_board_without_pictures_says_so(enhancer):  # noqa: F811
    assert "No pictures" in BeforeAfter(enhancer, [], RestoreConfig()).children[0].value


def test_every_failure_is_named_and_long_lists_are_not(enhancer, renders, capsys):  # noqa: F811
    (renders / "bad.png").write_bytes(b"no picture")
    outcomes = list(restore_all(enhancer, find(renders), progress=None))
    show_restored(outcomes * 10)
    told = capsys.readouterr().out
    assert told.count("NOT RESTORED: ") == 10 and "bad.png" in told
    assert told.count("→") < 13 and "30 files, 20 of them restored" in told


def test_uploads_of_both_widget_versions_are_kept_under_names_of_their_own(tmp_path):
    button = UploadButton(tmp_path / "mine")
    button._take({"new": {"../a b.png": {"metadata": {}, "content": b"one"}}})  # ipywidgets 7
    button._take({"new": ({"name": "a b.png", "content": memoryview(b"two")},)})  # 8
    button._take({"new": ({"name": "a b.png", "content": memoryview(b"one")},)})
    kept = {path.name: path.read_bytes() for path in (tmp_path / "mine").iterdir()}
    assert kept == {"a-b.png": b"one", "a-b_2.png": b"two"}
    assert "a-b.png, a-b_2.png" in button.status.value
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"]


def test_an_upload_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").touch()
    button = UploadButton(tmp_path / "file")
    button._take({"new": ({"name": "a.png", "content": memoryview(b"one")},)})
    assert "not saved" in button.status.value and "uploaded" not in button.status.value


@pytest.fixture
def browser(monkeypatch, tmp_path):
    """Colab's own dialogues, and a person with one file who saves what is offered."""
    for name in ("chosen", "saved"):
        (tmp_path / name).mkdir()
    (tmp_path / "chosen" / "r.png").write_bytes(b"a render")
    monkeypatch.setenv("STAND_IN_UPLOADS", str(tmp_path / "chosen"))
    monkeypatch.setenv("STAND_IN_DOWNLOADS", str(tmp_path / "saved"))
    for name in [n for n in sys.modules if n.split(".")[0] == "google"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(STAND_IN)
    yield tmp_path
    for name in [n for n in sys.modules if n.split(".")[0] == "google"]:
        sys.modules.pop(name)


def test_on_colab_its_own_dialogues_take_and_hand_out_files(browser):
    take_uploads(COLAB, browser / "uploads")
    take_uploads(COLAB, browser / "uploads")
    assert {path.name for path in (browser / "uploads").iterdir()} == {"r.png", "r (1).png"}
    offer(COLAB, browser / "uploads" / "r.png")
    assert (browser / "saved" / "r.png").read_bytes() == b"a render"


@pytest.mark.parametrize("place", [LOCAL, replace(LOCAL, place="kaggle"), COLAB])
def test_elsewhere_a_button_takes_files_and_a_link_hands_them_out(place, tmp_path, monkeypatch):
    shown = []
    monkeypatch.setitem(sys.modules, "google.colab", None)  # also an editor attached to Colab
    monkeypatch.setattr(uploads, "display", shown.append)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "all.zip").touch()
    take_uploads(place, tmp_path / "uploads")
    offer(place, tmp_path / "all.zip")
    assert isinstance(shown[0], UploadButton) and str(shown[1].path) == "all.zip"


def test_an_outcome_without_files_is_no_line_too_few(capsys, renders):
    one, *_ = find(renders)
    show_restored([Outcome(one, skipped=True, notes=("another process restores it",))])
    assert "0.png → nothing (there already); another process" in capsys.readouterr().out


def test_a_long_name_keeps_its_suffix(tmp_path):
    button = UploadButton(tmp_path / "mine")
    button._take({"new": ({"name": f"{'long ' * 40}.png", "content": memoryview(b"one")},)})
    (kept,) = (tmp_path / "mine").iterdir()
    assert kept.suffix == ".png" and len(kept.name) <= 100
