"""Where faces come from: procedural avatars, CelebA-HQ from the hub, a folder of photographs."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ..config import DataConfig
from ..errors import refused
from ..pictures import (
    GONE,
    SUFFIXES,
    UNREAD_SUFFIXES,
    UnusablePicture,
    opened,
    orientation,
    read_labels,
    read_picture,
    upright,
)
from ..storage import own_path, safe_name
from .regions import CELEBA_MASK_LABELS, FACE_PARSER, region_lookup
from .stream import CELEBA_HQ, ORDER, Place, Row, rows_from

AVATARS = "685f4f37"  # their version: other pictures want another (tests/faces/test_avatars.py)
FIRST_TEST_AVATAR = 1_000_000  # avatar seeds from here on are never trained on
TEST_SHARE = 1 / 8  # of a stream's images: held out whether or not they are asked for
SMALLEST_SIDE_PX = 64
STORE_FORMAT = 2  # raised whenever what stands in a store's folder changes
IMAGE_ERRORS = (OSError, SyntaxError, ValueError)  # of what we have written ourselves

NUMBERED = re.compile(r"(avatar|celeba-hq(-mixed)?)-\d+")  # keys that say what a picture is

Sample = tuple[str, str, Image.Image, Image.Image | None]  # key, split, image, regions if known


def draw_samples(config: DataConfig, seed: int, place: Place,
                 rows: Iterable[Row] | None = None) -> Iterator[Sample]:
    """Yield square images of a config's source, size and counts, each with its split.

    Those that are done are neither rendered nor read again.

    Args:
        config: source, size and counts.
        seed: of the split into train and test (avatars are split by identity).
        place: where to go on; it moves along, but who keeps a sample enters it in `done`.
        rows: stand in for the CelebA-HQ stream.

    Raises:
        ValueError: no images, too few, or a stream without an `image` column.
        RuntimeError: the hub stayed out of reach.
    """
    if config.source == "avatars":
        return _avatars(config, place)
    if config.source == "celeba-hq":
        return _streamed(rows, config, seed, place)
    return _photographs(config, seed, place)


def store_name(config: DataConfig, seed: int) -> str:
    """Name what a config draws; the name differs whenever the faces would."""
    label, version = config.source, AVATARS
    if config.source == "celeba-hq":
        version = _digest(CELEBA_HQ, FACE_PARSER, ORDER)
    elif config.source != "avatars":
        files, masks = _photo_files(config.source)
        paths = [*files, *(sorted(masks.glob("*.png")) if masks else ())]
        stats = [path.stat() if path.is_file() else path.lstat() for path in paths]
        label = safe_name(files[0].parent.name)
        version = _digest(masks, *((path, stat.st_size, stat.st_mtime)
                                   for path, stat in zip(paths, stats, strict=True)))
    counts = f"{config.train_images}+{config.test_images}"
    return f"{label}-{config.size_px}px-{counts}-seed{seed}-{version}"


def has_masks(source: str) -> bool:
    """Whether the regions of a folder's images are known."""
    return _photo_files(source)[1] is not None


def too_few(config: DataConfig, found: str, skipped: Mapping[str, str]) -> ValueError:
    """The error of a source that has fewer images than the config asks for."""
    return ValueError(
        f"data: expected {config.train_images} training and {config.test_images} test images from "
        f"{config.source}, got {found}{f' ({left_out(skipped)})' if skipped else ''}; "
        "lower data.train_images or data.test_images")


def left_out(skipped: Mapping[str, str]) -> str:
    """Count the images that were left out and name the first three, in one line."""
    named = "; ".join(f"{name}: {reason}" for name, reason in islice(skipped.items(), 3))
    named = named if named.isprintable() else ascii(named)  # a file's name can be anything
    more = f"; … and {len(skipped) - 3} more" if len(skipped) > 3 else ""
    return f"{len(skipped)} left out: {named}{more}"


def note_size(image: Image.Image, size_px: int, place: Place) -> None:
    """Count a photograph that is about to be enlarged."""
    place.small += min(image.size) < size_px


def enlarged(small: int, size_px: int, noun: str = "photographs") -> str:
    """Say how many were smaller than what is trained on, and what that means."""
    return (f"{small} {noun} smaller than {size_px} px were enlarged: what is learned from them is "
            "soft; use larger ones, or lower data.size_px")


