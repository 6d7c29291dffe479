"""Colours as a file means them, turned into sRGB; colours under alpha."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

Pixels = NDArray[np.generic]  # (H, W, C)
SRGB = ImageCms.createProfile("sRGB")
SRGB_XY = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)  # white, red, green, blue
ADOBE_RGB_XY, ADOBE_RGB_GAMMA = (0.3127, 0.3290, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06), 563 / 256
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367],
                     [0.0389, -0.0685, 1.0296]])
SPACES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK", "LAB ": "LAB"}  # of profiles → our modes
SAME = 2  # steps of 255: a profile that moves no colour further is sRGB's
FAINT = 1 / 4  # colours that were divided by less alpha than this are 2 steps of 255 off, or more


def profiled_to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Turn an 8-bit picture without alpha into sRGB by its own profile; the same one if it is sRGB.

    Raises:
        ValueError: a profile that cannot be read, or of another kind of picture.
    """
    try:
        own = ImageCms.ImageCmsProfile(BytesIO(profile))
        mode = SPACES[own.profile.xcolor_space]
        if image.mode == "L" and mode == "RGB":  # what Photoshop saves of grey pictures
            image = image.convert("RGB")
        if image.mode != mode:
            raise ValueError(f"a profile of {mode} with {image.mode} pixels")
        probe = Image.linear_gradient("L").resize((64, 64))
        probe = Image.merge("RGB", [probe, probe.rotate(90), probe.rotate(180)]) \
            if mode == "RGB" else None
        if probe and np.abs(np.int16(probe) - np.int16(_converted(probe, own))).max() <= SAME:
            return image
        return _converted(image, own)
    except (ImageCms.PyCMSError, OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"a colour profile that cannot be used ({error})") from error


def to_srgb(rgb: Pixels, primaries: tuple[float, ...], gamma: float) -> Pixels:
    """Turn colours of given primaries and exponent into sRGB.

    Args:
        rgb: (H, W, 3) in [0, 1].
        primaries: x and y of white, red, green and blue.
        gamma: the exponent that makes values light.

    Returns:
        (H, W, 3) float32 in [0, 1], clipped where sRGB has no such colour.

    Source: IEC 61966-2-1; Lindbloom, "RGB/XYZ matrices" and "Chromatic adaptation".
    """
    light = np.asarray(rgb, np.float32) ** gamma
    if primaries != SRGB_XY:
        matrix = np.linalg.inv(_to_xyz(SRGB_XY)) @ _adapted(primaries) @ _to_xyz(primaries)
        light = np.clip(light @ matrix.T.astype(np.float32), 0, 1)
    return np.where(light <= 0.0031308, 12.92 * light,
                    1.055 * light ** np.float32(1 / 2.4) - 0.055).astype(np.float32)


def without_ink(image: Image.Image, profile: bytes | None) -> Image.Image:
    """A CMYK or LAB picture as sRGB; ValueError for a profile that cannot be used."""
    if profile:
        return profiled_to_srgb(image, profile)
    return image.convert("RGB") if image.mode == "CMYK" else _converted(
        image, ImageCms.createProfile("LAB"))


def is_premultiplied(colors: Pixels, alpha: Pixels, one: float) -> bool:
    """Whether colours were multiplied by alpha, which no PNG says: none is brighter than its alpha.

    Judged where alpha is below a half, by 16 pixels or more; straight colours would have to be
    nearly black at every soft edge.
    """
    alpha, brightest = alpha[..., 0].astype(np.float32) / one, colors.max(-1) / one
    soft = (alpha > 0) & (alpha < 0.5)
    return int(soft.sum()) >= 16 and bool((brightest[soft] <= alpha[soft] + 1.5 / 255).all())


def straightened(rgb: Pixels, alpha: Pixels) -> Pixels:
    """Divide premultiplied colours (H, W, 3) in [0, 1] by alpha (H, W, 1)."""
    return np.clip(rgb / np.maximum(alpha, 1e-6), 0, 1)


def filled(rgb: Pixels, alpha: Pixels, faint: float = 0.0) -> Pixels:
    """Give what is transparent the colours of what is near, so that nothing bleeds in.

    Args:
        rgb: (H, W, 3) straight colours in [0, 1].
        alpha: (H, W, 1) in [0, 1].
        faint: up to which alpha colours are replaced.
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


def _halved(part: Pixels) -> Pixels:
    height, width = part.shape[:2]
    part = np.pad(part, ((0, height % 2), (0, width % 2), (0, 0)))
    return part[::2, ::2] + part[1::2, ::2] + part[::2, 1::2] + part[1::2, 1::2]


def _converted(image: Image.Image, profile: ImageCms.ImageCmsProfile) -> Image.Image:
    return ImageCms.profileToProfile(image, profile, SRGB, outputMode="RGB")


def _to_xyz(primaries: tuple[float, ...]) -> NDArray[np.float64]:
    """The matrix that takes linear RGB to XYZ."""
    white, *corners = (_xyz(x, y) for x, y in zip(primaries[::2], primaries[1::2], strict=True))
    columns = np.stack(corners, 1)
    return columns * np.linalg.solve(columns, white)


def _adapted(primaries: tuple[float, ...]) -> NDArray[np.float64]:
    """The matrix from one white to that of sRGB, in XYZ."""
    there, here = (BRADFORD @ _xyz(*xy[:2]) for xy in (primaries, SRGB_XY))
    return np.linalg.inv(BRADFORD) @ np.diag(here / there) @ BRADFORD


def _xyz(x: float, y: float) -> NDArray[np.float64]:
    return np.array([x / y, 1, (1 - x - y) / y])
