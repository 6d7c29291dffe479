"""What a picture file says of its pixels is respected; what cannot be read is an error."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from splat_enhancer import images
from splat_enhancer.images import check_images, read_image, read_png_text, write_png


def pixels(channels=3, height=24, width=32):
    """Smooth uint8 colours, no two sides alike."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (3, 4, channels), dtype=np.uint8).squeeze())
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


RGB, RGBA = Image.fromarray(pixels()), Image.fromarray(pixels(4))
GREY = RGB.convert("L")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def saved(image, kind, **options):
    """A picture as the bytes of a file."""
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def exif(orientation, **tags):
    tags = Image.Exif() if not tags else tags["of"]
    tags[0x112] = orientation
    return tags


def colors(content, **options):
    """Colours (H, W, 3) in steps of 255."""
    return read_image(content, **options)[0].permute(1, 2, 0).numpy() * 255


def png_with(chunks, image=RGB):
    info = PngImagePlugin.PngInfo()
    for name, content in chunks.items():
        info.add(name, content)
    return saved(image, "PNG", pnginfo=info)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_what_pillow_makes_of_it(orientation):
    content = saved(RGB, "JPEG", exif=exif(orientation), quality=95)
    turned = np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(content))))
    assert np.abs(colors(content) - turned).max() < 0.01
    for kind in ("TIFF", "PNG", "WEBP"):
        content = saved(RGB, kind, exif=exif(orientation))
        assert colors(content).shape == turned.shape


@pytest.mark.parametrize("tag", [
    (0x011A, 5, (1, b"\xff\xff\xff\xff\0\0\0\0")),  # a rational -1/0
    (0x8769, 2, (4, b"text")), (0x0131, 7, (200, b"\0\0\0\0"))])
def test_odd_tags_beside_the_orientation_do_not_matter(tag):
    number, kind, (count, value) = tag
    entries = [(0x112, 3, 1, b"\6\0\0\0"), (number, kind, count, value)]
    ifd = b"II*\0\x08\0\0\0" + len(entries).to_bytes(2, "little") + b"".join(
        t.to_bytes(2, "little") + k.to_bytes(2, "little") + c.to_bytes(4, "little") + v[:4]
        for t, k, c, v in entries) + bytes(12)
    assert colors(saved(RGB, "JPEG", exif=b"Exif\0\0" + ifd)).shape == (32, 24, 3)


@pytest.mark.parametrize(("name", "content"), {
    "png": saved(RGB, "PNG"), "bmp": saved(RGB, "BMP"), "tiff": saved(RGB, "TIFF"),
    "tiff with LZW": saved(RGB, "TIFF", compression="tiff_lzw"),
    "lossless webp": saved(RGB, "WEBP", lossless=True),
    "sRGB profile": saved(RGB, "PNG", icc_profile=SRGB),
    "gamma of sRGB": png_with({b"gAMA": (45_455).to_bytes(4, "big")}),
    "palette": saved(RGB.quantize(200, dither=Image.Dither.NONE), "PNG"),
    "gif": saved(RGB.quantize(200, dither=Image.Dither.NONE), "GIF"),
    "jpeg": saved(RGB, "JPEG", quality=100, subsampling=0),
    "progressive jpeg": saved(RGB, "JPEG", quality=100, subsampling=0, progressive=True),
    "CMYK": saved(RGB.convert("CMYK"), "JPEG", quality=100, subsampling=0),
}.items())
def test_every_kind_of_file_has_the_same_colours(name, content):
    lossy = name in ("palette", "gif", "jpeg", "progressive jpeg", "CMYK")
    assert np.abs(colors(content) - np.asarray(RGB)).mean() < (6 if lossy else 1e-3)


def test_grey_is_read_in_its_own_depth():
    deep = (np.arange(24 * 32, dtype=np.uint16) * 85).reshape(24, 32)
    for kind in ("PNG", "TIFF"):
        assert np.allclose(colors(saved(Image.fromarray(deep), kind)) * 257, deep[..., None])
    assert np.allclose(colors(saved(GREY, "JPEG", quality=100)), np.asarray(GREY)[..., None], 0, 2)
    assert set(np.unique(colors(saved(GREY.convert("1"), "PNG")))) == {0, 255}


