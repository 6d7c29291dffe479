"""The repositories that the `t4` preset reads: their names, layouts and columns, at tiny sizes."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import CLIPConfig, CLIPModel, SegformerConfig, SegformerForSemanticSegmentation

from helpers.config import ASSETS, SD_TURBO, TINY_BASE
from helpers.distances.losses import CLIP_NAME
from helpers.faces.avatars import render_avatar
from helpers.faces.regions import CELEBA_MASK_LABELS, FACE_PARSER
from helpers.faces.stream import CELEBA_HQ

from .hub import Repository

GROUP_ROWS = 100  # of a part of a parquet file, as `datasets` writes images
IMAGE_BYTES = 60_000  # with it a part is larger than what is read ahead, 5 MiB
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
         "num_attention_heads": 2, "projection_dim": 8}


def repositories() -> dict[str, Repository]:
    """All of them, as the hub's paths name them."""
    return {f"models/{SD_TURBO}": sd_turbo(), f"datasets/{CELEBA_HQ}": celeba_hq(),
            f"models/{FACE_PARSER}": face_parser(), f"models/{CLIP_NAME}": clip()}


def sd_turbo() -> Repository:
    """Our tiny base, with the full-precision files and the single checkpoint that lie beside."""
    files = {name: content for name, content in _files(ASSETS / TINY_BASE).items()
             if name != "tokenizer/tokenizer.json"}  # which the published one lacks
    for name in [name for name in files if name.endswith(".fp16.safetensors")]:
        files[name.replace(".fp16", "")] = bytes(2 * len(files[name]))
    return Repository(files | {"sd_turbo.safetensors": bytes(100_000), "README.md": b"# SD-Turbo",
                               "model_index.json": b"{}", "LICENSE": b"a licence"})


def celeba_hq() -> Repository:
    """Parquet shards of both splits, each sorted by label as the published ones seem to be; an
    image is as large as a small photograph."""
    faces = [_jpeg(seed) for seed in range(2)]
    counts = {"train-00000-of-00002": 3 * GROUP_ROWS, "train-00001-of-00002": GROUP_ROWS,
              "validation-00000-of-00001": 20}
    women = {"train-00000-of-00002": 256, "validation-00000-of-00001": 13}  # first, 64 %
    files = {f"data/{name}-{'0123456789abcdef'}.parquet": _shard(
        faces, [row >= women.get(name, 0) for row in range(count)], seed)
        for seed, (name, count) in enumerate(counts.items())}
    return Repository(files | {"README.md": b"---\nlicense: other\n---\n# CelebA-HQ\n"})


def face_parser() -> Repository:
    """A random Segformer that finds several regions."""
    model = SegformerForSemanticSegmentation(SegformerConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, num_attention_heads=[1] * 4,
        decoder_hidden_size=32, id2label=dict(enumerate(CELEBA_MASK_LABELS))))
    dice = torch.Generator().manual_seed(1)
    for value in model.parameters():
        if value.dim() > 1:
            nn.init.xavier_normal_(value, generator=dice)
    model.decode_head.classifier.bias.data.zero_()
    model.decode_head.classifier.weight.data *= 10
    files = _saved(model)
    files["preprocessor_config.json"] = json.dumps({  # the class is the published one
        "image_processor_type": "SegformerFeatureExtractor",
        "size": {"height": 64, "width": 64}}).encode()
    beside = len(files["model.safetensors"])
    return Repository(files | {"README.md": b"# Parser", "pytorch_model.bin": bytes(beside),
                               "onnx/model.onnx": bytes(beside)})


def clip() -> Repository:
    """CLIP whole, text tower included, as the one pickle of tensors that its repository has."""
    model = CLIPModel(CLIPConfig(
        projection_dim=8,
        text_config=SMALL | {"vocab_size": 100, "bos_token_id": 98, "eos_token_id": 99},
        vision_config=SMALL | {"image_size": 32, "patch_size": 16}))
    files, weights = _saved(model), BytesIO()
    torch.save(model.state_dict(), weights)
    return Repository({"config.json": files["config.json"], "README.md": b"# CLIP",
                       "pytorch_model.bin": weights.getvalue(),
                       "flax_model.msgpack": bytes(weights.tell())})


def _jpeg(seed: int) -> bytes:
    image, file = render_avatar(seed, 64)[0], BytesIO()
    Image.fromarray(image.clamp(0, 1).mul(255).byte().permute(1, 2, 0).numpy()).save(file, "JPEG")
    return file.getvalue()


def _shard(faces: list[bytes], labels: list[bool], seed: int) -> bytes:
    dice = np.random.default_rng(seed)  # after its end marker a JPEG may hold anything
    images = [face + dice.bytes(IMAGE_BYTES - len(face))
              for face in (faces[row % len(faces)] for row in range(len(labels)))]
    rows = datasets.Dataset.from_dict(
        {"image": [{"bytes": image, "path": None} for image in images],
         "label": [int(label) for label in labels]},
        features=datasets.Features({"image": datasets.Image(),
                                    "label": datasets.ClassLabel(names=["female", "male"])}))
    file = BytesIO()
    rows.to_parquet(file, batch_size=GROUP_ROWS)
    return file.getvalue()


def _saved(model: nn.Module) -> dict[str, bytes]:
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return _files(Path(folder))


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*")) if path.is_file()}
