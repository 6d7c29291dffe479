"""The test sets: pairs that no training saw, by seed alone: the same for every checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..config import Config
from ..degradation import degrade
from ..faces import Faces, Head
from ..machine import Bar
from ..pairs import OwnPairs, load_fits, render_pair
from ..splats import GAUSSIANS, STEPS, fitted_pairs

HELD_OUT_SEED = 900_000  # image i of the test set is degraded by this seed plus i
FIRST_VIEW = 1_000  # of the test heads; views of training heads are drawn by sample seeds

Batch = tuple[Tensor, Tensor, list[str]]  # clean, degraded, each (B, 3, H, W); whose they are


class HeldOut(Mapping[str, Iterator[Batch]]):
    """All test sets of a run, by name; each look-up begins its set anew.

    `rendered_outside` and `rendered_inside` (3D fits of heads nobody trained on, from views beyond
    and within the arc of their cameras), `fitted` (Gaussians fitted to the held-out faces by a
    recipe that no training pair has), `drawn` (the damage of training, in full), `clean` (nothing
    to repair), and `own`, if there are any.

    Args:
        config: of the run.
        faces: prepared.
        device: where pictures are made and wanted.
        folder: keeps the fitted renders, which take long to make.
        own: the user's own pairs, of which some are held out.
    """

    def __init__(self, config: Config, faces: Faces, *, device: torch.device | str, folder: Path,
                 own: OwnPairs | None = None) -> None:
        options = {"device": device}
        self._sets: dict[str, Callable[[], Iterator[Batch]]] = {
            "rendered_outside": partial(rendered_views, config, inside=False, **options),
            "rendered_inside": partial(rendered_views, config, inside=True, **options),
            "fitted": partial(underfitted_pairs, config, faces, folder=folder, **options),
            "drawn": partial(held_out_pairs, config, faces, **options),
            "clean": partial(untouched, config, faces, **options)}
        if own:
            self._sets["own"] = partial(own.held_out_pairs, **options)

    def __getitem__(self, name: str) -> Iterator[Batch]:
        return self._sets[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._sets)

    def __len__(self) -> int:
        return len(self._sets)


def held_out_pairs(config: Config, faces: Faces, *, device: torch.device | str,
                   batch: int = 4, indices: Sequence[int] | None = None) -> Iterator[Batch]:
    """Yield held-out faces under the drawn damage, at the full strength of the config.

    Face i is always degraded by the same seed.

    Args:
        indices: which faces of the test set; None is all of them.
    """
    wanted = list(range(len(faces.test)) if indices is None else indices)
    groups = [wanted[i:i + batch] for i in range(0, len(wanted), batch)]
    for group in Bar(groups, desc="Held-out faces", unit="batch", delay=2):
        clean, regions = (x.to(device) for x in faces.load("test", group))
        seeds = torch.tensor([HELD_OUT_SEED + i for i in group])
        yield clean, degrade(clean, regions, config.degrade, seeds), _names(faces, group)


def underfitted_pairs(config: Config, faces: Faces, *, device: torch.device | str,
                      folder: Path) -> Iterator[Batch]:
    """Yield the first `data.fitted_images` held-out faces as Gaussians fitted and stopped early.

    Args:
        folder: keeps the renders, which are made only once.
    """
    count = min(config.data.fitted_images, len(faces.test))
    groups = [range(i, min(i + 4, count)) for i in range(0, count, 4)]
    clean = (faces.load("test", group)[0].to(device) for group in groups)
    scale = config.data.size_px / 512  # fewer pixels take fewer Gaussians, which settle earlier
    pairs = fitted_pairs(clean, folder, batches=len(groups), steps=round(STEPS * scale**0.5),
                         gaussians=round(GAUSSIANS * scale))
    for group, (truth, fitted) in zip(groups, pairs, strict=True):
        yield truth, fitted, _names(faces, group)


def rendered_views(config: Config, *, inside: bool, device: torch.device | str,
                   set_name: str = "test") -> Iterator[Batch]:
    """Yield true splat renders: each head of a shipped set, from `data.rendered_views` views.

    Args:
        inside: within the arc of the views that were fitted, or beyond it.
        set_name: "test", or "validation" to choose settings by.
    """
    size_px, views = config.data.size_px, config.data.rendered_views
    where = "inside" if inside else "outside"
    for fit in Bar(load_fits(set_name), desc=f"Rendered heads, {where}", unit="head", delay=2):
        head = Head.of(fit.recipe.identity, size_px)
        pairs = [render_pair(fit, FIRST_VIEW + view, inside=inside, size_px=size_px, head=head)[:2]
                 for view in range(views)]
        degraded, clean = (torch.stack(side).to(device) for side in zip(*pairs, strict=True))
        yield clean, degraded, [f"head {fit.recipe.identity}"] * views


def untouched(config: Config, faces: Faces, *, device: torch.device | str) -> Iterator[Batch]:
    """Yield held-out faces as if they were renders: what is good must come out as it went in."""
    for start in range(0, len(faces.test), 4):
        group = range(start, min(start + 4, len(faces.test)))
        clean = faces.load("test", group)[0].to(device)
        yield clean, clean, _names(faces, group)


def _names(faces: Faces, rows: Sequence[int]) -> list[str]:
    """An identity each: a data set of photographs does not tell who is who."""
    return list(faces.test.select(rows)["key"])
