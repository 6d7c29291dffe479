"""One picture file restored: any depth, colour space, orientation and size; alpha is kept."""

from __future__ import annotations

from pathlib import Path

from ..model import SplatEnhancer
from ..pictures import read_picture, repaired, write_picture
from .marks import Mark, placing, result_of
from .report import Report
from .settings import RestoreConfig

OVERLAY = "overlay"  # the part of a result that shows where it was repaired


def restore_picture(model: SplatEnhancer, path: Path, folder: Path, settings: RestoreConfig,
                    report: Report, *, mark: Mark) -> list[Path]:
    """Restore a picture into `<stem>_restored.png`, 8-bit sRGB; the overlay beside it if wanted.

    Args:
        model: the enhancer; for many pictures within `merged()`.
        path: the picture.
        folder: of the results.
        settings: strength and overlay.
        report: told how far it is, and what was taken for granted.
        mark: of the picture; the result carries it.

    Returns:
        The files written, the restored picture first.

    Raises:
        ValueError: a picture that cannot be read, with its name.
        OSError: the disk is full, or Drive is gone; nothing half-written is left behind.
    """
    mark = mark.of_content(path)
    picture = read_picture(path)
    report.notes += picture.notes
    before = picture.rgb[None]  # (1, 3, H, W)
    restored, where = model.enhance_and_show(before, settings.strength, report)
    images = {mark.of_part(OVERLAY): repaired(restored, where)} if settings.overlay else {}
    files = []
    for part, image in (images | {mark: restored}).items():  # the one that counts comes last
        with placing(path, folder, part) as target:
            files.append(write_picture(target, image[0], picture.alpha, source=str(part)))
    if not settings.overlay:  # none of an earlier result stays beside this one
        old, fits = result_of(path, folder, mark.of_part(OVERLAY))
        if not fits:
            old.unlink(missing_ok=True)
    return files[::-1]
