"""What a picture file says of its pixels is heeded; what cannot be is refused by name."""

import stat
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from helpers.pictures import (
    LARGEST_PIXELS,
    UnusablePicture,
    check_images,
    read_picture,
    restored_path,
    source_of,
    write_picture,
)
from helpers.storage import own_path, safe_name, write_whole
from tests.mutated_images import try_them
from tests.pictures.files import every_kind, exif_of, pixels, saved

ODD = Path(__file__).resolve().parents[3] / "shared" / "odd_inputs"
RGB = pixels()
on_posix = pytest.mark.skipif(sys.platform == "win32", reason="links and modes of POSIX")


def near(picture, expected, steps=1.0):
    """Whether a picture has these colours (H, W, 3), in steps of 255."""
    ours = picture.rgb.permute(1, 2, 0).numpy() * 255
    return ours.shape == expected.shape and np.abs(ours - expected).max() <= steps


def png_with(*chunks, image=None):
    words = PngImagePlugin.PngInfo()
    for name, content in chunks:
        words.add(name, content)
    return saved(image or Image.fromarray(RGB), "PNG", pnginfo=words)


@pytest.mark.parametrize("tag", range(1, 9))
def test_every_orientation_is_what_pillow_makes_of_it(tag):
    content = saved(Image.fromarray(RGB), "JPEG", exif=exif_of(tag), quality=95)
    turned = np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(content))))
    assert near(read_picture(content), turned, 0.01)
    tiff = saved(Image.fromarray(RGB), "TIFF", exif=exif_of(tag))
    assert read_picture(tiff).size == turned.shape[1::-1]


def test_an_orientation_beside_tags_that_break_pillow_is_heeded():
    for tag, value in ((0x011A, b"\0"), (0x8769, "text"), (0xA005, 7)):
        content = saved(Image.fromarray(RGB), "JPEG", exif=exif_of(6))
        exif = exif_of(6)
        try:
            exif[tag] = value
            content = saved(Image.fromarray(RGB), "JPEG", exif=exif)
        except Exception:
            pass
        assert read_picture(content).size == (24, 32)


def test_depth_is_kept():
    deep = (np.arange(24 * 32, dtype=np.uint16) * 85).reshape(24, 32)
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(read_picture(saved(Image.fromarray(deep), kind)).pixels[..., 0], deep)
    values = deep.astype(np.float32) / deep.max()
    assert np.allclose(read_picture(saved(Image.fromarray(values), "TIFF")).rgb[0], values)


def test_sixteen_bits_of_colour_are_read_by_value(tmp_path):
    skimage = pytest.importorskip("skimage.io")
    assert skimage
    import zlib
    deep = np.random.default_rng(0).integers(0, 65_535, (5, 7, 4), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)

    def chunk(name, data):
        return (len(data).to_bytes(4, "big") + name + data
                + zlib.crc32(name + data).to_bytes(4, "big"))
    header = (7).to_bytes(4, "big") + (5).to_bytes(4, "big") + bytes([16, 6, 0, 0, 0])
    content = (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows))
               + chunk(b"IEND", b""))
    assert np.array_equal(read_picture(content).pixels, deep)


@pytest.mark.parametrize("top", [255.0, 1.01, -0.5, float("nan"), float("inf")])
def test_floats_outside_0_to_1_are_refused_by_name(top):
    values = np.full((24, 32), 0.5, np.float32)
    values[0, 0] = top
    with pytest.raises(UnusablePicture, match=r"^a\.tif: expected values in \[0, 1\], got"):
        read_picture(saved(Image.fromarray(values), "TIFF"), "a.tif")


