"""The sliders, without a browser."""

import dataclasses
import html
from types import SimpleNamespace

import pytest
import torch

from helpers.config import DegradeConfig
from helpers.degradation import resplat
from helpers.degradation.pipeline import AMOUNTS, STAGES, Preview, degrade
from helpers.degradation.presets import DAMAGE, FILE, IMITATES, damage, kept_damage
from helpers.faces.avatars import render_avatar
from helpers.views import pictures, sliders
from helpers.views.sliders import DegradationSliders

PLAIN = dataclasses.replace(DegradeConfig(), eyes=0.35, sparsity=0.85)  # fast, not a named damage
FROM_CONFIG = "Training will use the settings of the form."
NOT_YET = "not used for training yet"


@pytest.fixture(scope="module")
def avatars():
    """Two avatars, 64 pixels, with their region maps."""
    images, regions = zip(*(render_avatar(seed, 64) for seed in (7, 8)), strict=True)
    return torch.stack(images), torch.stack(regions)


@pytest.fixture
def calls(monkeypatch):
    """A list that grows by each computation of pictures and each encoding."""
    done = SimpleNamespace(previews=[], encoded=[])

    class Counting(Preview):
        def __call__(self, settings, seed):
            done.previews.append(settings)
            return super().__call__(settings, seed)

    encode = pictures.to_bytes
    monkeypatch.setattr(sliders, "Preview", Counting)
    monkeypatch.setattr(pictures, "to_bytes", lambda *a: done.encoded.append(1) or encode(*a))
    return done


@pytest.fixture
def board(avatars, calls, tmp_path):
    """Sliders with a folder on this disk and one on Drive."""
    return DegradationSliders(*avatars, PLAIN, folders=[tmp_path / "run", None, tmp_path / "drive"])


def shown(board):
    return {name: tile.image.value for name, tile in board.tiles.items()
            if tile in board.row.children}


def degraded(board):
    return board.tiles["degraded"].image.value


def flipped(value):
    return 0.0 if value > 0.5 else 1.0


def walk(widget):
    return [widget, *(w for child in getattr(widget, "children", ()) for w in walk(child))]


def test_every_field_has_a_readable_slider_that_says_what_it_imitates(board):
    found = {w.description: w for w in walk(board) if type(w).__name__ == "FloatSlider"}
    fields = [field.name for field in dataclasses.fields(DegradeConfig)]
    assert set(found) == {name.replace("_", " ") for name in fields}
    for name, text in IMITATES.items():
        slider = board.sliders[name]
        assert slider is found[name.replace("_", " ")] and not slider.continuous_update
        assert getattr(slider, sliders.TOOLTIP) == text
    assert board.settings == PLAIN


def test_tabs_hold_each_slider_once_and_training_apart(board):
    pages = [name for names in sliders.PAGES.values() for name in names]
    assert sorted([*pages, "strength"]) == sorted(board.sliders)
    assert sliders.PAGES["training"] == ("strength_min", "amount_min", "clean_share")
    tab = next(w for w in walk(board) if type(w).__name__ == "Tab")
    assert [tab.get_title(i) for i in range(len(tab.children))] == list(sliders.PAGES)


def test_moving_any_amount_changes_the_degraded_picture(board):
    for name in (*reversed(AMOUNTS), "variation", "strength"):
        before = degraded(board)
        board.sliders[name].value = flipped(board.sliders[name].value)
        assert degraded(board) != before, name


def test_training_sliders_leave_the_pictures_alone(board, calls):
    before, count = shown(board), len(calls.encoded)
    for name in sliders.PAGES["training"]:
        board.sliders[name].value = flipped(board.sliders[name].value)
    assert shown(board) == before and len(calls.encoded) == count
    assert NOT_YET in board.status.value


