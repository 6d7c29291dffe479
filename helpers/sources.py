"""Where faces come from: procedural avatars, CelebA-HQ from the hub, a folder of photographs."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .config import DataConfig, refused
from .regions import CELEBA_MASK_LABELS, FACE_PARSER, HUB_ERRORS, out_of_reach, region_lookup

CELEBA_HQ = "mattymchen/celeba-hq"
AVATAR_CODE = ("avatars.py", "hair.py", "head.py", "regions.py", "splat.py")  # their origin
FIRST_TEST_AVATAR = 1_000_000  # avatar seeds from here on are never trained on
TEST_SHARE = 1 / 8  # of a stream's images: held out whether or not they are asked for
SMALLEST_SIDE_PX = 64
HUB_TRIES = 3
IMAGE_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # PIL raises all

Row = Mapping[str, Any]
Sample = tuple[str, str, Image.Image, Image.Image | None]  # key, split, image, regions if known


def draw_samples(config: DataConfig, seed: int, skipped: list[str],
                 rows: Iterable[Row] | None = None) -> Iterator[Sample]:
    """Yield square images of a config's source, size and counts, each with its split.

    Args:
        config: source, size and counts.
        seed: of the split into train and test (avatars are split by identity).
        skipped: gets one line for each image left out: its name and why.
        rows: stand in for the CelebA-HQ stream.

    Raises:
        ValueError: no images, too few, or a stream without an `image` column.
        RuntimeError: the hub stayed out of reach.
    """
    if config.source == "avatars":
        return _avatars(config)
    if config.source == "celeba-hq":
        return _streamed(rows, config, seed, skipped)
    return _photographs(config, seed, skipped)


def store_name(config: DataConfig, seed: int) -> str:
    """Name what a config draws; the name differs whenever the faces would."""
    if config.source == "avatars":
        label, origin = "avatars", [Path(__file__).with_name(n).read_bytes() for n in AVATAR_CODE]
    elif config.source == "celeba-hq":
        label, origin = "celeba-hq", [CELEBA_HQ, FACE_PARSER]
    else:
        files, masks = _photo_files(config.source)
        origin = [masks, *((path, path.stat().st_size, path.stat().st_mtime) for path in files)]
        label = files[0].parent.name
    digest = hashlib.sha256(repr(origin).encode()).hexdigest()[:8]
    counts = f"{config.train_images}+{config.test_images}"
    return f"{label}-{config.size_px}px-{counts}-seed{seed}-{digest}"


def too_few(config: DataConfig, found: str, skipped: list[str]) -> ValueError:
    """The error of a source that has fewer images than the config asks for."""
    left_out = f" ({len(skipped)} left out: {'; '.join(skipped[:3])})" if skipped else ""
    return ValueError(
        f"data: expected {config.train_images} training and {config.test_images} test images from "
        f"{config.source}, got {found}{left_out}; lower data.train_images or data.test_images")


def derive_number(*parts: int | str) -> int:
    """Derive a 63-bit number that follows from the parts alone."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def read_image(source: Path | bytes | Image.Image) -> Image.Image:
    """Read a photograph as upright RGB: EXIF turned, grey repeated, transparency on white.

    Raises:
        ValueError: a side under 64 pixels.
        OSError: not an image, or a truncated one.
    """
    if isinstance(source, Path):
        source = source.read_bytes()
    image = source if isinstance(source, Image.Image) else Image.open(BytesIO(source))
    image = ImageOps.exif_transpose(image)
    if min(image.size) < SMALLEST_SIDE_PX:
        raise ValueError(f"expected sides of {SMALLEST_SIDE_PX} pixels or more, got {image.size}")
    if image.mode.startswith("I"):  # 16-bit grey, which PIL would clip to white
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _avatars(config: DataConfig) -> Iterator[Sample]:
    from .avatars import render_avatar
    for split, first, count in (("train", 0, config.train_images),
                                ("test", FIRST_TEST_AVATAR, config.test_images)):
        for avatar_seed in range(first, first + count):
            image, regions = render_avatar(avatar_seed, config.size_px)
            pixels = image.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).contiguous()
            yield (f"avatar-{avatar_seed}", split, Image.fromarray(pixels.numpy()),
                   Image.fromarray(regions.numpy()))


