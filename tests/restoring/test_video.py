"""Videos: times, colours, sound and orientation are kept; kills, damage and odd kinds are borne."""

import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.__main__ import ROOT
from helpers.machine import Stopped
from helpers.restoring import RestoreConfig, find, restore_all
from helpers.restoring import video as module
from helpers.restoring.clips import look_at, read_frames
from helpers.restoring.marks import Mark
from helpers.restoring.mp4 import read_comment
from helpers.restoring.report import Report
from helpers.restoring.video import restore_video
from helpers.splats.filters import luma

pytest.importorskip("av")
from tests.restoring.films import make_film, moving, read_film

BT709_LIMITED, BT601_FULL = (1, 1, 1, 1), (5, 2, 5, 6)


class Brighter:
    """A stand-in where the network is of no matter: so many levels more, by the strength."""

    def __init__(self, levels: int = 0) -> None:
        self.levels, self.calls = levels, 0

    def enhance(self, images, strength=1.0, report=None):
        self.calls += 1
        return (images + strength * self.levels / 255).clamp(0, 1)


class Sharper(Brighter):
    """Another, whose change depends on the frame."""

    def enhance(self, images, strength=1.0, report=None):
        self.calls += 1
        soft = torch.nn.functional.avg_pool2d(images, 5, 1, 2, count_include_pad=False)
        return (images + images.amax() * (images - soft)).clamp(0, 1)


def restore(path, model=None, report=None, **settings):
    config = RestoreConfig(**{"steady": 0.0} | settings)
    report = report or Report()
    files = restore_video(model or Brighter(), path, path.parent, config, report,
                          mark=Mark.of(path, str(config).replace(" ", "")))
    assert files[0].parent == path.parent and len(files) == 1
    return files[0], report.notes


def decibels(first, second):
    return float(-10 * torch.log10((first - second).square().mean()))


def test_a_restored_film_is_h264_of_the_same_times_colours_and_sound(tmp_path, enhancer):
    frames = moving(6)
    source = make_film(tmp_path / "a.mp4", frames, sound="aac", colors=BT709_LIMITED,
                       aspect=Fraction(4, 3), rate=Fraction(30_000, 1_001))
    seen = []

    class Noting(Report):
        def __call__(self, done, total):
            seen.append((done, total))

    path, notes = restore(source, enhancer, Noting())
    before, after = read_film(source), read_film(path)
    assert path.name == "a_restored.mp4" and notes == []
    assert (after.codec, after.pix_fmt, after.colors) == ("h264", "yuv420p", BT709_LIMITED)
    assert after.seconds == pytest.approx(before.seconds, abs=1e-3)
    assert after.rate == before.rate and after.aspect == before.aspect
    assert after.sounds == ["aac"] and len(after.packets) > 5
    assert after.packets == before.packets
    with enhancer.merged():
        known = enhancer.enhance(before.frames)
    grey = [luma(frames) for frames in (after.frames, known, before.frames)]  # 4:2:0 in colour
    close, far = decibels(*grey[:2]), decibels(*grey[1:])
    assert close > 40 and far < 38
    assert seen == [(n + 1, 6) for n in range(6)]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.mp4", "a_restored.mp4"]


@pytest.mark.parametrize(("codec", "colors"), [
    ("libx264", (1, 1, 1, 1)), ("libx264", (1, 2, 1, 1)), ("libx264", (5, 1, 5, 6)),
    ("libx264", (6, 2, 6, 6)), ("libx264", (2, 0, 2, 2)), ("libx264", (2, 2, 2, 2)),
    ("ffv1", (1, 2, 1, 1)), ("ffv1", (5, 1, 5, 6))])  # whose pixel format says nothing of the range
def test_colours_are_read_by_their_matrix_and_range_and_written_so(tmp_path, codec, colors):
    ramp = torch.arange(0, 256, 4).view(1, 1, 64).expand(3, 64, 64) / 255
    patches = torch.zeros(3, 64, 64)
    for n, color in enumerate([(0.9, 0.1, 0.1), (0.1, 0.8, 0.2), (0.1, 0.2, 0.9), (0.9, 0.8, 0.1)]):
        patches[:, 16 * n:16 * n + 16] = torch.tensor(color)[:, None, None]
    source = make_film(tmp_path / "a.mkv", [ramp, patches], codec=codec, colors=colors,
                       pix_fmt="yuv444p")
    read = torch.stack([rgb for _, rgb in read_frames(look_at(source))])
    assert (read[0] - ramp).abs().max() < 2.5 / 255
    assert (read[1] - patches).abs().max() < 4 / 255  # a wrong matrix is off by 20 and more
    path, _ = restore(source)
    after = read_film(path)
    assert after.colors == colors
    assert (after.frames[0] - ramp).abs().max() < 6 / 255 and decibels(after.frames[0], ramp) > 42
    middle = after.frames[1].unflatten(1, (4, 16))[:, :, 6:10]
    assert (middle - patches.unflatten(1, (4, 16))[:, :, 6:10]).abs().mean() < 4 / 255