def test_colours_that_a_file_describes_become_srgb():
    linear = (RGB / 255.0) ** 2.2
    light = Image.fromarray(np.rint(255 * linear).astype(np.uint8))
    read = read_picture(png_with((b"gAMA", (100_000).to_bytes(4, "big")), image=light))
    bright = RGB.min(2) > 60  # 8 bits of light are few in the dark
    ours = read.rgb.permute(1, 2, 0).numpy() * 255
    assert np.abs(ours - RGB)[bright].max() < 4
    usual = png_with((b"gAMA", (45_455).to_bytes(4, "big")))
    assert np.array_equal(read_picture(usual).pixels, RGB)
    primaries = [31_270, 32_900, 68_000, 32_000, 26_500, 69_000, 15_000, 6_000]  # Display P3
    wide = b"".join(n.to_bytes(4, "big") for n in primaries)
    red = read_picture(png_with((b"cHRM", wide), (b"gAMA", (45_455).to_bytes(4, "big")),
                                image=Image.new("RGB", (8, 8), (200, 80, 60))))
    assert red.rgb[:, 0, 0].mul(255).tolist() == pytest.approx([217, 68, 49], abs=4)
    camera = exif_of(1)
    camera.get_ifd(0x8769)[0xA001] = 2  # Adobe RGB, as cameras say it
    plain, adobe = (read_picture(saved(Image.new("RGB", (8, 8), (90, 180, 90)), "JPEG", **options))
                    for options in ({}, {"exif": camera}))
    assert adobe.rgb[0].mean() < plain.rgb[0].mean() - 0.1  # greens of Adobe RGB are greener
    with pytest.raises(UnusablePicture, match="cICP"):
        read_picture(png_with((b"cICP", bytes([9, 16, 0, 1]))))


def test_profiles_are_applied_and_broken_ones_are_refused_by_name():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(read_picture(saved(Image.fromarray(RGB), "PNG", icc_profile=srgb)).pixels,
                          RGB)
    deep = Image.fromarray(np.full((8, 8), 257 * 77 + 100, np.uint16))
    assert read_picture(saved(deep, "PNG", icc_profile=srgb)).pixels.max() == 257 * 77 + 100
    grey = saved(Image.fromarray(RGB).convert("L"), "JPEG", icc_profile=srgb)  # Photoshop's
    assert read_picture(grey).rgb.shape == (3, 24, 32)
    for broken in (srgb[:200], b"no profile", srgb[:16] + b"CMYK" + srgb[20:]):
        with pytest.raises(UnusablePicture, match=r"^b\.png: .*a colour profile that cannot"):
            read_picture(saved(Image.fromarray(RGB), "PNG", icc_profile=broken), "b.png")


def straight_and_premultiplied():
    """One disc with a soft rim, saved both ways."""
    y, x = np.mgrid[:64, :64]
    alpha = np.clip((26 - np.hypot(y - 32, x - 32)) / 10, 0, 1)[..., None]
    color = np.broadcast_to(np.array([217, 158, 128]), (64, 64, 3))
    both = [np.concatenate([np.rint(values), np.rint(255 * alpha)], 2).astype(np.uint8)
            for values in (color, color * alpha)]
    return [saved(Image.fromarray(one), "PNG") for one in both]


def test_alpha_is_kept_and_multiplied_colours_are_divided():
    straight, premultiplied = map(read_picture, straight_and_premultiplied())
    assert torch.equal(straight.alpha, premultiplied.alpha) and straight.alpha.shape == (1, 64, 64)
    assert (straight.rgb - premultiplied.rgb).abs().max() < 3 / 255
    assert premultiplied.notes and not straight.notes
    assert near(straight, np.full((64, 64, 3), [217, 158, 128]), 0.6)
    on_white = np.asarray(straight.to_image()), np.asarray(premultiplied.to_image())
    assert np.abs(np.int16(on_white[0]) - np.int16(on_white[1])).max() <= 1
    assert on_white[0][0, 0].tolist() == [255] * 3
    hidden = np.zeros((16, 16, 4), np.uint8)
    hidden[4:12, 4:12] = 200, 100, 50, 255  # black where nothing is to be seen
    rgb = read_picture(saved(Image.fromarray(hidden), "PNG")).rgb
    assert (rgb - torch.tensor([200, 100, 50]).view(3, 1, 1) / 255).abs().max() < 0.01


