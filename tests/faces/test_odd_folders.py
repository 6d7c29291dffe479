"""Folders as people have them: odd files are named and left out, nothing is written elsewhere."""

import os
import sys

import numpy as np
import pytest
from PIL import Image

from helpers.config import DataConfig, PairsConfig, RunConfig
from helpers.faces import Faces, read_image, sources
from helpers.pairs import prepare_own
from tests.faces.test_data import background, photo, photos, prepare, skipped_among  # noqa: F401
from tests.pictures.files import exif_of, saved

on_posix = pytest.mark.skipif(sys.platform == "win32", reason="such names need POSIX")


def turned_photo(tag, size=(96, 72)):
    image = Image.fromarray(np.random.default_rng(tag).integers(0, 255, (*size, 3), dtype=np.uint8))
    return saved(image, "PNG", exif=exif_of(tag))


@pytest.mark.parametrize("raised", [RuntimeError("odd"), IndexError("odd"), MemoryError("odd"),
                                    ZeroDivisionError("odd"),
                                    UnicodeDecodeError("a", b"", 0, 1, "odd")])
def test_whatever_one_file_raises_it_is_named_and_left_out(tmp_path, photos, monkeypatch, raised):  # noqa: F811
    read, bad = sources.read_image, (photos / "3.png").read_bytes()

    def breaking(content):
        if content == bad:
            raise raised
        return read(content)
    monkeypatch.setattr(sources, "read_image", breaking)
    faces = prepare(tmp_path / "store", source=photos, train=5, test=2)
    assert list(faces.skipped) == ["3.png"] and "odd" in faces.skipped["3.png"]


def test_pictures_of_kinds_that_are_not_read_are_named(tmp_path, photos):  # noqa: F811
    for name in ("a.heic", "b.avif", "c.DNG", "d.exr"):
        (photos / name).write_bytes(b"x")
    skipped = prepare(tmp_path / "store", source=photos).skipped
    assert sorted(skipped) == ["a.heic", "b.avif", "c.DNG", "d.exr"]
    assert ".heic files are not read; save it as JPEG or PNG" in skipped["a.heic"]
    only = tmp_path / "phone"
    only.mkdir()
    (only / "a.heic").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"1 left out: a\.heic"):
        prepare(tmp_path / "store", source=only)


def test_one_photograph_under_several_names_is_on_one_side_only(tmp_path, photos):  # noqa: F811
    for n in range(8):
        photo(n).save(photos / f"copy of {n}.bmp")  # other bytes, the same pixels
    (photos / "0 again.png").write_bytes((photos / "0.png").read_bytes())
    faces = prepare(tmp_path / "store", source=photos, train=5, test=3)
    prints = [{*faces.prints(split)} for split in ("train", "test")]
    assert len(prints[0]) == 5 and len(prints[1]) == 3 and not prints[0] & prints[1]
    assert any("the same picture as" in reason for reason in faces.skipped.values())
    with pytest.raises(ValueError, match="expected 6 training and 3 test"):
        prepare(tmp_path / "store", source=photos, train=6, test=3)


