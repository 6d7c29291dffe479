"""Any picture file as upright sRGB: read once, rightly, or refused by name."""

from __future__ import annotations

import errno
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.io import decode_image

from ..storage import own_path
from .colors import (
    ADOBE_RGB_GAMMA,
    ADOBE_RGB_XY,
    FAINT,
    SRGB_XY,
    Pixels,
    filled,
    is_premultiplied,
    profiled_to_srgb,
    straightened,
    to_srgb,
    without_ink,
)
from .kinds import FORMATS, foreign_kind

LARGEST_PIXELS = 2**26  # 8,192 x 8,192: 0.8 GB as floats
GONE = (errno.EIO, errno.ENOTCONN, errno.ETIMEDOUT, errno.ESTALE, errno.EMFILE)  # not the picture's
ORIENTATION, EXIF, COLOR_SPACE, INTEROPERABILITY, DNG_VERSION = (
    0x0112, 0x8769, 0xA001, 0xA005, 50706)  # tags
TURNED: dict[int, Callable[[Pixels], Pixels]] = {  # by EXIF's number of an orientation
    2: lambda p: p[:, ::-1], 3: lambda p: p[::-1, ::-1], 4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1), 6: lambda p: np.rot90(p, -1),
    7: lambda p: p[::-1, ::-1].swapaxes(0, 1), 8: lambda p: np.rot90(p)}
PNG_START, PNG_COLORED = b"\x89PNG\r\n\x1a\n", (2, 4, 6)  # types that PIL cuts down to 8 bits
ONE = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65_535, np.dtype(np.float32): 1}


class UnusablePicture(ValueError):
    """A picture that cannot be read rightly: `name: reason`."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}" if name else reason)
        self.name, self.reason = name, reason


@dataclass(frozen=True)
class Picture:
    """A picture as it is meant: upright, sRGB, colours not multiplied by alpha."""

    pixels: Pixels  # (H, W, 3), or 4 with alpha: uint8, uint16, or float32 in [0, 1]
    name: str = ""  # of its file
    notes: tuple[str, ...] = field(default=())  # what was taken for granted, in words
    faint: float = 0.0  # colours under no more alpha than this are not worth anything

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.pixels.shape[1], self.pixels.shape[0]

    @property
    def rgb(self) -> Tensor:
        """(3, H, W) float32 in [0, 1]; what is transparent has the colours of what is near."""
        rgb, alpha = self._split()
        return _to_tensor(rgb if alpha is None else filled(rgb, alpha, self.faint))

    @property
    def alpha(self) -> Tensor | None:
        """(1, H, W) float32 in [0, 1]; None where there is none."""
        alpha = self._split()[1]
        return None if alpha is None else _to_tensor(alpha)

    def to_image(self, backdrop: float = 1.0) -> Image.Image:
        """8-bit RGB, what is transparent on grey of this brightness, white by default."""
        if self.pixels.dtype == np.uint8 and self.pixels.shape[2] == 3:
            return Image.fromarray(np.ascontiguousarray(self.pixels))
        rgb, alpha = self._split()
        if alpha is not None:
            rgb = rgb * alpha + backdrop * (1 - alpha)
        return Image.fromarray(np.rint(rgb * 255).astype(np.uint8))

    def _split(self) -> tuple[Pixels, Pixels | None]:
        values = self.pixels.astype(np.float32) / ONE[self.pixels.dtype]
        return values[..., :3], values[..., 3:] if values.shape[2] == 4 else None


def read_picture(source: Path | str | bytes | Image.Image, name: str = "") -> Picture:
    """Read a picture of any depth, colour space and orientation, with alpha where it has one.

    Of an animation or of several pages it is the first. In 16 bits with a colour profile, 8 are
    kept. Whether a PNG's colours are multiplied by its alpha is seen from its soft edges.

    Args:
        source: a path as people paste it, the bytes of a file, or a picture that PIL has opened.
        name: of the bytes, for errors.

    Raises:
        UnusablePicture: a ValueError with the name: no picture, of a kind that is not read,
            damaged, cut off, too large, or with values that no [0, 1] can be told of.
        OSError: the disk or Drive does not answer.
    """
    if isinstance(source, str | Path):
        path = own_path(source)
        name = name or path.name
        try:
            source = path.read_bytes()
        except OSError as error:
            if error.errno in GONE:
                raise
            raise UnusablePicture(str(path), f"expected a picture file, got "
                                  f"{error.strerror or error}; check the path") from error
    if not isinstance(source, bytes | Image.Image):
        raise UnusablePicture(name, f"expected the bytes of a picture, got {type(source).__name__}")
    try:
        with quietly():
            return replace(_read(source), name=name)
    except UnusablePicture as error:
        raise UnusablePicture(name, error.reason) from error
    except UnidentifiedImageError as error:
        found = foreign_kind(source) if isinstance(source, bytes) else None
        kind = f" that is read, but {found}" if found else ""
        raise UnusablePicture(name, f"not an image{kind}; save it as JPEG or PNG (read are "
                              f"{', '.join(FORMATS)})") from error
    except Image.DecompressionBombError as error:
        raise UnusablePicture(name, f"expected {LARGEST_PIXELS:,} pixels at most, got far more; "
                              "scale it down") from error
    except Exception as error:  # damaged files make PIL raise nearly anything
        if getattr(error, "errno", None) in GONE:
            raise
        raise UnusablePicture(name, f"cannot be read ({type(error).__name__}: {error!s:.200}); "
                              "save it anew") from error


@contextmanager
def quietly() -> Iterator[None]:
    """Without what PIL warns of: a picture is read rightly, or refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def orientation(image: Image.Image) -> int:
    """The orientation, 1 to 8, that a file's EXIF or XMP names; 1 where none can be read."""
    with suppress(Exception):  # odd tags raise nearly anything, and say nothing of the pixels
        found = image.getexif().get(ORIENTATION, 1)
        return found if found in TURNED else 1
    return 1


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Pixels (H, W) or (H, W, C) turned and mirrored as EXIF's orientation says."""
    return np.ascontiguousarray(TURNED.get(orientation, lambda same: same)(pixels))