@pytest.mark.parametrize("name", ["palette with a clear colour", "grey with alpha", "webp", "gif"])
def test_every_way_to_be_transparent_is_seen(name):
    grey, rgba = Image.fromarray(RGB).convert("L"), Image.fromarray(pixels(channels=4))
    content = {"palette with a clear colour": every_kind()["clear.png"],
               "grey with alpha": saved(Image.merge("LA", [grey, grey]), "PNG"),
               "webp": saved(rgba, "WEBP", lossless=True),
               "gif": saved(Image.fromarray(RGB).quantize(16), "GIF", transparency=3)}[name]
    assert read_picture(content).alpha.min() < 0.9


@pytest.mark.parametrize(("content", "what"), [
    (b"", "an empty file"), (b"\0\0\0\x18ftypheic" + bytes(16), "HEIC"),
    (b"\0\0\0\x18ftypavif" + bytes(16), "AVIF"), (b"%PDF-1.7\n", "a PDF"),
    (b"<!DOCTYPE html><html>", "a web page"), (b"version https://git-lfs.github.com", "Git LFS"),
    (b"v/1\x01" + bytes(20), "OpenEXR"), (b"hello", "not an image"), (bytes(99), "zeros")])
def test_what_is_no_picture_is_named_for_what_it_is(tmp_path, content, what):
    path = tmp_path / "mine.jpg"
    path.write_bytes(content)
    with pytest.raises(UnusablePicture, match=rf"^mine\.jpg: .*{what}.*JPEG or PNG"):
        read_picture(path)


def test_sizes_are_bounded_before_anything_is_decoded():
    content = bytearray(saved(Image.fromarray(RGB), "BMP"))
    content[18:26] = (9_000).to_bytes(4, "little") * 2
    assert LARGEST_PIXELS < 9_000**2
    with pytest.raises(UnusablePicture, match="pixels at most, got 9000 x 9000"):
        read_picture(bytes(content), "a.bmp")


