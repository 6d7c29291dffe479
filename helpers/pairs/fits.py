"""Fitted heads on disk: many in one sealed file, 26 bytes a Gaussian, and those that we ship.

Any of them can be written as the `.ply` that other tools for Gaussian splats read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..config import ASSETS
from ..errors import refused
from ..splats import BASE, FIRST, Scene, write_ply
from ..storage import DamagedFile, damage_named, read_sealed, write_sealed
from .recipes import Recipe
from .reconstruct import Values

HEADS = ASSETS / "heads"  # a file per set; `python -m tests.fit_heads` makes them
HEAD_SETS = {  # identities that no avatar seen as a single picture has
    "train": range(300_000, 300_096),
    "validation": range(700_000, 700_008),  # settings are chosen by these
    "test": range(1_200_000, 1_200_032),
}
HALVES = ("means",)  # kept as float16; the others in 256 steps each
BYTES = ("lengths", "turns", "colors", "slopes", "opacities")


@dataclass(frozen=True)
class Fit:
    """A fitted head: how it was made, and its Gaussians."""

    recipe: Recipe
    values: Values


def load_fits(name: str) -> list[Fit]:
    """Read one of the shipped sets.

    Args:
        name: one of HEAD_SETS.

    Raises:
        ValueError: there is no such set.
        DamagedFile: its file is missing or not as it was written.
        OSError: its file cannot be read.
    """
    if name not in HEAD_SETS:
        raise refused("set of heads", f"one of {', '.join(HEAD_SETS)}", name, "pick one of them")
    try:
        return read_fits(HEADS / f"{name}.safetensors")
    except (DamagedFile, FileNotFoundError) as error:
        raise DamagedFile(f"{name} heads: expected the file that is shipped, got {error}; "
                          "fetch it again, or run `python -m tests.fit_heads`") from error


def write_fits(path: Path, fits: Sequence[Fit]) -> None:
    """Write fits into one sealed file; a render then differs by some 56 dB.

    Fits that were read are written with the same bytes again.

    Raises:
        OSError: the file could not be written; part of it may be there.
    """
    packed = [_pack(fit.values) for fit in fits]
    tensors = {name: torch.cat([one[name] for one in packed]) for name in packed[0]}
    recipes = json.dumps([asdict(fit.recipe) for fit in fits])
    counts = json.dumps([len(fit.values["means"]) for fit in fits])
    write_sealed(path, tensors, {"recipes": recipes, "counts": counts})


def read_fits(path: Path) -> list[Fit]:
    """Read what `write_fits` wrote.

    Raises:
        DamagedFile: another kind of file, or one byte is not as it was.
        OSError: the file cannot be read.
    """
    tensors, texts = read_sealed(path)
    with damage_named(path):
        recipes = [Recipe(**entry) for entry in json.loads(texts["recipes"])]
        counts = json.loads(texts["counts"])
        ranges = tensors.pop("ranges").unflatten(0, (len(recipes), len(BYTES)))
        split = {name: value.split(counts) for name, value in tensors.items()}
        return [Fit(recipe, _unpack({name: parts[n] for name, parts in split.items()}, ranges[n]))
                for n, recipe in enumerate(recipes)]


def write_head(path: Path, identity: int) -> Path:
    """Write a shipped head as 3D Gaussian Splatting writes a scene, to be opened anywhere.

    It faces along −z with y downwards, as scenes from COLMAP's cameras do.

    Args:
        path: the `.ply` file.
        identity: one of those in HEAD_SETS.

    Raises:
        ValueError: no such head is shipped.
        DamagedFile: the shipped fits are missing or not as they were written.
        OSError: it could not be written.
    """
    for name, identities in HEAD_SETS.items():
        if identity in identities:
            fit = load_fits(name)[identities.index(identity)]
            return write_ply(path, to_scene(fit.values))
    known = ", ".join(f"{own[0]} to {own[-1]}" for own in HEAD_SETS.values())
    raise refused("identity of a head", f"one of {known}", identity, "pick one of them")


def to_scene(values: Values) -> Scene:
    """A fit as a scene of degree 1, turned by half a turn about x: y points downwards."""
    half_turn = torch.tensor([1.0, -1.0, -1.0])
    x, y, z = (values["slopes"] * half_turn).unbind(2)  # each (N, 3 colours)
    harmonics = [(values["colors"] - 0.5) / BASE, -y / FIRST, z / FIRST, -x / FIRST]
    real, i, j, k = values["turns"].unbind(1)
    return Scene(values["means"] * half_turn, values["lengths"],
                 torch.stack([-i, real, -k, j], 1), values["opacities"],
                 torch.stack(harmonics, 1))


def _pack(values: Values) -> dict[str, Tensor]:
    packed = {name: values[name].half() for name in HALVES}
    ranges = [torch.stack([values[name].min(), values[name].max()]) for name in BYTES]
    for name, (low, high) in zip(BYTES, ranges, strict=True):
        steps = (values[name] - low) * (255 / (high - low).clamp(min=1e-6))
        packed[name] = steps.round().byte()
    return packed | {"ranges": torch.stack(ranges)}  # (5, 2)


def _unpack(packed: dict[str, Tensor], ranges: Tensor) -> Values:
    values = {name: packed[name].float() for name in HALVES}
    for name, (low, high) in zip(BYTES, ranges, strict=True):
        values[name] = low + packed[name].float() * ((high - low) / 255)
    return values
