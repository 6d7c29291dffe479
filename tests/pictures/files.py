"""Small picture files of every kind that is read, made by seed; and how they are mutated."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

ORIENTATION = 0x0112


def pixels(seed: int = 0, height: int = 24, width: int = 32, channels: int = 3) -> np.ndarray:
    """Smooth uint8 colours, no two sides alike."""
    dice = np.random.default_rng(seed)
    coarse = Image.fromarray(dice.integers(0, 255, (3, 4, channels), dtype=np.uint8).squeeze())
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return smooth.reshape(height, width, channels)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    """A picture as the bytes of a file."""
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def exif_of(orientation: int, extra: dict | None = None) -> Image.Exif:
    """EXIF that says which way is up."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    for tag, value in (extra or {}).items():
        exif[tag] = value
    return exif


def every_kind() -> dict[str, bytes]:
    """A valid file of each kind: name → bytes."""
    rgb, rgba = Image.fromarray(pixels()), Image.fromarray(pixels(channels=4))
    grey = rgb.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    words = PngImagePlugin.PngInfo()
    words.add(b"gAMA", (100_000).to_bytes(4, "big"))
    return {
        "rgb.png": saved(rgb, "PNG"), "rgba.png": saved(rgba, "PNG"),
        "grey.png": saved(grey, "PNG"),
        "deep.png": saved(deep, "PNG"), "palette.png": saved(rgb.quantize(16), "PNG"),
        "clear.png": saved(rgb.quantize(16), "PNG", transparency=3),
        "bits.png": saved(grey.convert("1"), "PNG"), "linear.png": saved(rgb, "PNG", pnginfo=words),
        "profile.png": saved(rgb, "PNG", icc_profile=profile),
        "rgb.jpg": saved(rgb, "JPEG"), "grey.jpg": saved(grey, "JPEG"),
        "turned.jpg": saved(rgb, "JPEG", exif=exif_of(6)),
        "profile.jpg": saved(rgb, "JPEG", icc_profile=profile),
        "ink.jpg": saved(rgb.convert("CMYK"), "JPEG"),
        "progressive.jpg": saved(rgb, "JPEG", progressive=True),
        "rgb.webp": saved(rgb, "WEBP"), "lossless.webp": saved(rgba, "WEBP", lossless=True),
        "rgb.tif": saved(rgb, "TIFF"), "packed.tif": saved(rgb, "TIFF", compression="tiff_lzw"),
        "deep.tif": saved(deep, "TIFF"),
        "float.tif": saved(Image.fromarray(np.asarray(grey, np.float32) / 255), "TIFF"),
        "rgb.bmp": saved(rgb, "BMP"), "rgb.gif": saved(rgb.quantize(16), "GIF")}


def mutated(content: bytes, dice: np.random.Generator) -> bytes:
    """Other bytes: some flipped, cut, doubled, zeroed or taken from elsewhere in the file."""
    data = bytearray(content)
    for _ in range(int(dice.integers(1, 4))):
        if len(data) < 8:
            break
        kind, at = int(dice.integers(6)), int(dice.integers(len(data)))
        length = int(dice.integers(1, 1 + min(64, len(data) - at)))
        if kind == 0:
            data[at] ^= 1 << int(dice.integers(8))
        elif kind == 1:
            data[at] = int(dice.integers(256))
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at:at + length]
        elif kind == 4:
            data[at:at + length] = bytes(length)
        else:
            start = int(dice.integers(len(data)))
            data[at:at] = data[start:start + length]
    return bytes(data)
