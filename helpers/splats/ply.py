"""Trained Gaussians as a `.ply` file, the way 3D Gaussian Splatting writes it: read and written.

Nothing in a file is trusted: its header is read alone first, and what it promises is compared with
the size of the file before memory is taken for it.
"""

from __future__ import annotations

import re
from io import BytesIO
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from ..errors import refused
from ..machine import needed
from ..storage import own_path, write_whole
from .scene import LARGEST_DEGREE, Scene

LARGEST_HEADER_BYTES = 65_536
LARGEST_COUNT = 4_000_000  # Gaussians: 1 GB of file; heads have some 100,000, rooms some millions
MEANS, COLORS = ("x", "y", "z"), ("f_dc_0", "f_dc_1", "f_dc_2")
LENGTHS, TURNS = ("scale_0", "scale_1", "scale_2"), ("rot_0", "rot_1", "rot_2", "rot_3")
NEEDED = (*MEANS, *COLORS, "opacity", *LENGTHS, *TURNS)
EXPORT = "export it as an uncompressed .ply (SuperSplat: File, Export, PLY)"


def read_ply(source: str | Path) -> tuple[Scene, tuple[str, ...]]:
    """Read a trained scene: text or binary of either order of bytes, colours to degree 3.

    Returns:
        The scene, float32, and in words what was left out.

    Raises:
        ValueError: no such file, cut off, too large, or of something else than Gaussians.
        OSError: it cannot be read.
    """
    plyfile, path = _plyfile(), own_path(source)
    if not path.is_file():
        raise refused(path.name, "a .ply file", "nothing there", "check the path")
    names = _looked_at(path)
    try:
        rows = plyfile.PlyData.read(str(path))["vertex"].data
    except (plyfile.PlyParseError, ValueError, KeyError) as error:
        raise refused(path.name, "as many rows as its header says", str(error),
                      "copy or export it again") from error
    columns = {name: np.array(rows[name], np.float32) for name in names}  # of any stride

    def gathered(*own: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([columns[name] for name in own], 1))

    rest = gathered(*names[len(NEEDED):]) if len(names) > len(NEEDED) else torch.empty(len(rows), 0)
    harmonics = torch.cat([gathered(*COLORS)[:, None], rest.unflatten(1, (3, -1)).mT], 1)
    scene = Scene(gathered(*MEANS), gathered(*LENGTHS), gathered(*TURNS),
                  torch.from_numpy(columns["opacity"]), harmonics)
    return _usable(scene, path.name)


def write_ply(path: Path, scene: Scene) -> Path:
    """Write a scene as 3D Gaussian Splatting does, binary, whole or not at all.

    Raises:
        OSError: it could not be written.
    """
    plyfile = _plyfile()
    rest = scene.harmonics[:, 1:].mT.flatten(1)  # all of red, then green, then blue
    columns = torch.cat([scene.means, torch.zeros_like(scene.means), scene.harmonics[:, 0], rest,
                         scene.opacities[:, None], scene.lengths, scene.turns], 1)
    names = (*MEANS, "nx", "ny", "nz", *COLORS, *_rest_names(rest.shape[1]), "opacity", *LENGTHS,
             *TURNS)
    values = columns.detach().float().cpu().contiguous().numpy().astype("<f4")
    rows = values.view([(name, "<f4") for name in names])[:, 0]
    buffer = BytesIO()
    plyfile.PlyData([plyfile.PlyElement.describe(rows, "vertex")], byte_order="<").write(buffer)
    return write_whole(path, buffer.getvalue())


def _plyfile() -> ModuleType:
    return needed("plyfile", "read and write .ply files")


def _looked_at(path: Path) -> list[str]:
    """Refuse by the header and the size alone; the columns to read: NEEDED, then the others."""
    plyfile = _plyfile()
    with path.open("rb") as file:
        start = file.read(LARGEST_HEADER_BYTES)
    ended = re.match(rb"ply\r?\n.*?\nend_header\r?\n", start, re.DOTALL)
    if ended is None:
        kind = path.suffix.lower() if path.suffix.lower() != ".ply" else "something else"
        raise refused(path.name, "a .ply file of Gaussians", kind, EXPORT)
    counts = [int(count[:18]) for count in re.findall(rb"\nelement \S+ (\d+)", ended[0])]
    try:
        header = plyfile.PlyData.read(BytesIO(re.sub(rb"(\nelement \S+) \d+", rb"\1 0", ended[0])))
    except (plyfile.PlyParseError, ValueError) as error:
        raise refused(path.name, "the header of a .ply file", str(error), EXPORT) from error
    elements = {element.name: element for element in header.elements}
    names = _columns(elements, path.name)
    promised = dict(zip(elements, counts, strict=True))["vertex"]
    if not 0 < promised <= LARGEST_COUNT:
        raise refused(path.name, f"1 to {LARGEST_COUNT:,} Gaussians", f"{promised:,}",
                      "train it, or prune it to fewer")
    least = sum(count * (2 * len(element.properties) if header.text else element.dtype().itemsize)
                for count, element in zip(counts, header.elements, strict=True))
    if (held := path.stat().st_size - ended.end()) < least - header.text:  # no blank at the end
        raise refused(path.name, f"{least:,} bytes for {promised:,} Gaussians", f"{held:,}",
                      "it is cut off: copy it again")
    return names


def _columns(elements: dict, name: str) -> list[str]:
    if any(prop.name.startswith("packed_") for e in elements.values() for prop in e.properties):
        raise refused(name, "plain numbers", "PlayCanvas' compressed columns", EXPORT)
    found = {prop.name for prop in elements["vertex"].properties} if "vertex" in elements else set()
    if missing := [column for column in NEEDED if column not in found]:
        kind = "a point cloud or a mesh" if {"opacity", "scale_0"} <= set(missing) else "a part"
        raise refused(name, "Gaussians as 3D Gaussian Splatting writes them",
                      f"{kind} without {', '.join(missing)}",
                      "use point_cloud/iteration_…/point_cloud.ply of the training")
    rest = sorted(column for column in found if column.startswith("f_rest_"))
    degrees = {3 * ((degree + 1) ** 2 - 1) for degree in range(LARGEST_DEGREE + 1)}
    if len(rest) not in degrees or set(rest) != set(_rest_names(len(rest))):
        raise refused(name, f"f_rest_0 … numbered, {sorted(degrees)} of them", f"{len(rest)}",
                      "use colours of degree 0 to 3")
    if any(hasattr(prop, "len_dtype") for e in elements.values() for prop in e.properties):
        raise refused(name, "Gaussians alone", "lists, such as a mesh's faces", EXPORT)
    return [*NEEDED, *_rest_names(len(rest))]


def _rest_names(count: int) -> tuple[str, ...]:
    return tuple(f"f_rest_{n}" for n in range(count))


def _usable(scene: Scene, name: str) -> tuple[Scene, tuple[str, ...]]:
    finite = torch.cat([scene.means, scene.lengths.exp(), scene.turns, scene.opacities[:, None],
                        scene.harmonics.flatten(1)], 1).isfinite().all(1)
    good = finite & (scene.turns.abs().amax(1) > 0)
    if not (left := int(good.sum())):
        raise refused(name, "Gaussians of finite numbers", f"none among {len(scene):,}",
                      "train it again")
    lost = len(scene) - left
    notes = (f"{lost:,} of {len(scene):,} Gaussians are left out: not finite",) if lost else ()
    return (scene[good] if lost else scene), notes