def read_labels(content: bytes) -> tuple[NDArray[np.integer], int]:
    """The numbers (H, W) that a picture of labels holds, as they are stored, and its orientation.

    Raises:
        UnusablePicture: no such picture.
    """
    try:
        with quietly():
            image = opened(content)
            values, tag = np.array(image), orientation(image)  # a palette is not looked up
    except UnusablePicture:
        raise
    except Exception as error:
        raise UnusablePicture("", f"its mask cannot be read ({type(error).__name__}: "
                              f"{error!s:.200})") from error
    if values.ndim != 2 or values.dtype.kind not in "ub":
        raise UnusablePicture("", f"expected a mask of whole numbers (H, W), got {values.dtype} "
                              f"{values.shape}")
    return values, tag


def opened(content: bytes) -> Image.Image:
    """A file that was not decoded yet.

    Raises:
        UnusablePicture: it is too large.
        UnidentifiedImageError: it has none of the formats that are read.
    """
    image = Image.open(BytesIO(content), formats=FORMATS)
    if image.width * image.height > LARGEST_PIXELS:
        raise UnusablePicture("", f"expected {LARGEST_PIXELS:,} pixels at most, got "
                              f"{image.width} x {image.height}; cut it or scale it down")
    return image


def _read(source: bytes | Image.Image) -> Picture:
    content = source if isinstance(source, bytes) else b""
    image = opened(source) if isinstance(source, bytes) else source
    if image.format == "TIFF" and DNG_VERSION in image.tag_v2:
        raise UnusablePicture("", "expected a developed picture, got a raw photograph (DNG); save "
                              "it as JPEG or PNG")
    image.load()
    picture = _meant(image, content)
    if getattr(image, "n_frames", 1) > 1:
        more = f"the first of its {image.n_frames} pictures is used"
        picture = replace(picture, notes=(*picture.notes, more))
    return replace(picture, pixels=upright(picture.pixels, orientation(image)))


def _meant(image: Image.Image, content: bytes) -> Picture:
    """The pixels as sRGB with straight alpha, not turned yet."""
    profile, notes, faint = image.info.get("icc_profile"), (), 0.0
    if image.mode in ("CMYK", "LAB"):
        image, profile = without_ink(image, profile), None
    values = _values(image, content)  # (H, W, C): grey or RGB, perhaps with alpha
    colors, alpha = values, None
    if values.shape[2] in (2, 4):
        colors, alpha = values[..., :-1], values[..., -1:]
    if image.mode in ("RGBa", "La"):  # PIL has divided them
        faint = FAINT
    elif alpha is not None and is_premultiplied(colors, alpha, one := ONE[values.dtype]):
        notes, faint = ("its colours are taken for multiplied by alpha",), FAINT
        alpha = alpha.astype(np.float32) / one
        colors = straightened(colors.astype(np.float32) / one, alpha)
    colors = _as_srgb(colors, image, content, profile)
    colors = colors.repeat(3, 2) if colors.shape[2] == 1 else colors
    if alpha is None:
        return Picture(colors)
    if colors.dtype != alpha.dtype:
        colors, alpha = (part.astype(np.float32) / ONE[part.dtype] for part in (colors, alpha))
    return Picture(np.concatenate([colors, alpha], 2), notes=notes, faint=faint)