def test_pictures_before_a_moved_stage_are_not_touched(board, calls):
    board.all_steps.value = True
    names = ["clean", *(stage.name for stage in STAGES), "degraded"]
    for place in reversed(range(len(STAGES))):
        before, count = shown(board), len(calls.encoded)
        board.sliders[STAGES[place].amounts[-1]].value = 0.95
        after, late = shown(board), names[place + 1:]
        assert list(before) == list(after) == names
        assert [name for name in names if after[name] is not before[name]] == late
        assert all(after[name] != before[name] for name in late)
        assert len(calls.encoded) - count == len(late)


def test_all_steps_shows_the_stages_that_do_something_and_else_the_groups(board):
    groups = [stage.name for stage in STAGES if len(stage.amounts) > 1]
    assert list(shown(board)) == ["clean", *groups, "degraded"]
    board.set(dataclasses.replace(PLAIN, noise=0.0, warp=0.0))
    board.all_steps.value = True
    assert list(shown(board)) == ["clean", *(s.name for s in STAGES
                                             if s.name not in ("noise", "warp")), "degraded"]
    board.set(dataclasses.replace(PLAIN, strength=0.0))
    assert list(shown(board)) == ["clean", "degraded"]
    assert len({tag.partition("src=")[2] for tag in shown(board).values()}) == 1


def test_what_is_shown_is_what_degrade_makes_full_size(board, avatars):
    clean, regions = avatars
    board.picker.value = 1
    expected = degrade(clean[1:], regions[1:], PLAIN, torch.tensor([0]))
    tag = pictures.to_tag(pictures.to_bytes(expected[0], "JPEG"), "degraded", size=(224, 224))
    assert degraded(board) == tag and 'alt="degraded"' in tag


@pytest.mark.parametrize("name", [*DAMAGE, "config"])
def test_the_menu_moves_all_sliders_with_one_computation(board, calls, name):
    board.sliders["eyes"].value = 0.05
    assert board.menu.value == sliders.OWN
    count = len(calls.previews)
    board.menu.value = name
    expected = PLAIN if name == "config" else damage(name)
    assert board.settings == expected and calls.previews[count:] == [expected]
    board.menu.value = sliders.OWN  # moves nothing
    assert board.settings == expected and board.menu.value == name


def test_reset_goes_back_with_one_computation(board, calls):
    before = shown(board)
    for name in ("eyes", "noise", "clean_share"):
        board.sliders[name].value = 0.95
    count = len(calls.previews)
    board.reset.click()
    assert board.settings == PLAIN and shown(board) == before
    assert len(calls.previews) == count + 1 and board.status.value == FROM_CONFIG


def test_another_seed_or_image_changes_the_picture_and_no_settings(board):
    first = degraded(board)
    board.new_seed.click()
    second = degraded(board)
    assert board.seed.value == 1 and second != first
    board.seed.value = 5_000
    assert degraded(board) not in (first, second)
    board.seed.value, clean = 0, board.tiles["clean"].image.value
    assert degraded(board) == first
    board.picker.value = 1
    assert degraded(board) != first and board.tiles["clean"].image.value != clean
    assert board.settings == PLAIN and board.status.value == FROM_CONFIG


def test_overlays_tint_the_pictures_and_nothing_else(board, calls, avatars):
    plain, copies = shown(board), [images.clone() for images in avatars]
    seen = [plain]
    for kind in ("regions", "variation"):
        board.overlay.value = kind
        seen.append(shown(board))
        assert sliders.LEGENDS[kind] in board.note.value
        count, before = len(calls.encoded), board.sliders["noise"].value
        board.sliders["noise"].value = 0.95  # the last stage: one picture is encoded anew
        assert len(calls.encoded) == count + 1
        board.sliders["noise"].value = before
    assert all(len({view[name] for view in seen}) == 3 for name in plain)
    for control, value in ((board.seed, 3), (board.sliders["variation"], 0.0)):
        before, control.value = board.tiles["clean"].image.value, value
        assert board.tiles["clean"].image.value != before
    board.overlay.value, board.seed.value, board.sliders["variation"].value = "none", 0, 0.7
    assert shown(board) == plain
    assert all(map(torch.equal, avatars, copies))


