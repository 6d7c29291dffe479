"""Trained Gaussians as a `.ply` file, the way 3D Gaussian Splatting writes it: read and written.

Columns mean what their writer meant: what other trainers and converters store is recognised and
converted, or rejected by name.
"""

from __future__ import annotations

import gzip
import re
import warnings
import zlib
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray

from ..files import atomic_write
from .scene import SH_C0, Scene

MAX_COUNT, MAX_HEADER_BYTES = 4_000_000, 65_536  # Gaussians (1 GB); heads have some 100,000
TYPES = {"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4",
         "float": "f4", "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2",
         "int32": "i4", "uint32": "u4", "float32": "f4", "float64": "f8"}
MEANS, COLORS, RGB = ("x", "y", "z"), ("f_dc_0", "f_dc_1", "f_dc_2"), ("red", "green", "blue")
SCALES, TURNS = ("scale_0", "scale_1", "scale_2"), ("rot_0", "rot_1", "rot_2", "rot_3")
NEEDED = (*MEANS, *COLORS, "opacity", *SCALES, *TURNS)
HARMLESS = {"nx", "ny", "nz", *RGB, "alpha", "filter_3D"}  # used, or nothing is lost without them
MEANT = {"opacity": (np.inf, -np.inf)} | dict.fromkeys(SCALES, (-np.inf,))  # infinities: 1 and 0
MAX_LOGIT, MIN_LOG, MAX_LOG = 30.0, -60.0, 85.0  # beyond: no difference in float32, or infinity
MAX_COLOR = 10.0  # at the median; harmonics of degree 0 lie at about -2 to 4
FLAT = 1e-3  # thickness of a 2D Gaussian, of its smaller side
FEW = 8  # Gaussians that are too few to tell by what their scales mean
REMEDY = "export it as an uncompressed .ply (SuperSplat: File, Export, PLY)"


def read_ply(path: Path) -> tuple[Scene, list[str]]:
    """Read a trained scene: text or binary of either byte order, gzip'd too, colours to degree 3.

    Returns:
        The scene, float32, and in words what was converted or left out.

    Raises:
        ValueError: no such file, cut off, too large, or of something else than Gaussians.
    """
    if not path.is_file():
        raise ValueError(f"{path.name}: expected a .ply file, got nothing there; check the path")
    with path.open("rb") as file:
        is_packed = file.read(2) == b"\x1f\x8b"
    notes: list[str] = []
    try:
        with (gzip.open if is_packed else open)(path, "rb") as file:
            stored = _read_columns(file, path, notes)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path.name}: expected a whole file, got {error}; copy it") from error
    rest = [f"f_rest_{n}" for n in range(sum(word.startswith("f_rest_") for word in stored))]
    if len(rest) not in (0, 9, 24, 45) or not stored.keys() >= {*rest}:
        raise ValueError(f"{path.name}: expected 0, 9, 24 or 45 columns f_rest_0 … (degree 0 to "
                         f"3), got {len(rest)}; export it with such colours")
    if other := sorted(stored.keys() - {*NEEDED, *rest} - HARMLESS):
        notes.append(f"columns not used: {', '.join(other[:6])}" + ", …" * (len(other) > 6))
    wrong = {word: ~(np.isfinite(values) | np.isin(values, MEANT.get(word, ())))
             for word, values in stored.items() if word in (*NEEDED, *rest)}
    are_logs = any((stored[word] < 0).any() for word in SCALES if word in stored)
    wrong |= {word: wrong[word] | (stored[word] > MAX_LOG)
              for word in SCALES if word in wrong and are_logs}
    if stored.keys() >= {*TURNS}:
        wrong["rot_0"] |= ~np.any([stored[word] for word in TURNS], 0)
    bad = np.any([*wrong.values()], 0) if wrong else np.zeros(1, bool)
    if bad.any():
        what = (f"{bad.sum():,} of {len(bad):,} Gaussians with numbers that cannot be drawn in "
                f"{', '.join(word for word in wrong if wrong[word].any())}")
        if bad.mean() > 0.5:
            raise ValueError(f"{path.name}: expected finite numbers, got {what}; train it again")
        notes.append(f"left out: {what}")
        stored = {word: values[~bad] for word, values in stored.items()}
    with np.errstate(all="ignore"):
        trained = _as_trained(stored, path.name, notes)

    def gather(*names: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([trained[word] for word in names], 1)).float()

    colors = gather(*COLORS)[:, None]
    if rest:  # all of red, then green, then blue
        colors = torch.cat([colors, gather(*rest).unflatten(1, (3, -1)).mT], 1)
    return Scene(gather(*MEANS), gather(*SCALES), gather(*TURNS), gather("opacity")[:, 0],
                 colors), notes


def write_ply(path: Path, scene: Scene) -> Path:
    """Write a scene as 3D Gaussian Splatting does, binary, atomically."""
    rest = scene.harmonics[:, 1:].mT.flatten(1)
    columns = torch.cat([scene.means, torch.zeros_like(scene.means), scene.harmonics[:, 0], rest,
                         scene.opacity_logits[:, None], scene.log_scales, scene.quaternions], 1)
    names = (*MEANS, "nx", "ny", "nz", *COLORS, *(f"f_rest_{n}" for n in range(rest.shape[1])),
             "opacity", *SCALES, *TURNS)
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(scene)}",
              *(f"property float {name}" for name in names), "end_header\n"]
    values = columns.detach().float().cpu().numpy().astype("<f4")
    return atomic_write(path, "\n".join(header).encode() + values.tobytes())


