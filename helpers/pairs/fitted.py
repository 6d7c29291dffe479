"""Fitted pairs: training faces beside their underfitted renders, made once and kept.

**What it costs.** At 128 px the demo's 64 faces took 18.4 s of one CPU core (12.2 steps and 1,080
Gaussians on average, 0.29 s a face). At 512 px recipes have 24.4 steps and 4,330 Gaussians on
average. A step of one with 4,840, counted over its 31 steps with forward, backward, Adam and the
last render: 607 kernels, 7 synchronisations, 6.7 GB read and written, 0.35 GFLOP in float64, 0.26
in float32. *Estimated* on a T4, nothing overlapping: 6.7 GB at 70 % of 320 GB/s, 30 ms; 607
kernels at 15 µs from Python, 9 ms; float64 at 0.25 TFLOP/s, 1.4 ms: 41 ms. So 350 photographs take
350 · 24.4 · 41 ms = 350 s, and 10 s for PNG: 6 minutes. Not measured on a GPU.

A render is kept as PNG, in steps of 1/255, in one Arrow folder that grows in groups of four; the
clean side is the face itself, so that nothing is stored twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..config import PairsConfig
from ..faces import (
    IMAGE_ERRORS,
    Faces,
    PartialStore,
    as_prepared,
    derive_number,
    from_pngs,
    open_rows,
    read_column,
    read_contents,
    to_png,
)
from ..machine import Bar
from ..storage import keep, make_once
from .pair import pick
from .underfit import VERSION, fit_poorly

COLUMNS = ("degraded",)  # of the Arrow folder, beside the face's key and split


class FittedPairs:
    """The fitted pairs of a run: a `PairSource`, read from its Arrow folder.

    Args:
        store: the folder.
        faces: whose first training faces were fitted.

    Raises:
        ValueError: a damaged folder, or one made of other faces.
    """

    kind = "fitted"

    def __init__(self, store: Path, faces: Faces) -> None:
        read_contents(store)
        self.store, self.faces = store, faces
        self.rows = open_rows(store)
        keys = list(read_column(self.rows, "key"))
        with as_prepared(store):
            if keys != list(faces.train["key"][:len(keys)]):
                raise ValueError("fits of other faces")

    def __len__(self) -> int:
        return len(self.rows)

    def load(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Decode some pairs: degraded and clean, each float32 (B, 3, H, W) in [0, 1].

        Raises:
            ValueError: a pair that is no longer what was written.
        """
        with as_prepared(self.store, f", {list(indices)}", IMAGE_ERRORS):
            degraded = from_pngs(self.rows[list(indices)]["degraded"])
        return degraded, self.faces.load("train", indices)[0]

    def draw(self, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """See `PairSource.draw`; half of the pairs are mirrored, as drawn ones are."""
        pairs = self.load(pick(seeds, len(self), self.kind))
        mirrored = (seeds % 2 == 1).view(-1, 1, 1, 1)
        degraded, clean = (torch.where(mirrored, side.flip(-1), side) for side in pairs)
        return degraded, clean


def prepare_fitted(settings: PairsConfig, faces: Faces, folder: Path, *, seed: int = 0,
                   device: torch.device | str = "cpu", drive: Path | None = None,
                   progress: Callable[..., Iterable[Any]] | None = Bar) -> FittedPairs:
    """Fit the first training faces once; later calls only check and open what was made.

    However it is interrupted, the next call goes on from the last group that it kept.

    Args:
        settings: how many faces; at most as many as there are to train on.
        faces: prepared.
        folder: where Arrow folders are kept.
        seed: of all fits; each follows from it and its face's key.
        device: where they are fitted.
        drive: a folder on Drive that keeps a copy for the machine of the next session.
        progress: wraps the loop as `tqdm` does; None shows nothing.

    Raises:
        ValueError: a damaged folder.
        OSError: the disk is full; what is done is kept.
    """
    keys = list(faces.train["key"][:settings.fitted_faces])
    origin = derive_number("fitted", VERSION, seed, faces.store.name, *keys)
    store = Path(folder) / f"fitted-{len(keys)}-{origin:016x}"

    def make() -> None:
        partial = PartialStore(store, COLUMNS, "fitted faces", known_by="")
        done = len(partial.place.done)  # they are made in order
        rows: Iterable[dict[str, Any]] = _fitted(keys, done, faces, seed, device)
        if progress:
            rows = progress(rows, total=len(keys), initial=done, desc="Fitting faces", unit="face")
        partial.fill(rows)
        partial.seal()

    make_once(store, drive, make)
    pairs = FittedPairs(store, faces)
    keep(store, drive)
    return pairs


def _fitted(keys: Sequence[str], done: int, faces: Faces, seed: int,
            device: torch.device | str) -> Iterator[dict[str, Any]]:
    """Rows of the store, from the first that is not done."""
    for i in range(done, len(keys)):
        clean = faces.load("train", [i])[0].to(device)
        own = torch.tensor([derive_number(seed, "fitted", keys[i])])
        pixels = fit_poorly(clean, own)[0].mul(255).round().byte().permute(1, 2, 0).cpu()
        yield {"key": keys[i], "degraded": to_png(Image.fromarray(pixels.contiguous().numpy())),
               "split": "train"}
