"""Pairs that nobody painted: fitted heads seen from new views, and the true heads from there.

    python -m tools.heads.pairs OUT --first 0 --count 400 --views 8 [--pictures *.png]

With --pictures each head wears the colours of one, for texture that no painted head has. One
process makes a shard of 8 heads at a time; shards that are there are skipped.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from .fit import FRAME, draw_backdrop, fit_head, render
from .person import Rng, look_at_head, wide_head
from .recipes import Recipe, careful, draw_recipe

HEADS_PER_SHARD = 8
SETS = {"train": 2_000_000, "validation": 3_000_000, "test": 4_000_000}  # first identities
BEYOND_DEG = (1.0, 13.0)  # extrapolated views stand so far outside the fitted ones


@torch.no_grad()
def render_pairs(recipe: Recipe, values: dict, size_px: int, views: int) -> dict[str, np.ndarray]:
    """Draw a fit and the truth from new places: half of them between the fitted views.

    Returns:
        degraded, clean: (views, size, size, 3) uint8; matte, regions: (views, size, size) uint8;
        interpolated: (views,) bool.
    """
    rng = Rng(recipe.identity, "views")
    factor = 2 if recipe.shrunk or size_px < 192 else 1
    large_px = size_px * factor
    head = wide_head(recipe.identity, picture=recipe.picture)
    rows: dict[str, list] = defaultdict(list)
    for view in range(views):
        interpolated = view % 2 == 0
        yaw, pitch = rng.between(-1, 1) * recipe.arc_deg, rng.between(-1, 1) * recipe.pitch_deg
        if not interpolated:
            beyond, upward = rng.between(*BEYOND_DEG), rng.chance(0.3)
            side = 1 if rng.chance(0.5) else -1
            beyond *= min(1.0, 45 / recipe.arc_deg)  # the back of a head was not seen at all
            if upward:
                pitch = side * min(recipe.pitch_deg + beyond, 40)
            else:
                yaw = side * (recipe.arc_deg + beyond)
        place = {"roll": math.radians(rng.between(-4, 4)),
                 "target": (rng.between(-0.08, 0.08), rng.between(-0.22, -0.02)),
                 "frame": FRAME * rng.between(0.8, 1.05), "distance": rng.between(4.7, 5.9)}
        kind = recipe.backdrop if rng.chance(0.9) else ("white", "black", "matte", "wall")[
            int(rng.between(0, 4))]
        backdrop_rng = Rng(recipe.identity, "backdrop" if kind == recipe.backdrop else f"{view}")
        large = look_at_head(math.radians(yaw), math.radians(pitch), size_px=large_px, **place)
        small = look_at_head(math.radians(yaw), math.radians(pitch), size_px=size_px, **place)
        backdrop = draw_backdrop(kind, backdrop_rng, large_px)
        clean, regions, matte = head.render(large, backdrop)
        if recipe.shrunk:
            degraded = _shrink(render(values, large, backdrop).clamp(0, 1), factor)
        else:
            degraded = render(values, small, _shrink(backdrop, factor)).clamp(0, 1)
        for name, value in (("degraded", degraded), ("clean", _shrink(clean, factor))):
            rows[name].append(_bytes(value).permute(1, 2, 0).numpy())
        rows["matte"].append(_bytes(_shrink(matte[None], factor))[0].numpy())
        rows["regions"].append(regions[::factor, ::factor].numpy())
        rows["interpolated"].append(interpolated)
    return {name: np.stack(value) for name, value in rows.items()}


def write_shard(path: Path, identities: range, size_px: int, views: int,
                with_care: bool = False, pictures: Sequence[str] = ()) -> None:
    """Fit heads and write their pairs as one .npz file, atomically."""
    parts: list[dict] = []
    for identity in identities:
        started, recipe = time.time(), draw_recipe(identity)
        recipe = careful(recipe) if with_care else recipe
        recipe = replace(recipe, size_px=max(recipe.size_px, size_px),
                         picture=pictures[identity % len(pictures)] if pictures else "")
        rows = render_pairs(recipe, fit_head(recipe), size_px, views)
        rows["identity"] = np.full(views, identity)
        rows["recipe"] = np.full(views, json.dumps(asdict(recipe)))
        parts.append(rows)
        print(f"{path.name} {identity} {time.time() - started:.1f} s", flush=True)
    partial = path.with_suffix(".part")
    with partial.open("wb") as file:
        np.savez_compressed(file, **{name: np.concatenate([part[name] for part in parts])
                                     for name in parts[0]})
    partial.replace(path)


def main() -> None:
    """Make the shards that are missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--prefix", default="shard")
    parser.add_argument("--first", type=int, default=SETS["train"], help="first identity")
    parser.add_argument("--count", type=int, default=400, help="of heads")
    parser.add_argument("--views", type=int, default=12)
    parser.add_argument("--size-px", type=int, default=128)
    parser.add_argument("--careful", action="store_true", help="nearly right renders")
    parser.add_argument("--pictures", nargs="*", default=[], help="that cover the heads")
    args = parser.parse_args()
    torch.set_num_threads(1)  # of so little work, two threads make no more speed
    args.out.mkdir(parents=True, exist_ok=True)
    for first in range(args.first, args.first + args.count, HEADS_PER_SHARD):
        path = args.out / f"{args.prefix}_{first}.npz"
        if not path.exists():
            last = min(first + HEADS_PER_SHARD, args.first + args.count)
            write_shard(path, range(first, last), args.size_px, args.views, args.careful,
                        args.pictures)


def _shrink(image: Tensor, factor: int) -> Tensor:
    return avg_pool2d(image[None], factor)[0]


def _bytes(image: Tensor) -> Tensor:
    return image.mul(255).round().byte()


if __name__ == "__main__":
    main()
