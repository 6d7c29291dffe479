"""One trained scene of Gaussians restored: views of an orbit, and a turntable of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch

from ..gaussians.ply import read_ply
from ..gaussians.scene import draw, flow_between, framed, orbit
from ..images import read_image, read_png_text, to_bytes, write_png
from .ffmpeg import MIN_RATE, Piece, Video, encode, join
from .inputs import MARK
from .settings import BACKDROPS, RestoreConfig
from .temporal import Smoother

if TYPE_CHECKING:
    from ..model.enhancer import SplatEnhancer

MIN_FPS, MAX_FPS = 8, 30  # of a turntable, so that it takes two seconds or more
REPAIRED = "repaired"  # keyword in a view


def view_files(folder: Path, views: int) -> list[Path]:
    """The pictures of an orbit: of each view the restored one, then the one that was drawn."""
    return [folder / f"view_{number:03}_{kind}.png" for number in range(views)
            for kind in ("restored", "render")]


def restore_splat(model: SplatEnhancer, source: Path, target: Path, files: Sequence[Path],
                  settings: RestoreConfig, *, tag: Callable[[float], str],
                  tick: Callable[[int, int], None], notes: list[str]
                  ) -> tuple[float, tuple[int, int]]:
    """Draw a `.ply` scene from an orbit, restore each view, and show them as a turntable.

    Views that are there, made of the same, are kept: so a restoration that was stopped goes on.

    Args:
        files: of `view_files`.
        model, source, target, settings, tag, tick, notes: as for `restore_video`.

    Raises:
        ValueError: a file that holds no such scene, with its name.
    """
    scene, left_out = read_ply(source)
    notes += left_out
    scene, size_px = framed(scene), settings.view_px
    cameras = orbit(scene, views=settings.views, size_px=size_px, up=settings.up,
                    arc_deg=settings.arc_deg, elevation_deg=settings.elevation_deg,
                    fov_deg=settings.fov_deg)
    backdrop = torch.full((3, size_px, size_px), BACKDROPS[settings.backdrop])
    rate = min(max(settings.views // 2, MIN_FPS), MAX_FPS)  # frames per second
    smoother, mark, before, frames, changed = Smoother(settings.temporal), tag(0), None, [], 0.0
    files[0].parent.mkdir(exist_ok=True)
    for number, camera in enumerate(cameras):
        view = draw(scene, camera, backdrop)
        if not number and not view.alpha.any():
            raise ValueError(f"{source.name}: expected Gaussians that can be seen, got a view "
                             "without any; look at it in a viewer of splats, and train it again")
        picture = view.picture[None]
        path, render = files[2 * number:2 * number + 2]
        texts = [read_png_text(file) for file in (path, render)]
        if any(text.get(MARK) != mark for text in texts):
            restored, amount = model.enhance_with_mask(picture, settings.strength)
            text = {MARK: mark, REPAIRED: f"{float(amount.mean()):.6f}"}
            write_png(render, view.picture, text=text)
            write_png(path, restored[0], text=text)
            texts = [text]
        changed += float(texts[0][REPAIRED]) / len(cameras)
        flow = flow_between(view, before) if before is not None and settings.temporal else None
        smooth = smoother(picture, read_image(path)[0][None], flow)[0]
        frames.append((number * MIN_RATE // rate, to_bytes(smooth).permute(1, 2, 0).numpy()))
        before = view
        tick(number + 1, len(cameras))
    video = Video(source, (size_px, size_px), len(frames), MIN_RATE, 1 / rate)
    with TemporaryDirectory(dir=target.parent, prefix=".", suffix=".parts") as folder:
        piece = Piece(Path(folder) / "turntable.nut", 0, len(frames))
        piece.path.write_bytes(encode(video, frames))
        join(video, [piece], target, tag(changed), notes)
    for other in {*files[0].parent.glob("view_*.png")} - {*files}:  # of an orbit with more views
        other.unlink()
    return changed, (size_px, size_px)
