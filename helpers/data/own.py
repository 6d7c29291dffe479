"""A user's own pairs: a folder with `renders/` and `photos/` of equal names.

Both files of a pair are read by one rule: a photograph whose EXIF turns it is turned back where its
render was made of the raw pixels, and what either leaves transparent is treated alike on both
sides. A share of the photographs is held out, by their pixels: one photograph under several names
is on one side only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..config import Config
from ..environment import progress
from ..files import user_path
from ..images import TURN, fill_transparent, from_bytes, list_pictures, read_image, to_bytes, to_pil
from .faces import Faces
from .store import Entry, ImageStore, Row, centre_square, derive_number, pixel_hash, prepare_store

VERSION = 4  # raised whenever the same files would be read otherwise
COMPARED_PX = 32  # side at which orientations are compared
TURNED_BETTER = 0.9  # another orientation counts if the difference shrinks to this share of it …
TURNED_FROM = 0.02  # … and was this large at least, of 1
Array = NDArray[np.float32]


class OwnPairs:
    """A user's pairs, to train on and to measure; without a folder there are none.

    Rows are of `train` or `held_out`: of the different photographs at least one is only measured.
    One that the run's faces have too is on the same side in both.
    """

    def __init__(self, store: ImageStore | None = None, held_out_share: float = 0.0,
                 faces: Faces | None = None) -> None:
        self.store, self.trained_on = store, "0 own"
        self.train, self.held_out = [], []
        if store is None:
            return
        photos = {entry["photo"] for entry in store.entries}
        order = sorted(photos, key=lambda photo: derive_number("held out", photo))
        held_out = set(order[:max(1, min(len(order) - 1, round(held_out_share * len(order))))])
        if faces:
            held_out -= {str(entry.get("pixels")) for entry in faces.train}
            held_out |= photos & {str(entry.get("pixels")) for entry in faces.test}
        if not 0 < len(held_out) < len(photos):
            raise ValueError("own_pairs: expected a photograph to train on and a different one to "
                             f"hold out, neither on the other side of source, got {len(photos)} "
                             "different ones; add some")
        for row, entry in enumerate(store.entries):
            (self.held_out if entry["photo"] in held_out else self.train).append(row)
        names = [str((store.entries[r]["identity"], store.entries[r]["photo"])) for r in self.train]
        self.trained_on = f"{len(self.train)} own {derive_number(*names):016x}"

    def load(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Read some rows: degraded and clean, each float32 (B, 3, H, W) in [0, 1], on the CPU."""
        return tuple(from_bytes(self.store.load(rows, part)) for part in ("degraded", "clean"))

    def identities(self, rows: Sequence[int]) -> list[str]:
        """What the photographs of some rows are known by: equal ones beside several renders."""
        return [self.store.entries[row]["photo"] for row in rows]

    def draw(self, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """Choose a training pair for each seed (B,); they are taken as they are."""
        return self.load([self.train[derive_number("own", seed) % len(self.train)]
                          for seed in seeds.tolist()])


def prepare_own(config: Config, folder: Path, *, drive: Path | None = None,
                faces: Faces | None = None) -> OwnPairs:
    """Read a user's pairs into a prepared folder once: the square in the middle, scaled.

    A pair that cannot be read, or whose files have other proportions, is left out and named.
    """
    renders, photos = (_list(config.own_pairs, side) for side in ("renders", "photos"))
    common = sorted(renders.keys() & photos.keys())
    if not common:
        raise ValueError(f"own_pairs: expected renders and photographs of equal names, got "
                         f"{len(renders)} and {len(photos)}; name each render as its photograph")
    files = [side[name] for name in common for side in (renders, photos)]
    stats = [str((path.name, path.stat().st_size, path.stat().st_mtime)) for path in files]
    origin = derive_number("own", VERSION, config.resolution, *stats)

    def make(done: list[Entry], skipped: dict[str, str]) -> Iterator[Row]:
        skipped |= {f"{path.parent.name}/{path.name}": "the other folder has no file of this name"
                    for name, path in (photos | renders).items() if name not in common}
        names = {entry["identity"] for entry in done}
        for name in progress(common, desc="Reading own pairs", unit="pair"):
            if name not in names:
                try:
                    entry, images = _read_pair(renders[name], photos[name], config.resolution)
                    yield entry | {"identity": name}, images
                except ValueError as error:
                    skipped[name] = str(error)

    store = prepare_store(folder / f"own-{config.resolution}px-{origin:016x}",
                          ("degraded", "clean"), make, drive=drive)
    for key, text in (
            ("turned", "the photograph is turned as its render is, whatever its EXIF says"),
            ("matte", "what is transparent is made the same on both sides")):
        if names := [entry["identity"] for entry in store.entries if entry[key]]:
            print(f"Own pairs {', '.join(names[:3])}{', …' if names[3:] else ''}: {text}.")
    return OwnPairs(store, config.own_held_out, faces)


def _list(text: str, side: str) -> dict[str, Path]:
    """The pictures of one side by name."""
    folder = user_path(text) / side
    if not folder.is_dir():
        raise ValueError("own_pairs: expected a folder with renders/ and photos/ of equal names, "
                         f"got no {side}/ in {text!r}; check the path")
    return {path.stem: path for path in list_pictures(folder)}


def _read_pair(render_path: Path, photo_path: Path,
               side_px: int) -> tuple[Entry, dict[str, Image.Image]]:
    """One pair as squares, of the same orientation and with the same part visible."""
    (render, matte, ratio), (photo, photo_matte, photo_ratio) = (
        _read_square(path, side_px) for path in (render_path, photo_path))
    straight, turned = abs(ratio / photo_ratio - 1) < 0.01, abs(ratio * photo_ratio - 1) < 0.01
    if not (straight or turned):
        raise ValueError("expected a render with its photograph's proportions, got width / height "
                         f"{ratio:.3f} beside {photo_ratio:.3f}")
    degraded, clean = (np.asarray(side, np.float32) / 255 for side in (render, photo))
    turn = _fitting_turn(degraded, clean, matte, photo_matte, [
        turn for turn in TURN if (straight if turn < 5 else turned)])
    clean = TURN[turn](clean)
    photo_matte = None if photo_matte is None else TURN[turn](photo_matte)
    if matte is not None:  # as restoring does with what is transparent
        matte = matte if photo_matte is None else np.minimum(matte, photo_matte)
        degraded, clean = (fill_transparent(side, matte, 0.5) for side in (degraded, clean))
    elif photo_matte is not None:
        clean = degraded + (clean - degraded) * photo_matte
    return ({"photo": pixel_hash(photo), "turned": turn != 1,
             "matte": matte is not None or photo_matte is not None},
            {"degraded": _to_image(degraded), "clean": _to_image(clean)})


def _fitting_turn(render: Array, photo: Array, matte: Array | None, photo_matte: Array | None,
                  turns: Sequence[int]) -> int:
    """The EXIF orientation of `turns` that makes a photograph fit its render; 1 in doubt."""
    def shrink(side: Array, mask: Array | None) -> Array:
        mask = np.ones_like(side[..., :1]) if mask is None else mask
        values = np.concatenate([side * mask + 0.5 * (1 - mask), mask], 2)
        step = len(side) // COMPARED_PX
        return values.reshape(COMPARED_PX, step, COMPARED_PX, step, 4).mean((1, 3))

    small, small_photo = shrink(render, matte), shrink(photo, photo_matte)
    # Both before grey: outlines count, too
    join = np.minimum if matte is None or photo_matte is None else np.maximum

    def difference(turn: int) -> float:
        other = TURN[turn](small_photo)
        weights = join(small[..., 3:], other[..., 3:])
        weights = weights / max(float(weights.sum()), 1e-6)
        delta = (small - other)[..., :3]
        return float((np.abs(delta - (delta * weights).sum((0, 1))) * weights).sum() / 3)

    differences = {turn: difference(turn) for turn in turns}
    best, straight = min(differences, key=differences.get), differences.get(1, 1.0)
    return best if straight > TURNED_FROM and differences[best] < TURNED_BETTER * straight else 1


def _read_square(path: Path, side_px: int) -> tuple[Image.Image, Array | None, float]:
    """The square in the middle, its alpha (H, H, 1) if there is any, and width / height."""
    rgb, alpha = read_image(path)
    square, ratio = centre_square(to_pil(rgb), side_px), rgb.shape[2] / rgb.shape[1]
    if alpha is None or bool((alpha == 1).all()):
        return square, None, ratio
    matte = centre_square(Image.fromarray(to_bytes(alpha)[0].numpy()), side_px)
    return square, np.asarray(matte, np.float32)[..., None] / 255, ratio


def _to_image(values: Array) -> Image.Image:
    return Image.fromarray(np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8))