def _values(image: Image.Image, content: bytes) -> Pixels:
    """What is stored, in its own depth: (H, W, 1 to 4)."""
    if content.startswith(PNG_START) and content[24] == 16 and content[25] in PNG_COLORED:
        data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        return decode_image(data).permute(1, 2, 0).numpy()
    if image.mode == "F":
        values = np.asarray(image, np.float32)[..., None]
        if not (values.min() >= 0 and values.max() <= 1):
            raise UnusablePicture("", f"expected values in [0, 1], got {values.min():g} to "
                                  f"{values.max():g}; scale them, or save it in 8 or 16 bits")
        return values
    if image.mode.startswith("I"):
        values = np.asarray(image)[..., None]
        if image.mode == "I" and image.format != "PNG":
            raise UnusablePicture("", "expected 8 or 16 bits, got 32-bit whole numbers; save it as "
                                  "a 16-bit PNG")
        grey = values.astype(np.uint16)
        clear = image.info.get("transparency")
        return grey if clear is None else np.concatenate(
            [grey, np.where(grey == clear, 0, 65_535).astype(np.uint16)], 2)
    grey = image.mode in ("1", "L", "LA", "La")
    with_alpha = image.has_transparency_data or image.mode in ("La", "RGBa", "PA")
    mode = ("L" if grey else "RGB") + ("A" if with_alpha else "")
    values = np.asarray(image if image.mode == mode else image.convert(mode))
    return values.reshape(*values.shape[:2], -1)


def _as_srgb(colors: Pixels, image: Image.Image, content: bytes, profile: bytes | None) -> Pixels:
    """Colours (H, W, 1 or 3) by what the file says of them; the same if that is sRGB or nothing."""
    info, one = image.info, ONE[colors.dtype]
    header = content[:content.find(b"IDAT")] if content.startswith(PNG_START) else b""
    if b"cICP" in header and header[header.find(b"cICP") + 4:][:2] != b"\x01\x0d":
        raise UnusablePicture("", "expected sRGB or a colour profile, got colours by cICP (HDR or "
                              "wide gamut); save it as sRGB")
    if profile:
        eight = np.rint(colors.astype(np.float32) * (255 / one)).astype(np.uint8)
        plain = Image.fromarray(eight[..., 0] if eight.shape[2] == 1 else eight)
        converted = profiled_to_srgb(plain, profile)
        if np.array_equal(np.asarray(converted), np.asarray(plain.convert("RGB"))):
            return colors
        return np.asarray(converted)
    if "srgb" in info:
        return colors
    if _is_adobe_rgb(image):
        primaries, gamma = ADOBE_RGB_XY, ADOBE_RGB_GAMMA
    else:
        primaries = tuple(info.get("chromaticity", SRGB_XY))
        near = max(abs(a - b) for a, b in zip(primaries, SRGB_XY, strict=True)) < 0.005
        primaries, gamma = SRGB_XY if near else primaries, 1 / info.get("gamma", 1 / 2.2)
        if near and abs(gamma - 2.2) < 0.06:  # what a PNG calls sRGB in these words
            return colors
    values = colors.astype(np.float32) / one
    values = to_srgb(values.repeat(3, 2) if values.shape[2] == 1 else values, primaries, gamma)
    if not (0.2 < gamma < 5 and np.isfinite(values).all()):
        raise UnusablePicture("", f"expected usable colours, got gamma {gamma:g} and primaries "
                              f"{primaries}; save it as sRGB")
    return values


def _is_adobe_rgb(image: Image.Image) -> bool:
    """Whether EXIF says so, as cameras do, in one of two ways."""
    with suppress(Exception):
        exif = image.getexif()
        return (exif.get_ifd(EXIF).get(COLOR_SPACE) == 2
                or exif.get_ifd(INTEROPERABILITY).get(1) == "R03")
    return False


def _to_tensor(values: Pixels) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))
