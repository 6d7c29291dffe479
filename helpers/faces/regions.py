"""The regions of a face: their names, their numbers, and how a photograph's are found."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import refused
from ..storage import HUB_ERRORS, TRANSFORMERS_WEIGHTS, fetch, load_whole, out_of_reach

REGIONS = ("background", "skin", "eyes", "nose", "mouth", "hair")  # the values of a region map
BACKGROUND, SKIN, EYES, NOSE, MOUTH, HAIR = range(len(REGIONS))
FACE_PARSER = "jonathandinu/face-parsing"
PARSER_FILES = (("config.json", "preprocessor_config.json"), TRANSFORMERS_WEIGHTS)
# The order of ids in CelebAMask-HQ's own masks; parsers number the same names as they like
CELEBA_MASK_LABELS = (
    "background", "skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear",
    "mouth", "u_lip", "l_lip", "hair", "hat", "ear_r", "neck_l", "neck", "cloth")
REGION_OF_LABEL = {  # ear_r is an earring, neck_l a necklace
    **dict.fromkeys(("background", "hat", "ear_r", "neck_l", "cloth"), BACKGROUND),
    **dict.fromkeys(("skin", "l_ear", "r_ear", "neck", "l_brow", "r_brow"), SKIN),
    **dict.fromkeys(("l_eye", "r_eye", "eye_g"), EYES), "nose": NOSE,
    **dict.fromkeys(("mouth", "u_lip", "l_lip"), MOUTH), "hair": HAIR}
INSTEAD = (", or put region maps into masks/ beside the photographs (see README.md), or choose "
           "the 'demo' preset without photographs")


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
        raise refused("face parser", f"ids from 0 with the labels {CELEBA_MASK_LABELS}",
                      unknown or sorted(names), f"use {FACE_PARSER}")
    return torch.tensor([REGION_OF_LABEL[names[i]] for i in range(len(names))], dtype=torch.uint8)


class FaceParser:
    """Segformer that finds the regions of photographed faces.

    Args:
        name: hub name or local folder of a Segformer with the labels of CelebAMask-HQ.
        device: where it runs.

    Raises:
        RuntimeError: it could not be loaded.
        ValueError: it lacks weights.
    """

    def __init__(self, name: str = FACE_PARSER, *, device: torch.device | str = "cpu") -> None:
        from transformers import SegformerForSemanticSegmentation, SegformerImageProcessor
        folder = fetch(name, *PARSER_FILES, instead=INSTEAD)
        try:
            # By class: older checkpoints name a SegformerFeatureExtractor that Auto rejects
            self.processor = SegformerImageProcessor.from_pretrained(folder)
            model = load_whole(SegformerForSemanticSegmentation, folder, name)
        except HUB_ERRORS as error:
            raise out_of_reach(name, error, INSTEAD) from error
        self.model = model.to(device).eval()
        self.lookup = region_lookup(self.model.config.id2label).to(device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return regions (B, H, W) uint8 of images (B, 3, H, W) in [0, 1]."""
        pixels = list(images.mul(255).round().byte().cpu())
        inputs = self.processor(images=pixels, return_tensors="pt").to(self.lookup.device)
        sizes = [tuple(images.shape[-2:])] * len(images)
        ids = self.processor.post_process_semantic_segmentation(self.model(**inputs), sizes)
        return self.lookup[torch.stack(ids)]
