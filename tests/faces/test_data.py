"""The claims of helpers/faces/data.py and helpers/faces/sources.py."""

import contextlib
import errno
import os
import sys
import zlib
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from helpers.config import DataConfig
from helpers.faces import data, read_image, sources
from helpers.faces.regions import FACE_PARSER

SHARED = Path(__file__).resolve().parents[3] / "shared" / "faces"


def photo(number=0, mode="RGB", side=80):
    pixels = np.random.default_rng(number).integers(0, 255, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def stream(count=60):
    return [{"image": photo(n, side=64), "label": 0} for n in range(count)]


def background(images):
    return images[:, 0].mul(0).byte()


def visible(folder):
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def prepare(folder, *, source="celeba-hq", train=4, test=2, **options):
    config = DataConfig(source=str(source), size_px=64, train_images=train, test_images=test)
    options = {"parse": background, "progress": None, "rows": stream()} | options
    return data.prepare(config, folder, **options)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(8):
        photo(n).save(folder / f"{n}.png")
    return folder


def test_second_preparation_only_loads_and_batches_honour_the_contract(tmp_path):
    first = prepare(tmp_path)
    again = prepare(tmp_path, rows=None, parse=None)  # would need the hub if it did not load
    assert again.train["image"][:] == first.train["image"][:] and len(again) == 6
    clean, regions = again.load("test", [1, 0])
    assert clean.shape == (2, 3, 64, 64) and clean.dtype == torch.float32
    assert regions.shape == (2, 64, 64) and regions.dtype == torch.uint8
    arrow, = first.store.glob("*.arrow")
    assert datasets.Dataset.from_file(str(arrow)).num_rows == 6
    with pytest.raises(ValueError, match="expected 'train' or 'test'"):
        again.load("validation", [0])


@pytest.mark.parametrize("source", ["celeba-hq", "photos"])
def test_no_image_changes_sides_when_the_counts_grow(tmp_path, photos, source):
    source = photos if source == "photos" else source
    runs = [prepare(tmp_path / "store", source=source, train=n, test=m)
            for n, m in [(1, 1), (3, 1), (5, 1), (5, 3)]]
    tests, trains = ({key for run in runs for key in getattr(run, split)["key"]}
                     for split in ("test", "train"))
    assert not tests & trains
    assert set(runs[0].train["key"]) < set(runs[1].train["key"]) < set(runs[2].train["key"])
    assert runs[0].test["key"][:] == runs[2].test["key"][:] == runs[3].test["key"][:1]


@pytest.mark.parametrize("source", ["celeba-hq", "photos"])
def test_small_photographs_are_counted_and_told_once_prepared_or_opened(tmp_path, photos, capsys,
                                                                        source):
    config = DataConfig(source=str(photos) if source == "photos" else source, size_px=128,
                        train_images=3, test_images=1)
    large = photo(1, side=128)
    rows = [{"image": large if n % 2 else photo(n)} for n in range(60)]
    for file in [f"{n}.png" for n in range(4)]:
        large.save(photos / file)
    for _ in range(2):
        faces = data.prepare(config, tmp_path / "store", parse=background, progress=None, rows=rows)
        keys = (*faces.train["key"], *faces.test["key"])
        sizes = [read_image(photos / key).width if source == "photos" else
                 rows[int(key[-5:])]["image"].width for key in keys]
        assert faces.small == sum(side < 128 for side in sizes) > 0
        assert f"{faces.small} photographs smaller than 128 px were enlarged" \
            in capsys.readouterr().out


def test_faces_in_the_order_of_files_are_told_from_mixed_ones(tmp_path):
    faces = prepare(tmp_path)
    assert all(key.startswith("celeba-hq-mixed-") for key in faces.train["key"])
    assert not faces.store.name.endswith(sources._digest("mattymchen/celeba-hq", FACE_PARSER))
    assert str(faces) == "4 faces to train on, 2 held out, 6 0"  # its rows name no label


def test_avatars_hold_out_identities(tmp_path, monkeypatch):
    def render_avatar(seed, size_px):
        shade = torch.full((3, size_px, size_px), seed % 7 / 7)
        return shade, torch.full((size_px, size_px), seed % 6, dtype=torch.uint8)
    fake = SimpleNamespace(render_avatar=render_avatar)
    monkeypatch.setitem(sys.modules, "helpers.faces.avatars", fake)
    faces = prepare(tmp_path, source="avatars")
    assert faces.train["key"][:] == [f"avatar-{n}" for n in range(4)]
    assert faces.test["key"][:] == ["avatar-1000000", "avatar-1000001"]
    assert faces.load("train", [3])[1].unique().tolist() == [3]


def test_photographs_whose_masks_changed_are_prepared_anew(tmp_path, photos):
    masks = photos.with_name("masks")
    masks.mkdir()

    def prepared(label):
        for file in photos.iterdir():
            Image.new("L", (80, 80), label).save(masks / file.name)
        return prepare(tmp_path / "store", source=photos)
    faces = prepared(label=1)
    assert faces.load("train", range(4))[1].unique().tolist() == [1]  # skin
    assert prepared(label=13).load("train", range(4))[1].unique().tolist() == [5]  # hair
    (masks / faces.train["key"][0]).unlink()
    assert list(prepare(tmp_path / "store", source=photos).skipped) == [faces.train["key"][0]]


def test_a_drive_that_fails_for_a_moment_leaves_no_image_out(tmp_path, photos, monkeypatch):
    whole, read, failing = prepare(tmp_path / "a", source=photos), sources.read_image, [5]

    def read_image(path):
        failing[0] -= 1
        if not failing[0]:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return read(path)
    monkeypatch.setattr(sources, "read_image", read_image)
    with pytest.raises(OSError, match="Input/output error"):
        prepare(tmp_path / "b", source=photos)
    assert prepare(tmp_path / "b", source=photos).trained_on == whole.trained_on


def test_unreadable_images_are_named_and_left_out(tmp_path, photos, capsys):
    whole = (photos / "0.png").read_bytes()
    (photos / "0.png").write_bytes(whole[: len(whole) // 2])
    (photos / "1.png").write_text("no image")
    photo(2, side=40).save(photos / "2.png")
    faces = prepare(tmp_path / "store", source=photos, train=4, test=1)
    assert sorted(faces.skipped) == ["0.png", "1.png", "2.png"]
    assert capsys.readouterr().out.count("3 left out: ") == 1
    assert prepare(tmp_path / "store", source=photos, train=4, test=1).skipped == faces.skipped
    with pytest.raises(ValueError, match=r"expected 6 training and 2 test .* got 3 and 2 .*3 left"):
        prepare(tmp_path / "store", source=photos, train=6, test=2)
    assert visible(tmp_path / "store") == [faces.store]


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"rows": [{"img": photo()}]}, ValueError, r"column 'image', got \['img'\]"),
    ({"rows": stream(3)}, ValueError, "expected 4 training and 2 test"),
    ({"rows": [{"image": {"bytes": b""}}] * 9}, ValueError, "9 left out: celeba-hq-mixed-00000"),
    ({"source": "nowhere"}, ValueError, "folder of images, got 'nowhere'"),
    ({"source": "."}, ValueError, r"expected pictures \(.jpg, .jpeg, .png"),
    ({"parse": lambda _: 1 / 0}, ZeroDivisionError, "division"),
])
def test_bad_input_leaves_nothing_behind(tmp_path, monkeypatch, options, error, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        prepare(tmp_path, **options)
    assert not visible(tmp_path)


def bomb():
    """A PNG of a few bytes that says it has 60,000 x 60,000 pixels."""
    header = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    content = bytearray(sources_png())
    content[12:29], content[29:33] = header, zlib.crc32(header).to_bytes(4, "big")
    return bytes(content)


def sources_png():
    file = BytesIO()
    photo().save(file, "PNG")
    return file.getvalue()


def skipped_among(photos):
    """Why each image of a folder that cannot be used is left out, in an order that meets all."""
    place = sources.Place()
    every = DataConfig(source=str(photos), size_px=64, train_images=9, test_images=2)
    list(sources.draw_samples(every, 0, place))
    return place.skipped


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\nshowpage\n"


@pytest.mark.skipif(sys.platform == "win32", reason="links and pipes need rights there")
def test_hostile_files_are_named_and_neither_followed_nor_run(tmp_path, photos):
    photo(9).save(tmp_path / "private.png")
    (photos / "out.png").symlink_to(tmp_path / "private.png")
    (photos / "gone.png").symlink_to(tmp_path / "nowhere")
    (photos / "loop.png").symlink_to(photos / "loop.png")
    (photos / "endless.png").symlink_to("/dev/zero")
    os.mkfifo(photos / "pipe.png")
    (photos / "folder.png").mkdir()
    (photos / "program.jpg").write_bytes(POSTSCRIPT)
    (photos / "bomb.png").write_bytes(bomb())
    (photos / "new\nline\x1b[2J.png").write_text("")
    with contextlib.suppress(OSError):  # file systems that only take Unicode
        Path(os.fsdecode(os.fsencode(photos) + b"/\xff.png")).write_bytes(sources_png())
    photo(8).save(photos / "8", "PNG")
    (photos / "inside.png").symlink_to(photos / "8")
    faces = prepare(tmp_path / "store", source=photos, train=7, test=2)
    names = {*faces.train["key"], *faces.test["key"]}
    assert names == {f"{n}.png" for n in range(8)} | {"inside.png"}
    with pytest.raises(ValueError, match=r"(9|10) left out"):
        prepare(tmp_path / "all", source=photos, train=9, test=2)
    for name, reason in [("program.jpg", "not an image"), ("bomb.png", "pixels at most"),
                         ("out.png", "a link out of it"), ("pipe.png", "a file of its folder")]:
        assert reason in skipped_among(photos)[name]


def test_what_was_left_out_is_one_line_whatever_the_names():
    skipped = {f"{n}\n\x1b[2J\udcff.png": "not an image" for n in range(20)}
    assert sources.left_out(skipped).isprintable()
    line = sources.left_out({str(n): "why" for n in range(20)})
    assert line == "20 left out: 0: why; 1: why; 2: why; … and 17 more"


@pytest.mark.parametrize("cell", [None, "https://example.org/a.png", 7, {"path": __file__},
                                  {"bytes": None, "path": str(SHARED)}, {"bytes": POSTSCRIPT}])
def test_a_hubs_cell_is_read_from_its_own_bytes_only(tmp_path, cell):
    faces = prepare(tmp_path, rows=[{"image": cell}, *stream()])
    assert list(faces.skipped) == ["celeba-hq-mixed-00000"] and len(faces) == 6


def test_every_kind_of_image_becomes_upright_rgb_on_white():
    assert read_image(photo(mode="L")).mode == "RGB"
    assert read_image(Image.new("RGBA", (64, 64), (9, 9, 9, 0))).getpixel((0, 0)) == (255,) * 3
    deep = Image.fromarray(np.full((64, 64), 128 * 256, dtype=np.uint16))
    assert read_image(deep).getpixel((0, 0)) == (128,) * 3
    file, exif = BytesIO(), Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.new("RGB", (64, 96)).save(file, "JPEG", exif=exif)
    assert read_image(file.getvalue()).size == (96, 64)


def test_batch_follows_from_seed_and_step_and_epochs_meet_every_image_once(tmp_path):
    faces = prepare(tmp_path, train=6)
    drawn = [data.draw_batch(faces, seed=3, step=n, batch=4) for n in range(6)]
    for one, other in zip(drawn[4], data.draw_batch(faces, seed=3, step=4, batch=4), strict=True):
        assert torch.equal(one, other)
    assert len({int(s) for _, _, seeds in drawn for s in seeds}) == 24
    plain = faces.load("train", range(6))[0]
    faces_or_mirrors = torch.stack([plain, plain.flip(-1)])  # (2, 6, 3, H, W)
    met = torch.cat([(faces_or_mirrors[:, None] == clean[None, :, None]).flatten(3).all(3)
                     for clean, _, _ in drawn], dim=1)  # (2, 24, 6)
    orders = met.any(0).nonzero()[:, 1].view(4, 6)
    assert (orders.sort(1).values == torch.arange(6)).all() and met.any(2).any(1).all()
    assert not torch.equal(orders[0], orders[1])
    assert not torch.equal(drawn[0][2], data.draw_batch(faces, seed=4, step=0, batch=4)[2])
    with pytest.raises(ValueError, match="expected step >= 0"):
        data.draw_batch(faces, seed=0, step=-1, batch=2)


@pytest.mark.skipif(not SHARED.is_dir(), reason="no real faces in ../shared/faces")
def test_real_photographs_keep_their_true_masks(tmp_path):
    faces = prepare(tmp_path, source=SHARED, parse=None)
    clean, regions = faces.load("train", range(4))
    assert {1, 5} <= set(regions.unique().tolist()) and 0.1 < clean.std() < 0.5
    key = faces.train["key"][0]
    with Image.open(SHARED / "masks" / f"{Path(key).stem}.png") as mask:
        skin = np.isin(np.array(mask), [1, 6, 7, 8, 9, 17]).mean()
    assert abs((regions[0] == 1).float().mean() - skin) < 0.01
