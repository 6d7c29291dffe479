"""Clean faces with their regions: embedded heads, CelebA-HQ, or a folder of photographs.

`prepare_faces` opens or makes their folder; `draw_batch` draws the batch of a training step.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader

from ..config import ASSETS, Config
from ..environment import progress
from ..images import from_bytes
from .regions import CELEBA_HQ, find_photographs, read_photographs, read_stream, wanted_counts
from .store import Entry, ImageStore, Row, derive_number, prepare_store

HEADS = ASSETS / "heads"
PARTS = ("clean", "regions")
VERSION = 4  # raised whenever a prepared folder of the same name would hold other images


class Faces:
    """The faces of a run, from a folder with the parts "clean" and "regions".

    Attributes:
        train, test: what the index says of each face, its picture as "file".
        trained_on: names the training faces and their order, on every machine alike.
    """

    def __init__(self, store: ImageStore, config: Config) -> None:
        self.store, self.resolution = store, config.resolution
        self._rows = {split: [row for row, entry in enumerate(store.entries)
                              if entry["split"] == split][:count]
                      for split, count in wanted_counts(config).items()}
        counts = {split: len(rows) for split, rows in self._rows.items()}
        if counts != wanted_counts(config):
            raise _too_few(config, counts)
        self.train, self.test = (
            [store.entries[row] | {"file": store.entries[row]["clean"]}
             for row in self._rows[split]] for split in ("train", "test"))
        names = [str(entry.get("pixels", entry["file"])) for entry in self.train]
        self.trained_on = f"{len(names)} faces {derive_number(*names):016x}"

    def __str__(self) -> str:
        return f"{len(self.train)} faces to train on, {len(self.test)} held out"

    def load(self, split: str, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Read some faces of the split "train" or "test".

        Returns:
            clean (B, 3, H, W) float32 in [0, 1] and regions (B, H, W) uint8, on the CPU.
        """
        rows = [self._rows[split][index] for index in indices]
        clean = scale(from_bytes(self.store.load(rows, "clean")), self.resolution)
        regions = self.store.load(rows, "regions")[:, None]
        return clean, interpolate(regions, (self.resolution,) * 2)[:, 0]  # the nearest


def prepare_faces(config: Config, folder: Path, *, device: torch.device | str = "cpu",
                  drive: Path | None = None) -> Faces:
    """Open the embedded heads, or make the folder of a source once.

    Folders are kept in `folder`, and their archives for the next session on `drive`. The face
    parser runs on `device`.
    """
    if config.source == "heads":
        return Faces(ImageStore(HEADS, PARTS), config)
    if config.source == "celeba-hq":
        origin = [CELEBA_HQ, config.seed]
        label, files, masks = "celeba-hq", [], None
    else:
        label, (files, masks) = "photographs", find_photographs(config.source)
        if len(files) < sum(wanted_counts(config).values()):
            raise _too_few(config, f"{len(files)} in all")
        paths = [*files, *(sorted(masks.glob("*.png")) if masks else ())]
        origin = [str((path.name, path.stat().st_size, path.stat().st_mtime)) for path in paths]
    origin += [VERSION, config.max_train_samples, config.max_test_samples]
    name = f"{label}-{config.resolution}px-{derive_number(*origin):016x}"

    def make(done: list[Entry], skipped: dict[str, str]) -> Iterator[Row]:
        rows = (read_stream(config, done, skipped, device) if config.source == "celeba-hq"
                else read_photographs(config, files, masks, done, skipped, device))
        return progress(rows, total=sum(wanted_counts(config).values()), initial=len(done),
                        desc="Preparing faces", unit="image")

    store = prepare_store(folder / name, PARTS, make, drive=drive)
    if label == "photographs":  # those of the lowest hashes are held out, whatever they are called
        by_hash = sorted(store.entries, key=lambda entry: derive_number("split", entry["pixels"]))
        for place, entry in enumerate(by_hash):
            entry["split"] = "test" if place < config.max_test_samples else "train"
    if small := sum(entry["side_px"] < config.resolution for entry in store.entries):
        print(f"Faces: {small} photographs smaller than {config.resolution} px were enlarged: what "
              "is learned from them is soft; use larger ones, or lower resolution.")
    return Faces(store, config)


def draw_batch(faces: Faces, step: int, *, seed: int, batch: int,
               rows: slice = slice(None)) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the training batch of a step: a function of (seed, step, batch), whatever came before.

    Each pass over the training images takes a new order and meets every image once; half of
    the samples are mirrored.

    Returns:
        clean (R, 3, H, W) and regions (R, H, W) of `rows`, and sample_seeds (B,) int64 of the
        whole batch, for the degradation.
    """
    count, positions = len(faces.train), range(step * batch, (step + 1) * batch)
    orders = {}
    for epoch in {position // count for position in positions}:
        generator = torch.Generator().manual_seed(derive_number(seed, "epoch", epoch))
        orders[epoch] = torch.randperm(count, generator=generator).tolist()
    indices = [orders[position // count][position % count] for position in positions[rows]]
    clean, regions = faces.load("train", indices)
    sample_seeds = torch.tensor([derive_number(seed, "sample", p) for p in positions])
    mirrored = (sample_seeds[rows] % 2 == 1).view(-1, 1, 1)
    clean = torch.where(mirrored[:, None], clean.flip(-1), clean)
    return clean, torch.where(mirrored, regions.flip(-1), regions), sample_seeds


def load_batches(faces: Faces, numbers: range, *, seed: int, batch: int, workers: int = 0,
                 rows: slice = slice(None)) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Draw the batches of these steps in order; closing it ends the processes that read ahead."""
    yield from DataLoader(
        numbers, batch_size=None, num_workers=workers, worker_init_fn=_ignore_interrupts,
        collate_fn=partial(draw_batch, faces, seed=seed, batch=batch, rows=rows),
        multiprocessing_context="spawn" if workers else None,  # a fork would copy CUDA's state
        generator=torch.Generator())  # its own: the global one is left alone


def scale(images: Tensor, side_px: int) -> Tensor:
    """Scale square images (B, 3, H, H) in [0, 1] to another side."""
    if images.shape[-1] == side_px:
        return images
    return interpolate(images, (side_px, side_px), mode="bicubic", antialias=True).clamp(0, 1)


def _too_few(config: Config, found: object) -> ValueError:
    return ValueError(
        f"faces: expected {config.max_train_samples} to train on and {config.max_test_samples} to "
        f"test with from {config.source}, got {found}; lower max_train_samples or "
        "max_test_samples, or use a larger source")


def _ignore_interrupts(_: int) -> None:  # Ctrl-C in a terminal reaches every process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
