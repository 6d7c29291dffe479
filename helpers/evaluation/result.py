"""What was measured of one set: a value per image, and how these are summed up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import refused
from ..faces import REGIONS

KINDS = ("degraded", "filtered", "restored")  # doing nothing, a cheap filter, the enhancer
HIGHER_IS_BETTER = ("psnr", "ssim", "identity",
                    "identity_to_input")  # gain is a difference; of all others, a percentage

Columns = dict[str, list[float]]  # metric → one value per image


@dataclass(frozen=True)
class Row:
    """One image: its name in the set, whose it is, and kind → metric → value."""

    image: str
    identity: str
    figures: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Result:
    """Metric → one value per image, for doing nothing, the enhancer, and a filter if there is one.

    A metric `<network>/<region>` is the perceptual distance within a region of the face, NaN in a
    picture that has nothing of it.
    """

    degraded: Columns
    restored: Columns
    identities: list[str] = field(default_factory=list)  # whose each image is; empty: all differ
    filtered: Columns = field(default_factory=dict)
    images: list[str] = field(default_factory=list)  # their names; empty: their numbers

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Result:
        """The same as columns.

        Raises:
            ValueError: no rows.
        """
        if not rows:
            raise refused("pairs", "at least one batch", None, "raise data.test_images")
        columns = {kind: {name: [row.figures[kind][name] for row in rows] for name in metrics}
                   for kind, metrics in rows[0].figures.items()}
        return cls(identities=[row.identity for row in rows], images=[row.image for row in rows],
                   **columns)

    @property
    def n(self) -> int:
        """How many images were measured."""
        return len(next(iter(self.degraded.values())))

    @property
    def names(self) -> list[str]:
        """The metrics of whole pictures; the first one ranks."""
        return [name for name in self.degraded if "/" not in name]

    @property
    def who(self) -> list[str]:
        """Whose each image is."""
        return self.identities or [str(i) for i in range(self.n)]

    @property
    def called(self) -> list[str]:
        """The name of each image."""
        return self.images or [f"{i:04d}" for i in range(self.n)]

    @cached_property
    def gain(self) -> Columns:
        """The improvement per image, positive where restored is better; see `gain`."""
        return {name: gain(name, self.degraded[name], self.restored[name]) for name in self.names}

    def summary(self) -> dict[str, Any]:
        """`{n, identities, degraded, filtered, restored, gain, gain_filtered, over_filter,
        share_worse, worst, undefined}`.

        The six in the middle are metric → `summarise(...)`, a metric without a finite value being
        left out (of clean pictures doing nothing has no PSNR). `share_worse`: metric → the share of
        images with a gain below 0. `worst`: the image that lost most, or gained least, by the
        metric that ranks. `undefined`: kind and metric → the images that have no finite value.
        """
        return self._summary

    @cached_property
    def _summary(self) -> dict[str, Any]:
        parts = _parts(self._columns(self.names), self.who)
        return {"n": self.n, "identities": len(set(self.who))} | parts | {
            "worst": self._worst(), "undefined": self._undefined()}

    def regions(self) -> dict[str, Any]:
        """Region → `n`, the pictures that show it, and the same parts as in `summary`, of the
        perceptual distances within it.
        """
        found = {}
        for region in REGIONS:
            names = {name: f"{name}/{region}" for name in self.names
                     if f"{name}/{region}" in self.degraded}
            seen = [bool(names) and bool(np.isfinite(self.degraded[full][i]))
                    for full in list(names.values())[:1] for i in range(self.n)]
            if any(seen):
                columns = {kind: {name: of[full] for name, full in names.items()}
                           for kind, of in self._columns(names.values()).items()}
                found[region] = {"n": sum(seen)} | _parts(columns, self.who)
        return found

    def order(self) -> list[int]:
        """The images from the most improved to the most worsened, those without a figure last."""
        metric = self.names[0]
        change = np.subtract(self.restored[metric], self.degraded[metric])
        change = -change if metric in HIGHER_IS_BETTER else change
        return np.argsort(np.where(np.isfinite(change), change, np.inf), kind="stable").tolist()

    def _columns(self, names: Iterable[str]) -> dict[str, Columns]:
        names = list(names)
        return {kind: {name: of[name] for name in names} for kind in KINDS
                if (of := getattr(self, kind))}

    def _worst(self) -> dict[str, Any] | None:
        metric, order = self.names[0], self.order()
        order = [i for i in order if np.isfinite(self.restored[metric][i])]
        if not order:
            return None
        last = order[-1]
        return {"image": self.called[last], "identity": self.who[last], "metric": metric} | {
            kind: of[metric][last] for kind, of in self._columns([metric]).items()}

    def _undefined(self) -> dict[str, list[str]]:
        return {f"{kind} {name}": [self.called[i] for i in np.flatnonzero(~np.isfinite(values))]
                for kind, of in self._columns(self.names).items() for name, values in of.items()
                if not np.isfinite(values).all()}


def gain(name: str, degraded: Sequence[float], restored: Sequence[float]) -> list[float]:
    """The improvement of each image, positive where restored is better.

    Psnr and ssim: the difference. Distances (lower is better): the decrease, in percent of the
    degraded images' mean, so that the mean gain is the decrease of the mean, and an image that was
    hardly degraded cannot dominate it. NaN where that is undefined: nothing was degraded.
    """
    before, after = (np.asarray(values, dtype=np.float64) for values in (degraded, restored))
    measured = before[np.isfinite(before) & np.isfinite(after)]
    with np.errstate(invalid="ignore", divide="ignore"):
        better = after - before if name in HIGHER_IS_BETTER else \
            100 * (before - after) / (measured.mean() if measured.size else np.nan)
    return np.where(np.isfinite(better), better, np.nan).tolist()


def summarise(values: Sequence[float], identities: Sequence[str]) -> dict[str, Any]:
    """Describe a metric over images.

    Args:
        values: one per image, at least one of them finite.
        identities: whose each image is.

    Returns:
        `mean`, `median`, `std` (of these images: divided by n) and `ci95`, [low, high]: the 95 %
        interval of the mean, by percentile bootstrap over identities (Efron 1979), always the same:
        images of one person say less than as many of different ones. Where a value is not finite,
        `undefined` counts them, and the rest is of the others.

    Raises:
        ValueError: no finite value, or identities of another number.
    """
    sample, who = np.asarray(values, dtype=np.float64), np.asarray(identities)
    defined = np.isfinite(sample)
    if sample.ndim != 1 or sample.shape != who.shape or not defined.any():
        raise refused("values", "numbers, one per image, with an identity each, some finite",
                      (values, len(identities)), "drop what could not be measured")
    _, owner = np.unique(who[defined], return_inverse=True)
    sample = sample[defined]
    sums, counts = np.bincount(owner, sample), np.bincount(owner)
    chosen = np.random.default_rng(0).integers(len(sums), size=(2_000, len(sums)))
    means = sums[chosen].sum(1) / counts[chosen].sum(1)
    summary = {"mean": float(sample.mean()), "median": float(np.median(sample)),
               "std": float(sample.std()), "ci95": np.percentile(means, (2.5, 97.5)).tolist()}
    return summary | ({"undefined": int((~defined).sum())} if not defined.all() else {})


def _parts(columns: Mapping[str, Columns], who: Sequence[str]) -> dict[str, Any]:
    """Kinds, gains and the share made worse, each metric → summary, in the order of metrics.json.

    Gains are over doing nothing; `over_filter` is what the enhancer gains beyond the filter.
    """
    gains = {("gain" if kind == "restored" else "gain_filtered"): {
        name: gain(name, before, columns[kind][name])
        for name, before in columns["degraded"].items()}
        for kind in ("restored", "filtered") if kind in columns}
    if "filtered" in columns:
        gains["over_filter"] = {name: np.subtract(values, gains["gain_filtered"][name]).tolist()
                                for name, values in gains["gain"].items()}
    parts = {part: {name: summarise(values, who) for name, values in metrics.items()
                    if np.isfinite(values).any()} for part, metrics in {**columns, **gains}.items()}
    worse = {name: np.asarray(gains["gain"][name]) for name in parts["gain"]}
    return parts | {"share_worse": {
        name: float(np.mean(each[np.isfinite(each)] < 0)) for name, each in worse.items()}}