def test_32_bits_are_refused_by_name():
    with pytest.raises(ValueError, match=r"^a\.tif: expected 8 or 16 bits, got 32"):
        read_image(saved(Image.fromarray(np.ones((24, 32), np.float32)), "TIFF"), name="a.tif")


def test_broken_profile_is_refused_and_that_of_a_grey_picture_as_rgb_is_read():
    for broken in (SRGB[:200], b"no profile"):
        with pytest.raises(ValueError, match=r"^b\.png: expected a colour profile that can be us"):
            read_image(saved(RGB, "PNG", icc_profile=broken), name="b.png")
    assert colors(saved(GREY, "JPEG", icc_profile=SRGB)).shape == (24, 32, 3)


def disc(premultiplied):
    """A disc with a soft rim, of colour (217, 158, 128)."""
    y, x = np.mgrid[:64, :64]
    alpha = np.clip((26 - np.hypot(y - 32, x - 32)) / 10, 0, 1)[..., None]
    color = np.broadcast_to(np.array([217, 158, 128]), (64, 64, 3))
    values = [np.rint(color * alpha if premultiplied else color), np.rint(255 * alpha)]
    return saved(Image.fromarray(np.concatenate(values, 2).astype(np.uint8)), "PNG")


def test_straight_and_premultiplied_alpha_have_the_same_colours():
    (straight, alpha), notes = read_image(disc(False)), []
    premultiplied, same_alpha = read_image(disc(True), notes=notes)
    assert torch.equal(alpha, same_alpha) and alpha.shape == (1, 64, 64)
    assert (straight - premultiplied).abs().max() < 3 / 255
    assert notes == ["its colours are taken for multiplied by alpha"]
    target = torch.tensor([217, 158, 128]).view(3, 1, 1) / 255
    assert (straight - target).abs().max() < 0.6 / 255


def test_transparent_pixels_take_the_nearest_visible_colours():
    hidden = np.zeros((16, 16, 4), np.uint8)
    hidden[4:12, 4:12] = 200, 100, 50, 255  # black where nothing is to be seen
    assert np.abs(colors(saved(Image.fromarray(hidden), "PNG")) - [200, 100, 50]).max() < 2


@pytest.mark.parametrize("content", [
    saved(RGB.quantize(16), "PNG", transparency=3), saved(RGB.quantize(16), "GIF", transparency=3),
    saved(Image.merge("LA", [GREY, GREY]), "PNG"), saved(RGBA, "WEBP", lossless=True),
    saved(RGBA, "TIFF")])
def test_every_way_to_be_transparent_is_seen(content):
    assert read_image(content)[1].min() < 0.9


