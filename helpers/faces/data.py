"""Faces in, batches out: a source's images in one Arrow folder, and the batches drawn from it."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..config import DataConfig
from ..errors import refused
from ..machine import Bar
from ..storage import keep, make_once
from .regions import FaceParser
from .sources import (
    IMAGE_ERRORS,
    NUMBERED,
    Sample,
    derive_number,
    draw_samples,
    enlarged,
    left_out,
    picture_print,
    store_name,
    too_few,
)
from .store import (
    GROUP,
    PartialStore,
    as_prepared,
    open_rows,
    print_of,
    read_column,
    read_contents,
    read_prints,
)
from .stream import Row

Parser = Callable[[Tensor], Tensor]  # (B, 3, H, W) in [0, 1] -> regions (B, H, W) uint8


class Faces:
    """The prepared faces of a run, read from their Arrow folder.

    Attributes:
        train, test: `datasets.Dataset` with columns key, image, regions (PNG bytes), split.
        skipped: the images left out, each with the reason.
        labels: of the photographs, where the source has some: name and how many.
        small: how many photographs were enlarged.
        trained_on: names the training faces and their order, on every machine alike:
            photographs by their pixels, others by their numbers.
        formerly: `trained_on` of older checkpoints, which knew photographs by name.
        made_of: data settings and seed, where `prepare` made them.
    """

    made_of: tuple[DataConfig, int] | None = None

    def __init__(self, store: Path) -> None:
        self.store, told = store, read_contents(store)
        self.skipped, self.labels, self.small = told.skipped, told.labels, told.small
        rows = open_rows(store)
        split = np.array(list(read_column(rows, "split")))
        self.train = rows.select(np.flatnonzero(split == "train"))
        self.test = rows.select(np.flatnonzero(split == "test"))
        keys = list(read_column(self.train, "key"))
        self.trained_on = self.formerly = f"{len(keys)} faces {derive_number(*keys):016x}"
        if not all(NUMBERED.fullmatch(key) for key in keys):
            self.trained_on = f"{len(keys)} photographs {derive_number(*self.prints('train')):016x}"

    def __len__(self) -> int:
        return len(self.train) + len(self.test)

    def __str__(self) -> str:
        kinds = "".join(f", {count} {label}" for label, count in sorted(self.labels.items()))
        return f"{len(self.train)} faces to train on, {len(self.test)} held out{kinds}"

    def prints(self, split: str) -> list[str]:
        """What the pictures of a split are known by, in order; see `picture_print`."""
        rows, known = getattr(self, split), read_prints(self.store)
        return [known.get(key) or print_of(rows[i]["image"])
                for i, key in enumerate(read_column(rows, "key"))]

    def load(self, split: str, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Decode some faces.

        Args:
            split: "train" or "test".
            indices: rows of that split.

        Returns:
            clean (B, 3, H, W) float32 in [0, 1] and regions (B, H, W) uint8, on the CPU.

        Raises:
            ValueError: an unknown split, or a face that is no longer what was written.
        """
        if split not in ("train", "test"):
            raise refused("split", "'train' or 'test'", split, "pick one of them")
        with as_prepared(self.store, f", {split} {list(indices)}", IMAGE_ERRORS):
            rows = getattr(self, split)[list(indices)]
            return from_pngs(rows["image"]), _pixels(rows["regions"])


def prepare(config: DataConfig, folder: Path, *, device: torch.device | str = "cpu", seed: int = 0,
            drive: Path | None = None,
            progress: Callable[..., Iterable[Row]] | None = Bar,
            rows: Iterable[Row] | None = None, parse: Parser | None = None) -> Faces:
    """Make the Arrow folder of a data config once; later calls only check and open it.

    However it is interrupted, the next call goes on from the last group of faces it kept, and
    the folder is there only once it is whole.

    Args:
        config: source, size and counts.
        folder: where Arrow folders are kept.
        device: where the face parser runs, if the source needs one.
        seed: of the split into train and test (avatars are split by identity).
        drive: a folder on Drive that keeps a copy for the machine of the next session.
        progress: wraps the loop as `tqdm` does; None shows nothing.
        rows, parse: stand in for the CelebA-HQ stream and for the published face parser.

    Raises:
        ValueError: no images, too few, a stream without an `image` column, or a damaged folder.
        RuntimeError: the hub stayed out of reach; what is done is kept.
        OSError: the disk is full; what is done is kept.
    """
    store = Path(folder) / store_name(config, seed)
    make_once(store, drive, lambda: _fill(PartialStore(store), config, seed, rows, parse, device,
                                          progress))
    faces = Faces(store)
    faces.made_of = config, seed
    keep(store, drive)
    if faces.skipped:
        print(f"data: {left_out(faces.skipped)}")
    if faces.small:
        print(f"data: {enlarged(faces.small, config.size_px)}")
    return faces


