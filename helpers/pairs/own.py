"""Own pairs: a folder with `renders/` and `photos/` of equal names, taken as they are.

A share of the photographs is held out, by content: one photograph under several names, beside
several renders, is on one side only. Other photographs of the same person are not recognised.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..config import PairsConfig
from ..errors import refused
from ..faces import (
    IMAGE_ERRORS,
    Faces,
    PartialStore,
    as_prepared,
    derive_number,
    enlarged,
    from_pngs,
    left_out,
    note_size,
    open_rows,
    own_file,
    picture_print,
    read_column,
    read_contents,
    read_image,
    read_prints,
    readable,
    square,
    to_png,
)
from ..machine import Bar
from ..pictures import SUFFIXES, UNREAD_SUFFIXES
from ..storage import keep, make_once, own_path
from .pair import pick

SIDES = ("renders", "photos")
COLUMNS = ("degraded", "clean", "photo")  # of the Arrow folder, beside the pair's name
FORMAT = 2  # raised whenever what stands in the Arrow folder becomes another

Files = dict[str, tuple[Path, Path]]  # name → render and photograph


class OwnPairs:
    """One's own pairs: a `PairSource` of those to train on, and the held-out ones to measure.

    Args:
        store: the Arrow folder.
        held_out_share: of the different photographs that is only measured; at least one is held
            out, and at least one trained on.
        trained, tested: prints of photographs that are trained on, or held out, elsewhere: there
            they stay on that side, whatever the share.

    Attributes:
        train, held_out: rows of the folder, in order.
        skipped: the files left out, each with the reason.
        small: how many pairs were enlarged.
        trained_on: names the training pairs, on every machine alike.

    Raises:
        ValueError: a damaged folder, or fewer than two different photographs.
    """

    kind = "own"

    def __init__(self, store: Path, held_out_share: float, *,
                 trained: Collection[str] = (), tested: Collection[str] = ()) -> None:
        self.store, told = store, read_contents(store)
        self.skipped, self.small = told.skipped, told.small
        self.rows = open_rows(store)
        keys = list(read_column(self.rows, "key"))
        self.photos = photos = [photo.decode() for photo in read_column(self.rows, "photo")]
        held = _held_out(set(photos), held_out_share)
        if trained or tested:
            known = read_prints(store)  # equal pictures are known once
            prints = {photo: known[key]
                      for photo, key in zip(photos, keys, strict=True) if key in known}
            held = {photo for photo, known in prints.items()
                    if known in tested or (photo in held and known not in trained)}
            if not 0 < len(held) < len(prints):
                raise refused("pairs.own", "photographs to hold out beside those to train on",
                              "only such as data.source has on the other side", "add some others")
        self.train = [i for i, photo in enumerate(photos) if photo not in held]
        self.held_out = [i for i, photo in enumerate(photos) if photo in held]
        names = [(keys[i], photos[i]) for i in self.train]
        self.trained_on = f"{len(self.train)} own {derive_number(*map(str, names)):016x}"

    def __len__(self) -> int:
        return len(self.train)

    def load(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Decode some rows: degraded and clean, each float32 (B, 3, H, W) in [0, 1].

        Raises:
            ValueError: a pair that is no longer what was written.
        """
        with as_prepared(self.store, f", {list(indices)}", IMAGE_ERRORS):
            rows = self.rows[list(indices)]
            return from_pngs(rows["degraded"]), from_pngs(rows["clean"])

    def draw(self, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """See `PairSource.draw`; they are taken as they are, and none is mirrored."""
        return self.load([self.train[i] for i in pick(seeds, len(self), self.kind)])

    def held_out_pairs(self, *, device: torch.device | str = "cpu",
                       batch: int = 4) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
        """Yield the held-out pairs as batches (clean, degraded, names), as `evaluate` takes them.

        One photograph beside several renders is one name: its content's.
        """
        for i in range(0, len(self.held_out), batch):
            rows = self.held_out[i:i + batch]
            degraded, clean = self.load(rows)
            yield clean.to(device), degraded.to(device), [self.photos[row] for row in rows]


def prepare_own(settings: PairsConfig, size_px: int, folder: Path, *, drive: Path | None = None,
                progress: Callable[..., Iterable[Any]] | None = Bar,
                faces: Faces | None = None) -> OwnPairs:
    """Read one's own pairs into an Arrow folder once: the square in the middle, scaled.

    Args:
        settings: the folder of pairs and the share held out.
        size_px: side of the pictures.
        folder: where Arrow folders are kept.
        drive: a folder on Drive that keeps a copy for the machine of the next session.
        progress: wraps the loop as `tqdm` does; None shows nothing.
        faces: of the run: a photograph that they have too is on one side in both.

    Raises:
        ValueError: no folder, no common names, renders of another size than their photographs,
            fewer than two different photographs, or a damaged Arrow folder.
        OSError: the disk is full; what is done is kept.
    """
    files, one_sided = _find(settings.own)
    paths = [path for pair in files.values() for path in pair]
    stats = [path.stat() if path.is_file() else path.lstat() for path in paths]
    origin = derive_number("own", FORMAT, size_px, settings.own, *one_sided, *(
        str((path.name, stat.st_size, stat.st_mtime))
        for path, stat in zip(paths, stats, strict=True)))
    store = Path(folder) / f"own-{size_px}px-{len(files)}-{origin:016x}"
    make_once(store, drive, lambda: _fill(PartialStore(store, COLUMNS, "pairs", COLUMNS[1]), files,
                                          one_sided, size_px, progress))
    pairs = OwnPairs(store, settings.own_held_out,
                     trained=faces.prints("train") if faces else (),
                     tested=faces.prints("test") if faces else ())
    keep(store, drive)
    if pairs.skipped:
        print(f"own pairs: {left_out(pairs.skipped)}")
    if pairs.small:
        print(f"own pairs: {enlarged(pairs.small, size_px, 'pairs')}")
    return pairs


def _find(folder: str) -> tuple[Files, dict[str, str]]:
    """The pairs of a folder, and why other files have no part in one."""
    found, skipped = [], {}
    for side in SIDES:
        place = own_path(folder) / side
        if not folder.strip() or not place.is_dir():
            raise refused("pairs.own", "a folder with renders/ and photos/ of equal names",
                          f"no {side}/ in {folder!r}", "check the spelling and the path")
        named: dict[str, Path] = {}
        for path in sorted(place.iterdir()):
            if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
                if path.stem in named:
                    skipped[f"{side}/{path.name}"] = f"{named[path.stem].name} has its name"
                else:
                    named[path.stem] = path
            elif path.suffix.lower() in UNREAD_SUFFIXES:
                skipped[f"{side}/{path.name}"] = f"{path.suffix} files are not read"
        found.append(named)
    renders, photos = found
    if not (common := sorted(renders.keys() & photos.keys())):
        some = [", ".join(path.name for path in list(side.values())[:3]) or "none"
                for side in found]
        raise refused("pairs.own", "renders and photographs of equal names",
                      f"{len(renders)} renders ({some[0]}) and {len(photos)} photos ({some[1]})",
                      "name each render as its photograph")
    for side, mine, other in (("renders", renders, photos), ("photos", photos, renders)):
        lacks = "no photograph" if side == "renders" else "no render"
        skipped |= {f"{side}/{path.name}": f"{lacks} of this name"
                    for name, path in mine.items() if name not in other}
    return {name: (renders[name], photos[name]) for name in common}, skipped


def _fill(partial: PartialStore, files: Files, one_sided: dict[str, str], size_px: int,
          progress: Callable[..., Iterable[Any]] | None) -> None:
    """Add to a partial store what it lacks, and seal it."""
    place, misfits = partial.place, {}
    place.skipped |= one_sided
    rows: Iterable[dict[str, Any]] = _read(files, partial, size_px, misfits)
    if progress:
        rows = progress(rows, total=len(files), initial=len(place.done), desc="Reading own pairs",
                        unit="pair")
    partial.fill(rows)
    if misfits or not place.done:
        partial.discard()  # files must change, and then it has another name
    if misfits:
        raise refused("pairs.own", "renders as large as their photographs", left_out(misfits),
                      "render them from the photographs' own cameras, or take them out")
    if not place.done:
        raise refused("pairs.own", "readable renders and photographs", left_out(place.skipped),
                      "mend them, or choose another folder")
    partial.seal()


def _read(files: Files, partial: PartialStore, size_px: int,
          misfits: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Rows of the store that it lacks; pairs of unequal size are entered in `misfits`."""
    for name, paths in files.items():
        if name in partial.place.done:
            continue
        images = [readable(f"{side}/{path.name}", partial.place, _open, path)
                  for side, path in zip(SIDES, paths, strict=True)]
        if None in images:
            continue
        render, photo = images
        if render.size != photo.size:
            misfits[name] = f"render {_size(render)}, photo {_size(photo)}"
            continue
        note_size(photo, size_px, partial.place)
        clean = square(photo, size_px)
        partial.place.prints.setdefault(picture_print(clean), name)
        photo = hashlib.sha256(png := to_png(clean)).hexdigest().encode()
        yield {"key": name, "degraded": to_png(square(render, size_px)), "clean": png,
               "photo": photo, "split": "own"}


def _open(path: Path) -> Image.Image:
    return read_image(own_file(path))


def _size(image: Image.Image) -> str:
    return f"{image.width} x {image.height}"


def _held_out(photos: set[str], share: float) -> set[str]:
    """Those of different photographs that are only measured: the first of a fixed order."""
    if len(photos) < 2:
        raise refused("pairs.own", "2 different photographs or more", len(photos),
                      "add some: one is held out")
    order = sorted(photos, key=lambda photo: derive_number("held out", photo))
    return set(order[:min(len(order) - 1, max(1, round(share * len(order))))])