def test_an_untagged_film_of_high_definition_is_read_as_players_do(tmp_path):
    red = torch.tensor([0.9, 0.1, 0.1])[:, None, None].expand(3, 720, 64)
    tagged = make_film(tmp_path / "a.mp4", [red], colors=(1, 1, 1, 1))
    untagged = tmp_path / "b.mp4"
    untagged.write_bytes(make_film(tmp_path / "c.mp4", [red], colors=(2, 1, 2, 2)).read_bytes())
    first, second = (look_at(path).matrix for path in (tagged, untagged))
    assert first == second == 1 and look_at(untagged).colors[0] == 2
    assert look_at(make_film(tmp_path / "d.mp4", [red[:, :64]])).matrix == 5


def test_uneven_times_are_kept(tmp_path):
    times = [0, 40, 41, 90, 300, 320, 1_000]
    source = make_film(tmp_path / "a.mkv", moving(7), times=times, time_base=Fraction(1, 1_000))
    path, _ = restore(source)
    assert read_film(path).seconds == pytest.approx([t / 1_000 for t in times], abs=1e-3)


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_a_turned_film_is_restored_upright(tmp_path, quarters):
    frame = torch.zeros(3, 64, 96)
    frame[0, :20, :30] = 1  # red, top left as stored
    source = make_film(tmp_path / "a.mp4", [frame] * 2, rotation=90 * quarters)
    path, _ = restore(source)
    after = read_film(path)
    assert after.rotation == 0
    known = torch.rot90(frame, quarters, (1, 2))  # to the left, as the display matrix says
    assert after.frames[0].shape == known.shape and decibels(after.frames[0], known) > 20


@pytest.mark.parametrize(("suffix", "codec", "sound", "kept"), [
    (".mkv", "libx264", "flac", "flac"), (".mov", "mpeg4", "pcm_s16le", None),
    (".mkv", "mpeg4", "pcm_s16le", None),
    (".webm", "libvpx-vp9", "libopus", "opus"), (".mkv", "mpeg4", "libmp3lame", "mp3float"),
    (".avi", "mpeg4", "libmp3lame", "mp3float")])
def test_other_containers_become_mp4_with_their_sound(tmp_path, suffix, codec, sound, kept):
    source = make_film(tmp_path / f"a{suffix}", moving(10), codec=codec, sound=sound,
                       options={} if codec == "libx264" else {"b": "3000000"})
    path, notes = restore(source)
    before, after = read_film(source), read_film(path)
    assert after.codec == "h264" and len(after.frames) == 10
    assert after.seconds == pytest.approx(before.seconds, abs=2e-3)
    assert decibels(after.frames, before.frames) > 36
    if after.sounds == ["aac"]:
        assert any("as AAC" in note for note in notes) and kept is None
    else:
        assert after.sounds == [before.sounds[0]] and notes == []
        assert [data for _, data in after.packets] == [data for _, data in before.packets]
    start = after.packets[0][0] - before.packets[0][0]
    assert abs(start) < 0.05 and after.packets[-1][0] == pytest.approx(before.packets[-1][0],
                                                                       abs=0.06)


def test_odd_sides_repeat_the_last_row_and_it_is_said(tmp_path):
    frames = [frame[:, :63, :61] for frame in moving(3)]
    source = make_film(tmp_path / "a.mkv", frames, pix_fmt="yuv444p")
    path, notes = restore(source)
    after = read_film(path).frames
    assert after.shape[2:] == (64, 62) and decibels(after[0, :, :63, :61], frames[0]) > 30
    assert "its 61 x 63 px become even" in notes[0]


def test_ten_bits_are_said_to_become_eight(tmp_path):
    source = make_film(tmp_path / "a.mkv", moving(2), pix_fmt="yuv420p10le")
    assert "its 10 bits become 8" in restore(source)[1]


