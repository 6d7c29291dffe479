"""Sliders and the live display, without a browser."""

import base64
import dataclasses
import html
import io
import re
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from helpers.checkpoints.checkpoint import Checkpoint, save
from helpers.config import DegradeConfig, preset
from helpers.degradation import resplat
from helpers.degradation.pipeline import AMOUNTS, STAGES, Preview, degrade
from helpers.degradation.presets import DAMAGE, FILE, IMITATES, damage, kept_damage
from helpers.faces.avatars import render_avatar
from helpers.machine import progress
from helpers.training.loop import Record
from helpers.views import display as show
from helpers.views import pictures, sliders
from helpers.views.sliders import DegradationSliders

CLEAN = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
CONFIG = preset("demo").with_({"optim.steps": 5, "run.preview_every_steps": 2})
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
    assert board.menu.value == name


def test_the_menus_own_entry_moves_nothing(board):
    board.menu.value = sliders.OWN
    assert board.settings == PLAIN and board.menu.value == "config"


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


def test_overlays_tint_the_pictures_and_nothing_else(board, avatars):
    plain, copies = shown(board), [images.clone() for images in avatars]
    seen = [plain]
    for kind in ("regions", "variation"):
        board.overlay.value = kind
        seen.append(shown(board))
        assert sliders.LEGENDS[kind] in board.note.value
    assert all(len({view[name] for view in seen}) == 3 for name in plain)
    for control, value in ((board.seed, 3), (board.sliders["variation"], 0.0)):
        before, control.value = board.tiles["clean"].image.value, value
        assert board.tiles["clean"].image.value != before
    board.overlay.value, board.seed.value, board.sliders["variation"].value = "none", 0, 0.7
    assert shown(board) == plain
    assert all(map(torch.equal, avatars, copies))


@pytest.mark.parametrize("kind", ["regions", "variation"])
def test_under_an_overlay_only_changed_pictures_are_encoded(board, calls, kind):
    board.overlay.value = kind
    count = len(calls.encoded)
    board.sliders["noise"].value = 0.95
    assert len(calls.encoded) == count + 1


def test_the_number_of_gaussians_is_told(board):
    for strength in (1.0, 0.5):
        board.set(dataclasses.replace(PLAIN, strength=strength, sparsity=1.0))
        count = int(resplat.gaussian_count(torch.tensor(strength)))
        assert f"{count:,} Gaussians" in board.note.value
    board.set(dataclasses.replace(PLAIN, **dict.fromkeys(resplat.DEFECTS, 0.0)))
    assert "Gaussians" not in board.note.value


def test_untouched_sliders_write_nothing(board, tmp_path):
    assert not list(tmp_path.iterdir()) and board.status.value == FROM_CONFIG


def test_pressing_use_these_hands_exactly_these_to_training(board, tmp_path):
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


def test_a_config_of_odd_fractions_counts_as_untouched(avatars):
    board = DegradationSliders(*avatars, dataclasses.replace(PLAIN, eyes=1 / 3))
    assert board.status.value == FROM_CONFIG and board.menu.value == "config"


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
    board = DegradationSliders(*avatars, PLAIN)
    assert board.use.disabled and board.status.value == FROM_CONFIG
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


@pytest.mark.parametrize(("images", "maps"), [(0, 0), (2, 1), (1, 2)])
def test_no_images_or_other_numbers_of_maps_are_refused(avatars, images, maps):
    with pytest.raises(ValueError, match="expected entries of one length"):
        DegradationSliders(avatars[0][:images], avatars[1][:maps], PLAIN)


def record(step):
    return Record(step, {"l1": 0.5, "total": 1.0}, 1e-4, 1.0, False, 1.0, 2.0, 0.0)


