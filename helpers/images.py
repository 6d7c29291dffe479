"""Pictures from files and to files, by Pillow alone: what comes in becomes upright sRGB floats."""

from __future__ import annotations

import warnings
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from .files import atomic_write

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")  # Pillow would run Ghostscript on an EPS
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")
MAX_PIXELS = 2**26  # 8,192 x 8,192: 0.8 GB as floats
ORIENTATION = 0x0112  # EXIF tag
TURN = {  # by EXIF's number, of (H, W, ...) arrays
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1], 5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1), 8: lambda a: np.rot90(a)}
FAINT = 1 / 4  # colours divided by less alpha than this are off by 2 steps of 255 or more
Array = NDArray[np.floating[Any]]


def read_image(source: Path | str | bytes, *, name: str = "",
               notes: list[str] | None = None) -> tuple[Tensor, Tensor | None]:
    """Read a picture: orientation, colour profile, depth, palette and alpha are respected.

    Args:
        source: a file, or its content.
        name: for errors; none: the file's.
        notes: takes what was assumed, in words.

    Returns:
        rgb float32 (3, H, W) in [0, 1], with the nearest visible colours where it is transparent,
        and alpha (1, H, W) in [0, 1], or None.
    """
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    name = name or ("picture" if isinstance(source, bytes) else Path(source).name)
    try:
        with warnings.catch_warnings():  # Pillow warns of odd tags: it is read rightly, or an error
            warnings.simplefilter("ignore")
            rgb, alpha, faint = _decode(content, [] if notes is None else notes)
    except UnidentifiedImageError as error:
        kind = ("a HEIC or AVIF picture, or a video" if content[4:8] == b"ftyp"
                else "another kind of file" if content else "an empty file")
        raise ValueError(f"{name}: expected a picture ({', '.join(FORMATS)}), got {kind}; save it "
                         "as JPEG or PNG") from error
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    except Exception as error:  # damaged files make Pillow raise nearly anything
        raise ValueError(f"{name}: expected a whole picture, got a damaged one "
                         f"({type(error).__name__}: {error!s:.200})") from error
    if alpha is None:
        return _to_tensor(rgb), None
    return _to_tensor(fill_transparent(rgb, alpha, faint)), _to_tensor(alpha)