def derive_number(*parts: int | str) -> int:
    """Derive a 63-bit number that follows from the parts alone."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def read_image(source: Path | bytes | Image.Image) -> Image.Image:
    """Read a photograph as upright 8-bit sRGB: whatever its file says is heeded; alpha on white.

    Raises:
        ValueError: a side under 64 pixels, or nothing that can be read; see `read_picture`.
        OSError: the disk or Drive does not answer.
    """
    picture = read_picture(source)
    if min(picture.size) < SMALLEST_SIDE_PX:
        raise UnusablePicture(picture.name, f"expected sides of {SMALLEST_SIDE_PX} pixels or more, "
                              f"got {picture.size}")
    return picture.to_image()


def picture_print(image: Image.Image) -> str:
    """What a picture is known by, whatever its file is called: the SHA-256 of its pixels."""
    return hashlib.sha256(repr((image.mode, image.size)).encode() + image.tobytes()).hexdigest()


def _avatars(config: DataConfig, place: Place) -> Iterator[Sample]:
    from .avatars import render_avatar
    for split, first, count in (("train", 0, config.train_images),
                                ("test", FIRST_TEST_AVATAR, config.test_images)):
        for avatar_seed in range(first, first + count):
            if (key := f"avatar-{avatar_seed}") not in place.done:
                image, regions = render_avatar(avatar_seed, config.size_px)
                pixels = image.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).contiguous()
                yield (key, split, Image.fromarray(pixels.numpy()),
                       Image.fromarray(regions.numpy()))


def _streamed(rows: Iterable[Row] | None, config: DataConfig, seed: int,
              place: Place) -> Iterator[Sample]:
    """The first rows that fill both splits; place in the stream and seed decide a row's split."""
    wanted = {"train": config.train_images, "test": config.test_images}
    enough = 100 + 2 * int(max(wanted["train"] / (1 - TEST_SHARE), wanted["test"] / TEST_SHARE))
    left, stream = Counter(wanted) - Counter(place.done.values()), rows_from(rows, place)
    while left.total() and place.rows < enough and (row := next(stream, None)) is not None:
        if "image" not in row:
            raise refused(CELEBA_HQ, "a column 'image'", sorted(row),
                          "choose another source or the 'demo' preset")
        key = f"celeba-hq-{ORDER}-{place.rows - 1:05d}"  # in another order it was another face
        split = "test" if _share(seed, key) < TEST_SHARE else "train"
        cell = row["image"]  # PIL's image, or a dict of its bytes and path: never read from there
        cell = cell.get("bytes") if isinstance(cell, Mapping) else cell
        if left[split] and (image := readable(key, place, read_image, cell)):
            note_size(image, config.size_px, place)
            if "label" in row:
                name = str(row["label"])
                place.labels[name] = place.labels.get(name, 0) + 1
            yield key, split, square(image, config.size_px), None
            left[split] -= 1


def _photographs(config: DataConfig, seed: int, place: Place) -> Iterator[Sample]:
    """A folder's images in an order of their own: tests from its front, training from its back.

    So any counts the folder can serve are served, and asking for more training images moves
    none that was held out. Of one photograph under several names the first that is met counts.
    """
    files, masks = _photo_files(config.source)
    place.skipped |= _unread(files[0].parent)
    if len(files) < config.train_images + config.test_images:
        raise too_few(config, f"{len(files)} in all", place.skipped)
    queue = deque(sorted(files, key=lambda path: _share(seed, path.name)))
    for split, left, take in (("test", config.test_images, queue.popleft),
                              ("train", config.train_images, queue.pop)):
        while left and queue:
            path = take()
            if path.name in place.done:
                left -= 1
            elif path.name not in place.skipped and (found := readable(
                    path.name, place, _read_photo, path, masks, config.size_px, place)):
                twin = place.prints.setdefault(picture_print(found[0]), path.name)
                if twin != path.name:
                    place.skipped[path.name] = f"the same picture as {twin}"
                    continue
                left -= 1
                yield path.name, split, *found


def _digest(*origin: object) -> str:
    return hashlib.sha256(repr([STORE_FORMAT, *origin]).encode()).hexdigest()[:8]


