"""Make the README's pictures from procedural heads: a strip of test heads, and a turning head.

    python -m tools.readme_pictures
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from splat_enhancer import load
from splat_enhancer.config import ASSETS
from splat_enhancer.data.pairs import load_novel_views
from splat_enhancer.evaluation.test_sets import UnsharpMask
from splat_enhancer.gaussians.ply import read_ply
from splat_enhancer.gaussians.scene import draw, framed, orbit
from splat_enhancer.images import to_pil
from splat_enhancer.model.enhancer import SplatEnhancer

FOLDER = Path(__file__).resolve().parents[1] / "results" / "enhancer"
SIDE_PX, TITLE_PX, GAP_PX = 288, 26, 6
ROWS = [0, 62, 50]  # of the test pairs: at the quartiles of the gain
VIEWS, ARC_DEG = 20, 90.0  # of the turning head, there and back


def sheet(columns: dict[str, Tensor]) -> Image.Image:
    """Titled columns of images (B, 3, H, W), enlarged to one size."""
    count = len(next(iter(columns.values())))
    size = (len(columns) * (SIDE_PX + GAP_PX) - GAP_PX,
            TITLE_PX + count * (SIDE_PX + GAP_PX) - GAP_PX)
    canvas = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(canvas)
    for column, (title, images) in enumerate(columns.items()):
        left = column * (SIDE_PX + GAP_PX)
        pen.text((left + SIDE_PX / 2, TITLE_PX / 2), title, fill="black", anchor="mm", font_size=18)
        for row, image in enumerate(images):
            picture = to_pil(image).resize((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
            canvas.paste(picture, (left, TITLE_PX + row * (SIDE_PX + GAP_PX)))
    return canvas


def test_heads(model: SplatEnhancer, rows: list[int]) -> Image.Image:
    """True renders of held-out heads beside the baseline, the restoration and the truth."""
    degraded, clean = load_novel_views("test", 128).load(rows)
    table = json.loads((FOLDER / "table.json").read_text(encoding="utf-8"))
    mask = UnsharpMask(*table["unsharp"])
    return sheet({"input": degraded, "unsharp mask": mask(degraded),
                  "restored": model.enhance(degraded), "clean": clean})


def turning_head(model: SplatEnhancer) -> list[Image.Image]:
    """The embedded head from an arc of cameras, as drawn and as restored."""
    scene = framed(read_ply(ASSETS / "head.ply")[0])
    cameras = orbit(scene, views=VIEWS, size_px=256, up="-y", arc_deg=ARC_DEG)
    views = [draw(scene, camera, torch.ones(3, 256, 256)).picture.clamp(0, 1)[None]
             for camera in cameras]
    frames = [sheet({"render": view, "restored": model.enhance(view)}) for view in views]
    return frames + frames[-2:0:-1]


def main() -> None:
    """Write results/enhancer/strip.jpg and turning.gif."""
    model = load()
    FOLDER.mkdir(parents=True, exist_ok=True)
    test_heads(model, ROWS).save(FOLDER / "strip.jpg", quality=90)
    frames = [frame.quantize(96, dither=Image.Dither.NONE) for frame in turning_head(model)]
    frames[0].save(FOLDER / "turning.gif", save_all=True, append_images=frames[1:], duration=90,
                   loop=0, optimize=True)
    for name in ("strip.jpg", "turning.gif"):
        print(f"{FOLDER / name} ({(FOLDER / name).stat().st_size / 1e6:.2f} MB)")


if __name__ == "__main__":
    main()
