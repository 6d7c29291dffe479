"""Photographs and the regions of their faces: CelebA-HQ, folders, a face parser, masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..config import Config
from ..degradation.effects import REGIONS
from ..files import user_path
from ..images import TURN, list_pictures, orientation, read_image, to_pil
from .store import Entry, Row, centre_square, derive_number, pixel_hash

CELEBA_HQ = "mattymchen/celeba-hq"
TEST_SHARE = 1 / 8  # of a stream's images: held out whether or not they are asked for
MIN_SIDE_PX = 64
BACKGROUND, SKIN, EYES, NOSE, MOUTH, HAIR = range(len(REGIONS))
FACE_PARSER = "jonathandinu/face-parsing"
# The order of ids in CelebAMask-HQ's own masks; parsers number the same names as they like
CELEBA_MASK_LABELS = (
    "background", "skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear",
    "mouth", "u_lip", "l_lip", "hair", "hat", "ear_r", "neck_l", "neck", "cloth")
REGION_OF_LABEL = {  # ear_r is an earring, neck_l a necklace
    **dict.fromkeys(("background", "hat", "ear_r", "neck_l", "cloth"), BACKGROUND),
    **dict.fromkeys(("skin", "l_ear", "r_ear", "neck", "l_brow", "r_brow"), SKIN),
    **dict.fromkeys(("l_eye", "r_eye", "eye_g"), EYES), "nose": NOSE,
    **dict.fromkeys(("mouth", "u_lip", "l_lip"), MOUTH), "hair": HAIR}


def read_stream(config: Config, done: list[Entry], skipped: dict[str, str],
                device: torch.device | str) -> Iterator[Row]:
    """The rows that fill both splits; a row's place in the stream and the seed decide its split."""
    left = Counter(wanted_counts(config)) - Counter(entry["split"] for entry in done)
    first, parser = (done[-1]["row"] + 1 if done else 0), None
    for number, row in enumerate(stream_celeba_hq(first) if left else (), start=first):
        identity = f"celeba-hq-mixed-{number:05d}"
        share = derive_number(config.seed, "split", identity) / 2**63
        split = "test" if share < TEST_SHARE else "train"
        if left[split]:
            try:
                image = _read_photograph(row["image"], identity)
            except ValueError as error:
                skipped[identity] = str(error)
                continue
            parser = parser or FaceParser(device=device)
            clean = centre_square(image, config.resolution)
            yield ({"identity": identity, "split": split, "label": row["label"], "row": number,
                    "side_px": min(image.size), "pixels": pixel_hash(clean)},
                   {"clean": clean, "regions": parser(clean)})
            left[split] -= 1
        if not left.total():
            return


def read_photographs(config: Config, files: list[Path], masks: Path | None, done: list[Entry],
                     skipped: dict[str, str], device: torch.device | str) -> Iterator[Row]:
    """The first readable and different photographs of an order that follows from their names."""
    known = {entry["pixels"]: entry["identity"] for entry in done}
    names, wanted, parser = set(known.values()), sum(wanted_counts(config).values()), None
    for path in sorted(files, key=lambda file: derive_number("order", file.name)):
        if len(known) == wanted or path.name in names:
            continue
        try:
            image = _read_photograph(path, path.name)
            clean = centre_square(image, config.resolution)
            if (pixels := pixel_hash(clean)) in known:
                raise ValueError(f"the same picture as {known[pixels]}")
            regions = masks and centre_square(read_mask(masks / f"{path.stem}.png", path),
                                              config.resolution, Image.Resampling.NEAREST)
        except (OSError, ValueError) as error:
            skipped[path.name] = str(error)
            continue
        if not regions:
            parser = parser or FaceParser(device=device)
            regions = parser(clean)
        known[pixels] = path.name
        yield ({"identity": path.name, "side_px": min(image.size), "pixels": pixels},
               {"clean": clean, "regions": regions})


def find_photographs(source: str) -> tuple[list[Path], Path | None]:
    """The pictures of a folder, and the folder masks/ beside them, if there is one."""
    folder = user_path(source).absolute()
    if not folder.is_dir():
        raise ValueError(f"source: expected 'heads', 'celeba-hq' or a folder of photographs, got "
                         f"{source!r}; check the spelling and the path")
    folder = folder / "images" if (folder / "images").is_dir() else folder
    masks = folder.parent / "masks"
    return list_pictures(folder), masks if masks.is_dir() else None


