"""Video files: looked at, and read frame by frame as upright sRGB.

What a file says of its frames (matrix, range, orientation, times) is heeded, and handed on to what
is written; what cannot be shown rightly is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import refused
from ..machine import needed

FULL, HIGH_DEFINITION = 2, 720  # colour range 0 to 255; rows from which players assume BT.709
BT709, BT601 = 1, 5  # numbers of matrices in ITU-T H.273
MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}  # and what swscale calls them
HDR = {16: "PQ", 18: "HLG"}  # transfer functions that are no sRGB
EXACT = 0x4 | 0x2000 | 0x40000  # swscale: bicubic, all chroma interpolated, rounded accurately
COPY = "copy or export it again"


@dataclass(frozen=True)
class Clip:
    """What a video file holds."""

    path: Path
    size: tuple[int, int]  # width and height as shown, px
    frames: int  # about how many
    rate: Fraction  # mean frames per second
    time_base: Fraction  # seconds that one unit of a frame's time lasts
    colors: tuple[int, int, int, int]  # matrix, range, primaries, transfer, as in ITU-T H.273
    matrix: int  # swscale's, also where the file names none
    aspect: Fraction | None = None  # of a pixel as shown; None: square
    quarters: int = 0  # turns to the left until it is upright
    notes: tuple[str, ...] = ()


def look_at(path: Path) -> Clip:
    """Look at a video: every packet is counted, one frame decoded.

    Raises:
        ValueError: no video, cut off, empty, or of a kind whose colours would be lost.
        OSError: it cannot be read.
    """
    with opened(path) as (container, stream):
        frames, end = _counted(container, stream)
        length = float((container.duration or 0) / 1_000_000)
        if frames < 0.99 * stream.frames - 1 or end < 0.98 * length - 1:
            raise refused(path.name, f"{stream.frames or 'all'} frames in {length:.1f} s",
                          f"{frames} in {end:.1f} s", f"it is cut off: {COPY}")
    with opened(path) as (container, stream):
        first = next(iter(container.decode(stream)), None)
        if first is None:
            raise refused(path.name, "one frame or more", "none", COPY)
        return _described(path, stream, first, frames)


def read_frames(clip: Clip, notes: list[str] | None = None) -> Iterator[tuple[int, Tensor]]:
    """The frames one after the other: the time in units of `clip.time_base`, (3, H, W) in [0, 1].

    Args:
        clip: from `look_at`.
        notes: told in the end of frames that the decoder itself calls damaged.

    Raises:
        ValueError: the file is damaged, or its frames change their size.
    """
    last, damaged = None, 0
    with opened(clip.path) as (container, stream):
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            time = frame.pts if frame.pts is not None else frame.dts
            step = max(1, round(1 / (clip.rate * clip.time_base)))
            if last is not None and (time is None or time <= last):
                time = last + (step if time is None else 1)
            last = time or 0
            if (size := _upright((frame.width, frame.height), clip.quarters)) != clip.size:
                raise refused(clip.path.name, f"{clip.size} px throughout", f"{size}",
                              "cut it there, or scale it")
            damaged += frame.is_corrupt
            yield last, _to_rgb(frame, clip)
    if damaged and notes is not None:
        notes.append(f"{damaged} of its frames, or more, are damaged: what the decoder put there "
                     "was restored")


def package() -> Any:
    """PyAV, imported when it is needed."""
    return needed("av", "read and write videos")


@contextmanager
def opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """A file and its first video stream; whatever FFmpeg cannot read is refused by name."""
    av = package()
    try:
        with av.open(str(path)) as container:
            streams = [s for s in container.streams.video
                       if not s.disposition & type(s.disposition).attached_pic]  # a cover
            if not streams:
                raise refused(path.name, "a video stream", "none", "name a video")
            yield container, streams[0]
    except av.error.FFmpegError as error:
        if isinstance(error, PermissionError):
            raise
        raise refused(path.name, "a video that can be read", str(error.strerror or error), COPY
                      ) from error


def _counted(container: Any, stream: Any) -> tuple[int, float]:
    """How many packets of a stream are whole, and at which second the last of any stream ends."""
    count, end = 0, 0.0
    for packet in container.demux():
        if packet.dts is None and not packet.size:
            continue
        if packet.stream_index == stream.index and not packet.is_corrupt:
            count += 1
        if packet.pts is not None:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    return count, end - max(0.0, float((container.start_time or 0) / 1_000_000))


def _described(path: Path, stream: Any, first: Any, frames: int) -> Clip:
    kind, codec = first.format, stream.codec_context
    if any(c.is_alpha for c in kind.components) or stream.metadata.get("alpha_mode") == "1":
        raise refused(path.name, "a video without alpha", kind.name,
                      "H.264 has none: export its frames as PNG, whose alpha is kept")
    if codec.color_trc in HDR:
        raise refused(path.name, "a video in SDR", HDR[codec.color_trc], "convert it to BT.709")
    notes = []
    if (depth := max(c.bits for c in kind.components)) > 8:
        notes.append(f"its {depth} bits become 8")
    if first.interlaced_frame:
        notes.append("it is interlaced: both fields are restored as one picture")
    quarters = round(first.rotation / 90) % 4
    size = _upright((first.width, first.height), quarters)
    if size[0] % 2 or size[1] % 2:
        notes.append(f"its {size[0]} x {size[1]} px become even: the last row or column is "
                     "repeated")
    aspect = codec.sample_aspect_ratio or None
    matrix = MATRICES.get(first.colorspace,
                          BT709 if first.height >= HIGH_DEFINITION else BT601)
    full = FULL if kind.name.startswith("yuvj") else first.color_range
    colors = (first.colorspace, full, codec.color_primaries, codec.color_trc)
    if kind.is_rgb:
        matrix, colors = BT709, (BT709, 1, *colors[2:])
    return Clip(path, size, frames, stream.average_rate or stream.guessed_rate or Fraction(25),
                stream.time_base, colors, matrix,
                1 / aspect if aspect and quarters % 2 else aspect, quarters, tuple(notes))


def _upright(size: tuple[int, int], quarters: int) -> tuple[int, int]:
    return size[::-1] if quarters % 2 else size


def _to_rgb(frame: Any, clip: Clip) -> Tensor:
    rgb = frame.reformat(
        format="rgb24", src_colorspace=clip.matrix, dst_color_range=FULL,
        src_color_range=FULL if clip.colors[1] == FULL or frame.format.is_rgb else 1,
        interpolation=EXACT).to_ndarray()
    turned = np.ascontiguousarray(np.rot90(rgb, clip.quarters).transpose(2, 0, 1))
    return torch.from_numpy(turned).float() / 255
