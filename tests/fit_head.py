"""Look at fitted heads from where no camera stood, inside and outside the arc of the fitted views.

    python -m tests.fit_head   # some two minutes; writes results/degradation/real_fit.jpg

Larger and finer than the pairs of `helpers/pairs`. What these fits get wrong can be compared with
the damage that `degrade` imitates.
"""

from __future__ import annotations

import math

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from tqdm import tqdm

from helpers.__main__ import ROOT
from helpers.faces.avatars import Head, look_at_head
from helpers.pairs.recipes import Recipe
from helpers.pairs.reconstruct import Values, fitted_backdrop, reconstruct, render
from helpers.splats.rasteriser import Camera

SIZE_PX = 192
PEOPLE = (6, 3, 7)  # avatar seeds
VIEWS = tuple((yaw, 2.0) for yaw in (-60, -48, -30, 4, 27, 48, 60))  # shown: yaw, pitch in degrees


def recipe(seed: int) -> Recipe:
    """A poor fit of an avatar: for a tenth of the pixels one Gaussian, far too few for hair."""
    return Recipe(
        seed, views=10, arc_deg=35.0, pitch_deg=6.5, gaussians=3_500, steps=200, settle=0.0,
        rate=1.0, strays=0.12, gaps=8, gap_radius=0.2, camera_error_deg=0.7, spread=0.5,
        opacity=-0.5, backdrop="green", size_px=SIZE_PX, tilt_deg=1.5)


def look_from(yaw_deg: float, pitch_deg: float) -> Camera:
    """A camera on the sphere around the head, yaw positive to the viewer's right."""
    return look_at_head(math.radians(yaw_deg), math.radians(pitch_deg), size_px=SIZE_PX)


def both(head: Head, values: Values, view: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Truth and fit from yaw and pitch in degrees, before green, each (3, H, W) in [0, 1]."""
    camera, green = look_from(*view), fitted_backdrop(recipe(0), 0, SIZE_PX)
    return head.render(camera, green)[0], render(values, camera, green).clamp(0, 1)


def psnr(first: Tensor, second: Tensor) -> float:
    """Peak signal-to-noise ratio in dB."""
    return -10 * math.log10(float((first - second).square().mean()))


def compare(head: Head, values: Values) -> Image.Image:
    """Truth above, fit below, from the shown views, with their figures."""
    pairs = [both(head, values, view) for view in VIEWS]
    rows = torch.cat([torch.cat(row, 2) for row in zip(*pairs, strict=True)], 1)
    page = Image.new("RGB", (rows.shape[2], rows.shape[1] + 22), "white")
    page.paste(Image.fromarray((255 * rows).round().byte().permute(1, 2, 0).numpy()))
    text, font = ImageDraw.Draw(page), ImageFont.load_default(13)
    for n, ((yaw, _), pair) in enumerate(zip(VIEWS, pairs, strict=True)):
        place = "inside" if abs(yaw) <= recipe(0).arc_deg else "outside"
        label = f"{yaw:+d}°, {place} the arc: {psnr(*pair):.1f} dB"
        text.text((n * SIZE_PX + 4, rows.shape[1] + 3), label, "black", font)
        print(label)
    return page


def main() -> None:
    """Fit every head, and write the comparison."""
    torch.set_num_threads(1)  # of so little work, two threads make no more speed
    pages = [compare(Head.of(seed, SIZE_PX), reconstruct(recipe(seed)))
             for seed in tqdm(PEOPLE, desc="Fitting heads", unit="head")]
    sheet = Image.new("RGB", (pages[0].width, sum(page.height for page in pages)), "white")
    for n, page in enumerate(pages):
        sheet.paste(page, (0, n * page.height))
    target = ROOT / "results" / "degradation" / "real_fit.jpg"
    target.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(target, quality=90)
    print(f"Wrote {target}")


if __name__ == "__main__":
    main()
