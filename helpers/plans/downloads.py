"""What a run will download, how large it is and how long that takes: said before it starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import torch
import torchvision

from ..config import TINY_BASE, Config
from ..distances import CLIP_FILES, CLIP_NAME
from ..faces import CELEBA_HQ, FACE_PARSER, PARSER_FILES, TEST_SHARE, has_masks, store_name
from ..model import PARTS, is_embedded, part_files
from ..storage import DEMO, Wanted, is_cached, is_kept, is_silence, missing_bytes, out_of_reach

LINK_BYTES_PER_S = 50e6  # of a hosted notebook; a slow link at home has a tenth
IMAGE_BYTES = 98_000  # of one face of CelebA-HQ, on average: 2.76 GB of 28,000 and 2,000
FILES, PART_IMAGES = 6, 100  # it is read from all of its files in turn, each in whole parts
# Of each file, beyond its parts; more by `datasets` before 4.6, as tests/storage/test_hub.py counts
READ_AHEAD_BYTES = (5 if hasattr(datasets.IterableDataset, "reshard") else 37) * 2**20
TEXT_PARTS = ("tokenizer", "text_encoder")


@dataclass(frozen=True)
class Downloads:
    """Bytes to download by origin; in words where they are not known."""

    sizes: dict[str, int | str]
    offline: bool = False  # whether the hub is out of reach

    @property
    def total_bytes(self) -> int:
        """The sum of what is known."""
        return sum(size for size in self.sizes.values() if isinstance(size, int))

    def __str__(self) -> str:
        if not self.sizes:
            return "to download: nothing" + (
                " (the hub does not answer, and is not needed)" if self.offline else "")
        rows = [f"  {name}: " + (size if isinstance(size, str) else f"{size / 1e6:,.0f} MB")
                for name, size in self.sizes.items()]
        seconds = self.total_bytes / LINK_BYTES_PER_S
        return "\n".join([f"to download: {self.total_bytes / 1e9:.2f} GB, about {seconds:.0f} s "
                          f"at {LINK_BYTES_PER_S / 1e6:.0f} MB/s", *rows])


def plan_downloads(config: Config, *, faces: Path, caches: Sequence[Path | None] = (),
         drive: Path | None = None) -> Downloads:
    """Ask the hub for the sizes of all that a run will fetch and this machine does not have.

    A hub that is busy is named with its error and is no reason to stop, nor is one that does not
    answer where nothing of its own is missing.

    Args:
        faces, drive: the folder of prepared faces and of its copies, as for `data.prepare`.
        caches: of the embedded prompt, as for `SplatEnhancer.from_pretrained`.

    Returns:
        By origin, only what is missing; streamed images are estimated.

    Raises:
        RuntimeError: something of the hub is missing, and it is out of reach.
    """
    source, made = config.data.source, faces / store_name(config.data, config.run.seed)
    new = source != "avatars" and not made.is_dir() and not is_kept(made, drive)
    streams = new and source == "celeba-hq"
    parses = streams or (new and not has_masks(source))
    silence, sizes = None, {}
    for name, wanted in _repositories(config, caches, parses).items():
        try:
            sizes[name] = missing_bytes(name, *wanted)
        except RuntimeError as error:
            silence = error if is_silence(error) else silence
            sizes[name] = 0 if is_cached(name, *wanted) else str(error)
    if streams:
        sizes[f"{CELEBA_HQ} (about)"] = (
            streamed_images(config) * IMAGE_BYTES + FILES * READ_AHEAD_BYTES)
    missing = {name: size for name, size in sizes.items() if size}
    if missing and silence:
        raise out_of_reach(f"{', '.join(missing)} for preset {config.preset!r}", silence,
                           f" (on Kaggle: Settings > Internet){DEMO}") from silence
    return Downloads(missing | _torchvision_weights(config), offline=silence is not None)


def streamed_images(config: Config) -> int:
    """How many images of the stream are expected to be loaded until both splits are filled."""
    wanted = max(config.data.train_images / (1 - TEST_SHARE), config.data.test_images / TEST_SHARE)
    return FILES * PART_IMAGES * math.ceil(wanted / FILES / PART_IMAGES)


def _repositories(config: Config, caches: Sequence[Path | None],
                  parses: bool) -> dict[str, list[Wanted]]:
    """What is fetched of each repository of a hub."""
    base, wanted = config.model.base, {}
    if base != TINY_BASE:
        embedded = is_embedded(base, config.model.prompt, caches)
        wanted[base] = [part_files(part) for part in PARTS
                        if not (embedded and part in TEXT_PARTS)]
    if parses:
        wanted[FACE_PARSER] = [PARSER_FILES]
    if config.loss.clip:
        wanted[CLIP_NAME] = [CLIP_FILES]
    return wanted


def _torchvision_weights(config: Config) -> dict[str, int]:
    """ImageNet backbones of the loss and the metrics; torchvision itself names their sizes."""
    if config.loss.vgg != "lpips":
        return {}
    cache, sizes = Path(torch.hub.get_dir()) / "checkpoints", {}
    for model in ("vgg16", "alexnet"):
        weights = torchvision.models.get_model_weights(model).IMAGENET1K_V1
        if not (cache / Path(weights.url).name).exists():
            sizes[f"torchvision {model}"] = round(weights.meta["_file_size"] * 2**20)
    return sizes
