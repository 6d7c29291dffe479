"""Which kind of pair each training sample is, and all kinds in one batch.

A sample's kind, and all that is random in it, follows from its seed alone, and that from the run's
seed and the sample's position (`faces.draw_batch`): a resumed run takes the very same pairs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import Config, PairsConfig
from ..degradation import degrade, draw_amounts
from ..errors import refused
from ..faces import Faces
from ..machine import Bar
from ..splats import Draws
from ..storage import own_path
from .fitted import prepare_fitted
from .own import prepare_own
from .pair import KINDS, PairSource
from .rendered import RenderedPairs

Sources = Mapping[str, PairSource]  # kind → where it comes from; drawn pairs need none


def shares(settings: PairsConfig) -> dict[str, float]:
    """The share of each kind, in the order of KINDS; their sum is 1.

    Raises:
        ValueError: own pairs are wanted, but no folder is given.
    """
    if settings.own_share and not settings.own.strip():
        raise refused("pairs.own", "a folder, for pairs.own_share is above 0", settings.own,
                      "give one, or set pairs.own_share to 0")
    weights = (settings.drawn, settings.fitted, settings.rendered, settings.own_share)
    return {kind: weight / sum(weights) for kind, weight in zip(KINDS, weights, strict=True)}


def draw_kinds(settings: PairsConfig, seeds: Tensor) -> list[str]:
    """The kind of each sample, by its own seed.

    Args:
        seeds: int64 (B,).
    """
    wanted = {kind: share for kind, share in shares(settings).items() if share}
    bounds = list(accumulate(wanted.values()))
    dice = Draws(seeds.tolist(), "kind of pair", "cpu").uniform(1)[:, 0].tolist()
    return [next((kind for kind, bound in zip(wanted, bounds, strict=True) if place < bound),
                 list(wanted)[-1]) for place in dice]  # the last bound may be rounded below 1


def prepare_pairs(config: Config, faces: Faces, folder: Path, *, device: torch.device | str = "cpu",
                  drive: Path | None = None,
                  progress: Callable[..., Iterable[Any]] | None = Bar) -> PreparedPairs:
    """Make or open all sources that a config asks for, once.

    Args:
        config: of the run.
        faces: prepared.
        folder, device, drive, progress: as for `faces.prepare`.

    Returns:
        Kind → source, for `draw_pairs`; own pairs also where they are only measured.

    Raises:
        ValueError: a source refuses.
    """
    wanted, settings = shares(config.pairs), config.pairs
    sources = PreparedPairs()
    sources.made_by = made_by(config, faces)
    if wanted["fitted"]:
        sources["fitted"] = prepare_fitted(settings, faces, folder, seed=config.run.seed,
                                           device=device, drive=drive, progress=progress)
    if wanted["rendered"]:
        sources["rendered"] = RenderedPairs(config.data.size_px)
    if settings.own.strip():
        sources["own"] = prepare_own(settings, config.data.size_px, folder, drive=drive,
                                     progress=progress, faces=faces)
        if not wanted["own"]:
            print("pairs: own ones are named but have no share: they are only measured; give "
                  "pairs.own_share (in the notebook OWN) more than 0 to learn from them")
    return sources


def trained_on(faces: Faces, sources: Sources, settings: PairsConfig) -> str:
    """Name the photographs that training sees, so that none of them is held out later.

    Fitted pairs are of the same faces, and rendered ones of heads that no photograph shows.
    """
    own = sources.get("own") if shares(settings)["own"] else None
    return faces.trained_on if own is None else f"{faces.trained_on}, {own.trained_on}"


def known_as(faces: Faces, sources: Sources, settings: PairsConfig) -> tuple[str, ...]:
    """`trained_on`, and what older checkpoints call the same photographs."""
    now = trained_on(faces, sources, settings)
    return tuple(dict.fromkeys((now, now.replace(faces.trained_on, faces.formerly))))


def made_by(config: Config, faces: Faces) -> dict[str, Any]:
    """The settings that the sources of a config depend on, by name."""
    wanted, settings = shares(config.pairs), config.pairs
    found: dict[str, Any] = {f"pairs of kind {kind}": True for kind, share in wanted.items()
                             if share and kind != "drawn"}
    if wanted["fitted"]:
        found |= {"data": faces.store.name, "run.seed": config.run.seed,
                  "pairs.fitted_faces": min(settings.fitted_faces, len(faces.train))}
    if wanted["rendered"] or settings.own.strip():
        found["data.size_px"] = config.data.size_px
    if settings.own.strip():
        found |= {"pairs.own": os.path.realpath(own_path(settings.own)), "data": faces.store.name,
                  "pairs.own_held_out": settings.own_held_out}
    return found


def with_shares(config: Config, before: PairsConfig, own: str = "", **form: float) -> Config:
    """The config with a form's shares and folder of own pairs; what the form leaves is as before.

    Args:
        before: what stands where all shares are 0, or no folder is given.
        own: the folder.
        form: `drawn`, `fitted`, `rendered`, `own_share`.
    """
    pairs = replace(before, **form) if any(form.values()) else before
    return replace(config, pairs=replace(pairs, own=own) if own.strip() else pairs)


class PreparedPairs(dict[str, PairSource]):
    """The sources of a run, which know the settings they were made by; see `made_by`."""

    made_by: Mapping[str, Any] | None = None


def draw_pairs(config: Config, sources: Sources, drawn: tuple[Tensor, Tensor, Tensor],
               device: torch.device | str) -> tuple[Tensor, Tensor, list[str]]:
    """The pairs of a batch, of all kinds that the config's shares ask for.

    Args:
        config: shares and drawn damage.
        sources: of the kinds other than drawn, from `prepare_pairs`.
        drawn: clean, regions and sample seeds, from `faces.draw_batch`.
        device: where images are damaged and wanted.

    Returns:
        clean and degraded, each (B, 3, H, W) in [0, 1] on the device, and the kinds (B).

    Raises:
        ValueError: a kind without a source, or one of another size.
    """
    clean, regions, seeds = drawn
    clean, regions = clean.to(device), regions.to(device)
    kinds = draw_kinds(config.pairs, seeds)
    parts = {kind: [i for i, other in enumerate(kinds) if other == kind] for kind in KINDS}
    found_clean, degraded = torch.empty_like(clean), torch.empty_like(clean)
    for kind, rows in parts.items():
        if rows and kind == "drawn":
            amounts = draw_amounts(config.degrade, seeds[rows])
            found_clean[rows] = clean[rows]
            degraded[rows] = degrade(clean[rows], regions[rows], config.degrade, seeds[rows],
                                     amounts=amounts)
        elif rows:
            pair = _draw(kind, sources, seeds[rows], clean.shape[1:])
            degraded[rows], found_clean[rows] = (side.to(device) for side in pair)
    return found_clean, degraded, kinds


def draw_each(config: Config, sources: Sources, drawn: tuple[Tensor, Tensor, Tensor],
              device: torch.device | str = "cpu") -> dict[str, tuple[Tensor, Tensor]]:
    """The same samples as pairs of each kind that training uses, to look at.

    Args:
        config, sources, drawn, device: as for `draw_pairs`.

    Returns:
        Kind → degraded and clean, each (B, 3, H, W) in [0, 1].
    """
    found = {}
    for kind in [kind for kind, share in shares(config.pairs).items() if share]:
        alone = {("own_share" if name == "own" else name): float(name == kind) for name in KINDS}
        only = replace(config, pairs=replace(config.pairs, **alone))
        clean, degraded, _ = draw_pairs(only, sources, drawn, device)
        found[kind] = degraded, clean
    return found


def _draw(kind: str, sources: Sources, seeds: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    if kind not in sources:
        raise refused("sources", f"one of {kind} pairs, for pairs.{kind} is above 0",
                      sorted(sources), "pass what prepare_pairs returned")
    degraded, clean = sources[kind].draw(seeds)
    if not degraded.shape == clean.shape == (len(seeds), *shape):
        raise refused(f"{kind} pairs", f"pictures of shape {tuple(shape)}",
                      (tuple(degraded.shape), tuple(clean.shape)),
                      "make them of data.size_px")
    return degraded, clean
