"""Faces in, batches out: avatars, CelebA-HQ or a folder of photographs, as one Arrow folder."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm.auto import tqdm

from .config import DataConfig

CELEBA_HQ = "mattymchen/celeba-hq"
FACE_PARSER = "jonathandinu/face-parsing"
AVATAR_CODE = ("avatars.py", "hair.py", "head.py", "splat.py")  # a change here makes new avatars
FIRST_TEST_AVATAR = 1_000_000  # avatar seeds from here on are never trained on
TEST_SHARE = 1 / 8  # of a stream's images: held out whether or not they are asked for
SMALLEST_SIDE_PX = 64
HUB_TRIES = 3
HUB_ERRORS = (OSError, *HfHubHTTPError.__bases__)  # with its HTTP library's own base error
IMAGE_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # PIL raises all
# The order of ids in CelebAMask-HQ's own masks; parsers number the same names as they like
CELEBA_MASK_LABELS = (
    "background", "skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear",
    "mouth", "u_lip", "l_lip", "hair", "hat", "ear_r", "neck_l", "neck", "cloth")
REGION_OF_LABEL = {  # ear_r is an earring, neck_l a necklace
    "background": 0, "hat": 0, "ear_r": 0, "neck_l": 0, "cloth": 0,
    "skin": 1, "l_ear": 1, "r_ear": 1, "neck": 1, "l_brow": 1, "r_brow": 1,
    "l_eye": 2, "r_eye": 2, "eye_g": 2, "nose": 3, "mouth": 4, "u_lip": 4, "l_lip": 4, "hair": 5}

Parser = Callable[[Tensor], Tensor]  # (B, 3, H, W) in [0, 1] -> regions (B, H, W) uint8
Row = Mapping[str, Any]
Sample = tuple[str, str, Image.Image, Image.Image | None]  # key, split, image, regions if known


class Faces:
    """The prepared faces of a run, read from their Arrow folder.

    Attributes:
        train, test: `datasets.Dataset` with columns key, image, regions (PNG bytes), split.
        skipped: one line for each image left out: its name and why.
    """

    def __init__(self, store: Path) -> None:
        rows = datasets.load_from_disk(str(store))
        split = np.array(list(rows["split"]))
        self.train = rows.select(np.flatnonzero(split == "train"))
        self.test = rows.select(np.flatnonzero(split == "test"))
        self.skipped: list[str] = json.loads((store / "skipped.json").read_text(encoding="utf-8"))

    def __len__(self) -> int:
        return len(self.train) + len(self.test)

    def load(self, split: str, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Decode some faces.

        Args:
            split: "train" or "test".
            indices: rows of that split.

        Returns:
            clean (B, 3, H, W) float32 in [0, 1] and regions (B, H, W) uint8, on the CPU.

        Raises:
            ValueError: an unknown split.
        """
        if split not in ("train", "test"):
            raise ValueError(f"split: expected 'train' or 'test', got {split!r}; pick one of them")
        rows = getattr(self, split)[list(indices)]
        clean = _stacked([Image.open(BytesIO(png)) for png in rows["image"]])  # (B, H, W, 3)
        return _to_unit(clean), _stacked([Image.open(BytesIO(png)) for png in rows["regions"]])


def prepare(config: DataConfig, folder: Path, *, device: torch.device | str = "cpu", seed: int = 0,
            progress: Callable[..., Iterable[Row]] | None = tqdm,
            rows: Iterable[Row] | None = None, parse: Parser | None = None) -> Faces:
    """Make the Arrow folder of a data config once; later calls only open it.

    Args:
        config: source, size and counts.
        folder: where Arrow folders are kept.
        device: where the face parser runs, if the source needs one.
        seed: of the split into train and test (avatars are split by identity).
        progress: wraps the loop as `tqdm` does; None shows nothing.
        rows, parse: stand in for the CelebA-HQ stream and for the published face parser.

    Raises:
        ValueError: no images, too few, or a stream without an `image` column.
        RuntimeError: the hub stayed out of reach.
    """
    store = Path(folder) / _store_name(config, seed)
    if not store.is_dir():
        skipped: list[str] = []
        if config.source == "avatars":
            samples = _avatars(config)
        elif config.source == "celeba-hq":
            samples = _streamed(rows, config, seed, skipped)
        else:
            samples = _photographs(config, seed, skipped)
        _write(store, _encoded(samples, parse, device), config, skipped, progress)
        for line in skipped:
            print(f"Left out {line}")
    return Faces(store)


