"""The test sets: pairs that no training saw, made once per seed: the same for every checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from ..config import Config, DegradeConfig
from ..degradation import DAMAGE, damage, degrade
from ..faces import Faces, Head
from ..machine import Bar
from ..pairs import OwnPairs, load_fits, render_pair
from ..splats import GAUSSIANS, STEPS, fit_splats
from .batch import BATCH, Batch, as_bytes, keep_batch

HELD_OUT_SEED = 900_000  # image i of the test set is degraded by this seed plus i
FITTED_SEED = 800_000  # and fitted by this seed plus i
FIRST_VIEW = 1_000  # of the test heads; views of training heads are drawn by sample seeds
VERSION = 1  # raised whenever a set becomes another by the same settings


@dataclass(frozen=True)
class _Set:
    """How the batches of a set are made, each from some of its images, and what that follows from.

    A set without a recipe is not kept: what it is made from lies on the disk already.
    """

    groups: list[list[int]]
    make: Callable[[list[int]], Batch]
    recipe: dict[str, Any] | None = None


class HeldOut(Mapping[str, Iterator[Batch]]):
    """All test sets of a run, by name; each look-up begins its set anew.

    `rendered_outside` and `rendered_inside` (3D fits of heads nobody trained on, from views beyond
    and within the arc of their cameras), `fitted` (Gaussians fitted to the held-out faces by a
    recipe that no training pair has), `drawn` (the damage of training, in full), `drawn_<preset>`
    (a damage that training did not draw), `clean` (nothing to repair), and `own`, if there are any.

    Pictures have 8 bits, as files have them, so that what `write_sets` writes is what is measured.

    Args:
        config: of the run.
        faces: prepared.
        device: where pictures are made and wanted.
        folder: keeps the sets that take long to make.
        own: the user's own pairs, of which some are held out.
    """

    def __init__(self, config: Config, faces: Faces, *, device: torch.device | str, folder: Path,
                 own: OwnPairs | None = None) -> None:
        self.config, self.faces, self.device, self.folder = config, faces, device, folder
        self._sets = {
            "rendered_outside": self._rendered(inside=False),
            "rendered_inside": self._rendered(inside=True),
            "fitted": self._fitted(),
            "drawn": self._drawn(config.degrade, len(faces.test)),
            **self._drawn_otherwise(),
            "clean": _Set(_grouped(len(faces.test)), partial(untouched, faces))}
        self.origin = {  # all that the sets follow from
            "version": VERSION, "faces": faces.store.name, "data": asdict(config.data),
            "degrade": asdict(config.degrade), "own": own.store.name if own else "",
            "own_held_out": config.pairs.own_held_out}
        if own:
            self._sets["own"] = _Set(_grouped(len(own.held_out)), partial(own_pairs, own))

    def __getitem__(self, name: str) -> Iterator[Batch]:
        return self._batches(name, self._sets[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._sets)

    def __len__(self) -> int:
        return len(self._sets)

    def count(self, name: str) -> int:
        """How many images a set has."""
        return sum(map(len, self._sets[name].groups))

    def _batches(self, name: str, one: _Set) -> Iterator[Batch]:
        for group in Bar(one.groups, desc=name.replace("_", " "), unit="batch", delay=2):
            if one.recipe is None:
                batch = one.make(group)
            else:
                recipe = json.dumps([VERSION, one.recipe, group])
                batch = keep_batch(self.folder, name, group[0], recipe, partial(one.make, group))
            yield batch.to(self.device)

    def _rendered(self, *, inside: bool) -> _Set:
        views, size_px = self.config.data.rendered_views, self.config.data.size_px
        fits = load_fits("test")
        recipe = {"heads": [fit.recipe.identity for fit in fits], "views": views, "inside": inside,
                  "size_px": size_px}
        return _Set(_grouped(len(fits) * views), partial(
            rendered_views, fits, inside=inside, views=views, size_px=size_px), recipe)

    def _drawn(self, settings: DegradeConfig, count: int) -> _Set:
        recipe = {"faces": self.faces.store.name, "damage": asdict(settings)}
        return _Set(_grouped(count), partial(drawn_pairs, self.faces, settings,
                                             device=self.device), recipe)

    def _drawn_otherwise(self) -> dict[str, _Set]:
        """Another preset than the run's: the heaviest that differs."""
        name = next(name for name in ("heavy", "splat", *DAMAGE)
                    if damage(name) != self.config.degrade)
        return {f"drawn_{name}": self._drawn(damage(name), self._few)}

    def _fitted(self) -> _Set:
        scale = self.config.data.size_px / 512  # fewer pixels take fewer Gaussians, settled earlier
        effort = {"gaussians": round(GAUSSIANS * scale), "steps": round(STEPS * scale**0.5)}
        recipe = {"faces": self.faces.store.name} | effort
        return _Set(_grouped(self._few), partial(underfitted_pairs, self.faces,
                                                 device=self.device, **effort), recipe)

    @property
    def _few(self) -> int:
        return min(self.config.data.fitted_images, len(self.faces.test))


