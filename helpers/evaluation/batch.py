"""A batch of a test set, and how it is kept on the disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..storage import DamagedFile, read_sealed, write_sealed

BATCH = 4  # images that are restored and measured together


@dataclass(frozen=True)
class Batch:
    """Some pairs of a test set.

    Attributes:
        clean, degraded: float32 (B, 3, H, W) in [0, 1].
        identities: whose each picture is.
        images: the name of each picture within its set.
        regions: uint8 (B, H, W), indices of `faces.REGIONS`; None where they are not known.
    """

    clean: Tensor
    degraded: Tensor
    identities: list[str]
    images: list[str]
    regions: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        regions = None if self.regions is None else self.regions.to(device)
        return replace(self, clean=self.clean.to(device), degraded=self.degraded.to(device),
                       regions=regions)


def as_bytes(images: Tensor) -> Tensor:
    """Images in [0, 1], each value at the nearest of 256, as a file has it."""
    return images.mul(255).round().div(255)


def keep_batch(folder: Path, name: str, first: int, recipe: str,
               make: Callable[[], Batch]) -> Batch:
    """Read a batch that was kept, or make it and keep it; of 8-bit pictures nothing is lost.

    Args:
        folder: where sets are kept.
        name: of the set.
        first: the place of the batch's first image in it.
        recipe: all that the batch follows from; another one is another file.
        make: makes it.
    """
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    path = folder / name / f"{first:05d}-{digest}.safetensors"
    with suppress(FileNotFoundError, DamagedFile):
        tensors, texts = read_sealed(path)
        clean, degraded = (tensors[side].float().div(255) for side in ("clean", "degraded"))
        return Batch(clean, degraded, json.loads(texts["identities"]),
                     json.loads(texts["images"]), tensors["regions"])
    batch = make()
    tensors = {"clean": batch.clean, "degraded": batch.degraded}
    tensors = {side: x.mul(255).round().byte().cpu() for side, x in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_sealed(path, tensors | {"regions": batch.regions.cpu()},
                 {"identities": json.dumps(batch.identities), "images": json.dumps(batch.images)})
    return batch
