"""The test sets: pairs that no training saw, the same for every checkpoint of a run.

Pictures have 8 bits, as files have them: what `write_sets` writes for another tool is what is
measured, and `read_restored` takes back what the tool made of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..config import Config, DegradationConfig
from ..data.faces import Faces
from ..data.pairs import Pairs, load_novel_views
from ..data.store import Entry, ImageStore, Row, prepare_store
from ..degradation.pipeline import DEGRADATION_PRESETS, STAGES, degradation_preset, degrade
from ..files import sha256
from ..gaussians.fit import GAUSSIANS, STEPS, fit_splats
from ..images import from_bytes, read_image, to_pil, write_png

BATCH = 4  # pictures that are restored and measured together
SYNTHETIC_SEED, FIT_SEED = 900_000, 800_000  # of the first test face; the next ones follow
VERSION = 2  # raised when a set becomes another by the same settings


@dataclass(frozen=True)
class Batch:
    """Some pairs of a test set."""

    clean: Tensor  # (B, 3, H, W) in [0, 1]; where it is smaller, it is measured in its size
    degraded: Tensor  # (B, 3, H, W) in [0, 1]
    identities: list[str]  # whose each picture is
    names: list[str]  # of each picture within its set
    regions: Tensor | None = None  # uint8 (B, H, W); None where they are not known


@dataclass(frozen=True)
class UnsharpMask:
    """The baseline that anybody would try first."""

    radius: float  # standard deviation of the Gaussian in pixels at 128 px; grows with the picture
    amount: float  # how much of the difference to the blurred picture is added

    def __call__(self, images: Tensor) -> Tensor:
        """Sharpen images (B, 3, H, W) in [0, 1]; shape and range stay."""
        from torchvision.transforms.functional import gaussian_blur

        radius = self.radius * min(images.shape[2:]) / 128
        side = 2 * max(2, round(2.5 * radius)) + 1
        soft = gaussian_blur(images, [side, side], [radius, radius])
        return (images + self.amount * (images - soft)).clamp(0, 1)


CANDIDATES = tuple(UnsharpMask(radius, amount) for radius in (1.0, 2.0) for amount in (0.5, 1.0))


class TestSets(Mapping[str, Iterator[Batch]]):
    """All test sets of a run by name; each look-up begins its set from the start.

    `novel_view_extrapolated` and `novel_view_interpolated`: 3D fits of heads nobody trained on,
    seen beyond and between their cameras. `fit`: 2D Gaussians fitted to held-out faces by a recipe
    that no training pair has. `synthetic`: held-out faces degraded as in training, in full.
    `synthetic_<preset>`: degraded as training was not. `clean`: nothing to repair. `own`: the
    user's held-out pairs, if there are any. `effect <name>`: one effect of the degradation alone.

    Args:
        config, faces, pairs: of the run.
        device: where pictures are wanted.
        folder: keeps the degraded pictures that are made once.
        effects: whether single effects are tested; None: on a GPU, where they take a minute.
    """

    __test__ = False  # pytest takes every class of such a name for tests

    def __init__(self, config: Config, faces: Faces, pairs: Pairs, *,
                 device: torch.device | str, folder: Path, effects: bool | None = None) -> None:
        self.config, self.faces, self.pairs = config, faces, pairs
        self.device, self.folder = torch.device(device), folder
        other = next(name for name in ("heavy", *DEGRADATION_PRESETS)
                     if degradation_preset(name) != config.degradation)
        self._degradations = {"synthetic": config.degradation,
                              f"synthetic_{other}": degradation_preset(other)}
        if self.device.type == "cuda" if effects is None else effects:
            self._degradations |= {f"effect {name}": settings
                                   for name, settings in single_effects().items()}
        self._novel_views = {
            f"novel_view_{views}": load_novel_views("test", config.resolution, views)
            for views in ("extrapolated", "interpolated")}
        every, few = range(len(faces.test)), range(min(config.test_fit_samples, len(faces.test)))
        most = config.max_test_pairs
        self._rows: dict[str, Sequence[int]] = {
            **{name: [i * len(stored) // most for i in range(most)] if len(stored) > most
               else range(len(stored)) for name, stored in self._novel_views.items()},
            "fit": few, **dict.fromkeys(self._degradations, few), "synthetic": every,
            "clean": every, "own": pairs.own.held_out[:most]}
        self._rows = {name: rows for name, rows in self._rows.items() if rows}
        self._face_names = [str(entry.get("pixels", entry["file"])) for entry in faces.test]

    @property
    def recipe(self) -> str:
        """A digest of what all sets follow from."""
        return _digest(self.config.resolution, self._face_names,
                       self.pairs.own.identities(self.pairs.own.held_out),
                       {name: asdict(settings) for name, settings in self._degradations.items()},
                       {name: list(rows) for name, rows in self._rows.items()})

    def __getitem__(self, name: str) -> Iterator[Batch]:
        for first in range(0, len(self._rows[name]), BATCH):
            batch = self._load(name, self._rows[name][first:first + BATCH])
            yield replace(batch, clean=batch.clean.to(self.device),
                          degraded=batch.degraded.to(self.device))

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def _load(self, name: str, rows: Sequence[int]) -> Batch:
        images = [f"{row:04d}" for row in rows]
        if stored := self._novel_views.get(name):
            native_px = stored.store.load(stored.rows[:1], "clean").shape[-1]
            native = replace(stored, resolution=min(native_px, stored.resolution))
            entries, regions = [stored.entries[row] for row in rows], None
            if all("regions" in entry for entry in entries) and native.resolution == native_px:
                regions = stored.store.load([stored.rows[row] for row in rows], "regions")
            return Batch(native.load(rows)[1], stored.load(rows)[0],
                         [str(entry["identity"]) for entry in entries], images, regions)
        if name == "own":
            degraded, clean = self.pairs.own.load(rows)
            return Batch(clean, degraded, self.pairs.own.identities(rows), images)
        clean, regions = self.faces.load("test", rows)
        degraded = clean if name == "clean" else from_bytes(
            self._kept(name).load(rows, "degraded"))
        return Batch(clean, degraded, [str(self.faces.test[row]["identity"]) for row in rows],
                     images, regions)

    def _kept(self, name: str) -> ImageStore:
        """The degraded pictures of a set of held-out faces, made once."""
        settings, rows = self._degradations.get(name), self._rows[name]
        digest = _digest(self._face_names[:len(rows)], settings and asdict(settings))

        def make(done: list[Entry], _: dict[str, str]) -> Iterator[Row]:
            for row in rows[len(done):]:
                image = self._degrade(row, settings) if settings else self._fit(row)
                yield {"identity": self._face_names[row]}, {"degraded": to_pil(image[0])}

        return prepare_store(
            self.folder / f"{name.replace(' ', '_')}-{self.config.resolution}px-{digest[:12]}",
            ("degraded",), make)

    def _degrade(self, row: int, settings: DegradationConfig) -> Tensor:
        clean, regions = (part.to(self.device) for part in self.faces.load("test", [row]))
        return degrade(clean, regions, settings, torch.tensor([SYNTHETIC_SEED + row]))

    def _fit(self, row: int) -> Tensor:
        size = self.config.resolution / 512  # fewer pixels take fewer Gaussians and steps
        clean = self.faces.load("test", [row])[0].to(self.device)
        return fit_splats(clean, round(GAUSSIANS * size), round(STEPS * size**0.5),
                          seeds=torch.tensor([FIT_SEED + row]))


def single_effects() -> dict[str, DegradationConfig]:
    """Settings with one effect alone in full, by its name; the blur of the regions is one."""
    amounts = [name for stage in STAGES for name in stage.amounts]
    none = replace(DegradationConfig(), strength=1.0, **dict.fromkeys(amounts, 0.0))
    groups = {STAGES[0].name: STAGES[0].amounts} | {
        name: (name,) for stage in STAGES[1:] for name in stage.amounts}
    return {name: replace(none, **dict.fromkeys(group, 1.0)) for name, group in groups.items()}


def write_sets(test_sets: TestSets, folder: Path) -> None:
    """Write what is to be restored as `<folder>/<set>/<image>.png`, as it is measured."""
    for name in test_sets:
        for batch in test_sets[name]:
            for image, degraded in zip(batch.names, batch.degraded, strict=True):
                (folder / name).mkdir(parents=True, exist_ok=True)
                write_png(folder / name / f"{image}.png", degraded)


def read_restored(folder: Path, batch: Batch) -> Tensor:
    """Read what a tool restored of a batch: a PNG of the same name and size for each picture."""
    images = [read_image(folder / f"{name}.png")[0] for name in batch.names]
    for name, image in zip(batch.names, images, strict=True):
        if image.shape != batch.degraded.shape[1:]:
            raise ValueError(f"{folder / name}.png: expected {tuple(batch.degraded.shape[1:])}, "
                             f"got {tuple(image.shape)}; scale it to its input's size")
    return torch.stack(images).to(batch.degraded)


def _digest(*values: object) -> str:
    return sha256(json.dumps([VERSION, *values]).encode())
