"""One pass over a set: restore, measure beside doing nothing and a filter, keep some pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..distances import Metrics
from ..errors import refused
from ..faces import REGIONS, derive_number
from .batch import Batch
from .filters import Filter
from .result import Result, Row
from .rows import Rows

# Restored (B, 3, H, W), alone or with the mask (B, 1, H, W) that says where
Restore = Callable[[Batch], Tensor | tuple[Tensor, Tensor]]
SHOWN = {"random": 3, "best": 2, "worst": 3}  # how many of each a sheet shows, in this order


@dataclass(frozen=True)
class Shown:
    """One image, to be looked at: uint8 (3, H, W) each; mask and regions (H, W) where known."""

    degraded: Tensor
    restored: Tensor
    clean: Tensor
    mask: Tensor | None = None
    regions: Tensor | None = None


@dataclass(frozen=True)
class Measured:
    """What a pass over a set gave."""

    result: Result
    pictures: dict[str, Shown] = field(default_factory=dict)  # by image, those that `pick` names


def measure(name: str, restore: Restore, pairs: Iterable[Batch], metrics: Metrics, *,
            cheap: Filter | None = None, rows: Rows | None = None) -> Measured:
    """Measure restored pictures of a set, next to doing nothing and a cheap filter.

    Args:
        name: of the set.
        restore: a batch → restored, as large as its pictures, perhaps with the mask.
        pairs: the batches of the set.
        metrics: what is measured; the first one ranks.
        cheap: the filter; None leaves it out.
        rows: what is there already is not measured again, and each new row is kept.

    Returns:
        The result, and the pictures of the images that `pick` names. A figure that is not finite is
        kept as it is, and named in the summary: PSNR of equal pictures is infinite; of a restored
        picture that is not finite itself, all figures are NaN.

    Raises:
        ValueError: no pairs, or `restore` changed the shape.
    """
    found: list[Row] = []
    pictures: dict[str, Shown] = {}
    for batch in pairs:
        kept = [rows.read(name, image) if rows else None for image in batch.images]
        if None in kept:  # all of it, so that no figure depends on where it was interrupted
            restored, mask = _restored(restore, batch)
            kept = _measured(batch, restored, metrics, cheap)
            for row in kept if rows else ():
                rows.write(name, row)
            pictures |= _shown(batch, restored, mask)
        found += kept
        wanted = {image for images in pick(Result.of(found)).values() for image in images}
        pictures = {image: shown for image, shown in pictures.items() if image in wanted}
    return Measured(Result.of(found), pictures)


def evaluate(enhance: Callable[[Tensor], Tensor], pairs: Iterable[Batch],
             metrics: Metrics) -> Result:
    """Measure an enhancer on held-out pairs, next to doing nothing.

    Args:
        enhance: degraded (B, 3, H, W) in [0, 1] → restored, same shape.
        pairs, metrics: as for `measure`.
    """
    return measure("pairs", lambda batch: enhance(batch.degraded), pairs, metrics).result


def show_again(measured: Measured, restore: Restore, pairs: Iterable[Batch]) -> Measured:
    """Add the pictures that are missing because an interrupted pass had measured them."""
    wanted = {image for images in pick(measured.result).values() for image in images}
    missing = wanted - measured.pictures.keys()
    pictures = dict(measured.pictures)
    for batch in pairs if missing else ():
        if missing & set(batch.images):
            again = _shown(batch, *_restored(restore, batch))
            pictures |= {image: shown for image, shown in again.items() if image in missing}
    return Measured(measured.result, pictures)


def pick(result: Result) -> dict[str, list[str]]:
    """Which images a sheet shows: random ones by their names, then the best, then the worst.

    Of a part of a set it names at least those of the part that it names of the whole.
    """
    names, order = result.called, [result.called[i] for i in result.order()]
    found, left = {}, set(names)
    for kind, ordered in (("random", sorted(names, key=lambda n: derive_number("shown", n))),
                          ("best", order), ("worst", order[::-1])):
        found[kind] = [name for name in ordered if name in left][:SHOWN[kind]]
        left -= set(found[kind])
    return found


def _restored(restore: Restore, batch: Batch) -> tuple[Tensor, Tensor | None]:
    with torch.no_grad():
        made = restore(batch)
    restored, mask = made if isinstance(made, tuple) else (made, None)
    shapes = [tuple(x.shape) for x in (batch.clean, batch.degraded, restored)]
    if len(set(shapes)) > 1:
        raise refused("images", "clean, degraded and restored of one shape", shapes,
                      "check what restores them")
    return restored, mask


def _measured(batch: Batch, restored: Tensor, metrics: Metrics, cheap: Filter | None) -> list[Row]:
    whole = restored.flatten(1).isfinite().all(1)
    kinds = {"degraded": batch.degraded} | (
        {"filtered": cheap(batch.degraded)} if cheap else {}) | {
        "restored": torch.where(whole.view(-1, 1, 1, 1), restored, 0.0)}
    figures = metrics.each(kinds, batch.clean, degraded=batch.degraded, regions=batch.regions,
                           labels=REGIONS)
    for name, values in figures["restored"].items():
        figures["restored"][name] = [value if fine else float("nan") for value, fine
                                     in zip(values, whole.tolist(), strict=True)]
    return [Row(image, identity, {kind: {name: values[i] for name, values in of.items()}
                                  for kind, of in figures.items()})
            for i, (image, identity) in enumerate(zip(batch.images, batch.identities, strict=True))]


def _shown(batch: Batch, restored: Tensor, mask: Tensor | None) -> dict[str, Shown]:
    degraded, restored, clean = map(_to_bytes, (batch.degraded, restored, batch.clean))
    masks: Sequence[Tensor | None] = [None] * len(batch) if mask is None else _to_bytes(mask[:, 0])
    regions = [None] * len(batch) if batch.regions is None else batch.regions.cpu()
    return {image: Shown(*parts) for image, *parts in zip(
        batch.images, degraded, restored, clean, masks, regions, strict=True)}


def _to_bytes(images: Tensor) -> Tensor:
    return images.detach().float().nan_to_num(0).clamp(0, 1).mul(255).round().byte().cpu()
