"""Short videos made by FFmpeg's program, what is in a video, and stand-ins for a network."""

from __future__ import annotations

import re
import struct
import subprocess
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import avg_pool2d

from splat_enhancer.config import preset
from splat_enhancer.enhance.ffmpeg import program

TONE = ("-f", "lavfi", "-i", "sine=f=440:r=48000:d={seconds}", "-map", "1:a")


class Brighter:
    """A stand-in where the network is of no matter: so many levels more, by the strength."""

    config = preset("demo")

    def __init__(self, levels: int = 0) -> None:
        self.levels, self.calls = levels, 0

    def enhance_with_mask(self, images, strength=1.0, progress=None):
        self.calls += 1
        restored = (images + strength * self.levels / 255).clamp(0, 1)
        return restored, (restored != images).any(1, keepdim=True).float()

    def enhance(self, images, strength=1.0):
        return self.enhance_with_mask(images, strength)[0]

    def trained_state(self):
        return {"levels": torch.tensor([float(self.levels)])}


class Sharper(Brighter):
    """Another, whose change depends on the frame."""

    def enhance_with_mask(self, images, strength=1.0, progress=None):
        self.calls += 1
        soft = avg_pool2d(images, 5, 1, 2, count_include_pad=False)
        restored = (images + images.amax() * (images - soft)).clamp(0, 1)
        return restored, (restored - images).abs().amax(1, keepdim=True)


def need_ffmpeg() -> None:
    """Skip the tests of a module where there is no such program."""
    try:
        program()
    except ValueError as error:
        pytest.skip(str(error), allow_module_level=True)


def ffmpeg(*arguments: str | Path, content: bytes = b"", fails: bool = False) -> bytes:
    """Call FFmpeg; returns what it prints."""
    done = subprocess.run([program(), "-nostdin", "-v", "error", "-y", *map(str, arguments)],
                          input=content, capture_output=True, check=False)
    assert fails or not done.returncode, done.stderr.decode()
    return done.stdout


def pattern(number: int = 0, height: int = 48, width: int = 64) -> np.ndarray:
    """A picture (H, W, 3) without any symmetry: bright at the top left, one blue per number."""
    y, x = np.mgrid[:height, :width]
    blue = np.full_like(x, 40 + 60 * (number % 3))
    image = np.stack([255 - x * 255 // width, 255 - y * 255 // height, blue], -1)
    image[4:14, 4:34] = 255
    return image.astype(np.uint8)


def moving(count: int, size_px: int = 64, *, seed: int = 0, step_px: float = 1.5) -> np.ndarray:
    """A smooth random picture that slides to the left: (N, H, W, 3)."""
    wide = size_px + int(step_px * count) + 2
    small = torch.rand(1, 3, 9, 9 * wide // size_px, generator=torch.Generator().manual_seed(seed))
    picture = torch.nn.functional.interpolate(small, (size_px, wide), mode="bilinear")[0]
    image = picture.mul(255).round().byte().permute(1, 2, 0).numpy()
    return np.stack([image[:, (at := round(step_px * n)):at + size_px] for n in range(count)])


def make_video(path: Path, frames: np.ndarray, *arguments: str | Path,
              times: list[int] | None = None, base: Fraction = Fraction(1, 25),
              codec: str = "libx264", sound: str = "", matrix: str = "bt601", scale: str = "tv",
              pixels: str = "yuv420p", tags: str = "unknown:unknown:unknown:unknown") -> Path:
    """Write frames (N, H, W, 3), losslessly in H.264, at times in units of `base`."""
    names = ("range", "colorspace", "color_primaries", "color_trc")
    tags = ":".join(f"{name}={tag}" for name, tag in zip(names, tags.split(":"), strict=True))
    count, height, width = frames.shape[:3]
    uneven = "+".join(f"eq(N,{n})*{time}" for n, time in enumerate(times or []))
    clock = ["-enc_time_base", str(base).replace("/", ":"), "-fps_mode", "passthrough"]
    quality = {"libx264": ["-qp", "0"], "mpeg4": ["-q:v", "1"]}.get(codec, ["-b:v", "3M"])
    tone = [word.format(seconds=float(count * base)) for word in TONE] if sound else []
    ffmpeg("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-framerate",
           str(1 / base), "-i", "-", *(tone[:4]), "-map", "0:v", *tone[4:], "-vf",
           f"settb={base},setpts='{uneven or 'N'}',scale=out_color_matrix={matrix}:"
           f"out_range={scale}:out_h_chr_pos=0:flags=accurate_rnd+full_chroma_inp,"
           f"format={pixels},setparams={tags}", *(clock if times else []), "-c:v", codec, *quality,
           *(["-c:a", sound] if sound else []), *arguments, path, content=frames.tobytes())
    return path


def set_matrix(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Write a display matrix into the first track of an mp4."""
    content = bytearray(path.read_bytes())
    start = content.find(b"tkhd")
    place = start + 8 + (20 if content[start + 4] == 0 else 32) + 16
    content[place:place + 36] = struct.pack(
        ">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def read_video(path: Path) -> SimpleNamespace:
    """All of a small video: frames (N, H, W, 3) as shown, seconds, streams, sound packets."""
    done = subprocess.run(
        [program(), "-nostdin", "-hide_banner", "-i", path, "-map", "0:V:0", "-vf",
         "showinfo,format=rgb24", "-sws_flags", "accurate_rnd+full_chroma_int", "-fps_mode",
         "passthrough", "-f", "rawvideo", "-"], capture_output=True, check=True)
    text = done.stderr.decode()
    streams = re.findall(r"Stream #0:\d+[^:]*?(?:\((\w+)\))?: (\w+): (\w+)(.*)",
                         re.split("\n(?:Stream map|Output)", text)[0])
    width, height = map(int, re.search(r" s:(\d+)x(\d+) ", text).groups())
    hours, minutes, seconds = map(float, re.search(r"Duration: (\d+):(\d+):([\d.]+)",
                                                   text).groups())
    packets = [line.split(",")[1:6] for line in ffmpeg(
        "-i", path, "-map", "0:a?", "-c", "copy", "-f", "framecrc", "-", fails=True
    ).decode().splitlines() if line[0] != "#"]
    return SimpleNamespace(
        text=text, frames=np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3),
        seconds=[float(t) for t in re.findall(r"pts_time:(\S+)", text)],
        length_s=3_600 * hours + 60 * minutes + seconds, packets=packets,
        colors=re.search(r"color_range:(\S+) color_space:(\S+) color_primaries:(\S+) "
                         r"color_trc:(\S+)", text).groups(),
        sounds=[(s[0], s[2], "(default)" in s[3]) for s in streams if s[1] == "Audio"],
        subtitles=[(s[0], s[2]) for s in streams if s[1] == "Subtitle"])


def decibels(first: np.ndarray, second: np.ndarray) -> float:
    """PSNR of two arrays of bytes."""
    return float(-10 * np.log10((((first.astype(float) - second) / 255) ** 2).mean() + 1e-12))
