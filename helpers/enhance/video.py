"""One video restored: a frame at a time, in pieces that survive a kill."""

from __future__ import annotations

import glob
import itertools
import shutil
from collections.abc import Callable
from contextlib import closing
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..files import atomic_write, sha256
from ..images import from_bytes, to_bytes
from .ffmpeg import Piece, Video, encode, join, look_at, read_frames
from .settings import RestoreConfig
from .temporal import Smoother

if TYPE_CHECKING:
    from ..model.enhancer import SplatEnhancer

PIECE_FRAMES, PIECE_PIXELS = 32, 2**26  # of a piece, at most: what a kill costs


def restore_video(model: SplatEnhancer, source: Path, target: Path, settings: RestoreConfig, *,
                  tag: Callable[[float], str], tick: Callable[[int, int], None],
                  notes: list[str]) -> tuple[float, tuple[int, int]]:
    """Restore a video as H.264; its times, colours, sound and all that an mp4 takes are kept.

    Args:
        model, source, target, settings: the enhancer, the video, the mp4 to write, and how.
        tag: makes the mark of the result of the share that was repaired.
        tick: called with how many frames are done, and how many there are.
        notes: takes what could not be kept.

    Returns:
        The share that was repaired, and width and height.

    Raises:
        ValueError: a video that cannot be read or shown rightly, with its name.
    """
    video = look_at(source, notes)
    parts = target.with_name(f".{target.stem}-{sha256(tag(0).encode())[:12]}.parts")
    for other in target.parent.glob(f".{glob.escape(target.stem)}-{'[0-9a-f]' * 12}.parts"):
        if other != parts:  # of other settings
            shutil.rmtree(other)
    parts.mkdir(exist_ok=True)
    try:
        pieces, repaired = _restore_pieces(model, video, settings, parts, tick, notes)
        join(video, pieces, target, tag(repaired), notes)
    except ValueError:  # it would be so again
        shutil.rmtree(parts)
        raise
    shutil.rmtree(parts)
    return repaired, video.size


def _restore_pieces(model: SplatEnhancer, video: Video, settings: RestoreConfig, parts: Path,
                    tick: Callable[[int, int], None], notes: list[str]
                    ) -> tuple[list[Piece], float]:
    """Restore what is not there yet; returns all pieces and the share that was repaired."""
    (width, height), smoother = video.size, Smoother(settings.temporal)
    pieces, done, changed = [], 0, 0.0
    with closing(read_frames(video, notes)) as frames:
        while batch := list(itertools.islice(frames, max(1, min(
                PIECE_FRAMES, PIECE_PIXELS // (width * height))))):
            pieces.append(Piece(parts / f"{len(pieces):06}.nut", batch[0][0], len(batch)))
            path, state = pieces[-1].path, pieces[-1].path.with_suffix(".npz")
            if path.exists():
                done += len(batch)
                smoother.before = from_bytes(torch.tensor(batch[-1][1]).permute(2, 0, 1))[None]
                if state.exists():
                    with np.load(state) as saved:
                        smoother.change = torch.from_numpy(saved["change"])
                        changed = float(saved["changed"])
                continue
            restored = []
            for time, image in batch:
                degraded = from_bytes(torch.tensor(image).permute(2, 0, 1))[None]
                result, amount = model.enhance_with_mask(degraded, settings.strength)
                result = smoother(degraded, result)
                changed += float(amount.mean())
                restored.append((time, to_bytes(result[0]).permute(1, 2, 0).cpu().numpy()))
                done += 1
                tick(done, max(done, video.frames))
            content = BytesIO()
            np.savez(content, change=smoother.change, changed=changed)
            atomic_write(state, content.getvalue())
            atomic_write(path, encode(video, restored))
            if len(pieces) > 1:
                pieces[-2].path.with_suffix(".npz").unlink(missing_ok=True)
    return pieces, changed / done