def test_a_preparation_that_goes_on_still_knows_what_it_has(tmp_path, photos, monkeypatch):  # noqa: F811
    for n in range(8):
        photo(n).save(photos / f"copy of {n}.bmp")
    whole = prepare(tmp_path / "a", source=photos, train=5, test=3)
    read, left = sources.read_image, [7]

    def interrupted(content):
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt
        return read(content)
    monkeypatch.setattr(sources, "read_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "b", source=photos, train=5, test=3)
    assert prepare(tmp_path / "b", source=photos, train=5, test=3).trained_on == whole.trained_on


def test_photographs_are_known_by_their_pixels_and_older_runs_by_their_names(tmp_path, photos):  # noqa: F811
    faces = prepare(tmp_path / "store", source=photos)
    assert faces.formerly.startswith("4 faces ") and faces.trained_on.startswith("4 photographs ")
    assert Faces(faces.store).trained_on == faces.trained_on
    contents = [path.read_bytes() for path in sorted(photos.iterdir())]
    for path, content in zip(sorted(photos.iterdir()), contents[1:] + contents[:1], strict=True):
        path.write_bytes(content)  # the same names and the same photographs, otherwise paired
    other = prepare(tmp_path / "store", source=photos)
    assert other.formerly == faces.formerly and other.trained_on != faces.trained_on
    avatars = prepare(tmp_path / "store", source="celeba-hq")
    assert avatars.trained_on == avatars.formerly


def test_a_photograph_of_both_folders_is_on_one_side_in_both(tmp_path, photos):  # noqa: F811
    for side, first in (("renders", 50), ("photos", 0)):
        (tmp_path / "own" / side).mkdir(parents=True)
        for n in range(8):
            photo(first + n).save(tmp_path / "own" / side / f"view {n}.png")
    faces = prepare(tmp_path / "store", source=photos, train=5, test=3)
    own = prepare_own(PairsConfig(own=f'"{tmp_path}/own"'), 64, tmp_path / "store", progress=None,
                      faces=faces)
    sides = [{own.rows["key"][i] for i in rows} for rows in (own.train, own.held_out)]
    assert sides[1] == {f"view {key.removesuffix('.png')}" for key in faces.test["key"]}
    assert sides[0] == {f"view {key.removesuffix('.png')}" for key in faces.train["key"]}


@on_posix
@pytest.mark.parametrize("name", ["a::b", "zip::x", "file::" + "y" * 200, "ü" * 100, "s3:x", "a b"])
def test_no_name_of_a_folder_is_taken_for_an_address(tmp_path, monkeypatch, name):
    home, mine = tmp_path / "in::side", tmp_path / name
    home.mkdir()
    mine.mkdir()
    monkeypatch.chdir(home)
    for n in range(6):
        photo(n).save(mine / f"{n}.png")
    before = {*tmp_path.iterdir()}
    faces = prepare(home / "data", source=mine)
    assert Faces(faces.store).load("train", [0])[0].shape == (1, 3, 64, 64)
    assert {*tmp_path.iterdir()} == before and [p.name for p in home.iterdir()] == ["data"]
    assert len(faces.store.name.encode()) < 120


def test_masks_are_turned_with_their_photographs_or_left_out(tmp_path):
    folder, masks = tmp_path / "photos", tmp_path / "masks"
    folder.mkdir()
    masks.mkdir()
    labels = np.zeros((96, 72), np.uint8)
    labels[:30] = 13  # hair above, as it is stored
    tall = Image.fromarray(labels)
    plain, tagged = saved(tall, "PNG"), saved(tall, "PNG", exif=exif_of(6))
    wide = saved(tall.transpose(Image.Transpose.ROTATE_270), "PNG")
    for name, mask in (("stored", plain), ("tagged", tagged), ("upright", wide)):
        (folder / f"{name}.png").write_bytes(turned_photo(6))
        (masks / f"{name}.png").write_bytes(mask)
        _, regions = sources._read_photo(folder / f"{name}.png", masks, 64, sources.Place())
        assert np.asarray(regions)[32, 60] == 5 and np.asarray(regions)[32, 3] == 0, name
    for name, tag in (("halfway", 3), ("mirrored", 2)):
        (folder / f"{name}.png").write_bytes(turned_photo(tag))
        (masks / f"{name}.png").write_bytes(plain)
        with pytest.raises(ValueError, match="expected a mask that says which way is up"):
            sources._read_photo(folder / f"{name}.png", masks, 64, sources.Place())
    (masks / "halfway.png").unlink()
    with pytest.raises(ValueError, match="its mask to be a file of its folder masks/, got none"):
        sources._read_photo(folder / "halfway.png", masks, 64, sources.Place())


@pytest.mark.parametrize("spelled", ['"{}"', "'{}'", " {} ", "{}/", "“{}”"])
def test_a_path_is_taken_as_it_was_pasted(tmp_path, photos, spelled):  # noqa: F811
    plain = prepare(tmp_path / "store", source=photos)
    assert prepare(tmp_path / "store", source=spelled.format(photos)).store == plain.store


def test_a_name_that_folders_cannot_bear_is_refused():
    for name in ("x" * 101, "ü" * 60):
        with pytest.raises(ValueError, match=r"run\.name: expected 100 bytes at most"):
            RunConfig(name=name)
    assert RunConfig(name="x" * 100) and DataConfig(train_images=1, test_images=1)
    assert os.sep not in sources.safe_name("a/b") and read_image
