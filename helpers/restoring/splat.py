"""One trained scene of Gaussians restored: views of an orbit, and a turntable of them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ..errors import refused
from ..model import SplatEnhancer
from ..pictures import read_picture, source_of, write_picture
from ..splats import draw, flow_between, framed, orbit, read_ply
from .clips import BT709, Clip
from .marks import Mark, placing, result_of
from .mp4 import Piece, join, read_comment
from .report import Report
from .settings import BACKDROPS, RestoreConfig
from .steady import Steadier

RATES = (8, 30)  # frames per second of a turntable, so that it takes two seconds or more


def restore_splat(model: SplatEnhancer, path: Path, folder: Path, settings: RestoreConfig,
                  report: Report, *, mark: Mark) -> list[Path]:
    """Draw a `.ply` scene from an orbit and restore each view.

    In `<stem>_restored/` lie `view_000_render.png`, as drawn, and `view_000_restored.png`; beside
    it `<stem>_restored.mp4` shows the restored views one after the other, steadied along the exact
    flow. Views that are there are kept when it goes on.

    Args:
        model, path, folder, report, mark: as for `restore_picture`.
        settings: strength, the orbit, and how much the turntable is steadied.

    Returns:
        The mp4, then the pictures.

    Raises:
        ValueError: a file that holds no such scene, with its name.
        OSError: the disk is full, or Drive is gone.
    """
    mark = mark.of_content(path)
    scene, notes = read_ply(path)
    report.notes += notes
    scene = framed(scene)
    cameras = orbit(scene, views=settings.views, size_px=settings.view_px, up=settings.up,
                    arc_deg=settings.arc_deg, elevation_deg=settings.elevation_deg,
                    fov_deg=settings.fov_deg)
    backdrop = torch.full((3, settings.view_px, settings.view_px), BACKDROPS[settings.backdrop])
    views_folder = result_of(path, folder, mark, ".mp4", read_comment)[0].with_suffix("")
    rate, before = Fraction(min(max(settings.views // 2, RATES[0]), RATES[1])), None
    files = views_of(views_folder, settings)
    clip = Clip(path, (settings.view_px,) * 2, settings.views, rate, 1 / rate,
                (BT709, 1, BT709, BT709), BT709)
    piece, steadier = Piece(clip), Steadier(settings.steady)
    for number, camera in enumerate(cameras):
        view = draw(scene, camera, backdrop)
        if not number and not view.alpha.any():
            raise refused(path.name, "Gaussians that can be seen", "a view without any",
                          "look at it in a viewer of splats, and train it again")
        restored, render = files[2 * number:2 * number + 2]
        own = str(mark.of_part(f"view_{number:03}"))
        if {source_of(restored), source_of(render)} != {own}:
            write_picture(render, view.picture, source=own)
            write_picture(restored, model.enhance(view.picture[None], settings.strength)[0],
                          source=own)
        flow = flow_between(view, before) if before is not None and settings.steady else None
        piece.add(number, steadier(view.picture[None], read_picture(restored).rgb[None], flow)[0])
        before = view
        report(number + 1, len(cameras))
    with TemporaryDirectory(dir=folder, prefix=".", suffix=".parts") as parts:
        own_piece, whole = Path(parts) / "turntable.nut", Path(parts) / "whole.mp4"
        own_piece.write_bytes(piece.content())
        join([own_piece], whole, str(mark))
        with placing(path, folder, mark, ".mp4", read_comment) as target:
            whole.replace(target)
    for other in {*views_folder.glob("view_*.png")} - {*files}:
        if Mark.read(source_of(other)):  # of an orbit with more views
            other.unlink()
    return [target, *files]


def views_of(folder: Path, settings: RestoreConfig) -> list[Path]:
    """The pictures of an orbit: of each view the restored one, then the one that was drawn."""
    return [folder / f"view_{number:03}_{kind}.png" for number in range(settings.views)
            for kind in ("restored", "render")]
