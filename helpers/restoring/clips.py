"""Video files: looked at, read frame by frame as upright sRGB, written in pieces, and joined.

What a file says of its frames (matrix, range, orientation, times) is heeded in reading and kept in
writing; what cannot be shown rightly is refused by name.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from ..errors import refused
from ..machine import needed

FULL, HIGH_DEFINITION = 2, 720  # colour range 0 to 255; rows from which players assume BT.709
BT709, BT601, UNSPECIFIED = 1, 5, 2  # numbers of matrices in ITU-T H.273
MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}  # and what swscale calls them
RED_BLUE = {1: (0.2126, 0.0722), 4: (0.3, 0.11), 5: (0.299, 0.114), 7: (0.212, 0.087),
            9: (0.2627, 0.0593)}  # shares of luma, by swscale's number
HDR = {16: "PQ", 18: "HLG"}  # transfer functions that are no sRGB
EXACT = 0x4 | 0x2000 | 0x40000  # swscale: bicubic, all chroma interpolated, rounded accurately
QUALITY = {"crf": "14", "preset": "medium", "bf": "0"}  # no B-frames: pieces join without overlap
COPIED = ("aac", "mp3", "mp3float", "ac3", "eac3", "opus", "flac", "alac")  # sound of an mp4
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
    with _opened(path) as (container, stream):
        frames, end = _counted(container, stream)
        length = float((container.duration or 0) / 1_000_000)
        if frames < 0.99 * stream.frames - 1 or end < 0.98 * length - 1:
            raise refused(path.name, f"{stream.frames or 'all'} frames in {length:.1f} s",
                          f"{frames} in {end:.1f} s", f"it is cut off: {COPY}")
    with _opened(path) as (container, stream):
        first = next(iter(container.decode(stream)), None)
        if first is None:
            raise refused(path.name, "one frame or more", "none", COPY)
        return _described(path, stream, first, frames)


def read_frames(clip: Clip) -> Iterator[tuple[int, Tensor]]:
    """The frames one after the other: the time in units of `clip.time_base`, (3, H, W) in [0, 1].

    Raises:
        ValueError: the file is damaged, or its frames change their size.
    """
    last = None
    with _opened(clip.path) as (container, stream):
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
            yield last, _to_rgb(frame, clip)


class Piece:
    """Some frames of a clip as H.264 in memory."""

    def __init__(self, clip: Clip) -> None:
        av = _av()
        self.clip, self.count, self.buffer = clip, 0, BytesIO()
        self.container = av.open(self.buffer, "w", format="nut")  # which keeps every time exactly
        self.stream = self.container.add_stream("libx264", rate=clip.rate, options=QUALITY)
        self.stream.width, self.stream.height = (side + side % 2 for side in clip.size)
        self.stream.pix_fmt, self.stream.time_base = "yuv420p", clip.time_base
        codec = self.stream.codec_context
        codec.time_base = clip.time_base
        if clip.aspect:
            codec.sample_aspect_ratio = clip.aspect
        codec.colorspace, codec.color_range, codec.color_primaries, codec.color_trc = clip.colors
        codec.flags |= av.codec.context.Flags.global_header

    def add(self, time: int, rgb: Tensor) -> None:
        """Append a frame (3, H, W) in [0, 1]; an odd side repeats its last row or column."""
        av = _av()
        height, width = rgb.shape[1:]
        even = pad(rgb[None], (0, width % 2, 0, height % 2), mode="replicate")[0]
        planes = to_yuv420(even.cpu(), self.clip.matrix, full=self.clip.colors[1] == FULL)
        frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        frame.pts, frame.time_base = time, self.clip.time_base
        frame.colorspace, frame.color_range = self.clip.colors[:2]
        self.container.mux(self.stream.encode(frame))
        self.count += 1

    def content(self) -> bytes:
        """All of it, closed."""
        self.container.mux(self.stream.encode(None))
        self.container.close()
        return self.buffer.getvalue()


def to_yuv420(rgb: Tensor, matrix: int, *, full: bool) -> np.ndarray:
    """An even picture (3, H, W) in [0, 1] as bytes (1.5 · H, W): luma, then blue and red chroma.

    Chroma lies on every other column, between the rows, where H.264's readers expect it; FFmpeg's
    own conversion would put it between the columns and so shift the colours by half a pixel.

    Source: ITU-T H.273, equations for KR and KB, and figure of ChromaLocType 0.
    """
    red, blue = RED_BLUE[matrix]
    luma = red * rgb[0] + (1 - red - blue) * rgb[1] + blue * rgb[2]
    chroma = torch.stack([(rgb[2] - luma) / (1 - blue), (rgb[0] - luma) / (1 - red)]) / 2
    weights = torch.tensor([0.25, 0.5, 0.25]).expand(1, 1, 2, 3) / 2
    chroma = conv2d(pad(chroma[:, None], (1, 0, 0, 0), mode="replicate"), weights, stride=2)
    low, luma_range, chroma_range = (0, 255, 255) if full else (16, 219, 224)
    planes = [low + luma_range * luma, (128 + chroma_range * chroma).view(-1, rgb.shape[2])]
    return torch.cat(planes).round().clamp(0, 255).byte().numpy()


def join(pieces: Sequence[Path], target: Path, comment: str, source: Path | None = None
         ) -> tuple[str, ...]:
    """Join pieces into one mp4, with a file's sound: packets are copied, nothing is encoded anew.

    Only sound that few players know in an mp4 is encoded, as AAC.

    Args:
        pieces: from `Piece`, in order.
        target: the mp4; it is on the disk when this returns.
        comment: what the file shall say of itself.
        source: the file whose sound is taken; None: no sound.

    Returns:
        What was taken for granted, in words.
    """
    av = _av()
    notes = []
    with av.open(str(target), "w", format="mp4", options={"movflags": "+faststart"}) as output:
        output.metadata["comment"] = comment
        with av.open(str(pieces[0])) as first:
            video = output.add_stream_from_template(first.streams.video[0])
        tracks = [_pictures(pieces, video)]
        for number in range(_sounds(source)):
            tracks.append(_sound(source, number, output, notes))
            next(tracks[-1])  # its stream is made before anything is written
        for _, packet in heapq.merge(*tracks, key=lambda timed: timed[0]):
            output.mux(packet)
    with target.open("rb+") as file:
        os.fsync(file.fileno())
    return tuple(notes)


def read_comment(path: Path) -> str:
    """What a video says of itself; empty where it says nothing or cannot be read."""
    av = _av()
    try:
        with av.open(str(path)) as container:
            return container.metadata.get("comment", "")
    except (av.error.FFmpegError, OSError):
        return ""


def _av() -> Any:
    return needed("av", "read and write videos")


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """A file and its first video stream; whatever FFmpeg cannot read is refused by name."""
    av = _av()
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


def _pictures(pieces: Sequence[Path], video: Any) -> Iterator[tuple[float, Any]]:
    """The packets of all pieces with their seconds."""
    av = _av()
    for piece in pieces:
        with av.open(str(piece)) as container:
            for packet in container.demux(container.streams.video[0]):
                packet.dts = packet.pts  # without B-frames they are the same
                yield from _handed([packet], video)


def _handed(packets: Iterable[Any], stream: Any) -> Iterator[tuple[float, Any]]:
    for packet in packets:
        if packet.dts is not None:  # the last one has none, and is empty
            packet.stream = stream
            yield float(packet.dts * packet.time_base), packet


def _sounds(source: Path | None) -> int:
    if source is None:
        return 0
    with _opened(source) as (container, _):
        return len(container.streams.audio)


def _sound(source: Path, number: int, output: Any, notes: list[str]
           ) -> Iterator[tuple[float, Any]]:
    """First nothing, once its stream is there; then the packets of one of the sound tracks."""
    with _opened(source) as (container, _):
        track = container.streams.audio[number]
        if track.codec_context.name in COPIED:
            stream = output.add_stream_from_template(track)
            yield 0.0, None
            yield from _handed(container.demux(track), stream)
            return
        notes.append(f"its sound ({track.codec_context.name}) is encoded anew, as AAC")
        stream = output.add_stream("aac", rate=track.rate, layout=track.layout.name)
        yield 0.0, None
        for frame in container.decode(track):
            for packet in stream.encode(frame):
                yield float(packet.dts * packet.time_base), packet
        for packet in stream.encode(None):
            yield float(packet.dts * packet.time_base), packet