def draw_batch(faces: Faces, *, seed: int, step: int, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the training batch of a step: a function of (seed, step, batch), whatever came before.

    Each pass over the training images takes a new order and meets every image once; half of
    the samples are mirrored.

    Returns:
        clean (B, 3, H, W), regions (B, H, W), and sample_seeds (B,) int64 for the degradation.

    Raises:
        ValueError: a negative step or an empty batch.
    """
    if step < 0 or batch < 1:
        raise ValueError(f"draw_batch: expected step >= 0 and batch >= 1, got step {step} and "
                         f"batch {batch}; count steps from 0")
    count, positions = len(faces.train), range(step * batch, (step + 1) * batch)
    dice = {e: torch.Generator().manual_seed(_derived(seed, "epoch", e))
            for e in {p // count for p in positions}}
    orders = {e: torch.randperm(count, generator=dice[e]).tolist() for e in dice}
    clean, regions = faces.load("train", [orders[p // count][p % count] for p in positions])
    sample_seeds = torch.tensor([_derived(seed, "sample", p) for p in positions])
    mirrored = (sample_seeds % 2 == 1).view(-1, 1, 1)
    clean = torch.where(mirrored[:, None], clean.flip(-1), clean)
    return clean, torch.where(mirrored, regions.flip(-1), regions), sample_seeds


def region_lookup(id2label: Mapping[int | str, str]) -> Tensor:
    """Build the table from class ids to our regions, by label name whatever the ids are.

    Args:
        id2label: as in a model's config; names may end in `.png` and differ in case.

    Returns:
        (classes,) uint8, to be indexed with a map of class ids.

    Raises:
        ValueError: a name that CelebAMask-HQ does not have, or gaps in the ids.
    """
    names = {int(i): str(name).lower().removesuffix(".png") for i, name in id2label.items()}
    unknown = sorted(set(names.values()) - set(REGION_OF_LABEL))
    if unknown or sorted(names) != list(range(len(names))):
        raise ValueError(f"face parser: expected ids from 0 with the labels {CELEBA_MASK_LABELS}, "
                         f"got {unknown or sorted(names)}; use {FACE_PARSER}")
    return torch.tensor([REGION_OF_LABEL[names[i]] for i in range(len(names))], dtype=torch.uint8)


class FaceParser:
    """Segformer that finds the regions of photographed faces.

    Args:
        name: hub name or local folder of a Segformer with the labels of CelebAMask-HQ.
        device: where it runs.

    Raises:
        RuntimeError: it could not be loaded.
    """

    def __init__(self, name: str = FACE_PARSER, *, device: torch.device | str = "cpu") -> None:
        from transformers import SegformerForSemanticSegmentation, SegformerImageProcessor
        try:
            # By class: older checkpoints name a SegformerFeatureExtractor that Auto rejects
            self.processor = SegformerImageProcessor.from_pretrained(name)
            self.model = SegformerForSemanticSegmentation.from_pretrained(name).to(device).eval()
        except HUB_ERRORS as error:
            raise _out_of_reach(name, error) from error
        self.lookup = region_lookup(self.model.config.id2label).to(device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return regions (B, H, W) uint8 of images (B, 3, H, W) in [0, 1]."""
        pixels = list(images.mul(255).round().byte().cpu())
        inputs = self.processor(images=pixels, return_tensors="pt").to(self.lookup.device)
        sizes = [tuple(images.shape[-2:])] * len(images)
        ids = self.processor.post_process_semantic_segmentation(self.model(**inputs), sizes)
        return self.lookup[torch.stack(ids)]


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


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB picture as a batch of one, (1, 3, H, W) float32 in [0, 1]."""
    return _to_unit(_stacked([image]))


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
            raise ValueError(f"{CELEBA_HQ}: expected a column 'image', got {sorted(row)}; "
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
        raise _too_few(config, f"{len(files)} in all", skipped)
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
        raise ValueError("data.source: expected 'avatars', 'celeba-hq' or a folder of images, "
                         f"got {source!r}; check the spelling and the path")
    if (folder / "images").is_dir():
        folder = folder / "images"
    files = [path for path in sorted(folder.iterdir())
             if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp")]
    if not files:
        raise ValueError(f"data.source: expected .jpg, .png or .webp images, got none in {folder}; "
                         "add some or choose another folder")
    masks = folder.parent / "masks"
    return files, masks if masks.is_dir() else None


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
                raise _out_of_reach(CELEBA_HQ, error) from error
            time.sleep(2**failures)


def _hub_stream() -> Iterable[Row]:
    """CelebA-HQ, of which only the rows taken are downloaded, about 0.1 MB each."""
    stream = datasets.load_dataset(CELEBA_HQ, split="train", streaming=True)
    if "image" in (stream.features or {}):  # kept encoded: a broken image then has a name
        stream = stream.cast_column("image", datasets.Image(decode=False))
    return stream


def _out_of_reach(what: str, error: BaseException) -> RuntimeError:
    return RuntimeError(f"hub: expected to load {what}, got {type(error).__name__}: {error}; "
                        "check the connection and run again, or choose the 'demo' preset")


def _readable(name: str, skipped: list[str], read: Callable[..., Any], *arguments: Any) -> Any:
    """What `read` returns, or None and a line in `skipped` if the image cannot be used."""
    try:
        return read(*arguments)
    except IMAGE_ERRORS as error:
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else error
        skipped.append(f"{name}: {reason}")
        return None


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


def _square(image: Image.Image, size_px: int,
            resample: Image.Resampling = Image.Resampling.LANCZOS) -> Image.Image:
    return ImageOps.fit(image, (size_px, size_px), method=resample)  # centre crop, then resize


def _encoded(samples: Iterator[Sample], parse: Parser | None,
             device: torch.device | str) -> Iterator[dict[str, Any]]:
    """Rows of the store; regions not known are parsed, four images at a time."""
    while group := list(islice(samples, 4)):
        keys, splits, images, regions = zip(*group, strict=True)
        if regions[0] is None:  # a source knows all regions or none
            parse = parse or FaceParser(device=device)  # freed with this generator
            regions = [Image.fromarray(one.cpu().numpy())
                       for one in parse(_to_unit(_stacked(images)).to(device))]
        for key, split, image, region in zip(keys, splits, images, regions, strict=True):
            yield {"key": key, "image": _to_png(image), "regions": _to_png(region), "split": split}


def _write(store: Path, rows: Iterable[Row], config: DataConfig, skipped: list[str],
           progress: Callable[..., Iterable[Row]] | None) -> None:
    """Write the Arrow folder beside its place and rename it when complete: whole or not at all."""
    wanted = {"train": config.train_images, "test": config.test_images}
    if progress:
        rows = progress(rows, total=sum(wanted.values()), desc="Preparing faces", unit="image")
    partial = store.with_name(store.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        found = _write_rows(rows, partial / "rows.arrow")
        if found != wanted:
            raise _too_few(config, f"{found['train']} and {found['test']}", skipped)
        datasets.Dataset.from_file(str(partial / "rows.arrow")).save_to_disk(partial / "faces")
        (partial / "faces" / "skipped.json").write_text(json.dumps(skipped), encoding="utf-8")
        (partial / "faces").replace(store)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_rows(rows: Iterable[Row], path: Path) -> Counter[str]:
    """Write rows one by one, so that memory does not grow with the set; count them by split."""
    schema = pa.schema({"key": pa.string(), "image": pa.binary(), "regions": pa.binary(),
                        "split": pa.string()})
    counts: Counter[str] = Counter()
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
        for row in rows:
            stream.write_batch(pa.RecordBatch.from_pylist([row], schema=schema))
            counts[row["split"]] += 1
    return counts


def _too_few(config: DataConfig, found: str, skipped: list[str]) -> ValueError:
    left_out = f" ({len(skipped)} left out: {'; '.join(skipped[:3])})" if skipped else ""
    return ValueError(
        f"data: expected {config.train_images} training and {config.test_images} test images from "
        f"{config.source}, got {found}{left_out}; lower data.train_images or data.test_images")


def _store_name(config: DataConfig, seed: int) -> str:
    """A name that differs whenever the faces would."""
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


def _derived(*parts: int | str) -> int:
    """A 63-bit number that follows from the parts alone."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def _share(seed: int, key: str) -> float:
    """The place of an image in [0, 1), which decides its split."""
    return _derived(seed, "split", key) / 2**63


def _stacked(images: Sequence[Image.Image]) -> Tensor:
    return torch.from_numpy(np.stack([np.array(image) for image in images]))


def _to_unit(pixels: Tensor) -> Tensor:  # (B, H, W, 3) uint8 -> (B, 3, H, W) in [0, 1]
    return pixels.permute(0, 3, 1, 2).contiguous().float().div(255)


def _to_png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=1)  # lossless, and much faster than the default
    return buffer.getvalue()