def _read_columns(file: BinaryIO, path: Path, notes: list[str]) -> dict[str, NDArray]:
    """The columns of the element `vertex`, float64 as stored; bytes as shares of 255."""
    name, start = path.name, file.read(MAX_HEADER_BYTES)
    header = re.match(rb"ply[ \r]*\n.*?\nend_header\r?\n", start, re.DOTALL)
    if header is None:
        kind = "something else" if path.suffix.lower() in (".ply", ".gz") else path.suffix.lower()
        raise ValueError(f"{name}: expected a .ply file of Gaussians, got {kind}; {REMEDY}")
    form, elements = "none", []
    for line in header[0].decode("latin-1").splitlines():
        match line.split():
            case ["format", form, _]:
                pass
            case ["element", element, count]:
                elements.append((element, int(count[:12]) if count.isdecimal() else 0, []))
            case ["property", *words] if elements:
                elements[-1][2].append(words)
    order = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}.get(form)
    properties = elements[0][2] if elements and elements[0][0] == "vertex" else [[]]
    if order is None or len({str(words[1:]) for words in properties}) < len(properties) or not all(
            len(words) == 2 and words[0] in TYPES for words in properties):
        packed = "compressed, " if b"packed_" in header[0] else ""
        raise ValueError(f"{name}: expected a .ply file of Gaussians, numbers alone, got {packed}"
                         f"format {form} with {', '.join(e[0] for e in elements) or 'nothing'}; "
                         f"{REMEDY}")
    (_, count, _), *others = elements
    if not 0 < count <= MAX_COUNT:
        raise ValueError(f"{name}: expected 1 to {MAX_COUNT:,} Gaussians, got {count:,}; prune it")
    if others:
        notes.append(f"not used: {', '.join(element for element, *_ in others)}")
    row = np.dtype([(word, order + TYPES[kind]) for kind, word in properties])
    content, table = start[header.end():], None
    if form == "ascii":
        with warnings.catch_warnings(action="ignore"):  # of fewer rows
            try:
                rows = np.loadtxt(BytesIO(content + file.read()), ndmin=2, max_rows=count)
                table = dict(zip(row.names, rows.T, strict=True)) if len(rows) == count else None
            except ValueError:  # a row that is cut
                pass
    else:
        content += file.read(max(0, count * row.itemsize - len(content)))
        if len(content) >= count * row.itemsize:
            rows = np.frombuffer(content, row, count)
            table = {word: rows[word].astype(np.float64) for word in row.names}
    if table is None:
        raise ValueError(f"{name}: expected {count:,} Gaussians of {len(row.names)} columns, got "
                         "fewer: it is cut off; copy it again")
    return {word: values / 255 if row[word].kind in "iu" else values
            for word, values in table.items()}


def _as_trained(stored: dict[str, NDArray], name: str, notes: list[str]) -> dict[str, NDArray]:
    """The columns in the parametrisation of 3D Gaussian Splatting.

    Source of `filter_3D`: Yu et al. (2024), Mip-Splatting, scene/gaussian_model.py.
    """
    values = dict(stored)
    if not stored.keys() & {*COLORS} and stored.keys() >= {*RGB}:
        values |= {word: (stored[own] / (255 if stored[own].max() > 1 else 1) - 0.5) / SH_C0
                   for word, own in zip(COLORS, RGB, strict=True)}
        notes.append("its colours are red, green and blue, the same from all sides")
    missing = [word for word in NEEDED if word not in values]
    if missing == ["scale_2"]:
        values["scale_2"] = np.minimum(values["scale_0"], values["scale_1"])
        notes.append("its Gaussians are flat, as 2DGS trains them: drawn as thin ones")
    elif missing:
        kind = "a point cloud or a mesh" if {"opacity", "scale_0"} <= {*missing} else "a part"
        raise ValueError(f"{name}: expected Gaussians as 3D Gaussian Splatting writes them, got "
                         f"{kind} without {', '.join(missing)}; use "
                         "point_cloud/iteration_…/point_cloud.ply of the training")
    middle = np.median(np.abs([values[word] for word in COLORS]))
    if middle > MAX_COLOR:
        raise ValueError(f"{name}: expected f_dc_0, 1 and 2 of about -2 to 4, got {middle:g} at "
                         "the median: they are no harmonics; export it again")
    opacity, scales = values["opacity"], np.stack([values[word] for word in SCALES])  # (3, N)
    if opacity.min() >= 0 and 0 < opacity.max() <= 1:
        opacity = np.log(opacity) - np.log1p(-opacity)
        notes.append("its opacities lie in [0, 1]: taken as they are, not as logits")
    middle = np.median(scales)
    ends = np.percentile([values[word] for word in MEANS], [5, 95], axis=1)
    spacing = np.linalg.norm(ends[1] - ends[0]) / len(opacity) ** 0.5  # of neighbours, about
    if len(opacity) >= FEW and scales.min() >= 0 and abs(np.log(middle / spacing)) < abs(
            middle - np.log(spacing)):
        scales = np.log(scales)
        notes.append("its scales fit the scene as lengths: taken as they are, not as logarithms")
    scales = np.maximum(scales, MIN_LOG)
    if missing:
        scales[2] += np.log(FLAT)
    if "filter_3D" in stored:
        wide = np.log(np.exp(2 * scales) + stored["filter_3D"] ** 2) / 2
        share = np.exp((scales - wide).sum(0)) / (1 + np.exp(-opacity))
        opacity, scales = np.log(share) - np.log1p(-share), wide
        notes.append("its filter_3D (Mip-Splatting) is applied")
    return values | dict(zip(SCALES, scales, strict=True)) | {
        "opacity": np.clip(opacity, -MAX_LOGIT, MAX_LOGIT)}
