"""How far each named damage takes real photographs, and what that looks like beside real renders.

    python -m tests.measure_damage      # some minutes; needs ../shared

Prints real LPIPS (SqueezeNet) of every preset against clean, and writes a contact sheet into
`runs/damage/`, which is not committed: it shows photographs of people.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from tqdm import tqdm

from helpers.degradation.pipeline import degrade
from helpers.degradation.presets import DAMAGE, damage
from helpers.faces.data import to_tensor
from helpers.faces.regions import CELEBA_MASK_LABELS, region_lookup
from helpers.splats.fit import GAUSSIANS, STEPS, fit_splats

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
RENDERS = ("face_4dgs_24.jpg", "face_flashavatar_Obama_3.png", "face_flashavatar_Mead2_3.png",
           "face_flashavatar_luoxiang_0.png", "face_static_0195_3dgs.jpg",
           "face_static_0175_3dgs.jpg")
PAIRS = ("sp_000016", "uf_000006", "cr_000289")  # of pair_fixer_*
LOOKUP = region_lookup(dict(enumerate(CELEBA_MASK_LABELS)))


def photographs() -> list[Path]:
    """The shared photographs, sorted."""
    return sorted((SHARED / "faces" / "images").iterdir())


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
    for index, path in enumerate(tqdm(photographs(), desc="Measuring", unit="face")):
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


def contact_sheet(side: int = 256) -> Image.Image:
    """Eight photographs under four presets, above six real renders."""
    rows = [[], *([] for _ in DAMAGE)]
    for index, path in enumerate(photographs()[12::25]):
        clean, regions = read_face(path)
        rows[0].append(clean)
        for row, name in zip(rows[1:], DAMAGE, strict=True):
            row.append(degrade(clean, regions, damage(name), torch.tensor([index])))
    sheet = Image.new("RGB", (8 * side, 6 * side), "white")
    tiles = [[to_pil_image(picture[0]) for picture in row] for row in rows]
    tiles.append([_head(SHARED / "splats" / name) for name in RENDERS])
    for y, row in enumerate(tiles):
        for x, tile in enumerate(row):
            sheet.paste(tile.resize((side, side), Image.Resampling.LANCZOS), (x * side, y * side))
    return sheet


def _head(path: Path) -> Image.Image:
    # The render cut to what differs from its corner, which is its backdrop.
    image = Image.open(path).convert("RGB")
    differs = (np.abs(np.asarray(image, int) - np.asarray(image, int)[2, 2]).sum(2) > 90)
    ys, xs = (np.percentile(axis, (1, 99)) for axis in np.where(differs))
    half = 0.42 * max(ys[1] - ys[0], xs[1] - xs[0])
    x, y = xs.mean(), ys[0] + 0.95 * half
    return ImageOps.pad(image.crop([round(v) for v in (x - half, y - half, x + half, y + half)]),
                        (512, 512))


if __name__ == "__main__":
    folder = ROOT / "runs" / "damage"
    folder.mkdir(parents=True, exist_ok=True)
    contact_sheet().save(folder / "contact_sheet.png")
    print(f"{folder / 'contact_sheet.png'} is written")
    print("| damage | n | mean | 5 % to 95 % |\n|---|---|---|---|")
    for name, values in measure().items():
        low, high = np.percentile(values, (5, 95))
        print(f"| {name} | {len(values)} | {np.mean(values):.3f} | {low:.2f} to {high:.2f} |")
