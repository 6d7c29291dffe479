"""Named damage and kept damage: what is written is what is read, and nothing is lost in silence."""

import dataclasses
import errno
import json
import re
from pathlib import Path

import pytest

from helpers.config import DegradeConfig
from helpers.degradation import presets, resplat
from helpers.degradation.presets import DAMAGE, FILE, IMITATES, damage, keep_damage, kept_damage

OWN = dataclasses.replace(DegradeConfig(), eyes=0.15, clean_share=0.0, sparsity=1.0)
FIELDS = [field.name for field in dataclasses.fields(DegradeConfig)]


def test_medium_is_the_default_and_lies_between_light_and_heavy():
    light, medium, heavy = (vars(damage(name)) for name in ("light", "medium", "heavy"))
    assert medium == vars(DegradeConfig())
    assert all(light[name] <= medium[name] <= heavy[name] for name in FIELDS)
    assert sum(light.values()) < sum(medium.values()) < sum(heavy.values())


def test_the_damage_named_splat_is_of_gaussians_only():
    unseen = {"strength", "strength_min", "amount_min", "clean_share", "variation"}
    used = {name for name, value in vars(damage("splat")).items() if value} - unseen
    assert used == set(resplat.DEFECTS)


@pytest.mark.parametrize("name", ["huge", "", None, ["light"]])
def test_unknown_names_are_refused_with_those_that_exist(name):
    with pytest.raises(ValueError, match=r"damage: expected one of \['light', 'medium'.*pick one"):
        damage(name)


def test_every_field_says_what_it_imitates_in_one_short_line():
    assert list(IMITATES) == FIELDS
    assert all(10 < len(text) < 80 and not text.endswith(".") for text in IMITATES.values())


@pytest.mark.parametrize("settings", [DegradeConfig(), OWN, *map(damage, DAMAGE)])
def test_kept_damage_is_read_back_equal_from_any_folder(settings, tmp_path):
    folders = [tmp_path / "new" / "run", None, tmp_path / "drive"]
    keep_damage(settings, folders)
    for folder in (folders[0], folders[2]):
        assert kept_damage([None, folder]) == settings
        assert [path.name for path in folder.iterdir()] == [FILE]
        text = (folder / FILE).read_text()
        assert json.loads(text) == vars(settings) and len(text.splitlines()) == len(FIELDS) + 2


def test_words_name_only_what_differs_from_the_form():
    form = damage("light")
    own = dataclasses.replace(form, strength=0.5, eyes=0.25)
    assert presets.in_words(None, form) == "the form's damage"
    assert presets.in_words(own, form) == \
        "your own damage; other than in the form: strength=0.5, eyes=0.25"
    assert presets.in_words(form, form).endswith("other than in the form: nothing")


def test_none_removes_what_was_kept_and_creates_nothing(tmp_path):
    folders = [tmp_path / "run", tmp_path / "drive"]
    for own in (None, OWN):
        keep_damage(own, [])
        keep_damage(own, [None])
        assert kept_damage([]) is kept_damage([None, *folders]) is None
        assert not any(folder.exists() for folder in folders)
    keep_damage(OWN, folders)
    for _ in range(2):
        keep_damage(None, folders)
        assert kept_damage(folders) is None


def test_the_first_folder_that_has_damage_wins(tmp_path):
    run, drive = tmp_path / "run", tmp_path / "drive"
    keep_damage(OWN, [drive])
    assert kept_damage([run, drive]) == OWN
    keep_damage(damage("heavy"), [run])
    assert kept_damage([run, drive]) == damage("heavy") and kept_damage([drive, run]) == OWN


def test_fields_that_a_file_lacks_take_the_defaults(tmp_path):
    (tmp_path / FILE).write_text('{"eyes": 0.15}')
    assert kept_damage([tmp_path]) == dataclasses.replace(DegradeConfig(), eyes=0.15)


@pytest.mark.parametrize("content", [
    b"", b"{", b"[1]", b"null", b'{"skni": 0.5}', b'{"skin": 2}', b'{"skin": NaN}',
    b'{"skin": true}', b'{"skin": "0.5"}', b"\xff\xfe\x00"])
def test_broken_and_foreign_files_are_refused_by_name_with_a_remedy(content, tmp_path):
    (tmp_path / FILE).write_bytes(content)
    message = re.escape(str(tmp_path / FILE)) + ": expected .*press 'use these.*or delete it"
    with pytest.raises(ValueError, match=message):
        kept_damage([None, tmp_path])
    keep_damage(OWN, [tmp_path])
    assert kept_damage([tmp_path]) == OWN


@pytest.mark.parametrize("settings", [OWN, None])
def test_a_copy_that_fails_costs_one_line_and_not_the_original(settings, tmp_path, capsys):
    run, drive = tmp_path / "run", tmp_path / "drive"
    (drive / FILE / "in the way").mkdir(parents=True)
    (run / FILE).parent.mkdir()
    (run / FILE).write_text("{}")
    keep_damage(settings, [run, None, drive])
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and str(drive / FILE) in said
    assert kept_damage([run]) == settings
    assert [path.name for path in drive.iterdir()] == [FILE]  # no .tmp is left


def test_a_disk_that_fails_raises_after_the_copy_was_made(tmp_path):
    run, drive = tmp_path / "run", tmp_path / "drive"
    run.write_text("a file where a folder should be")
    with pytest.raises(OSError, match=rf"{re.escape(str(run))}.*expected a file that can be writ"):
        keep_damage(OWN, [run, drive])
    assert kept_damage([run, drive]) == OWN


def test_a_drive_that_died_is_passed_over_and_named(tmp_path, monkeypatch, capsys):
    read = Path.read_bytes

    def dead(path):
        if "drive" in path.parts:
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", dead)
    assert kept_damage([tmp_path / "run", tmp_path / "drive"]) is None
    assert "drive was passed over" in capsys.readouterr().out
    with pytest.raises(ValueError, match="drive: expected a folder to look into"):
        kept_damage([tmp_path / "drive"])
