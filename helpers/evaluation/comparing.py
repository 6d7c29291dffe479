"""Other tools on the same sets: what is to be restored is written out, what came back measured.

    held_out = HeldOut(config, faces, device="cpu", folder=Path("data/held_out"))
    write_sets(held_out, Path("to_restore"))      # to_restore/<set>/<image>.png
    others = compare(Path("difix"), held_out, metrics)
    print(format_compared({"DIFIX": others, "ours": evaluation.sets}))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..distances import Metrics
from ..errors import refused
from ..faces import read_image, to_png, to_tensor
from ..storage import write_whole
from .batch import Batch
from .filters import Filter
from .measuring import measure
from .result import Result

Sets = Mapping[str, Iterable[Batch]]


def write_sets(held_out: Sets, folder: Path) -> list[Path]:
    """Write what is to be restored as `<folder>/<set>/<image>.png`, just as it is measured.

    Returns:
        The files.
    """
    written = []
    for name in held_out:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for batch in held_out[name]:
            pixels = batch.degraded.mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
            written += [write_whole(folder / name / f"{image}.png",
                                    to_png(Image.fromarray(np.ascontiguousarray(one))))
                        for image, one in zip(batch.images, pixels, strict=True)]
    return written


def compare(folder: Path, held_out: Sets, metrics: Metrics, *,
            cheap: Filter | None = None) -> dict[str, Result]:
    """Measure a folder of pictures that any tool restored, on the sets of this run.

    Args:
        folder: has `<set>/<image>.png` (or .jpg, .webp) for what `write_sets` wrote. A set that it
            lacks is left out; one that it has, it must have whole.
        held_out: the sets.
        metrics, cheap: as for `measure`.

    Returns:
        Set → result, as `evaluate_run` has them.

    Raises:
        ValueError: no set, a picture that is missing or of another size.
    """
    there = [name for name in held_out if (folder / name).is_dir()]
    if not there:
        raise refused(str(folder), f"a folder for one of the sets {', '.join(held_out)}", "none",
                      "run write_sets, and keep the names of folders and pictures")
    found = {}
    for name in there:
        files = {path.stem: path for path in sorted((folder / name).iterdir()) if path.is_file()}
        found[name] = measure(name, lambda batch, files=files, name=name: _read(
            batch, files, folder / name), held_out[name], metrics, cheap=cheap).result
    return found


def _read(batch: Batch, files: Mapping[str, Path], folder: Path) -> Tensor:
    if missing := [image for image in batch.images if image not in files]:
        raise refused(str(folder), f"a picture for each of {', '.join(batch.images)}",
                      f"none for {', '.join(missing)}", "restore all of the set")
    images = [to_tensor(read_image(files[image])) for image in batch.images]
    for image, one in zip(batch.images, images, strict=True):
        if one.shape[1:] != batch.degraded.shape[1:]:
            height, width = batch.degraded.shape[2:]
            raise refused(str(files[image]), f"{width} x {height} pixels", tuple(one.shape[:1:-1]),
                          "scale it back to the size of its input")
    return torch.cat(images).to(batch.degraded)