def list_pictures(folder: Path) -> list[Path]:
    """The pictures in a folder, by name."""
    return [path for path in sorted(folder.iterdir())
            if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")]


def orientation(image: Image.Image) -> int:
    """The orientation, 1 to 8, that a picture's EXIF or XMP names; 1 where none can be read."""
    with suppress(Exception):  # odd tags raise nearly anything, and say nothing of the pixels
        tag = image.getexif().get(ORIENTATION, 1)
        return tag if tag in TURN else 1
    return 1


def write_png(path: Path, rgb: Tensor, alpha: Tensor | None = None,
              text: dict[str, str] | None = None) -> Path:
    """Write straight colours (3, H, W) and alpha (1, H, W) in [0, 1] as 8-bit sRGB, atomically.

    `text` is kept in the file by keyword, for `read_png_text`.
    """
    info = PngImagePlugin.PngInfo()
    info.add(b"gAMA", (45_455).to_bytes(4, "big"))
    info.add(b"sRGB", b"\0")
    for keyword, value in {"Software": "Splat Enhancer", **(text or {})}.items():
        info.add_text(keyword, value)
    file = BytesIO()
    to_pil(rgb, alpha).save(file, "PNG", pnginfo=info)
    return atomic_write(path, file.getvalue())


def read_png_text(path: Path) -> dict[str, str]:
    """The texts of a PNG by keyword; none for any other file."""
    with suppress(OSError, ValueError, SyntaxError), \
            Image.open(path, formats=["PNG"]) as image:
        return {key: str(value) for key, value in image.info.items() if isinstance(value, str)}
    return {}


def check_images(name: str, images: Tensor, multiple: int = 1) -> None:
    """Raise ValueError unless it is floats (B, 3, H, W), finite, in [0, 1], sides as asked for."""
    shape = tuple(getattr(images, "shape", ()))
    fits = len(shape) == 4 and shape[0] > 0 and shape[1] == 3 and min(shape[2:]) > 0
    if not fits or not images.is_floating_point() or shape[2] % multiple or shape[3] % multiple:
        sides = f", sides a multiple of {multiple}" if multiple > 1 else ""
        raise ValueError(f"{name}: expected floats (B, 3, H, W) in [0, 1]{sides}, got "
                         f"{getattr(images, 'dtype', type(images).__name__)} {shape}")
    low, high = torch.stack(images.detach().aminmax()).tolist()  # NaN, if one value is
    if not (low >= 0 and high <= 1):
        raise ValueError(f"{name}: expected finite values in [0, 1], got {low:g} to {high:g}; "
                         f"{'divide bytes by 255' if high > 2 else 'map it as (x + 1) / 2'}")


def to_bytes(images: Tensor) -> Tensor:
    """Floats in [0, 1] as uint8 of the same shape, each at the nearest step of 1/255."""
    return images.detach().float().clamp(0, 1).mul(255).round().byte()


def from_bytes(images: Tensor) -> Tensor:
    """uint8 as float32 in [0, 1] of the same shape."""
    return images.float().div(255)


def to_pil(rgb: Tensor, alpha: Tensor | None = None) -> Image.Image:
    """An 8-bit Pillow picture, RGB or RGBA, of rgb (3, H, W) and alpha (1, H, W) in [0, 1]."""
    check_images("picture", rgb[None])
    if alpha is not None:
        check_images("alpha", alpha.expand(3, *rgb.shape[1:])[None])
        rgb = torch.cat([rgb, alpha])
    return Image.fromarray(to_bytes(rgb).permute(1, 2, 0).contiguous().cpu().numpy())


def fill_transparent(rgb: Array, alpha: Array, faint: float = 0.0) -> Array:
    """Give what is transparent the nearest visible colours, so that nothing bleeds in.

    `rgb` are straight colours (H, W, 3), `faint` is up to which alpha (H, W, 1) they are replaced.
    """
    lost = alpha <= faint
    if lost.all() or not lost.any():
        return rgb
    weights = np.where(lost, 0, alpha).astype(np.float32)
    levels = [(rgb * weights, weights)]
    while max(levels[-1][1].shape[:2]) > 1:
        levels.append(tuple(_halved(part) for part in levels[-1]))
    colors = levels[-1][0] / levels[-1][1]
    for total, weight in levels[-2::-1]:
        height, width = weight.shape[:2]
        coarse = colors.repeat(2, 0).repeat(2, 1)[:height, :width]
        colors = np.where(weight > 1e-4, total / np.maximum(weight, 1e-4), coarse)
    return np.where(lost, colors, rgb).astype(np.float32)


def _decode(content: bytes, notes: list[str]) -> tuple[Array, Array | None, float]:
    """Upright sRGB (H, W, 3), alpha (H, W, 1) or None, and up to which alpha it is faint."""
    image = Image.open(BytesIO(content), formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"expected {MAX_PIXELS:,} pixels at most, got {image.width} x "
                         f"{image.height}; scale it down")
    image.load()
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        notes.append(f"the first of its {image.n_frames} pictures is used")
    values = _values(image)
    colors, alpha, faint = values[..., :3], None, FAINT if image.mode == "RGBa" else 0.0
    if values.shape[2] == 4:
        alpha = values[..., 3:]
        soft = (alpha > 0) & (alpha < 0.5)  # no PNG says it: is no colour brighter than its alpha?
        if soft.sum() >= 16 and (colors.max(-1, keepdims=True) <= alpha + 1.5 / 255)[soft].all():
            notes.append("its colours are taken for multiplied by alpha")
            colors, faint = np.clip(colors / np.maximum(alpha, 1e-6), 0, 1), FAINT
    if profile := image.info.get("icc_profile"):
        plain = Image.fromarray(np.rint(colors * 255).astype(np.uint8))
        converted = _convert_profile(plain, profile)
        colors = colors if converted is plain else np.asarray(converted, np.float32) / 255
    turn = TURN[orientation(image)]
    return turn(colors), None if alpha is None else turn(alpha), faint


def _values(image: Image.Image) -> Array:
    """What is stored, as float32 (H, W, 3 or 4) in [0, 1]; CMYK with a profile as sRGB."""
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        raise ValueError("expected 8 or 16 bits, got 32; save it as a 16-bit PNG")
    if image.mode.startswith("I"):
        return np.asarray(image, np.float32)[..., None].repeat(3, 2) / 65_535
    if image.mode == "CMYK" and (profile := image.info.pop("icc_profile", None)):
        image = _convert_profile(image, profile)
    mode = "RGBA" if image.has_transparency_data else "RGB"
    return np.asarray(image if image.mode == mode else image.convert(mode), np.float32) / 255


def _convert_profile(image: Image.Image, profile: bytes) -> Image.Image:
    """An 8-bit picture as sRGB; the same picture, if that is its profile."""
    try:
        icc = ImageCms.ImageCmsProfile(BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(icc).lower():
            return image
        image = image.convert("L") if icc.profile.xcolor_space == "GRAY" else image
        return ImageCms.profileToProfile(image, icc, ImageCms.createProfile("sRGB"),
                                         outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, TypeError) as error:
        raise ValueError(f"expected a colour profile that can be used, got {error}") from error


def _halved(part: Array) -> Array:
    height, width = part.shape[:2]
    part = np.pad(part, ((0, height % 2), (0, width % 2), (0, 0)))
    return part[::2, ::2] + part[1::2, ::2] + part[::2, 1::2] + part[1::2, 1::2]


def _to_tensor(values: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1), np.float32))
