"""One video restored: a frame at a time, in pieces that survive a kill, with its own sound."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ..model import SplatEnhancer
from ..storage import digest, read_sealed, write_sealed, write_whole
from .clips import Clip, look_at, package, read_frames
from .marks import Mark, placing
from .mp4 import Piece, join, read_comment
from .report import Report
from .settings import RestoreConfig
from .steady import Steadier

PIECE_FRAMES = 32  # restored and kept together: what a kill costs at most
PIECE, CHANGE = "{:06}.nut", "{:06}.change"


def restore_video(model: SplatEnhancer, path: Path, folder: Path, settings: RestoreConfig,
                  report: Report, *, mark: Mark) -> list[Path]:
    """Restore a video into `<stem>_restored.mp4` (H.264), its times, colours and sound kept.

    Every PIECE_FRAMES frames are kept beside the result until it is whole: the same call goes on
    after them, and gives the same as if it had never been interrupted.

    Args:
        model, path, folder, report, mark: as for `restore_picture`.
        settings: strength, and how much it is steadied.

    Returns:
        The mp4.

    Raises:
        ValueError: a video that cannot be read or shown rightly, with its name.
        OSError: the disk is full, or Drive is gone.
    """
    clip = look_at(path)
    report.notes += clip.notes
    mark = mark.of_content(path)
    parts = _parts(folder, mark)
    try:
        done = _restore_pieces(model, clip, settings, report, parts)
    except ValueError:  # it would be so again
        shutil.rmtree(parts, ignore_errors=True)
        raise
    pieces = [parts / PIECE.format(number) for number in range(-(-done // PIECE_FRAMES))]
    whole = parts / "whole.mp4"
    report.notes += _joined(pieces, whole, str(mark), path)
    with placing(path, folder, mark, ".mp4", read_comment) as target:
        whole.replace(target)
    shutil.rmtree(parts, ignore_errors=True)
    return [target]


def _joined(pieces: Sequence[Path], whole: Path, comment: str, source: Path) -> tuple[str, ...]:
    """`join`; sound that fits into no mp4 is left out, for the pictures' sake."""
    try:
        return join(pieces, whole, comment, source)
    except (ValueError, package().error.FFmpegError) as error:
        join(pieces, whole, comment)
        reason = getattr(error, "strerror", None) or error
        return (f"its sound is left out, as no mp4 can take it ({reason})",)


def _parts(folder: Path, mark: Mark) -> Path:
    """Where the pieces of this restoration are kept; those of an earlier one of the file go."""
    parts = folder / f".{mark.origin}-{digest(str(mark).encode())[:16]}.parts"
    for other in folder.glob(f".{mark.origin}-*.parts"):
        if other != parts:
            shutil.rmtree(other, ignore_errors=True)
    parts.mkdir(parents=True, exist_ok=True)
    return parts


def _restore_pieces(model: SplatEnhancer, clip: Clip, settings: RestoreConfig, report: Report,
                    parts: Path) -> int:
    """Restore what is not there yet; returns how many frames there are."""
    kept = next(n for n in itertools.count() if not (parts / PIECE.format(n)).is_file())
    done, steadier = kept * PIECE_FRAMES, Steadier(settings.steady)
    frames = read_frames(clip, report.notes)
    for _, rgb in itertools.islice(frames, done):
        steadier.before = rgb[None]
    if kept and settings.steady:
        steadier.change = read_sealed(parts / CHANGE.format(kept - 1))[0]["change"]
    for number in itertools.count(kept):
        piece = Piece(clip)
        for time, rgb in itertools.islice(frames, PIECE_FRAMES):
            restored = steadier(rgb[None], model.enhance(rgb[None], settings.strength))
            piece.add(time, restored[0])
            report(done + piece.count, max(clip.frames, done + piece.count))
        done += piece.count
        if piece.count:
            _keep(parts, number, piece.content(), steadier.change)
        if piece.count < PIECE_FRAMES:
            return done


def _keep(parts: Path, number: int, content: bytes, change: Tensor | None) -> None:
    """Write a piece, after what the next one needs of it."""
    if change is not None:
        write_sealed(parts / CHANGE.format(number), {"change": change}, {})
    write_whole(parts / PIECE.format(number), content)
    (parts / CHANGE.format(number - 1)).unlink(missing_ok=True)