def stream_celeba_hq(skip: int) -> Iterable[dict[str, Any]]:
    """CelebA-HQ from the hub, a row of each file in turn, for its files are sorted by label."""
    import datasets

    number = skip
    try:
        stream = datasets.load_dataset(CELEBA_HQ, split="train", streaming=True)
        names = stream.features["label"]
        stream = stream.cast_column("image", datasets.Image(decode=False))
        shards = [stream.shard(stream.num_shards, index) for index in range(stream.num_shards)]
        for row in datasets.interleave_datasets(shards).skip(skip):
            yield {"image": row["image"]["bytes"], "label": names.int2str(row["label"])}
            number += 1
    except Exception as error:  # the hub's and the reader's many kinds
        raise RuntimeError(f"{CELEBA_HQ}: expected row {number} from the hub, got {error!s:.300}; "
                           "check the connection and run again: what is done is kept") from error


def region_lookup(id2label: Mapping[int | str, str]) -> Tensor:
    """The table from class ids to our regions, uint8 (classes,), by label name whatever the ids."""
    names = {int(i): str(name).lower().removesuffix(".png") for i, name in id2label.items()}
    return torch.tensor([REGION_OF_LABEL[names[i]] for i in range(len(names))], dtype=torch.uint8)


class FaceParser:
    """Finds the regions of photographed faces: a Segformer with the labels of CelebAMask-HQ."""

    def __init__(self, name: str = FACE_PARSER, *, device: torch.device | str = "cpu") -> None:
        from transformers import SegformerForSemanticSegmentation, SegformerImageProcessor

        try:  # by class: older checkpoints name a SegformerFeatureExtractor that Auto rejects
            self.processor = SegformerImageProcessor.from_pretrained(name)
            self.model = SegformerForSemanticSegmentation.from_pretrained(name).to(device).eval()
        except Exception as error:  # the hub's and the loader's many kinds
            raise RuntimeError(
                f"face parser: expected {name} from the hub, got {error!s:.300}; check the "
                "connection and run again, or put region maps in masks/ beside images/") from error
        self.lookup = region_lookup(self.model.config.id2label).to(device)

    @torch.no_grad()
    def __call__(self, picture: Image.Image) -> Image.Image:
        """The regions of a picture, as one of its size."""
        inputs = self.processor(images=picture, return_tensors="pt").to(self.lookup.device)
        ids, = self.processor.post_process_semantic_segmentation(
            self.model(**inputs), [picture.size[::-1]])
        return Image.fromarray(self.lookup[ids].cpu().numpy())


def read_mask(path: Path, photo: Path) -> Image.Image:
    """Read CelebAMask-HQ's class ids for a photograph, as a picture of our regions, upright.

    Where its proportions say that it was made of the raw pixels, it is turned as they are.
    """
    with Image.open(path) as mask, Image.open(photo) as picture:
        ids, (width, height), turn = np.array(mask), picture.size, orientation(picture)
    if ids.ndim != 2 or ids.dtype.kind not in "ub" or ids.max() >= len(CELEBA_MASK_LABELS):
        raise ValueError(f"mask {path.name}: expected class ids under {len(CELEBA_MASK_LABELS)}, "
                         f"got {ids.dtype} {ids.shape} up to {ids.max()}")
    upright = height / width if turn >= 5 else width / height
    turns = {number for number, ratio in ((turn, width / height), (1, upright))
             if abs(ids.shape[1] / ids.shape[0] - ratio) < 0.01}
    if len(turns) != 1:
        raise ValueError(f"mask {path.name}: expected the proportions of its photograph, {width} x "
                         f"{height} of EXIF orientation {turn}, which say how it lies, got "
                         f"{ids.shape[1]} x {ids.shape[0]}; save both upright")
    ids = TURN[turns.pop()](ids)
    lookup = region_lookup(dict(enumerate(CELEBA_MASK_LABELS))).numpy()
    return Image.fromarray(lookup[ids.astype(np.int64)])


def wanted_counts(config: Config) -> dict[str, int]:
    """How many faces of each split a config asks for."""
    return {"train": config.max_train_samples, "test": config.max_test_samples}


def _read_photograph(source: Path | bytes, name: str) -> Image.Image:
    """A photograph, on white where it is transparent."""
    rgb, alpha = read_image(source, name=name)
    if min(rgb.shape[1:]) < MIN_SIDE_PX:
        raise ValueError(f"expected sides of {MIN_SIDE_PX} px or more, got {rgb.shape[2]} x "
                         f"{rgb.shape[1]}")
    return to_pil(rgb if alpha is None else rgb * alpha + 1 - alpha)