def test_strength_nought_keeps_the_picture(tmp_path):
    source = make_film(tmp_path / "a.mp4", moving(3), colors=BT601_FULL)
    path, _ = restore(source, Brighter(60), strength=0.0)
    assert decibels(read_film(path).frames, read_film(source).frames) > 38
    brighter, _ = restore(source, Brighter(60), strength=0.5)
    change = read_film(brighter).frames - read_film(source).frames
    assert float(change.median()) == pytest.approx(30 / 255, abs=2 / 255)


def test_nothing_else_is_written_over(tmp_path):
    source = make_film(tmp_path / "a.mp4", moving(2))
    (tmp_path / "a_restored.mp4").write_bytes(b"a film of my own")
    assert restore(source)[0].name == "a_restored_2.mp4"
    assert restore(source, strength=0.5)[0].name == "a_restored_2.mp4"
    assert (tmp_path / "a_restored.mp4").read_bytes() == b"a film of my own"
    assert read_comment(tmp_path / "a_restored.mp4") == ""


@pytest.mark.parametrize("steady", [0.0, 0.7])
def test_a_killed_restoration_goes_on_and_gives_the_same(tmp_path, monkeypatch, steady):
    monkeypatch.setattr(module, "PIECE_FRAMES", 3)
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        source = make_film(tmp_path / name / "a.mp4", moving(10, 48), sound="aac")
    whole, _ = restore(tmp_path / "whole" / "a.mp4", Sharper(), steady=steady)

    class Impatient(Report):
        def __call__(self, done, total):
            if done == self.last:
                raise Stopped("now")

    for last in (7, 10):
        report = Impatient()
        report.last = last
        with pytest.raises(Stopped):
            restore(source, Sharper(), report, steady=steady)
        assert not (source.parent / "a_restored.mp4").exists()
    path, _ = restore(source, model := Sharper(), steady=steady)
    assert model.calls == 10 - 9  # three whole pieces were kept
    first, second = read_film(whole), read_film(path)
    assert all((a == b).all() for a, b in zip(first.planes, second.planes, strict=True))
    assert (first.seconds, first.packets) == (second.seconds, second.packets)
    assert sorted(file.name for file in source.parent.iterdir()) == ["a.mp4", "a_restored.mp4"]