def _streamed(rows: Iterable[Row] | None, config: DataConfig, seed: int,
              skipped: list[str]) -> Iterator[Sample]:
    """The first rows that fill both splits; place in the stream and seed decide a row's split."""
    left = {"train": config.train_images, "test": config.test_images}
    enough = 100 + 2 * int(max(left["train"] / (1 - TEST_SHARE), left["test"] / TEST_SHARE))
    for index, row in enumerate(islice(_persistent(rows), enough)):
        if "image" not in row:
            raise refused(CELEBA_HQ, "a column 'image'", sorted(row),
                          "choose another source or the 'demo' preset")
        key = f"celeba-hq-{index:05d}"
        split = "test" if _share(seed, key) < TEST_SHARE else "train"
        cell = row["image"]  # PIL's image, or a dict of its bytes and path
        cell = cell.get("bytes") if isinstance(cell, Mapping) else cell
        if left[split] and (image := _readable(key, skipped, read_image, cell)):
            yield key, split, _square(image, config.size_px), None
            left[split] -= 1
        if not any(left.values()):
            return


def _photographs(config: DataConfig, seed: int, skipped: list[str]) -> Iterator[Sample]:
    """A folder's images in an order of their own: tests from its front, training from its back.

    So any counts the folder can serve are served, and asking for more training images moves
    none that was held out.
    """
    files, masks = _photo_files(config.source)
    if len(files) < config.train_images + config.test_images:
        raise too_few(config, f"{len(files)} in all", skipped)
    queue = deque(sorted(files, key=lambda path: _share(seed, path.name)))
    for split, left, take in (("test", config.test_images, queue.popleft),
                              ("train", config.train_images, queue.pop)):
        while left and queue:
            path = take()
            if found := _readable(path.name, skipped, _read_photo, path, masks, config.size_px):
                left -= 1
                yield path.name, split, *found


def _photo_files(source: str) -> tuple[list[Path], Path | None]:
    """The images of a folder, and the folder of their masks if there is one beside it."""
    folder = Path(source).expanduser().resolve()
    if not folder.is_dir():
        raise refused("data.source", "'avatars', 'celeba-hq' or a folder of images", source,
                      "check the spelling and the path")
    if (folder / "images").is_dir():
        folder = folder / "images"
    files = [path for path in sorted(folder.iterdir())
             if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")]
    if not files:
        raise refused("data.source", f".jpg, .png or .webp images in {folder}", files,
                      "add some or choose another folder")
    masks = folder.parent / "masks"
    return files, masks if masks.is_dir() else None


def _read_photo(path: Path, masks: Path | None,
                size_px: int) -> tuple[Image.Image, Image.Image | None]:
    image = read_image(path)
    if masks is None:
        return _square(image, size_px), None
    with Image.open(masks / f"{path.stem}.png") as mask:
        ids = np.array(mask)  # (H, W) palette indices, unconverted
    if ids.ndim != 2 or ids.max() >= len(CELEBA_MASK_LABELS):
        raise ValueError(f"expected class ids under {len(CELEBA_MASK_LABELS)} in its mask")
    if abs(ids.shape[1] / ids.shape[0] - image.width / image.height) > 0.01:
        raise ValueError(f"expected a mask in its proportions {image.size}, got {ids.shape[::-1]}")
    regions = region_lookup(dict(enumerate(CELEBA_MASK_LABELS))).numpy()[ids]
    return (_square(image, size_px),
            _square(Image.fromarray(regions), size_px, Image.Resampling.NEAREST))


def _readable(name: str, skipped: list[str], read: Callable[..., Any], *arguments: Any) -> Any:
    """What `read` returns, or None and a line in `skipped` if the image cannot be used."""
    try:
        return read(*arguments)
    except IMAGE_ERRORS as error:
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else error
        skipped.append(f"{name}: {reason}")
        return None


def _square(image: Image.Image, size_px: int,
            resample: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
    return ImageOps.fit(image, (size_px, size_px), method=resample)  # centre crop, then resize


def _persistent(rows: Iterable[Row] | None) -> Iterator[Row]:
    """Go on where a connection error stopped the rows; give up after three without a row."""
    done, failures = 0, 0
    while True:
        try:
            for row in islice(_hub_stream() if rows is None else rows, done, None):
                done, failures = done + 1, 0
                yield row
            return
        except HUB_ERRORS as error:
            failures += 1
            if failures == HUB_TRIES:
                raise out_of_reach(CELEBA_HQ, error) from error
            time.sleep(2**failures)


def _hub_stream() -> Iterable[Row]:
    """CelebA-HQ, of which only the rows taken are downloaded, about 0.1 MB each."""
    stream = datasets.load_dataset(CELEBA_HQ, split="train", streaming=True)
    if "image" in (stream.features or {}):  # kept encoded: a broken image then has a name
        stream = stream.cast_column("image", datasets.Image(decode=False))
    return stream


def _share(seed: int, key: str) -> float:
    """The place of an image in [0, 1), which decides its split."""
    return derive_number(seed, "split", key) / 2**63