def test_the_number_of_gaussians_is_told(board):
    board.set(dataclasses.replace(PLAIN, strength=0.5, sparsity=1.0))
    assert f"{int(resplat.gaussian_count(torch.tensor(0.5))):,} Gaussians" in board.note.value
    board.set(dataclasses.replace(PLAIN, **dict.fromkeys(resplat.DEFECTS, 0.0)))
    assert "Gaussians" not in board.note.value


def test_only_pressing_use_these_hands_exactly_these_to_training(board, tmp_path):
    assert board.status.value == FROM_CONFIG
    board.sliders["eyes"].value = 0.15000000000000002  # as a browser sends it
    assert NOT_YET in board.status.value and not list(tmp_path.iterdir())
    board.use.click()
    for folder in (tmp_path / "run", tmp_path / "drive"):
        assert kept_damage([folder]) == board.settings == dataclasses.replace(PLAIN, eyes=0.15)
    assert "your own damage, saved with this run" in board.status.value
    assert "RUN_NAME" in board.status.value and NOT_YET not in board.status.value
    board.sliders["eyes"].value = 0.2
    assert NOT_YET in board.status.value and "own damage" in board.status.value


def test_pressing_use_these_at_the_configs_settings_removes_the_file(board, tmp_path):
    board.sliders["eyes"].value = 0.15
    board.use.click()
    board.reset.click()
    assert NOT_YET in board.status.value
    board.use.click()
    assert kept_damage(board.folders) is None and board.status.value == FROM_CONFIG
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_kept_damage_is_where_the_sliders_start(board, avatars):
    board.menu.value = "heavy"
    board.use.click()
    again = DegradationSliders(*avatars, PLAIN, folders=board.folders[1:])
    assert again.settings == damage("heavy") and again.menu.value == "heavy"
    assert "your own damage, saved with this run" in again.status.value
    assert degraded(again) == degraded(board)
    again.reset.click()
    assert again.settings == PLAIN and NOT_YET in again.status.value


def test_a_folder_that_fails_is_told_with_the_reason(board, tmp_path):
    board.sliders["eyes"].value = 0.15
    (tmp_path / "drive").write_text("in the way")
    board.use.click()
    assert kept_damage([tmp_path / "run"]) == board.settings
    assert str(tmp_path / "drive") in board.status.value and "own damage" in board.status.value
    (tmp_path / "run" / FILE).unlink()
    (tmp_path / "run").rmdir()
    (tmp_path / "run").write_text("in the way")
    board.use.click()
    assert "expected a file that can be written" in board.status.value
    assert FROM_CONFIG in board.status.value and NOT_YET in board.status.value


def test_a_broken_file_is_told_and_pressing_mends_it(avatars, tmp_path):
    (tmp_path / FILE).write_text('{"skin": "<b>"}')
    board = DegradationSliders(*avatars, PLAIN, folders=[tmp_path])
    assert board.settings == PLAIN and "<b>" not in board.status.value
    told = html.unescape(board.status.value)
    assert str(tmp_path / FILE) in told and "or delete it" in told and FROM_CONFIG not in told
    board.use.click()
    assert board.status.value == FROM_CONFIG and not list(tmp_path.iterdir())


def test_without_folders_the_sliders_are_for_looking_only(avatars):
    board = DegradationSliders(*avatars, dataclasses.replace(PLAIN, eyes=1 / 3))  # off the slider
    assert board.use.disabled and board.status.value == FROM_CONFIG
    assert board.menu.value == "config"
    board.sliders["eyes"].value = 0.15
    assert "for looking only" in board.status.value


def test_the_board_displays_itself_and_is_plain_elsewhere(board, capsys):
    if hasattr(board, "_repr_mimebundle_"):  # ipywidgets 8
        bundle = board._repr_mimebundle_()
        assert bundle["text/plain"] == repr(board)
    else:
        board._ipython_display_()
        bundle = capsys.readouterr().out
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert repr(board) == f"DegradationSliders(2 images, {len(board.sliders)} sliders)"
