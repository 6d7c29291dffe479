"""What each effect imitates, beside a real fit that went wrong by itself.

    python -m tests.effects_page    # two to four minutes; writes results/degradation/

Each effect alone, at its full amount, on the true view of a procedural head; beside it the same cut
of the head's own under-fitted 3D Gaussians (`tests/fit_head.py`). The cuts were chosen by eye.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from helpers.__main__ import ROOT
from helpers.degradation.pipeline import AMOUNTS, DegradeConfig, degrade
from helpers.degradation.presets import DAMAGE, IMITATES, damage
from helpers.degradation.resplat import DEFECTS
from helpers.faces.avatars import Head, render_avatar
from helpers.faces.regions import REGIONS
from helpers.pairs.reconstruct import Values, reconstruct
from helpers.views.display import grid, save_figure
from tests.fit_head import SIZE_PX, both, look_from, recipe

FOLDER = ROOT / "results" / "degradation"
NONE = DegradeConfig(**dict.fromkeys(AMOUNTS, 0.0), variation=0.0)
# effect: head, yaw in degrees, seed of the effect; left, top, side of the cut, shares of the view
CUTS = {
    "sparsity": (7, 4, 8, 0.15, 0.25, 0.5), "oversize": (6, 4, 8, 0.05, 0.0, 0.45),
    "needles": (6, -60, 1, 0.25, 0.4, 0.5), "holes": (3, 60, 1, 0.5, 0.2, 0.5),
    "floaters": (3, -60, 7, 0.0, 0.0, 0.5), "translucency": (7, -60, 8, 0.0, 0.1, 0.5),
    "doubling": (7, 60, 1, 0.5, 0.15, 0.5), "color_error": (3, 60, 8, 0.1, 0.4, 0.55),
    "skin": (7, -60, 8, 0.3, 0.4, 0.45), "eyes": (3, 4, 8, 0.2, 0.25, 0.5),
    "nose": (3, 4, 8, 0.3, 0.4, 0.35), "mouth": (6, 30, 8, 0.15, 0.5, 0.4),
    "hair": (6, 4, 8, 0.5, 0.0, 0.45), "background": (6, -60, 8, 0.75, 0.5, 0.25),
    "warp": (3, -30, 8, 0.35, 0.2, 0.55), "surface_blur": (6, -30, 8, 0.3, 0.3, 0.5),
    "brightness": (6, 60, 8, 0.0, 0.2, 0.75), "color_jitter": (3, -60, 8, 0.15, 0.2, 0.75),
    "desaturation": (7, 60, 8, 0.0, 0.3, 0.6), "blur": (7, 30, 8, 0.1, 0.25, 0.5),
    "downscale": (7, 4, 8, 0.2, 0.5, 0.45), "blocks": (7, -60, 8, 0.15, 0.0, 0.5),
    "ghosting": (3, -60, 8, 0.55, 0.15, 0.45), "noise": (6, -60, 8, 0.0, 0.0, 0.45),
}


def cut_out(picture: Tensor, left: float, top: float, side: float) -> Tensor:
    """A square of a view (3, H, W), enlarged to 256 px, (256, 256, 3)."""
    x, y, n = (round(share * SIZE_PX) for share in (left, top, side))
    piece = picture[None, :, y:y + n, x:x + n]
    return F.interpolate(piece, (256, 256), mode="bicubic").clamp(0, 1)[0].permute(1, 2, 0)


def draw(heads: dict[int, Head], fits: dict[int, Values]) -> Figure:
    """Truth, effect alone and real fit for each effect, three effects a row."""
    rows = -(-len(CUTS) // 3)
    figure = Figure(figsize=(13.5, 1.62 * rows), layout="constrained")
    blocks = figure.subfigures(rows, 3, wspace=0.02).ravel()
    for block, (name, (person, yaw, seed, *cut)) in zip(blocks, CUTS.items(), strict=False):
        truth, real = both(heads[person], fits[person], (yaw, 2.0))
        settings = dataclasses.replace(NONE, **{name: 1.0})
        regions = heads[person].render(look_from(yaw, 2.0), truth)[1]
        alone = degrade(truth[None], regions[None], settings, torch.tensor([seed]))[0]
        titles = ("truth", name.replace("_", " "), "real fit")
        for axis, title, picture in zip(block.subplots(1, 3), titles, (truth, alone, real),
                                        strict=True):
            axis.imshow(cut_out(picture, *cut).numpy())
            axis.set_title(title, fontsize=9, fontweight="bold" if title == titles[1] else None)
            axis.set_axis_off()
    return figure


def presets() -> Figure:
    """Two procedural heads (512 px) clean and under every named damage, a row each."""
    faces = [render_avatar(seed, 512) for seed in (7, 21)]
    clean, regions = (torch.stack(part) for part in zip(*faces, strict=True))
    seeds = torch.tensor([3, 4])
    return grid({"clean": clean} | {name: degrade(clean, regions, damage(name), seeds)
                                    for name in DAMAGE}, side_in=2.4)


def page() -> str:
    """The text beside the picture."""
    groups = {"Re-rendered as splats": DEFECTS, "By face region": REGIONS, "On the whole image": [
        name for name in AMOUNTS if name not in (*DEFECTS, *REGIONS)]}
    lines = ["# What each effect imitates", "",
             "Truth, one effect alone at its full amount, and the same cut of a real fit: 3,500 3D",
             "Gaussians, ten views within ±35°, 200 steps (`python -m tests.fit_head`). The fits",
             "were damaged by their own optimisation, from a poor start and cameras known only",
             "roughly; all heads are procedural. Brightness, colour jitter, desaturation and",
             "noise come from captures (exposure, white balance, sensors), which these fits did",
             "not have: beside them stands merely an outer view.",
             "", "![Effects beside real fits](effects.jpg)", ""]
    for title, names in groups.items():
        lines += [f"## {title}", "", "| amount | what it imitates in a real render |", "|---|---|"]
        lines += [f"| `{name}` | {IMITATES[name]} |" for name in names] + [""]
    return "\n".join([*lines, "## The real fits", "",
                      "Truth above, fit below; views beyond ±35° were never seen in training.", "",
                      "![Real fits of procedural heads](real_fit.jpg)", ""])


if __name__ == "__main__":
    torch.set_num_threads(1)
    save_figure(presets(), FOLDER / "presets.jpg", dpi=100)
    heads = {seed: Head.of(seed, SIZE_PX) for seed in sorted({cut[0] for cut in CUTS.values()})}
    fits = {seed: reconstruct(recipe(seed)) for seed in heads}
    save_figure(draw(heads, fits), FOLDER / "effects.jpg", dpi=100)
    (FOLDER / "README.md").write_text(page(), encoding="utf-8")
    print(f"{FOLDER / 'README.md'} is written")
