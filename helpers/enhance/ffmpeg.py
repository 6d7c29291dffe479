"""FFmpeg's own program: it reads videos as frames, writes frames as H.264, and joins the pieces.

It turns and mirrors frames as a file says, cuts them by its edit lists, and copies sound,
subtitles, languages, chapters and tags. It is a program of its own, called through pipes: its
licence (GPL, for libx264) does not reach this package.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import NamedTuple

import numpy as np

from .inputs import MARK

OLDEST = (5, 1)  # of FFmpeg, with -fps_mode
SCALE = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"  # of its filter
MATRICES = {"bt709": "bt709", "bt470bg": "bt601", "smpte170m": "bt601", "fcc": "fcc",
            "smpte240m": "smpte240m", "bt2020nc": "bt2020", "bt2020c": "bt2020"}
HDR = {"smpte2084": "PQ", "arib-std-b67": "HLG"}  # transfer functions
ALPHA = ("yuva", "rgba", "bgra", "argb", "abgr", "gbrap", "ya8", "ya16")  # pixel formats begin so
SOUND = ("aac", "mp3", "ac3", "eac3", "opus", "flac", "alac")  # copied; other sound becomes AAC
TEXT = ("mov_text", "subrip", "ass", "ssa", "webvtt", "text")  # subtitles that an mp4 can hold
TORN = "ended prematurely|partial file|moov atom not found"
MIN_RATE = 48_000  # ticks per second, which NUT and mp4 take as they are
AGAIN = "copy or export it again"


class Stream(NamedTuple):
    """One stream of a file."""

    number: str
    kind: str  # Video, Audio, Subtitle, Data or Attachment
    codec: str
    more: str  # what else FFmpeg says of it


class Piece(NamedTuple):
    """Some restored frames on the disk; `start` is the time of the first."""

    path: Path
    start: int
    frames: int


@dataclass(frozen=True)
class Video:
    """What a video file holds, or shall hold."""

    path: Path
    size: tuple[int, int]  # width and height as shown, px
    frames: int  # about how many
    ticks_per_s: int  # units of a frame's time
    last_s: float  # how long the last frame is shown
    start_s: float = 0.0  # where the file's clock begins
    ticks: int = 1  # of ours that one unit of the file lasts
    streams: tuple[Stream, ...] = ()
    tags: tuple[str, ...] = ("tv", "bt709", "bt709", "bt709")  # range, matrix, primaries, transfer
    aspect: str = "1/1"  # of a pixel
    is_jpeg: bool = False  # whose chroma lies between the columns
    is_avi: bool = False  # which has no times: FFmpeg counts in the delay of B-frames

    @property
    def matrix(self) -> str:
        """That of the colours, as the filter `scale` calls it; without one, as players assume."""
        is_high = self.size[1] > 576 or self.size[0] >= 1_280
        return MATRICES.get(self.tags[1], "bt709" if is_high else "bt601")


@cache
def program() -> str:
    """FFmpeg's program: the machine's own if it is new enough, else that of imageio-ffmpeg."""
    path, version = shutil.which("ffmpeg"), "none"
    for _ in range(2):
        if path:
            version = subprocess.run([path, "-version"], capture_output=True, text=True,
                                     check=False).stdout.partition(" Copyright")[0]
            number = re.search(r"version n?(\d+)\.(\d+)", version)
            if number is None or (int(number[1]), int(number[2])) >= OLDEST:
                return path
        with suppress(ImportError, RuntimeError):
            import imageio_ffmpeg
            path = imageio_ffmpeg.get_ffmpeg_exe()
    raise ValueError(f"ffmpeg: expected the program, {OLDEST[0]}.{OLDEST[1]} or newer, to read "
                     f"videos, got {version}; run `pip install imageio-ffmpeg`")


def look_at(path: Path, notes: list[str]) -> Video:
    """Look at a video: its first frame is decoded, and all packets are read.

    Raises:
        ValueError: no video, cut off, empty, or of a kind whose colours would be lost.
    """
    done = _call("-i", f"file:{path}", "-map", "0:V:0", "-vf", "showinfo=checksum=0", "-frames:v",
                 "1", "-f", "null", "-", "-map", "0:V:0", "-map", "0:a?", "-map", "0:s?", "-c",
                 "copy", "-f", "framecrc", "-")
    text = done.stderr.decode(errors="replace")
    kind, *_ = [*re.findall(r"Input #0, (\w+)", text), ""]
    streams = tuple(Stream(*found) for found in re.findall(
        r"Stream #0:(\d+)[^:]*: (\w+): (\w+)(.*)", re.split("\n(?:Stream map|Output)", text)[0]))
    frame = re.search(r"fmt:(\w+) .*?sar:(\d+/\d+) s:(\d+)x(\d+) i:(\w)", text)
    problem = "" if frame else _reason(text) if done.returncode >= 0 else "a crash of FFmpeg"
    if streams and not shown(streams):
        problem = "no video stream"
    # Recorded streams (mpegts, mpeg) begin and end anywhere
    if re.search(TORN if kind.startswith("mpeg") else f"{TORN}|Packet corrupt", text):
        problem = "one that is cut off, or none"
    if problem:
        raise ValueError(f"{path.name}: expected a complete video, got {problem}; {AGAIN}")
    pixels, aspect, width, height, field = frame.groups()
    tags = [*re.search(r"color_range:(\S+) color_space:(\S+) color_primaries:(\S+) "
                       r"color_trc:(\S+)", text).groups()]
    if pixels.startswith(ALPHA) or re.search(r"alpha_mode +: 1", text):
        raise ValueError(f"{path.name}: expected a video without alpha, got {pixels}; H.264 has "
                         "none: export its frames as PNG, whose alpha is kept")
    if tags[3] in HDR:
        raise ValueError(f"{path.name}: expected a video in SDR, got HDR ({HDR[tags[3]]}); "
                         "convert it to BT.709")
    if depth := re.search(r"(9|1[0-6])[lb]e$", pixels):
        notes.append(f"its {depth[1]} bits become 8")
    if field != "P":
        notes.append("it is interlaced: both fields are restored as one picture")
    if int(width) % 2 or int(height) % 2:
        notes.append(f"its {width} x {height} px become even: the last row or column is repeated")
    if tags[1] in ("gbr", "rgb"):
        tags[:2] = "tv", "bt709"
    base = Fraction(re.search(r"config in time_base: (\S+),", text)[1])
    rate = base.denominator
    while rate < MIN_RATE:
        rate *= 2
    return Video(path, (int(width), int(height)), *_count(done.stdout.decode(), text, kind, rate),
                 int(base * rate), streams, tuple(tags), "1/1" if aspect[0] == "0" else aspect,
                 pixels.startswith("yuvj"), kind == "avi")


def read_frames(video: Video, notes: list[str]) -> Iterator[tuple[int, np.ndarray]]:
    """The frames one after the other: the time in ticks, uint8 (H, W, 3).

    Raises:
        ValueError: the file is damaged, or its frames change their size.
    """
    width, height = video.size
    siting = "" if video.is_jpeg else ":in_h_chr_pos=0"
    process = subprocess.Popen(
        [program(), "-nostdin", "-hide_banner", "-copyts", "-i", f"file:{video.path}", "-map",
         "0:V:0", "-vf",
         f"showinfo=checksum=0,scale={width}:{height}:in_color_matrix={video.matrix}:{SCALE}"
         f"{siting},format=rgb24", "-fps_mode", "passthrough", "-f", "rawvideo", "-"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    times: Queue[tuple[str, ...] | None] = Queue()
    complaints: list[str] = []

    def listen() -> None:
        for line in process.stderr:
            text = line.decode(errors="replace")
            if frame := re.search(r"n: *\d+ pts: *(\S+) .* s:(\d+x\d+) ", text):
                times.put(frame.groups())
            elif re.search("corrupt|concealing|[Ee]rror|[Ii]nvalid", text):
                complaints.append(text)
        times.put(None)

    thread = Thread(target=listen, daemon=True)
    thread.start()
    last = shift = None
    with process:
        try:
            while len(content := process.stdout.read(width * height * 3)) == width * height * 3:
                text, size = times.get() or ("NOPTS", "none")  # printed before the frame came
                if size != f"{width}x{height}":
                    raise ValueError(f"{video.path.name}: expected {width}x{height} px "
                                     f"throughout, got {size}; scale it")
                time = int(text) * video.ticks if text != "NOPTS" else (last or 0) + 1
                if shift is None:
                    shift = time if video.is_avi else round(video.start_s * video.ticks_per_s)
                last = time - shift if last is None else max(time - shift, last + 1)
                yield last, np.frombuffer(content, np.uint8).reshape(height, width, 3)
            thread.join()
            if process.wait() or last is None:
                raise ValueError(f"{video.path.name}: expected a video that can be read, got "
                                 f"{_reason(''.join(complaints))}; {AGAIN}")
            if complaints:
                notes.append("some of its frames are damaged: what the decoder put there was "
                             f"restored ({_reason(complaints[0])})")
        finally:
            process.kill()
            thread.join()


def encode(video: Video, frames: Sequence[tuple[int, np.ndarray]]) -> bytes:
    """Frames, uint8 (H, W, 3) with their times, as H.264 in NUT, which keeps every time exactly."""
    (width, height), start = video.size, frames[0][0]
    odd = ((0, height % 2), (0, width % 2), (0, 0))
    times = "+".join(f"eq(N,{n})*{time - start}" for n, (time, _) in enumerate(frames))
    colors = ":".join(f"{name}={'unknown' if tag == 'reserved' else tag}" for name, tag in zip(
        ("range", "colorspace", "color_primaries", "color_trc"), video.tags, strict=True))
    done = _call(
        "-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size",
        f"{width + width % 2}x{height + height % 2}", "-framerate", "25", "-i", "-", "-vf",
        f"settb=1/{video.ticks_per_s},setpts='{times}',setsar={video.aspect},scale=out_color_matrix="
        f"{video.matrix}:out_range={'pc' if video.tags[0] == 'pc' else 'tv'}:out_h_chr_pos=0:"
        f"out_v_chr_pos=128:{SCALE},format=yuv420p,"  # chroma where readers of H.264 expect it
        f"setparams={colors}",
        "-c:v", "libx264", "-crf", "14", "-bf", "0",  # without B-frames pieces do not overlap
        "-enc_time_base", f"1:{video.ticks_per_s}", "-fps_mode", "passthrough",
        "-f", "nut", "-",
        content=b"".join(np.pad(image, odd, "edge").tobytes() for _, image in frames))
    if done.returncode:
        raise ValueError("ffmpeg: expected a program that writes H.264, got "
                         f"{_reason(done.stderr.decode(errors='replace'))}; run "
                         "`pip install imageio-ffmpeg`")
    return done.stdout


def join(video: Video, pieces: Sequence[Piece], target: Path, mark: str, notes: list[str]) -> None:
    """Join pieces to an mp4 with a mark; what else the file holds and an mp4 takes is copied."""
    folder = pieces[0].path.parent
    starts = [round(piece.start / video.ticks_per_s * 1e6) for piece in pieces]  # µs
    (folder / "list").write_text("".join(
        f"file {piece.path.name}\nduration {length / 1e6:.6f}\n"
        for piece, length in zip(pieces, [*np.diff(starts), 1], strict=True)))
    main = shown(video.streams)
    sounds = [stream for stream in video.streams if stream.kind == "Audio"]
    texts = [stream for stream in video.streams if stream.codec in TEXT]
    codecs = ["copy" if sound.codec in SOUND else "aac" for sound in sounds]
    options = ["-itsoffset", f"{-video.start_s:.6f}", "-i", f"file:{video.path}", "-map_chapters",
               "1", "-map_metadata", "1", "-metadata:s:v:0", "rotate="] if main else []
    frames, length = sum(piece.frames for piece in pieces), video.last_s * video.ticks_per_s
    whole = folder / "whole.mp4"
    for codecs, texts in ((codecs, texts), (["aac"] * len(sounds), []), ([], [])):  # noqa: B020
        kept = [*sounds[:len(codecs)], *texts]
        done = _call(
            "-v", "error", "-y", "-itsoffset", f"{starts[0] / 1e6:.6f}", "-f", "concat", "-i",
            str(folder / "list"), *options, "-map", "0:v",
            *(word for stream in kept for word in ("-map", f"1:{stream.number}")),
            *(word for n, stream in enumerate([main, *kept] if main else [])
              for word in (f"-map_metadata:s:{n}", f"1:s:{stream.number}")),
            "-c", "copy", "-c:s", "mov_text", "-strict", "-2",
            *(word for n, codec in enumerate(codecs) for word in (f"-c:a:{n}", codec)),
            "-bsf:v", f"setts=duration='if(eq(N,{frames - 1}),{length},DURATION)'",
            "-metadata", f"grouping={MARK} {mark}", "-movflags", "+faststart", str(whole))
        if not done.returncode:
            break
    else:
        raise ValueError(f"{video.path.name}: expected frames that can be joined, got "
                         f"{_reason(done.stderr.decode(errors='replace'))}; {AGAIN}")
    notes += [f"its sound ({sound.codec}) is encoded again, as AAC"
              for sound, codec in zip(sounds, codecs, strict=False) if codec == "aac"]
    if lost := [f"{stream.kind.lower()} #{stream.number} ({stream.codec})"
                for stream in video.streams if stream not in (main, *kept)]:
        notes.append(f"left out, as the mp4 has no place for it: {', '.join(lost)}")
    with whole.open("rb+") as file:
        os.fsync(file.fileno())
    whole.replace(target)


def shown(streams: Sequence[Stream]) -> Stream | None:
    """The first video stream that is no cover picture."""
    return next((stream for stream in streams
                 if stream.kind == "Video" and "attached pic" not in stream.more), None)


def _count(packets: str, text: str, kind: str, rate: int) -> tuple[int, int, float, float]:
    """By all packets: number of frames, `rate`, seconds that the last is shown, seconds at start.
    """
    units = {stream: float(Fraction(base))
             for stream, base in re.findall(r"#tb (\d+): (\S+)", packets)}
    shown_s, end_s = [], 0.0  # time and length of each frame; where all else ends
    for line in packets.splitlines():
        flags = re.search(r"F=0x(\w+)", line)
        if line[0] == "#" or (flags and int(flags[1], 16) & 4):  # cut away by an edit list
            continue
        stream, dts, pts, duration, *_ = line.split(",")
        time = units[stream] * int(pts if abs(int(pts)) < 2**31 - 1 else dts)
        length = units[stream] * int(duration)
        if stream == "0":
            shown_s.append((time, length))
        else:
            end_s = max(end_s, time + length)
    total = re.search(r"Duration: (\d+):(\d+):([\d.]+)(?:, start: ([-\d.]+))?", text)
    hours, minutes, seconds, start = map(float, total.groups("0")) if total else (0, 0, 0, 0)
    shown_s = shown_s or [(0.0, 0.0)]
    (first, _), (last, length) = min(shown_s), max(shown_s)
    more = 3_600 * hours + 60 * minutes + seconds - last
    if kind == "matroska" and abs(more - length) > 0.02 and more > max(0, end_s + 0.02 - last):
        length = more  # where the last frame ends it may say there alone
    length = length or (last - first) / max(1, len(shown_s) - 1) or 0.04  # not all files say it
    return len(shown_s), rate, length, min(start, first)


def _call(*arguments: str, content: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """FFmpeg called with input; Ctrl-C is for us alone."""
    return subprocess.run([program(), "-nostdin", "-hide_banner", "-copyts", *arguments],
                          input=content, capture_output=True, start_new_session=True, check=False)


def _reason(text: str) -> str:
    """The last thing that FFmpeg complains of."""
    lines = [re.sub(r"^(\[.*?\] *)+", "", line).strip() for line in text.splitlines()
             if line.strip() and not re.search("onversion failed|Nothing was|^frame=|^ ", line)]
    return lines[-1][:200] if lines else "nothing that FFmpeg can name"
