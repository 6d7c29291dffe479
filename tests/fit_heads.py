"""Rebuild the embedded heads `helpers/assets/heads/`: procedural heads and their 3D fits.

    python -m tests.fit_heads     # half an hour on one core; goes on where it stopped
    python -m tests.fit_heads --sets validation --work /tmp/heads --out /tmp

A head follows from its identity alone: again on the same machine it is the same bit for bit; on
another, rounding makes it another fit of the same kind. No photograph of anybody is involved.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from helpers.machine.progress import Bar
from helpers.pairs.fits import HEAD_SETS, HEADS, Fit, read_fits, write_fits
from helpers.pairs.recipes import Recipe, draw_recipe
from helpers.pairs.reconstruct import reconstruct
from helpers.storage import DamagedFile


def main() -> None:
    """Fit every head that is not there yet, then write the sets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", choices=HEAD_SETS, default=list(HEAD_SETS))
    parser.add_argument("--work", type=Path, default=Path("data/heads"), help="one file per head")
    parser.add_argument("--out", type=Path, default=HEADS)
    args = parser.parse_args()
    torch.set_num_threads(1)  # of so little work, two threads make no more speed
    recipes = {name: [draw_recipe(identity) for identity in HEAD_SETS[name]] for name in args.sets}
    every = [recipe for own in recipes.values() for recipe in own]
    fits = {recipe: fitted(recipe, args.work)
            for recipe in Bar(every, desc="Fitting heads", unit="head")}
    for name, own in recipes.items():
        path = args.out / f"{name}.safetensors"
        write_set(path, [fits[recipe] for recipe in own])
        print(f"Wrote {path}: {len(own)} heads, {path.stat().st_size / 1e6:.2f} MB")


def fitted(recipe: Recipe, work: Path) -> Fit:
    """The fit of a recipe, as it is read from disk: made unless it lies in the folder."""
    path = work / f"{recipe.identity}.safetensors"
    kept = _kept(path)
    if kept is None or kept.recipe != recipe:
        write_set(path, [Fit(recipe, reconstruct(recipe))])
        kept = read_fits(path)[0]
    return kept


def write_set(path: Path, fits: list[Fit]) -> None:
    """Write a file of fits beside its place, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    write_fits(partial, fits)
    partial.replace(path)


def _kept(path: Path) -> Fit | None:
    try:
        return read_fits(path)[0]
    except (FileNotFoundError, DamagedFile):
        return None


if __name__ == "__main__":
    main()
