"""Safetensors files that end in the SHA-256 of all that stands before: whole, or known not to be.

Safetensors cannot execute anything, but has no checksum. Here its last tensor is one, so that
every library reads the file and a single flipped bit, wherever it is, is found.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from torch import Tensor

from .whole import SEAL_BYTES, damage_named, read_seal

FORMAT = "splat-enhancer-2"
SEAL = "~sha256"  # the name of the last tensor
LARGEST_HEADER_BYTES = 100_000_000  # the limit of safetensors itself
DTYPES = {torch.float64: "F64", torch.int64: "I64", torch.float32: "F32", torch.int32: "I32",
          torch.float16: "F16", torch.bfloat16: "BF16", torch.uint8: "U8", torch.bool: "BOOL"}


def write_sealed(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors and texts in one pass, without a second copy of the tensors in memory.

    Args:
        tensors: by name.
        metadata: texts by name; "format" is added.

    Raises:
        OSError: the file could not be written; part of it may be there.
    """
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in _pieces(tensors, {"format": FORMAT} | metadata):
            digest.update(piece)
            file.write(piece)
        file.write(digest.digest())
        file.flush()
        os.fsync(file.fileno())


def read_sealed(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read what `write_sealed` wrote.

    Raises:
        DamagedFile: another kind of file, or one byte is not as it was.
        OSError: the file cannot be read.
    """
    content = path.read_bytes()
    texts = verify(content, path)
    with damage_named(path):
        tensors = safetensors.torch.load(content)
        del tensors[SEAL]
    return tensors, texts


def read_metadata(path: Path) -> dict[str, str]:
    """The texts of a sealed file, from its header alone: not compared with the seal.

    Raises:
        DamagedFile: another kind of file, or a header that cannot be read.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file, damage_named(path):
        return _metadata(_header(file))


def verify(content: bytes, path: Path | str) -> dict[str, str]:
    """The texts of a sealed file's bytes; DamagedFile unless each is as it was written."""
    with damage_named(path):
        texts = _metadata(_header(BytesIO(content)))
    read_seal(content, path)
    return texts


def _pieces(tensors: dict[str, Tensor], metadata: dict[str, str]) -> Iterator[bytes | memoryview]:
    """The bytes of the file up to its seal.

    Source: the description of the format, github.com/huggingface/safetensors, README.md.
    """
    names = sorted(tensors, key=lambda name: -tensors[name].element_size())  # keeps them aligned
    entries, end = {}, 0
    for name in names:
        start, end = end, end + tensors[name].nbytes
        entries[name] = {"dtype": DTYPES[tensors[name].dtype], "shape": list(tensors[name].shape),
                         "data_offsets": [start, end]}
    entries[SEAL] = {"dtype": "U8", "shape": [SEAL_BYTES], "data_offsets": [end, end + SEAL_BYTES]}
    header = json.dumps({"__metadata__": metadata} | entries).encode()
    header += b" " * (-len(header) % 8)
    yield len(header).to_bytes(8, "little") + header
    for name in names:
        flat = tensors[name].detach().cpu().contiguous().reshape(-1)
        yield memoryview(flat.view(torch.uint8).numpy())


def _header(file: BinaryIO) -> dict[str, Any]:
    size = int.from_bytes(file.read(8), "little")
    if not 0 < size <= LARGEST_HEADER_BYTES:
        raise ValueError(f"a header of {size} bytes")
    return json.loads(file.read(size))


def _metadata(header: dict[str, Any]) -> dict[str, str]:
    texts = header.get("__metadata__") or {}
    if texts.get("format") != FORMAT:
        raise ValueError(f"format {texts.get('format')!r} where this version writes {FORMAT!r}")
    if not all(isinstance(text, str) for text in texts.values()):
        raise ValueError("metadata that are not texts")
    return texts