def _photo_files(source: str) -> tuple[list[Path], Path | None]:
    """The images of a folder, and the folder of their masks if there is one beside it."""
    folder = own_path(source).resolve()
    if not folder.is_dir():
        raise refused("data.source", "'avatars', 'celeba-hq' or a folder of images", source,
                      "check the spelling and the path")
    if (folder / "images").is_dir():
        folder = folder / "images"
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]
    if not files:
        raise refused("data.source", f"pictures ({', '.join(SUFFIXES)}) in {folder}",
                      left_out(_unread(folder)), "add some or choose another folder")
    masks = folder.parent / "masks"
    return files, masks if masks.is_dir() else None


def _unread(folder: Path) -> dict[str, str]:
    """The pictures of a folder that are of a kind which is not read: name and reason."""
    return {path.name: f"{path.suffix} files are not read; save it as JPEG or PNG"
            for path in sorted(folder.iterdir()) if path.suffix.lower() in UNREAD_SUFFIXES}


def _read_photo(path: Path, masks: Path | None, size_px: int,
                place: Place) -> tuple[Image.Image, Image.Image | None]:
    content = own_file(path).read_bytes()
    image = read_image(content)
    if masks is None:
        note_size(image, size_px, place)
        return square(image, size_px), None
    mask = own_file(masks / f"{path.stem}.png", "its mask")
    ids = _turned_along(*read_labels(mask.read_bytes()), opened(content))
    if ids.max() >= len(CELEBA_MASK_LABELS):
        raise ValueError(f"expected class ids under {len(CELEBA_MASK_LABELS)} in its mask, got "
                         f"{ids.max()}")
    if abs(ids.shape[1] / ids.shape[0] - image.width / image.height) > 0.01:
        raise ValueError(f"expected a mask in its proportions {image.size}, got {ids.shape[::-1]}")
    regions = region_lookup(dict(enumerate(CELEBA_MASK_LABELS))).numpy()[ids.astype(np.int64)]
    note_size(image, size_px, place)
    return (square(image, size_px),
            square(Image.fromarray(regions), size_px, Image.Resampling.NEAREST))


def _turned_along(ids: NDArray[np.integer], own: int, photo: Image.Image) -> NDArray[np.integer]:
    """A mask turned upright: by its own orientation, else with its photograph where it must be.

    Args:
        ids: (H, W) as they are stored.
        own: orientation that the mask's file names.
        photo: as it is stored, with its own orientation.
    """
    tag = orientation(photo)
    if own != 1 or tag == 1:
        return upright(ids, own)
    stored, shown = photo.width / photo.height, ids.shape[1] / ids.shape[0]
    if tag < 5 or abs(stored - 1) < 0.02:
        raise ValueError("expected a mask that says which way is up, for the photograph does "
                         f"(EXIF orientation {tag}); save both turned")
    return upright(ids, tag) if abs(shown - stored) < 0.01 else ids


def own_file(path: Path, what: str = "") -> Path:
    """The path of a regular file with a name in Unicode, unless a link leads out of its folder.

    Args:
        what: it is, for the error; its name by default.
    """
    path.name.encode()  # a ValueError, if it is not
    real = Path(os.path.realpath(path))
    if path.is_symlink() and not real.is_relative_to(os.path.realpath(path.parent)):
        found = "a link out of it"
    elif not path.exists():
        found = "a link to nothing" if path.is_symlink() else "none"
    elif path.is_file():
        return path
    else:
        found = "a folder" if path.is_dir() else "no regular file"
    raise ValueError(f"expected {what or path.name} to be a file of its folder "
                     f"{path.parent.name}/, got {found}")


def readable(name: str, place: Place, read: Callable[..., Any], *arguments: Any) -> Any:
    """What `read` returns; or None, and the image is entered in `skipped`, whatever was raised."""
    try:
        return read(*arguments)
    except Exception as error:
        if getattr(error, "errno", None) in GONE:
            raise
        kind = "" if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: "
        place.skipped[name] = kind + getattr(error, "reason", str(error))
        return None


def square(image: Image.Image, size_px: int,
            resample: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
    """Cut the square in the middle out of a picture, and scale it to `size_px`."""
    return ImageOps.fit(image, (size_px, size_px), method=resample)


def _share(seed: int, key: str) -> float:
    """The place of an image in [0, 1), which decides its split."""
    return derive_number(seed, "split", key) / 2**63
