"""How far each named damage takes real photographs: LPIPS (SqueezeNet) against clean.

    python -m tests.measure_damage      # some minutes; needs ../shared
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from helpers.__main__ import ROOT
from helpers.degradation.pipeline import degrade
from helpers.degradation.presets import DAMAGE, damage
from helpers.faces.data import to_tensor
from helpers.faces.regions import CELEBA_MASK_LABELS, region_lookup
from helpers.splats.fit import GAUSSIANS, STEPS, fit_splats

SHARED = ROOT.parent / "shared"
PAIRS = ("sp_000016", "uf_000006", "cr_000289")  # of pair_fixer_*
LOOKUP = region_lookup(dict(enumerate(CELEBA_MASK_LABELS)))


def read_face(path: Path) -> tuple[Tensor, Tensor]:
    """A photograph (1, 3, 512, 512) in [0, 1] and its regions (1, 512, 512), from its true mask."""
    mask = Image.open(SHARED / "faces" / "masks" / f"{path.stem}.png")
    image = to_tensor(Image.open(path).convert("RGB"))
    labels = np.array(mask.resize(image.shape[:1:-1], Image.Resampling.NEAREST))
    return image, LOOKUP[torch.from_numpy(labels).long()][None]


def squeeze() -> torch.nn.Module:
    """LPIPS with real SqueezeNet weights, of images in [0, 1]."""
    os.environ["TORCH_HOME"] = str(SHARED / "lpips")
    import lpips
    return lpips.LPIPS(net="squeeze", verbose=False).eval()


@torch.no_grad()
def measure() -> dict[str, list[float]]:
    """LPIPS of every photograph under every preset, and of every twentieth fitted."""
    distance = squeeze()
    found: dict[str, list[float]] = {name: [] for name in (*DAMAGE, "fitted")}
    photographs = sorted((SHARED / "faces" / "images").iterdir())
    for index, path in enumerate(tqdm(photographs, desc="Measuring", unit="face")):
        clean, regions = read_face(path)
        seeds = torch.tensor([index])
        for name in DAMAGE:
            degraded = degrade(clean, regions, damage(name), seeds)
            found[name].append(float(distance(degraded, clean, normalize=True)))
        if index % 20 == 0:
            fitted = fit_splats(clean, GAUSSIANS, STEPS, seeds=seeds)
            found["fitted"].append(float(distance(fitted, clean, normalize=True)))
    for name in PAIRS:
        pair = [to_tensor(Image.open(SHARED / "splats" / f"pair_fixer_{part}.png").convert("RGB"))
                for part in (name, "_gt_".join(name.split("_")))]
        found[f"real pair {name}"] = [float(distance(*pair, normalize=True))]
    return found


if __name__ == "__main__":
    print("| damage | n | mean | 5 % to 95 % |\n|---|---|---|---|")
    for name, values in measure().items():
        low, high = np.percentile(values, (5, 95))
        print(f"| {name} | {len(values)} | {np.mean(values):.3f} | {low:.2f} to {high:.2f} |")
