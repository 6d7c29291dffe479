"""Pairs (degraded, clean) of every kind, and which kind each training sample is.

*synthetic*: a face degraded by the pipeline. *wrong_detail*: one whose detail is made wrong, not
removed. *fit*: one described by too few 2D Gaussians. *novel_view*: a 3D fit of a head, seen from a
new view. *own*: a user's renders and photographs. All of a sample follows from its seed alone.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from ..config import ASSETS, Config
from ..degradation.pipeline import degrade, draw_amounts
from ..degradation.wrong_detail import wrong_detail
from ..environment import progress
from ..gaussians.fit import VERSION, underfit
from ..gaussians.rng import SeededRandom
from ..images import from_bytes, to_pil
from .faces import Faces, scale
from .own import OwnPairs, prepare_own
from .store import Entry, ImageStore, Row, derive_number, prepare_store

NOVEL_VIEWS = ASSETS / "novel_view"


@dataclass
class StoredPairs:
    """Those `rows` of a prepared folder that count; `read_clean` stands for a part "clean"."""

    store: ImageStore
    rows: list[int]
    resolution: int
    read_clean: Callable[[Sequence[int]], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def entries(self) -> list[Entry]:
        """What the index says of each pair: "identity", "views", …"""
        return [self.store.entries[row] for row in self.rows]

    def load(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Read some pairs: degraded and clean, each float32 (B, 3, H, W) in [0, 1], on the CPU."""
        rows = [self.rows[index] for index in indices]
        sides = [scale(from_bytes(self.store.load(rows, part)), self.resolution)
                 for part in self.store.parts]
        return sides[0], self.read_clean(rows) if self.read_clean else sides[1]

    def draw(self, kind: str, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """Choose a pair for each seed (B,); half of them are mirrored."""
        degraded, clean = self.load([derive_number(kind, seed) % len(self)
                                     for seed in seeds.tolist()])
        mirrored = (seeds % 2 == 1).view(-1, 1, 1, 1)
        return tuple(torch.where(mirrored, side.flip(-1), side) for side in (degraded, clean))


class Pairs:
    """The pairs of a run.

    Attributes:
        weights: share of each kind, their sum is 1.
        fits, novel_views: training pairs; None where their weight is 0.
        own: the user's pairs; empty if there are none.
        trained_on: names the photographs that training sees, on every machine alike.
    """

    def __init__(self, config: Config, faces: Faces, *, fits: StoredPairs | None = None,
                 novel_views: StoredPairs | None = None, own: OwnPairs | None = None) -> None:
        self.config, self.weights = config, config.pair_weights
        self.fits, self.novel_views, self.own = fits, novel_views, own or OwnPairs()
        self.trained_on = faces.trained_on + (
            f", {self.own.trained_on}" if self.weights["own"] else "")

    def __str__(self) -> str:
        stored = {"fit": self.fits, "novel_view": self.novel_views, "own": self.own.train}
        counts = {kind: f" of {len(pairs)}" for kind, pairs in stored.items() if pairs}
        return ", ".join(f"{weight:.0%} {kind}{counts.get(kind, '')}"
                         for kind, weight in self.weights.items() if weight)

    def draw_kinds(self, seeds: Tensor) -> list[str]:
        """The kind of each sample, by its own seed (B,)."""
        kinds = [kind for kind, weight in self.weights.items() if weight]
        bounds = list(accumulate(self.weights[kind] for kind in kinds[:-1]))
        numbers = SeededRandom(seeds.tolist(), "kind of pair", "cpu").uniform(1)[:, 0].tolist()
        return [kinds[bisect(bounds, number)] for number in numbers]

    def draw(self, clean: Tensor, regions: Tensor, seeds: Tensor,
             device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, list[str]]:
        """Clean, degraded and the kinds (B) of a batch from `draw_batch`, as the weights ask."""
        clean, regions, kinds = clean.to(device), regions.to(device), self.draw_kinds(seeds)
        drawn_clean, degraded = torch.empty_like(clean), torch.empty_like(clean)
        for kind in set(kinds):
            rows = [row for row, other in enumerate(kinds) if other == kind]
            degraded[rows], drawn_clean[rows] = self._draw_kind(
                kind, clean[rows], regions[rows], seeds[rows])
        return drawn_clean, degraded, kinds

    def draw_each(self, clean: Tensor, regions: Tensor, seeds: Tensor,
                  device: torch.device | str = "cpu") -> dict[str, tuple[Tensor, Tensor]]:
        """The same samples as pairs (degraded, clean) of each kind that training uses, to see."""
        clean, regions = clean.to(device), regions.to(device)
        return {kind: self._draw_kind(kind, clean, regions, seeds)
                for kind, weight in self.weights.items() if weight}

    def _draw_kind(self, kind: str, clean: Tensor, regions: Tensor,
                   seeds: Tensor) -> tuple[Tensor, Tensor]:
        """Degraded and clean, on the device of `clean`."""
        if kind == "synthetic":
            settings = self.config.degradation
            return degrade(clean, regions, settings, seeds,
                           amounts=draw_amounts(settings, seeds)), clean
        if kind == "wrong_detail":
            return wrong_detail(clean, regions > 0, seeds)[::-1]
        pair = self.own.draw(seeds) if kind == "own" else (
            self.fits if kind == "fit" else self.novel_views).draw(kind, seeds)
        return tuple(side.to(clean.device) for side in pair)


def prepare_pairs(config: Config, faces: Faces, folder: Path, *,
                  device: torch.device | str = "cpu", drive: Path | None = None) -> Pairs:
    """Make or open all kinds of pairs that a config asks for, as `faces.prepare_faces` does."""
    weights, own = config.pair_weights, None
    if config.own_pairs.strip():
        own = prepare_own(config, folder, drive=drive, faces=faces)
        if not config.weight_own:
            print("Own pairs are only measured; to learn from them, set weight_own above 0.")
    return Pairs(
        config, faces, own=own,
        fits=_prepare_fits(config, faces, folder, device, drive) if weights["fit"] else None,
        novel_views=load_novel_views("train", config.resolution) if weights["novel_view"] else None)


def load_novel_views(split: str, resolution: int, views: str | None = None) -> StoredPairs:
    """The embedded novel-view pairs of "train" or "test"; of "interpolated" views, say, or all."""
    store = ImageStore(NOVEL_VIEWS, ("degraded", "clean"))
    rows = [row for row, entry in enumerate(store.entries)
            if entry["split"] == split and views in (None, entry["views"])]
    return StoredPairs(store, rows, resolution)


def _prepare_fits(config: Config, faces: Faces, folder: Path, device: torch.device | str,
                  drive: Path | None) -> StoredPairs:
    """Fit the first training faces; each fit follows from the run's seed and its face."""
    entries = faces.train[:config.fit_samples]
    names = [str(entry.get("pixels", entry["file"])) for entry in entries]
    name = (f"fits-{config.resolution}px-{len(entries)}-"
            f"{derive_number('fit', VERSION, config.seed, *names):016x}")

    def make(done: list[Entry], _: dict[str, str]) -> Iterator[Row]:
        for index in progress(range(len(done), len(entries)), total=len(entries),
                              initial=len(done), desc="Fitting faces", unit="face"):
            seed = torch.tensor([derive_number("fitted", config.seed, names[index])])
            degraded = underfit(faces.load("train", [index])[0].to(device), seed)
            yield {"identity": entries[index]["identity"]}, {"degraded": to_pil(degraded[0])}

    store = prepare_store(folder / name, ("degraded",), make, drive=drive)
    return StoredPairs(store, list(range(len(store))), config.resolution,
                       lambda rows: faces.load("train", rows)[0])
