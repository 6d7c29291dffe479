"""Own pairs: a folder taken as it is, a share held out, and every defect named."""

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.config import PairsConfig
from helpers.pairs import own
from helpers.pairs.own import prepare_own


def picture(number, size=(80, 96)):
    pixels = np.random.default_rng(number).integers(0, 255, (6, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def folder(tmp_path):
    """Eight pairs of 80 x 96 pixels, in several formats."""
    place = tmp_path / "mine"
    for side in ("renders", "photos"):
        (place / side).mkdir(parents=True)
    for n in range(8):
        suffix = (".png", ".jpg", ".webp", ".tif")[n % 4]
        picture(n).save(place / "photos" / f"view {n}{suffix}")
        picture(100 + n).save(place / "renders" / f"view {n}.png")
    (place / "photos" / "notes.txt").write_text("no picture")
    return place


def read(folder, tmp_path, *, size_px=64, **settings):
    return prepare_own(PairsConfig(own=str(folder), **settings), size_px, tmp_path / "data",
                       progress=None)


def test_pairs_are_the_square_in_the_middle_of_both_sides_alike(folder, tmp_path, capsys):
    pairs = read(folder, tmp_path, size_px=80)
    row = list(pairs.rows["key"]).index("view 0")
    degraded, clean = pairs.load([row])
    for side, number in ((degraded, 100), (clean, 0)):
        whole = torch.from_numpy(np.array(picture(number))).permute(2, 0, 1).float() / 255
        assert torch.equal(side[0], whole[:, 8:88])
    assert capsys.readouterr().out == ""


def test_a_share_is_held_out_and_never_drawn(folder, tmp_path):
    pairs = read(folder, tmp_path)
    assert len(pairs) == 7 and len(pairs.held_out) == 1
    degraded, clean = pairs.draw(torch.arange(60))
    assert degraded.shape == clean.shape == (60, 3, 64, 64)
    (held_clean, held_degraded, names), = pairs.held_out_pairs()
    assert len(names) == 1
    assert not any(torch.equal(one, held_clean[0]) for one in clean)
    assert torch.equal(held_degraded, pairs.load(pairs.held_out)[0])
    assert torch.equal(pairs.draw(torch.arange(60).flip(0))[0].flip(0), degraded)  # by seed alone
    half = read(folder, tmp_path, own_held_out=0.5)
    assert len(half) == len(half.held_out) == 4 and set(pairs.held_out) <= set(half.held_out)
    assert half.store == pairs.store and half.trained_on != pairs.trained_on
    most, least = (read(folder, tmp_path, own_held_out=share) for share in (1.0, 0.0))
    assert len(most) == 1 and len(least.held_out) == 1
    assert sum(len(c) for c, _, _ in most.held_out_pairs(batch=3)) == 7


def test_one_photograph_under_several_names_is_on_one_side_only(folder, tmp_path):
    for n in range(8):  # in other bytes: its pixels count
        copy = Image.open(next((folder / "photos").glob(f"view {n}.*"))).convert("RGB")
        copy.save(folder / "photos" / f"copy {n}.bmp")
        picture(200 + n).save(folder / "renders" / f"copy {n}.bmp")
    pairs = read(folder, tmp_path, own_held_out=0.25)
    names = [pairs.rows["key"][i] for i in pairs.held_out]
    assert len(names) == 4 and len({name[-1] for name in names}) == 2


def test_it_is_read_once_and_anew_where_a_file_has_changed(folder, tmp_path, monkeypatch):
    first, reads = read(folder, tmp_path), []
    monkeypatch.setattr(own, "read_image", lambda content: reads.append(1))
    assert read(folder, tmp_path).store == first.store and not reads
    monkeypatch.undo()
    picture(300, (90, 90)).save(folder / "photos" / "view 0.png")
    picture(301, (90, 90)).save(folder / "renders" / "view 0.png")
    assert read(folder, tmp_path).store != first.store


def test_an_interrupted_reading_goes_on(folder, tmp_path, monkeypatch):
    calls, read_image = [], own.read_image

    def interrupted(path):
        calls.append(path)
        if len(calls) == 11:
            raise KeyboardInterrupt
        return read_image(path)
    monkeypatch.setattr(own, "read_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read(folder, tmp_path)
    pairs = read(folder, tmp_path)
    assert len(calls) == 11 + 8 and sorted(pairs.rows["key"]) == [f"view {n}" for n in range(8)]


def test_names_on_one_side_and_unreadable_files_are_left_out_and_named(folder, tmp_path, capsys):
    picture(50).save(folder / "renders" / "alone.png")
    (folder / "photos" / "view 7.tif").unlink()
    (folder / "photos" / "view 3.tif").write_bytes(b"no image")
    Image.new("RGB", (20, 20)).save(folder / "photos" / "view 4.png")
    Image.new("RGB", (80, 96)).save(folder / "photos" / "view 5.png")  # beside view 5.jpg
    (folder / "renders" / ".view 6.png").write_bytes(b"of an operating system")
    pairs = read(folder, tmp_path)
    assert sorted(pairs.rows["key"]) == [f"view {n}" for n in (0, 1, 2, 5, 6)]
    assert pairs.skipped.keys() == {"renders/alone.png", "renders/view 7.png", "photos/view 3.tif",
                                    "photos/view 4.png", "photos/view 5.png"}
    assert pairs.skipped["renders/alone.png"] == "no photograph of this name"
    assert pairs.skipped["photos/view 3.tif"].startswith("not an image; ")
    assert "own pairs: 5 left out: " in capsys.readouterr().out


def test_a_folder_without_pairs_is_refused(folder, tmp_path):
    for path in (str(tmp_path / "nowhere"), str(folder / "photos"), "", str(tmp_path)):
        with pytest.raises(ValueError, match=r"pairs\.own: expected a folder with renders/ and"):
            read(path, tmp_path)
    for path in (folder / "renders").iterdir():
        path.rename(path.with_stem("r " + path.stem))
    with pytest.raises(ValueError, match=r"of equal names, got '8 renders \(r view 0.png, "):
        read(folder, tmp_path)


def test_renders_of_another_size_are_refused_by_name(folder, tmp_path):
    picture(5, (96, 80)).save(folder / "renders" / "view 2.png")
    picture(5, (160, 192)).save(folder / "renders" / "view 6.png")
    with pytest.raises(ValueError, match=r"as large as their photographs, got '2 left out: view 2: "
                       r"render 96 x 80, photo 80 x 96; view 6: render 160 x 192"):
        read(folder, tmp_path)
    picture(5).save(folder / "renders" / "view 2.png")
    picture(5).save(folder / "renders" / "view 6.png")
    assert len(read(folder, tmp_path)) == 7


def test_sizes_are_compared_as_pictures_are_seen(folder, tmp_path):
    turned = picture(0).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter
    turned.save(folder / "photos" / "view 0.jpg", exif=exif)
    (folder / "photos" / "view 0.png").unlink()
    assert len(read(folder, tmp_path).rows) == 8


def test_one_photograph_is_too_few_and_none_readable_says_why(folder, tmp_path):
    for path in [*(folder / "photos").iterdir()]:
        if path.stem != "view 0":
            path.unlink()
    with pytest.raises(ValueError, match="2 different photographs or more, got 1"):
        read(folder, tmp_path)
    (folder / "photos" / "view 0.png").write_bytes(b"")
    with pytest.raises(ValueError, match="readable renders and photographs, got '8 left out"):
        read(folder, tmp_path)
