"""Write the embedded data: clean heads, novel-view pairs and a small splat.

    python -m tools.heads.assets heads
    python -m tools.heads.assets novel_view --shards FOLDER    # made by tools.heads.pairs
    python -m tools.heads.assets ply

Each folder has an `index.json` that is written last: {"images": [{part: file, "identity": …,
"split": "train" or "test", …}]}. No photograph of anybody is involved.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from splat_enhancer.config import ASSETS
from splat_enhancer.gaussians.scene import Scene

from .fit import Values, fit_head
from .pairs import SETS
from .person import plain_picture
from .recipes import draw_recipe

SIZE_PX = 128
HEADS = {"train": range(192), "test": range(1_000_000, 1_000_024)}
TRAIN_PAIRS = 500
TEST_HEADS, TEST_VIEWS = 24, 4  # of each head, half of them interpolated
PLY_IDENTITY, PLY_GAUSSIANS = SETS["test"] + 900, 2_800
BASE, FIRST = 0.28209479, 0.48860251  # spherical harmonics of degree 0 and 1


def write_heads(folder: Path) -> None:
    """One picture and one region map of every plain head."""
    entries = []
    for split, seeds in HEADS.items():
        for number, seed in enumerate(seeds):
            image, regions, _ = plain_picture(seed, SIZE_PX)
            clean = image.mul(255).round().byte().permute(1, 2, 0).numpy()
            name = f"{split}_{number:03d}"
            entries.append(_save(folder, name, clean=clean, regions=regions.numpy())
                           | {"identity": f"head-{seed}", "split": split})
    _write_index(folder, entries)


def write_novel_view(folder: Path, shards: Path) -> None:
    """Pairs spread over all training shards, and views of the first test heads, of SIZE_PX."""
    entries: list[dict] = []
    rows = [row for path in sorted(shards.glob("*_train_*.npz")) for row in _rows(path)]
    step = len(rows) / TRAIN_PAIRS
    chosen = [rows[int(number * step)] for number in range(min(TRAIN_PAIRS, len(rows)))]
    seen: dict[int, list[bool]] = {}
    for path in sorted(shards.glob("*_test_*.npz")):
        for row in _rows(path):
            kinds = seen.setdefault(row["identity"], [])
            if len(seen) <= TEST_HEADS and kinds.count(row["interpolated"]) < TEST_VIEWS // 2:
                kinds.append(row["interpolated"])
                chosen.append(row)
    for row in chosen:
        split = "test" if row["identity"] >= SETS["test"] else "train"
        number = sum(entry["split"] == split for entry in entries)
        parts = {part: row[part] for part in ("degraded", "clean", "regions")
                 if part != "regions" or split == "test"}
        entries.append(_save(folder, f"{split}_{number:03d}", exact=split == "test", **parts) | {
            "identity": f"head-{row['identity']}", "split": split,
            "views": "interpolated" if row["interpolated"] else "extrapolated"})
    _write_index(folder, entries)


def write_ply(path: Path) -> None:
    """A fitted head as 3D Gaussian Splatting writes scenes: along -z, with y downwards."""
    from splat_enhancer.gaussians.ply import write_ply as write

    recipe = replace(draw_recipe(PLY_IDENTITY), gaussians=PLY_GAUSSIANS, views=12, arc_deg=50.0,
                     backdrop="white", strays=0.15, steps=500, moved_share=0.0, size_px=192,
                     floaters=40)
    write(path, to_scene(fit_head(recipe)))


def to_scene(values: Values) -> Scene:
    """A fit as a scene of degree 1, turned by half a turn about x: y points downwards."""
    half_turn = torch.tensor([1.0, -1.0, -1.0])
    x, y, z = (values["slopes"] * half_turn).unbind(2)  # each (N, 3 colours)
    harmonics = [(values["colors"] - 0.5) / BASE, -y / FIRST, z / FIRST, -x / FIRST]
    real, i, j, k = values["turns"].unbind(1)
    return Scene(values["means"] * half_turn, values["lengths"],
                 torch.stack([-i, real, -k, j], 1), values["opacities"],
                 torch.stack(harmonics, 1))


def _rows(path: Path) -> list[dict]:
    with np.load(path) as file:
        arrays = {name: file[name] for name in
                  ("degraded", "clean", "regions", "identity", "interpolated")}
    assert arrays["clean"].shape[1] == SIZE_PX, f"{path}: expected pairs of {SIZE_PX} px"
    return [{name: array[row] if array.ndim > 1 else array[row].item()
             for name, array in arrays.items()} for row in range(len(arrays["identity"]))]


def _save(folder: Path, name: str, exact: bool = True, **parts: np.ndarray) -> dict[str, str]:
    """Write the pictures of a row: region maps as PNG, all others as WebP, lossless if exact."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for part, pixels in parts.items():
        files[part] = f"{name}.{part}.{'png' if part == 'regions' else 'webp'}"
        options = {"optimize": True} if part == "regions" else \
            {"lossless": exact, "quality": 100 if exact else 96, "method": 6}
        Image.fromarray(pixels).save(folder / files[part], **options)
    return files


def _write_index(folder: Path, entries: list[dict]) -> None:
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    (folder / "index.json").write_text(f'{{"images": [\n{lines}\n]}}\n', encoding="utf-8")
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"Wrote {folder}: {len(entries)} rows, {size / 1e6:.2f} MB")


def main() -> None:
    """Write one of the three."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("heads", "novel_view", "ply"))
    parser.add_argument("--shards", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.part == "heads":
        write_heads(ASSETS / "heads")
    elif args.part == "novel_view":
        write_novel_view(ASSETS / "novel_view", args.shards)
    else:
        write_ply(ASSETS / "head.ply")


if __name__ == "__main__":
    main()