def test_first_picture_of_an_animation_is_read_and_noted():
    notes, frames = [], [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    content = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert colors(content, notes=notes)[0, 0].tolist() == [255, 0, 0]
    assert notes == ["the first of its 2 pictures is used"]


@pytest.mark.parametrize(("content", "kind"), [
    (b"", "an empty file"), (b"\0\0\0\x18ftypheic" + bytes(16), "a HEIC or AVIF picture, or a vi"),
    (b"<!DOCTYPE html>", "another kind of file"), (bytes(99), "another kind of file")])
def test_file_that_is_no_picture_is_named_for_what_it_is(tmp_path, content, kind):
    (tmp_path / "mine.jpg").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^mine\.jpg: expected a picture .*{kind}.*; save it as"):
        read_image(tmp_path / "mine.jpg")


def test_file_that_is_cut_off_or_too_large_is_refused_by_name(tmp_path):
    for kind in ("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP"):
        content = saved(Image.fromarray(pixels(height=200, width=300)).quantize()
                        if kind == "GIF" else Image.fromarray(pixels(height=200, width=300)), kind)
        with pytest.raises(ValueError, match=r"^a\.png: "):
            read_image(content[:len(content) // 2], name="a.png")
    content = bytearray(saved(RGB, "BMP"))
    content[18:26] = (9_000).to_bytes(4, "little") * 2
    with pytest.raises(ValueError, match="pixels at most, got 9000 x 9000"):
        read_image(bytes(content))
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "none.png")


def test_mutated_files_are_read_or_refused_by_name():
    rng, outcomes = np.random.default_rng(1), []
    for content in (saved(RGBA, "PNG"), saved(RGB, "JPEG", exif=exif(6)), disc(True),
                    saved(RGB, "TIFF"), saved(RGB.quantize(16), "GIF")):
        for _ in range(60):
            data = bytearray(content)
            for place in rng.integers(0, len(data), 3):
                data[place] = rng.integers(256)
            try:
                rgb, _ = read_image(bytes(data), name="x")
                outcomes.append(bool(torch.isfinite(rgb).all()))
            except ValueError as error:
                assert str(error).startswith("x: ")
    assert len(outcomes) > 30 and all(outcomes)


def test_written_picture_is_srgb_keeps_alpha_and_its_texts(tmp_path):
    rgb, alpha = read_image(disc(False))
    path = write_png(tmp_path / "a_restored.png", rgb, alpha, {"Source": "ünïcode ✓"})
    again, same_alpha = read_image(path)
    assert torch.equal(alpha, same_alpha) and (again - rgb).abs().max() < 0.6 / 255
    assert read_png_text(path) == {"Software": "Splat Enhancer", "Source": "ünïcode ✓"}
    with Image.open(path) as image:
        assert image.mode == "RGBA" and image.info["srgb"] == 0
    (tmp_path / "other.png").write_bytes(b"no picture")
    assert read_png_text(tmp_path / "other.png") == read_png_text(tmp_path / "none.png") == {}


def test_each_value_is_written_as_the_nearest_byte(tmp_path):
    values = torch.arange(256).float().div(255).expand(3, 1, 256)
    path = write_png(tmp_path / "all.png", values)
    assert torch.equal(images.to_bytes(read_image(path)[0]), images.to_bytes(values))
    assert torch.equal(images.from_bytes(images.to_bytes(values)), values)
    with pytest.raises(ValueError, match=r"picture: expected finite values in \[0, 1\]"):
        write_png(tmp_path / "bad.png", values * 255)
    assert not (tmp_path / "bad.png").exists()


@pytest.mark.parametrize(("change", "word"), [
    (lambda x: x * 255, "divide bytes"), (lambda x: x * 2 - 1, "map it"), (lambda x: x[0], "float"),
    (lambda x: x.byte(), "uint8"), (lambda x: x * torch.nan, "nan"), (lambda x: x / 0, "inf"),
    (lambda x: x[:, :1], "floats"), (lambda x: x[:0], "floats"), (lambda x: "text", "str"),
    (lambda x: x[..., 1:], "multiple of 8")])
def test_check_of_images_names_what_is_wrong(change, word):
    good = torch.rand(1, 3, 8, 8) * 0.5 + 0.5
    good[..., 0, 0] = 0.1
    check_images("faces", good, 8)
    with pytest.raises(ValueError, match=rf"^faces: expected .*{word}"):
        check_images("faces", change(good), 8)


def test_files_that_broke_things_are_read(shared):
    odd = shared / "odd_inputs"
    patches = colors(odd / "display_p3.png")[64, 32::64]
    right = [[224, 172, 135], [198, 60, 50], [60, 160, 70], [40, 90, 200]]
    assert np.abs(patches - right).max() <= 2
    assert read_image(odd / "exif_rational_by_zero.jpg")[0].shape == (3, 96, 108)
    (straight, alpha), (premultiplied, same_alpha) = (
        read_image(odd / f"render_{kind}_alpha.png") for kind in ("straight", "premultiplied"))
    assert (straight - premultiplied).abs().max() < 4 / 255 and torch.equal(alpha, same_alpha)
    with pytest.raises(ValueError, match=r"^heic_named\.jpg: .*HEIC"):
        read_image(odd / "heic_named.jpg")