def held_out_pairs(config: Config, faces: Faces, *, device: torch.device | str,
                   batch: int = BATCH) -> Iterator[Batch]:
    """Yield held-out faces under the drawn damage, at the full strength of the config.

    Face i is always degraded by the same seed.
    """
    for group in _grouped(len(faces.test), batch):
        yield drawn_pairs(faces, config.degrade, group, device=device).to(device)


def drawn_pairs(faces: Faces, settings: DegradeConfig, rows: Sequence[int], *,
                device: torch.device | str = "cpu") -> Batch:
    """Held-out faces under a drawn damage in full, each by the seed of its place."""
    clean, regions = (x.to(device) for x in faces.load("test", rows))
    seeds = torch.tensor([HELD_OUT_SEED + i for i in rows])
    degraded = as_bytes(degrade(clean, regions, settings, seeds))
    return Batch(clean, degraded, _keys(faces, rows), _names(rows), regions)


def underfitted_pairs(faces: Faces, rows: Sequence[int], *, gaussians: int, steps: int,
                      device: torch.device | str) -> Batch:
    """Held-out faces as Gaussians fitted and stopped early, by a recipe never trained on."""
    clean, regions = (x.to(device) for x in faces.load("test", rows))
    seeds = torch.tensor([FITTED_SEED + i for i in rows])
    fitted = as_bytes(fit_splats(clean, gaussians, steps, seeds=seeds))
    return Batch(clean, fitted, _keys(faces, rows), _names(rows), regions)


def rendered_views(fits: Sequence[Any], rows: Sequence[int], *, inside: bool, views: int,
                   size_px: int) -> Batch:
    """True splat renders of fitted heads, `views` of each in a row.

    Args:
        fits: of heads nobody trained on.
        rows: which of all views.
        inside: within the arc of the views that were fitted, or beyond it.
        size_px: side of the pictures.
    """
    triples, who = [], []
    for place, view in (divmod(row, views) for row in rows):
        identity = fits[place].recipe.identity
        triples.append(render_pair(fits[place], FIRST_VIEW + view, inside=inside, size_px=size_px,
                                   head=_head(identity, size_px)))
        who.append(f"head {identity}")
    degraded, clean, regions = (torch.stack(side) for side in zip(*triples, strict=True))
    return Batch(as_bytes(clean), as_bytes(degraded), who, _names(rows), regions)


def untouched(faces: Faces, rows: Sequence[int]) -> Batch:
    """Held-out faces as if they were renders: what is good must come out as it went in."""
    clean, regions = faces.load("test", rows)
    return Batch(clean, clean, _keys(faces, rows), _names(rows), regions)


def own_pairs(own: OwnPairs, rows: Sequence[int]) -> Batch:
    """The user's held-out pairs; the regions of their photographs are not known."""
    places = [own.held_out[row] for row in rows]
    degraded, clean = own.load(places)
    return Batch(clean, degraded, [own.photos[place] for place in places], _names(rows))


_head = lru_cache(maxsize=32)(Head.of)  # seen from inside the arc and from outside


def _grouped(count: int, size: int = BATCH) -> list[list[int]]:
    return [list(range(i, min(i + size, count))) for i in range(0, count, size)]


def _keys(faces: Faces, rows: Sequence[int]) -> list[str]:
    """An identity each: a data set of photographs does not tell who is who."""
    return list(faces.test.select(rows)["key"])


def _names(rows: Sequence[int]) -> list[str]:
    return [f"{row:04d}" for row in rows]
