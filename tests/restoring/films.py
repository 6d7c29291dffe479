"""Short films made for the tests, and what a file says of itself."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from torch import Tensor

EXACT = 0x4 | 0x2000 | 0x40000  # swscale: bicubic, full chroma, accurate rounding
NONE = (2, 0, 2, 2)  # neither matrix, range, primaries nor transfer is named


def make_film(path: Path, frames: list[Tensor], *, codec: str = "libx264", pix_fmt: str = "yuv420p",
              rate: int | Fraction = 25, times: list[int] | None = None, time_base: Fraction | None
              = None, colors: tuple[int, int, int, int] = NONE, sound: str = "",
              rotation: float = 0, aspect: Fraction | None = None,
              options: dict[str, str] | None = None) -> Path:
    """Write frames (3, H, W) in [0, 1] losslessly where the codec can, with a tone as sound."""
    with av.open(str(path), "w") as output:
        lossless = {"crf": "0"} if codec == "libx264" else {}
        stream = output.add_stream(codec, rate=rate, options=lossless | (options or {}))
        stream.height, stream.width = frames[0].shape[1:]
        stream.pix_fmt, base = pix_fmt, time_base or 1 / Fraction(rate)
        context = stream.codec_context
        context.time_base = base
        context.colorspace, context.color_range, context.color_primaries, context.color_trc = colors
        if aspect:
            context.sample_aspect_ratio = aspect
        if rotation:
            if not hasattr(stream, "set_display_rotation"):  # nor the codec context behind it
                pytest.skip("this PyAV cannot write an orientation")
            stream.set_display_rotation(rotation)
        tone = output.add_stream(sound, rate=48_000, layout="mono") if sound else None
        for number, rgb in enumerate(frames):
            values = rgb.mul(255).round().byte().permute(1, 2, 0).contiguous().numpy()
            frame = av.VideoFrame.from_ndarray(values, format="rgb24").reformat(
                format=pix_fmt, dst_colorspace={1: 1}.get(colors[0], 5),
                dst_color_range=2 if colors[1] == 2 else 1, interpolation=EXACT)
            frame.colorspace, frame.color_range = colors[:2]
            frame.pts, frame.time_base = times[number] if times else number, base
            output.mux(stream.encode(frame))
        if tone is not None:
            output.mux(stream.encode(None))
            _play(output, tone, len(frames) / float(rate))
        else:
            output.mux(stream.encode(None))
    return path


def _play(output: av.container.OutputContainer, tone: av.AudioStream, seconds: float) -> None:
    time = np.arange(int(48_000 * seconds)) / 48_000
    wave = (8_000 * np.sin(2 * np.pi * 440 * time)).astype(np.int16)
    for at in range(0, len(wave), 960):
        frame = av.AudioFrame.from_ndarray(wave[None, at:at + 960], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, at, Fraction(1, 48_000)
        output.mux(tone.encode(frame))
    output.mux(tone.encode(None))


def read_film(path: Path) -> SimpleNamespace:
    """All of a small film: frames (N, 3, H, W) as stored, seconds, tags, sound packets."""
    with av.open(str(path)) as film:
        stream = film.streams.video[0]
        frames, codec = list(film.decode(stream)), stream.codec_context
        found = SimpleNamespace(
            codec=codec.name, pix_fmt=frames[0].format.name,
            seconds=[frame.time for frame in frames], rate=stream.average_rate,
            colors=(frames[0].colorspace, frames[0].color_range, codec.color_primaries,
                    codec.color_trc), rotation=frames[0].rotation,
            aspect=codec.sample_aspect_ratio, comment=film.metadata.get("comment"),
            frames=torch.stack([torch.from_numpy(frame.reformat(
                format="rgb24", dst_color_range=2, interpolation=EXACT).to_ndarray())
                .permute(2, 0, 1).float() / 255 for frame in frames]),
            planes=[np.array(frame.to_ndarray()) for frame in frames])
    with av.open(str(path)) as film:
        found.sounds = [s.codec_context.name for s in film.streams.audio]
        found.packets = [(round(float(p.pts * p.time_base), 4), bytes(p))
                         for s in film.streams.audio[:1] for p in film.demux(s) if p.size]
    return found


def moving(count: int, size_px: int = 64, *, seed: int = 0, step_px: float = 1.5) -> list[Tensor]:
    """A smooth random picture that slides to the left."""
    from helpers.splats.filters import resize

    dice = torch.Generator().manual_seed(seed)
    wide = size_px + int(step_px * count) + 2
    picture = resize(torch.rand(1, 3, 9, 9 * wide // size_px, generator=dice), (size_px, wide))[0]
    return [picture[:, :, (at := round(step_px * n)):at + size_px] for n in range(count)]