def test_live_training_works_outside_a_notebook_and_goes_on_from_a_checkpoint(tmp_path):
    save(Checkpoint(1, CONFIG, {"a": torch.zeros(1)}, history=[vars(record(1))]), tmp_path)
    seen = []
    model = SimpleNamespace(enhance=lambda images: seen.append(len(images)) or images)
    live = show.LiveTraining(CONFIG, model, CLEAN[:1], CLEAN[1:2], folders=[tmp_path, None])
    for step in range(2, 6):
        live.update(record(step))
    live.close()
    assert seen == [1, 1, 1] and live.bar.n == 5  # drawn after steps 2 and 4, and at the end
    assert [entry["step"] for entry in live.history] == [1, 2, 3, 4, 5]
    assert "5/5" in str(live.bar)


def test_live_training_begins_where_training_goes_on_though_a_bit_is_flipped(tmp_path):
    for step in (1, 2):
        history = [vars(record(n)) for n in range(1, step + 1)]
        path = save(Checkpoint(step, CONFIG, {"a": torch.zeros(1)}, history=history), tmp_path)
    content = bytearray(path.read_bytes())
    content[8 + int.from_bytes(content[:8], "little")] ^= 1  # in a tensor: the history is legible
    path.write_bytes(content)
    live = show.LiveTraining(CONFIG, None, CLEAN, CLEAN, folders=[tmp_path])
    assert [entry["step"] for entry in live.history] == [1] and "1/5" in str(live.bar)


def jpeg(picture):
    return base64.b64decode(re.search(r'src="data:image/jpeg;base64,([^"]+)"', picture.data)[1])


def test_live_training_shows_bar_curve_and_grid_each_in_one_slot(monkeypatch):
    shown, slot = [], SimpleNamespace(update=lambda picture: shown.append(picture))
    monkeypatch.setattr(show, "display", lambda *_, **__: slot)
    monkeypatch.setattr(progress, "get_ipython", lambda: SimpleNamespace(kernel=None))
    monkeypatch.setattr(progress, "display", lambda bar, **_: shown.append(bar) or slot)
    model = SimpleNamespace(enhance=torch.clone)
    live = show.LiveTraining(CONFIG, model, CLEAN[:1], CLEAN[1:2])
    live.draw()  # before the first step there is no curve yet
    live.update(record(1))
    live.close()
    bars, drawn = ([p for p in shown if p.data.startswith(f"<{tag}")] for tag in ("prog", "img"))
    assert 'value="0" max="5"' in bars[0].data and "Training: 0/5" in bars[0].data
    assert 'value="1" max="5"' in bars[-1].data and "loss=1.000" in bars[-1].data
    assert len(drawn) == 2 and jpeg(drawn[0]) != jpeg(drawn[1])
    assert all(jpeg(p)[:2] == b"\xff\xd8" and 'alt="loss over steps' in p.data for p in drawn)


def test_shown_figures_are_jpeg_with_a_text_for_those_who_cannot_see(monkeypatch):
    shown = []
    monkeypatch.setattr(show, "display", shown.append)
    show.show(show.grid({"a": CLEAN[:1]}), alt='a "face"')
    assert 'alt="a &quot;face&quot;"' in shown[0].data and jpeg(shown[0])[:2] == b"\xff\xd8"


def test_compared_images_keep_their_pixels_and_their_order(monkeypatch):
    shown = []
    monkeypatch.setattr(show, "display", shown.append)
    show.compare(CLEAN[:1, :, :24], CLEAN[1:2, :, :24])
    tags = re.findall(r"<img [^>]+>", shown[0].data)
    for tag, name, image in zip(tags, ("input", "restored"), CLEAN[:2, :, :24], strict=True):
        assert f'alt="{name}" width="420" height="315"' in tag
        assert base64.b64encode(pictures.to_bytes(image, "JPEG")).decode() in tag
    large = pictures.divided(torch.rand(3, 1000, 10), torch.rand(3, 1000, 10))
    with Image.open(io.BytesIO(base64.b64decode(large.split("base64,")[1].split('"')[0]))) as seen:
        assert seen.size == (8, 768)