def test_paths_are_taken_as_they_are_pasted(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "a b.png"
    path.write_bytes(saved(Image.fromarray(RGB), "PNG"))
    for text in (f'"{path}"', f"'{path}'", f"  {path}\n", f"“{path}”", "~/a b.png",
                 f'"\'{path}\'"'):
        assert near(read_picture(text), RGB)
    with pytest.raises(UnusablePicture, match=r"none\.png: expected a picture file, got No such"):
        read_picture(f'"{tmp_path / "none.png"}"')
    with pytest.raises(UnusablePicture, match="expected a picture file, got Is a directory"):
        read_picture(str(tmp_path))
    assert own_path("it's") == Path("it's")


def test_names_of_our_own_are_safe_and_short():
    for name in ("a::b", "s3://x", "x" * 300, "ü" * 99, "..", "", "a/b\\c", "new\nline"):
        safe = safe_name(name)
        assert 0 < len(safe.encode()) <= 40 and not set(safe) & set(":/\\\n") and safe.strip(".")
    assert safe_name("my photos-2.0_x") == "my-photos-2.0_x"


def test_what_is_written_says_that_it_is_srgb_and_keeps_alpha(tmp_path):
    picture = read_picture(straight_and_premultiplied()[0], "disc.png")
    path = write_picture(tmp_path / "disc_restored.png", picture.rgb, picture.alpha, source="disc")
    assert source_of(path) == "disc"
    with Image.open(path) as image:
        image.load()
        assert image.mode == "RGBA" and image.info["srgb"] == 0
    again = read_picture(path)
    assert torch.equal(again.alpha, picture.alpha)
    assert (again.rgb - picture.rgb).abs().max() < 0.6 / 255
    values = torch.arange(256).float().div(255).expand(3, 1, 256)
    with Image.open(write_picture(tmp_path / "all.png", values)) as image:
        assert np.array_equal(np.asarray(image)[0, :, 0], np.arange(256))
    for bad in (values * 255, values * 2 - 1, values * torch.nan):
        with pytest.raises(ValueError, match=r"picture: expected finite values in \[0, 1\]"):
            write_picture(tmp_path / "bad.png", bad)
    assert not (tmp_path / "bad.png").exists()


def test_no_file_is_written_over_but_an_earlier_restoration_of_the_same(tmp_path):
    mine = tmp_path / "view_restored.png"
    mine.write_bytes(saved(Image.fromarray(RGB), "PNG"))
    before = mine.read_bytes()

    def write(name, source):
        path = restored_path(tmp_path, name, lambda there: source_of(there) == source)
        return write_picture(path, torch.zeros(3, 8, 8), source=source)

    names = [write("view.jpg", source).name for source in ("one", "other", "one", "other")]
    assert names == ["view_restored_2.png", "view_restored_3.png"] * 2
    assert mine.read_bytes() == before
    assert write("x" * 250 + ".png", "long").exists()
    (tmp_path / "gone_restored.png").symlink_to(tmp_path / "nowhere")
    assert restored_path(tmp_path, "gone.png", lambda _: False).name == "gone_restored_2.png"


@on_posix
def test_a_link_is_written_through_and_modes_are_kept(tmp_path):
    target, link = tmp_path / "there" / "a.txt", tmp_path / "a.txt"
    target.parent.mkdir()
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    write_whole(link, b"new")
    assert link.is_symlink() and target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    target.chmod(0o604)
    write_whole(target, b"newer")
    assert stat.S_IMODE(target.stat().st_mode) == 0o604
    (tmp_path / "hanging").symlink_to(tmp_path / "there" / "b.txt")
    write_whole(tmp_path / "hanging", b"made")
    assert (tmp_path / "there" / "b.txt").read_text() == "made"
    assert {p.name for p in target.parent.iterdir()} == {"a.txt", "b.txt"}


def test_the_check_of_images_names_what_is_wrong():
    good = torch.rand(1, 3, 8, 8)
    check_images(good)
    for bad, word in ((good * 255, "divide bytes"), (good * 2 - 1, "map it"), (good[0], "floats"),
                      ((good * 255).byte(), "floats"), (good.clone().fill_(torch.nan), "broken"),
                      (good.clone().fill_(torch.inf), "broken"), (good[:, :1], "floats"),
                      (good[:0], "floats"), ("text", "floats")):
        with pytest.raises(ValueError, match=rf"^faces: expected .*{word}"):
            check_images(bad, "faces")


@pytest.mark.skipif(not ODD.is_dir(), reason="no odd files in ../shared/odd_inputs")
def test_odd_files_that_broke_things_are_read_rightly():
    patches = read_picture(ODD / "display_p3.png").rgb[:, 64, 32::64].T.mul(255)
    right = torch.tensor([[224, 172, 135], [198, 60, 50], [60, 160, 70], [40, 90, 200]])
    assert (patches - right).abs().max() <= 2
    assert read_picture(ODD / "exif_rational_by_zero.jpg").size == (108, 96)
    straight, multiplied = (read_picture(ODD / f"render_{kind}_alpha.png")
                            for kind in ("straight", "premultiplied"))
    assert (straight.rgb - multiplied.rgb).abs().max() < 4 / 255
    assert torch.equal(straight.alpha, multiplied.alpha)
    with pytest.raises(UnusablePicture, match=r"^heic_named\.jpg: .*HEIC"):
        read_picture(ODD / "heic_named.jpg")


def test_every_kind_is_read_and_mutated_files_are_read_or_refused_by_name():
    for name, content in every_kind().items():
        assert read_picture(content, name).rgb.shape in {(3, 24, 32), (3, 32, 24)}, name
    found = try_them(2_000)
    assert found["read"] > 200 and found["refused by name"] > 200
