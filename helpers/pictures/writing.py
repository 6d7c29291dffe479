"""What was restored, as a PNG that says what its colours are, and never in place of anything else.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from ..errors import refused
from ..storage import safe_name, write_whole
from .contract import check_images

PERCEPTUAL, GAMMA = b"\0", (45_455).to_bytes(4, "big")  # what sRGB is called in a PNG
SOURCE = "Source"  # PNG's own keyword: here, what the picture was made of
LONGEST_STEM = 100


def write_picture(path: Path, rgb: Tensor, alpha: Tensor | None = None, *,
                  source: str = "") -> Path:
    """Write a picture as 8-bit sRGB PNG, whole or not at all; a link is followed, not replaced.

    Args:
        path: the file.
        rgb: (3, H, W) in [0, 1], straight colours.
        alpha: (1, H, W) in [0, 1], or None.
        source: what it was made of; `source_of` finds it again.

    Raises:
        ValueError: values outside [0, 1], or alpha of another size.
        OSError: it could not be written.
    """
    image, words = to_image(rgb, alpha), PngImagePlugin.PngInfo()
    words.add(b"gAMA", GAMMA)
    words.add(b"sRGB", PERCEPTUAL)
    words.add_text("Software", "Splat Enhancer")
    if source:
        words.add_text(SOURCE, source)
    buffer = BytesIO()
    image.save(buffer, "PNG", pnginfo=words)
    return write_whole(path, buffer.getvalue())


def to_image(rgb: Tensor, alpha: Tensor | None = None) -> Image.Image:
    """8-bit RGB, or RGBA, of what `write_picture` takes; each value at the nearest byte."""
    check_images(rgb[None], "picture")
    parts = [rgb]
    if alpha is not None:
        if alpha.shape != (1, *rgb.shape[1:]):
            raise refused("alpha", f"shape {(1, *rgb.shape[1:])}", tuple(alpha.shape),
                          "pass that of the picture")
        check_images(alpha.expand(3, -1, -1)[None], "alpha")
        parts.append(alpha)
    values = torch.cat([part.detach().float().cpu() for part in parts]).mul(255).round().byte()
    return Image.fromarray(values.permute(1, 2, 0).contiguous().numpy())


def restored_path(folder: Path, name: str, ours: Callable[[Path], bool],
                  suffix: str = ".png") -> Path:
    """A name for what was restored: `<stem>_restored.png`, or the first number that is free.

    A file of that name that was made of the same is the one to replace; no other ever is.

    Args:
        folder: where it shall lie.
        name: of the file that was restored.
        ours: whether a file was made of the same; `source_of` says what a picture was made of.
        suffix: of the result.
    """
    stem, number = safe_name(Path(name).stem, LONGEST_STEM), 1
    while True:
        path = folder / f"{stem}_restored{f'_{number}' if number > 1 else ''}{suffix}"
        if not (path.exists() or path.is_symlink()) or ours(path):
            return path
        number += 1


def source_of(path: Path) -> str:
    """What a picture of ours was made of; empty for any other file."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return str(image.info.get(SOURCE, ""))
    except (OSError, ValueError, SyntaxError):
        return ""
