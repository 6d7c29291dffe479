"""Restored frames as H.264: written in pieces, joined into an mp4 with a file's own sound."""

from __future__ import annotations

import heapq
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from .clips import FULL, Clip, opened, package

RED_BLUE = {1: (0.2126, 0.0722), 4: (0.3, 0.11), 5: (0.299, 0.114), 7: (0.212, 0.087),
            9: (0.2627, 0.0593)}  # shares of luma, by swscale's number
QUALITY = {"crf": "14", "preset": "medium", "bf": "0"}  # no B-frames: pieces join without overlap
COPIED = ("aac", "mp3", "mp3float", "ac3", "eac3", "opus", "flac", "alac")  # sound of an mp4
AAC_RATES = (8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000)
LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 8: "7.1"}


class Piece:
    """Some frames of a clip as H.264 in memory."""

    def __init__(self, clip: Clip) -> None:
        av = package()
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
        av = package()
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
    av = package()
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
    av = package()
    try:
        with av.open(str(path)) as container:
            return container.metadata.get("comment", "")
    except (av.error.FFmpegError, OSError):
        return ""


def _pictures(pieces: Sequence[Path], video: Any) -> Iterator[tuple[float, Any]]:
    """The packets of all pieces with their seconds."""
    av = package()
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
    with opened(source) as (container, _):
        return len(container.streams.audio)


def _sound(source: Path, number: int, output: Any, notes: list[str]
           ) -> Iterator[tuple[float, Any]]:
    """First nothing, once its stream is there; then the packets of one of the sound tracks."""
    with opened(source) as (container, _):
        track = container.streams.audio[number]
        if track.codec_context.name in COPIED:
            stream = output.add_stream_from_template(track)
            yield 0.0, None
            yield from _handed(container.demux(track), stream)
            return
        notes.append(f"its sound ({track.codec_context.name}) is encoded anew, as AAC")
        rate = track.rate if track.rate in AAC_RATES else 48_000
        layout = LAYOUTS.get(track.layout.nb_channels, track.layout.name)  # not all files name it
        stream = output.add_stream("aac", rate=rate, layout=layout)
        yield 0.0, None
        fitting = package().AudioResampler("fltp", layout, rate)
        for frame in itertools.chain(container.decode(track), [None]):
            for part in fitting.resample(frame):
                yield from _timed(stream.encode(part))
        yield from _timed(stream.encode(None))


def _timed(packets: Iterable[Any]) -> Iterator[tuple[float, Any]]:
    for packet in packets:
        yield float(packet.dts * packet.time_base), packet
