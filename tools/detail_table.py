"""How much of the detail in degraded pictures is there, and how much of it is right.

    python -m tools.detail_table ../shared/real_heads/real_heads_256.npz PAIRS.npz FOLDER

Bands are differences of Gaussians of grey values (sigma 0.8, 1.6, 3.2 and 6.4 px), seen within the
head or a part of it. Each entry is the amplitude, degraded over clean, and the correlation of both;
all figures are medians over pictures. The aim of the generators in `tools/heads` and of
`splat_enhancer.degradation.wrong_detail` is to agree with true renders of real heads in both.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.ndimage import binary_dilation, binary_erosion, gaussian_filter

SIGMAS_PX = (0.8, 1.6, 3.2, 6.4)
BANDS = ("1 px", "2 px", "4 px", "8 px")
SIZE_PX = 128  # to which pictures are shrunk
RIM_PX = 3  # around the head's outline: no part of what lies outside the head
FLOATER = 0.04  # a pixel outside the head that differs by more has a floater
PARTS = ("head", "rim", "interior", "skin", "eyes", "nose", "mouth", "hair")  # regions from 3 on
KEYS = {"degraded": ("degraded", "render"), "clean": ("clean", "photo"), "matte": ("matte", "mask"),
        "interpolated": ("interpolated", "inside")}


def describe(degraded: np.ndarray, clean: np.ndarray, head: np.ndarray,
             part: np.ndarray | None = None) -> dict[str, float]:
    """Figures of one pair (H, W, 3) in [0, 1].

    Args:
        head: (H, W) bool, where the head is.
        part: (H, W) bool, of which part of the head all but the last two are; None: all of it.

    Returns:
        "amplitude 1 px" ..., "correlation 1 px" ..., "contrast 1 px" (of the clean picture) ...,
        "low" (rms of what lies below the bands), "color" (rms of the colour's error without its
        brightness, below the bands), "outside" (mean absolute error outside the head) and
        "floaters" (share of the pixels there that are wrong by more than FLOATER).
    """
    figures, inside = {}, head if part is None else part
    pair = np.stack([degraded, clean]).astype(np.float32)
    blurred = [pair.mean(-1)]
    blurred += [gaussian_filter(blurred[0], (0, sigma, sigma)) for sigma in SIGMAS_PX]
    for band, fine, coarse in zip(BANDS, blurred, blurred[1:], strict=False):
        own, true = (fine - coarse)[:, inside]
        own, true = own - own.mean(), true - true.mean()
        figures[f"amplitude {band}"] = own.std() / max(true.std(), 1e-6)
        figures[f"correlation {band}"] = (own * true).mean() / max(own.std() * true.std(), 1e-9)
        figures[f"contrast {band}"] = true.std()
    low, true_low = blurred[-1]
    figures["low"] = np.sqrt(((low - true_low)[inside] ** 2).mean())
    color = gaussian_filter(pair[0] - pair[1], (SIGMAS_PX[-1], SIGMAS_PX[-1], 0))
    color = color - color.mean(-1, keepdims=True)
    figures["color"] = np.sqrt((color[inside] ** 2).mean())
    outside = np.abs(pair[0] - pair[1]).mean(-1)[~binary_dilation(head, iterations=RIM_PX)]
    figures["outside"] = outside.mean() if len(outside) else np.nan
    figures["floaters"] = (outside > FLOATER).mean() if len(outside) else np.nan
    return {name: float(value) for name, value in figures.items()}


def read_pairs(path: Path) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield degraded, clean (H, W, 3) in [0, 1], head (H, W) bool, regions, if interpolated."""
    with np.load(path) as file:
        degraded, clean, matte, interpolated = (
            file[next(name for name in names if name in file)] for names in KEYS.values())
        regions = file["regions"] if "regions" in file else np.zeros_like(matte)
    for row in range(len(degraded)):
        pictures = [degraded[row] / 255, clean[row] / 255, matte[row][..., None] / matte.max()]
        factor = pictures[0].shape[0] // SIZE_PX
        shrunk = [picture.reshape(SIZE_PX, factor, SIZE_PX, factor, -1).mean((1, 3))
                  for picture in pictures]
        yield (shrunk[0], shrunk[1], shrunk[2][..., 0] > 0.5, regions[row][::factor, ::factor],
               bool(interpolated[row]))


def measure(paths: list[Path], part: str) -> dict[str, list[dict[str, float]]]:
    """Figures of up to 200 pairs each, "interpolated" and "extrapolated"."""
    rows: dict[str, list] = {"interpolated": [], "extrapolated": []}
    for path in paths:
        for degraded, clean, head, regions, interpolated in read_pairs(path):
            kind = rows["interpolated" if interpolated else "extrapolated"]
            interior = binary_erosion(head, iterations=2 * RIM_PX)
            inside = {"head": head, "interior": interior, "rim": head & ~interior}.get(
                part, regions == PARTS.index(part) - 2)
            if inside.sum() > 50 and len(kind) < 200:
                kind.append(describe(degraded, clean, head, inside))
    return rows


def table(rows: dict[str, list[dict[str, float]]]) -> str:
    """A markdown table with one line per set, medians over its pairs."""
    lines = ["| | pairs | " + " | ".join(BANDS) + " | low | color | outside | floaters |",
             "|---|---|" + "---|" * (len(BANDS) + 4)]
    for name, figures in ((name, figures) for name, figures in rows.items() if figures):
        value = {key: np.nanmedian([one[key] for one in figures]) for key in figures[0]}
        cells = [name, str(len(figures))]
        cells += [f"{value[f'amplitude {band}']:.2f} / {value[f'correlation {band}']:.2f}"
                  for band in BANDS]
        cells += [f"{value[key]:.3f}" for key in ("low", "color", "outside")]
        lines.append(f"| {' | '.join(cells)} | {value['floaters']:.0%} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table of one or more sets of pairs; a folder is one set of all its .npz files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", nargs="+", type=Path)
    parser.add_argument("--part", choices=PARTS, default="head", help="regions: if in the file")
    args = parser.parse_args()
    rows = {}
    for path in args.sets:
        paths = sorted(path.glob("*.npz")) if path.is_dir() else [path]
        for kind, figures in measure(paths, args.part).items():
            rows[f"{path.stem}, {kind}"] = figures
    print(table(rows))


if __name__ == "__main__":
    main()
