"""The claims of helpers/faces/regions.py."""

import json

import pytest
import torch

from helpers.config import DegradeConfig
from helpers.faces import regions
from helpers.faces.regions import CELEBA_MASK_LABELS, REGIONS, FaceParser, region_lookup
from tests.faulty import without_weight

LABELS = dict(enumerate(CELEBA_MASK_LABELS))
OTHER_ORDER = dict(enumerate([  # an earlier revision of the published parser
    "background", "skin.png", "nose.png", "r_eye.png", "l_eye.png", "r_brow.png", "l_brow.png",
    "r_ear.png", "l_ear.png", "mouth.png", "u_lip.png", "l_lip.png", "neck.png", "hair.png",
    "neck_l.png", "cloth.png", "eye_g.png", "hat.png", "ear_r.png"]))


def test_every_region_has_its_number_and_its_amount():
    assert [getattr(regions, name.upper()) for name in REGIONS] == list(range(6))
    assert all(hasattr(DegradeConfig, name) for name in REGIONS)


def test_both_published_label_orders_give_the_same_regions():
    known, other = region_lookup(LABELS), region_lookup(OTHER_ORDER)
    assert known.tolist() == [0, 1, 3, 2, 2, 2, 1, 1, 1, 1, 4, 4, 4, 5, 0, 0, 0, 1, 0]
    ids = {name.removesuffix(".png"): i for i, name in OTHER_ORDER.items()}
    assert all(other[ids[name]] == known[i] for i, name in LABELS.items())
    assert region_lookup({"0": "Background", "1": "HAIR.png"}).tolist() == [0, 5]
    with pytest.raises(ValueError, match="label_0"):
        region_lookup({0: "LABEL_0"})


def test_parser_maps_a_segformer_by_label_name(tmp_path):
    from transformers import SegformerConfig, SegformerForSemanticSegmentation
    config = SegformerConfig(hidden_sizes=[4, 4, 8, 8], depths=[1] * 4, decoder_hidden_size=8,
                             num_attention_heads=[1] * 4, id2label=OTHER_ORDER)
    model = SegformerForSemanticSegmentation(config)
    torch.nn.init.zeros_(model.decode_head.classifier.weight)
    model.decode_head.classifier.bias.data = torch.arange(19.0).eq(16).float()  # eye_g
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({  # the class is the published
        "image_processor_type": "SegformerFeatureExtractor", "size": {"height": 64, "width": 64}}))
    found = FaceParser(str(tmp_path))(torch.rand(2, 3, 96, 96))
    without_weight(tmp_path, "decode_head.classifier.bias")
    with pytest.raises(ValueError, match=r"expected all its weights, got .*classifier\.bias"):
        FaceParser(str(tmp_path))
    assert found.shape == (2, 96, 96) and found.dtype == torch.uint8
    assert found.unique().tolist() == [2]