def test_other_settings_or_another_film_use_no_pieces_of_an_earlier_one(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PIECE_FRAMES", 2)
    source = make_film(tmp_path / "a.mp4", moving(6))

    class Impatient(Report):
        def __call__(self, done, total):
            if done == 5:
                raise Stopped("now")

    with pytest.raises(Stopped):
        restore(source, Brighter(60), Impatient())
    assert len(list(tmp_path.glob(".*.parts"))) == 1
    with pytest.raises(Stopped):
        restore(source, model := Brighter(60), Impatient(), strength=0.5)
    assert model.calls == 5 and len(list(tmp_path.glob(".*.parts"))) == 1
    make_film(source, moving(6, seed=1))
    restore(source, model := Brighter(60), strength=0.5)
    assert model.calls == 6 and not list(tmp_path.glob(".*"))


def test_films_of_a_folder_are_restored_once(tmp_path, enhancer):
    make_film(tmp_path / "a.mp4", moving(2))
    (tmp_path / "b.mp4").write_bytes(b"no film")
    settings = RestoreConfig(steady=0.0)
    for skipped in (False, True):
        good, bad = restore_all(enhancer, find(tmp_path, say=None), settings, progress=None)
        assert (good.error, good.skipped) == ("", skipped)
        assert good.files == (tmp_path / "a_restored.mp4",)
        assert bad.error.startswith("b.mp4: expected") and not bad.files


def refusal(path):
    with pytest.raises(ValueError, match=rf"^{path.name}: expected .*, got .*; \w+") as caught:
        restore(path)
    assert not list(path.parent.glob("*_restored*")) + list(path.parent.glob(".*"))
    return str(caught.value)


def test_what_is_no_film_is_refused_by_name(tmp_path):
    path = tmp_path / "a.mp4"
    for content in (b"", b"\0" * 4_096, b"some text that is no film"):
        path.write_bytes(content)
        refusal(path)
    sound = make_film(tmp_path / "b.mkv", moving(5), sound="aac")
    import av
    with av.open(str(sound)) as film, av.open(str(tmp_path / "c.mp4"), "w") as output:
        track = output.add_stream_from_template(film.streams.audio[0])
        for packet in film.demux(film.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = track
                output.mux(packet)
    assert "a video stream" in refusal(tmp_path / "c.mp4")


@pytest.mark.parametrize(("suffix", "share"), [(".mp4", 0.6), (".mp4", 0.97), (".mkv", 0.5),
                                               (".avi", 0.5)])
def test_a_film_cut_off_is_refused_before_anything_is_restored(tmp_path, suffix, share):
    path = make_film(tmp_path / f"a{suffix}", moving(80), rate=20,
                     codec="mpeg4" if suffix == ".avi" else "libx264")
    whole = path.read_bytes()
    if suffix == ".mp4":  # its index in front, as on the web
        path = make_film(tmp_path / "b.mp4", moving(80), rate=20, sound="aac")
        import av
        with av.open(str(path)) as film, av.open(str(tmp_path / "c.mp4"), "w",
                                                 options={"movflags": "+faststart"}) as output:
            tracks = {s.index: output.add_stream_from_template(s) for s in film.streams}
            for packet in film.demux():
                if packet.dts is not None:
                    packet.stream = tracks[packet.stream_index]
                    output.mux(packet)
        path = tmp_path / "c.mp4"
        whole = path.read_bytes()
    path.write_bytes(whole[:int(share * len(whole))])
    assert "cut off" in refusal(path)


def test_alpha_and_hdr_are_refused_with_what_to_do(tmp_path):
    clear = make_film(tmp_path / "a.mov", moving(2), codec="prores_ks", pix_fmt="yuva444p10le")
    assert "PNG" in refusal(clear)
    hdr = make_film(tmp_path / "b.mp4", moving(2), colors=(9, 1, 9, 16))
    assert "SDR" in refusal(hdr)


def test_a_film_without_a_frame_is_refused(tmp_path):
    path = make_film(tmp_path / "a.mp4", moving(2))
    import av
    with av.open(str(path)) as film, av.open(str(tmp_path / "b.mkv"), "w") as output:
        output.add_stream_from_template(film.streams.video[0])
        output.start_encoding()
    refusal(tmp_path / "b.mkv")


LONG = """
import re, sys
from pathlib import Path
from tests.restoring.test_video import Brighter, restore
for film in sys.argv[1:]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    restore(Path(film), Brighter(9))
    print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak")
def test_memory_does_not_grow_with_the_length(tmp_path):
    short = moving(32, 128, step_px=0.5)
    films = [make_film(tmp_path / f"{times}.mp4", short * times) for times in (1, 10)]
    done = subprocess.run([sys.executable, "-c", LONG, *map(str, [films[0], *films])], cwd=ROOT,
                          text=True, capture_output=True, check=True)
    _, few, many = (int(line) / 1_024 for line in done.stdout.split())
    assert many - few < 15, (few, many)  # MiB; the further frames alone are 54


def test_sound_that_no_mp4_can_take_costs_no_picture(tmp_path):
    import av
    source = tmp_path / "a.mkv"
    with av.open(str(make_film(tmp_path / "b.mkv", moving(5)))) as film, \
            av.open(str(source), "w") as output:
        video = output.add_stream_from_template(film.streams.video[0])
        tone = output.add_stream("libmp3lame", rate=8_000, layout="mono")  # an mp4 wants 16,000
        for packet in film.demux(video=0):
            if packet.dts is not None:
                packet.stream = video
                output.mux(packet)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1_152), np.int16), "s16", "mono")
        frame.sample_rate, frame.pts = 8_000, 0
        output.mux([*tone.encode(frame), *tone.encode(None)])
    path, notes = restore(source)
    assert len(read_film(path).frames) == 5 and read_film(path).sounds == []
    assert notes == ["its sound is left out, as no mp4 can take it (Invalid argument)"]


def test_a_film_that_is_damaged_in_its_middle_leaves_no_pieces(tmp_path):
    path = make_film(tmp_path / "a.mp4", moving(40), options={"g": "10"})
    content = bytearray(path.read_bytes())
    at = content.find(b"mdat") + len(content) // 3
    content[at:at + 2_000] = bytes(2_000)
    path.write_bytes(content)
    assert "a video that can be read" in refusal(path)


def test_frames_that_the_decoder_calls_damaged_are_told(tmp_path):
    make_film(path := tmp_path / "hit.mp4", moving(40))
    content = bytearray(path.read_bytes())
    middle = content.index(b"mdat") + (content.index(b"moov") - content.index(b"mdat")) // 2 \
        if content.index(b"moov") > content.index(b"mdat") else len(content) * 3 // 4
    content[middle:middle + 30] = bytes(30)
    path.write_bytes(content)
    _, notes = restore(path)
    assert any("damaged: what the decoder put there" in note for note in notes)
    make_film(whole := tmp_path / "whole.mp4", moving(40))
    assert not any("damaged" in note for note in restore(whole)[1])