def draw_batch(faces: Faces, *, seed: int, step: int, batch: int,
               rows: slice = slice(None)) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the training batch of a step: a function of (seed, step, batch), whatever came before.

    Each pass over the training images takes a new order and meets every image once; half of
    the samples are mirrored.

    Args:
        faces: prepared.
        seed, step, batch: what it is a function of.
        rows: the part of the batch whose pictures are read.

    Returns:
        clean (R, 3, H, W) and regions (R, H, W) of these rows, and sample_seeds (B,) int64 of the
        whole batch, for the degradation.

    Raises:
        ValueError: a negative step or an empty batch.
    """
    if step < 0 or batch < 1:
        raise refused("draw_batch", "step >= 0 and batch >= 1", (step, batch), "count from step 0")
    count, positions = len(faces.train), range(step * batch, (step + 1) * batch)
    dice = {e: torch.Generator().manual_seed(derive_number(seed, "epoch", e))
            for e in {p // count for p in positions}}
    orders = {e: torch.randperm(count, generator=dice[e]).tolist() for e in dice}
    wanted = [orders[p // count][p % count] for p in positions[rows]]
    clean, regions = faces.load("train", wanted)
    sample_seeds = torch.tensor([derive_number(seed, "sample", p) for p in positions])
    mirrored = (sample_seeds[rows] % 2 == 1).view(-1, 1, 1)
    clean = torch.where(mirrored[:, None], clean.flip(-1), clean)
    return clean, torch.where(mirrored, regions.flip(-1), regions), sample_seeds


class NumberedBatches(Dataset):
    """The batches of a run as a sequence without end: number → `draw_batch` of that number."""

    def __init__(self, faces: Faces, *, seed: int, batch: int, rows: slice) -> None:
        self.faces, self.seed, self.batch, self.rows = faces, seed, batch, rows

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        return draw_batch(self.faces, seed=self.seed, step=number, batch=self.batch,
                          rows=self.rows)


def load_batches(faces: Faces, numbers: range, *, seed: int, batch: int, workers: int = 0,
                 rows: slice = slice(None)) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Draw batches in order, the same ones whoever draws them. Closing it ends the processes.

    Args:
        numbers: of the batches.
        seed, batch, rows: as for `draw_batch`.
        workers: processes that read ahead, on the CPU; 0 reads here, when asked.

    Yields:
        What `draw_batch` returns: clean (R, 3, H, W), regions (R, H, W), sample_seeds (B,).
    """
    yield from DataLoader(
        NumberedBatches(faces, seed=seed, batch=batch, rows=rows), sampler=numbers, batch_size=None,
        num_workers=workers, worker_init_fn=_leave_interrupts_to_the_trainer,
        multiprocessing_context="spawn" if workers else None,  # a fork would copy CUDA's state
        generator=torch.Generator())  # its own: the global one is left alone


def _leave_interrupts_to_the_trainer(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches every process


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB picture as a batch of one, (1, 3, H, W) float32 in [0, 1]."""
    return _to_unit(_stacked([image]))


def from_pngs(pngs: Sequence[bytes]) -> Tensor:
    """Decode RGB pictures of one size: (B, 3, H, W) float32 in [0, 1].

    Raises:
        OSError, SyntaxError, ValueError: one of them is no such picture.
    """
    return _to_unit(_pixels(pngs))


def _fill(partial: PartialStore, config: DataConfig, seed: int, rows: Iterable[Row] | None,
          parse: Parser | None, device: torch.device | str,
          progress: Callable[..., Iterable[Row]] | None) -> None:
    """Add to a partial store what it lacks, group by group, and seal it."""
    place, wanted = partial.place, {"train": config.train_images, "test": config.test_images}
    fresh: Iterable[Row] = _encoded(draw_samples(config, seed, place, rows), place.prints, parse,
                                    device)
    if progress:
        fresh = progress(fresh, total=sum(wanted.values()), initial=len(place.done),
                         desc="Preparing faces", unit="image")
    partial.fill(fresh)
    found = Counter(place.done.values())
    if found != wanted:
        partial.discard()  # it can never be completed
        raise too_few(config, f"{found['train']} and {found['test']}", place.skipped)
    partial.seal()


def _encoded(samples: Iterator[Sample], prints: dict[str, str], parse: Parser | None,
             device: torch.device | str) -> Iterator[dict[str, Any]]:
    """Rows of the store, their prints noted; regions not known are parsed, a group at a time."""
    while group := list(islice(samples, GROUP)):
        keys, splits, images, regions = zip(*group, strict=True)
        if regions[0] is None:  # a source knows all regions or none
            parse = parse or FaceParser(device=device)  # freed with this generator
            regions = [Image.fromarray(one.cpu().numpy())
                       for one in parse(_to_unit(_stacked(images)).to(device))]
        for key, split, image, region in zip(keys, splits, images, regions, strict=True):
            prints.setdefault(picture_print(image), key)
            yield {"key": key, "image": to_png(image), "regions": to_png(region), "split": split}


def _pixels(pngs: Sequence[bytes]) -> Tensor:  # (B, H, W[, 3]) uint8
    return _stacked([Image.open(BytesIO(png), formats=["PNG"]) for png in pngs])


def _stacked(images: Sequence[Image.Image]) -> Tensor:
    return torch.from_numpy(np.stack([np.array(image) for image in images]))


def _to_unit(pixels: Tensor) -> Tensor:  # (B, H, W, 3) uint8 -> (B, 3, H, W) in [0, 1]
    return pixels.permute(0, 3, 1, 2).contiguous().float().div(255)


def to_png(image: Image.Image) -> bytes:
    """A picture as the bytes of a PNG file, which `from_pngs` reads."""
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=1)  # lossless, and much faster than the default
    return buffer.getvalue()
