"""Videos: what a file says of times, colours, sound and orientation is kept."""

from __future__ import annotations

import json
import subprocess
from fractions import Fraction

import numpy as np
import pytest
from videos import (
    Brighter,
    Sharper,
    decibels,
    ffmpeg,
    make_video,
    moving,
    need_ffmpeg,
    pattern,
    read_video,
    set_matrix,
)

from splat_enhancer.enhance import ffmpeg as module
from splat_enhancer.enhance import video
from splat_enhancer.enhance.ffmpeg import look_at, program, read_frames
from splat_enhancer.enhance.inputs import read_mark
from splat_enhancer.enhance.settings import RestoreConfig
from splat_enhancer.environment import Stopped

need_ffmpeg()


def restore(path, model=None, tick=lambda done, total: None, **settings):
    """The mp4, and its messages."""
    notes, target = [], path.with_name(f"{path.stem}_restored.mp4")
    config = RestoreConfig(**{"temporal": 0.0} | settings)
    video.restore_video(model or Brighter(), path, target, config, notes=notes, tick=tick,
                        tag=lambda repaired: json.dumps({"by": hash(config), "share": repaired}))
    return target, notes


def refusal(path):
    with pytest.raises(ValueError, match=rf"^{path.name}: expected .*, got .*; \w+") as caught:
        restore(path)
    assert not list(path.parent.glob("*_restored*")) + list(path.parent.glob(".*"))
    return str(caught.value)


def test_a_restored_video_has_the_same_times_colours_tags_and_sound(tmp_path):
    source = make_video(
        tmp_path / "a.mp4", moving(6), "-aspect", "4:3", "-metadata", "title=Mine", "-metadata",
        "comment=my words", sound="aac", matrix="bt709", tags="tv:bt709:bt709:bt709",
        base=Fraction(1_001, 30_000))
    seen = []
    path, notes = restore(source, Sharper(), lambda *done: seen.append(done))
    before, after = read_video(source), read_video(path)
    assert notes == [] and seen == [(n + 1, 6) for n in range(6)]
    assert after.seconds == pytest.approx(before.seconds, abs=1e-3)
    assert after.colors == before.colors == ("tv", "bt709", "bt709", "bt709")
    assert after.packets == before.packets and len(after.packets) > 5
    assert all(text in after.text for text in ("DAR 4:3", "my words", "Mine"))
    assert read_mark(path)["share"] > 0
    change = after.frames.astype(int) - before.frames
    assert decibels(after.frames, before.frames) < 38 and np.abs(change).mean() > 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.mp4", "a_restored.mp4"]


@pytest.mark.parametrize(("matrix", "scale", "space", "codec"), [
    ("bt709", "tv", "bt709", "libx264"), ("bt601", "pc", "bt470bg", "libx264"),
    ("bt601", "tv", "", "libx264"), ("bt709", "tv", "bt709", "ffv1")])
def test_colours_are_read_by_their_matrix_and_range_and_written_so(
        tmp_path, matrix, scale, space, codec):
    patches = np.zeros((1, 64, 64, 3), np.uint8)
    for n, color in enumerate([(230, 26, 26), (26, 204, 51), (26, 51, 230), (230, 204, 26)]):
        patches[:, :, 16 * n:16 * n + 16] = color
    tags = f"{scale}:{space}:unknown:unknown" if space else "unknown:unknown:unknown:unknown"
    source = make_video(tmp_path / "a.mkv", patches, codec=codec, matrix=matrix, scale=scale,
                       pixels="yuv444p", tags=tags)
    (_, image), = read_frames(look_at(source, []), [])
    assert np.abs(image.astype(int) - patches[0]).max() < 5  # a wrong matrix is off by 20 and more
    path, _ = restore(source)
    assert read_video(path).colors[:2] == ((scale, space) if space else ("unknown", "unknown"))
    (_, image), = read_frames(look_at(path, []), [])
    off = np.abs(image.astype(int) - patches[0]).reshape(64, 4, 16, 3)
    assert off[:, :, 6:10].mean() < 4  # between edges of colour, which 4:2:0 blurs


def test_without_a_matrix_it_is_that_which_players_assume(tmp_path):
    red = np.full((1, 720, 64, 3), (230, 26, 26), np.uint8)
    assert look_at(make_video(tmp_path / "a.mp4", red), []).matrix == "bt709"
    assert look_at(make_video(tmp_path / "b.mp4", red[:, :64]), []).matrix == "bt601"


@pytest.mark.parametrize(("times", "suffix"), [
    ((0, 2, 7, 37), ".mp4"), ((0, 30, 31, 33), ".mkv"), ((0, 1, 2, 9, 13), ".mov"),
    ((0, 4, 5, 40), ".nut")])
def test_uneven_times_are_kept_and_how_long_the_last_frame_stays(tmp_path, times, suffix):
    source = tmp_path / f"a{suffix}"
    make_video(tmp_path / "b.mp4", moving(len(times)), "-bf", "0", times=list(times),
              base=Fraction(1, 10))
    # All but the last frame, which says how long the one before is shown
    ffmpeg("-i", tmp_path / "b.mp4", "-c", "copy", "-frames:v", str(len(times) - 1), source)
    clip = read_video(restore(source)[0])
    assert clip.seconds == pytest.approx([time / 10 for time in times[:-1]], abs=1e-3)
    if suffix != ".nut":  # which has no lengths
        assert clip.length_s == pytest.approx(times[-1] / 10, abs=0.02)


@pytest.mark.parametrize(("matrix", "turned"), [
    ((-1, 0, 0, 1), lambda x: x[:, ::-1]), ((1, 0, 0, -1), lambda x: x[::-1]),
    ((-1, 0, 0, -1), lambda x: x[::-1, ::-1]), ((0, 1, -1, 0), lambda x: np.rot90(x, -1)),
    ((0, -1, 1, 0), np.rot90), ((0, 1, 1, 0), lambda x: x.swapaxes(0, 1)),
    ((0, -1, -1, 0), lambda x: x.swapaxes(0, 1)[::-1, ::-1])])
def test_what_the_display_matrix_turns_and_mirrors_is_restored_upright(tmp_path, matrix, turned):
    source = set_matrix(make_video(tmp_path / "a.mp4", pattern()[None]), *matrix)
    clip, known = read_video(restore(source)[0]), turned(pattern())
    assert "displaymatrix" not in clip.text
    assert clip.frames[0].shape == known.shape and decibels(clip.frames[0], known) > 25


@pytest.mark.parametrize(("name", "codec", "sound", "kept"), [
    ("a.mkv", "libx264", "flac", "flac"), ("a.mov", "mpeg4", "pcm_s16le", "aac"),
    ("a.webm", "libvpx", "libopus", "opus"), ("a.avi", "mpeg4", "libmp3lame", "mp3"),
    ("a.ts", "libx264", "aac", "aac")])
def test_other_containers_become_mp4_with_their_sound_in_time(tmp_path, name, codec, sound, kept):
    source = make_video(tmp_path / name, moving(10), codec=codec, sound=sound)
    try:
        path, notes = restore(source)
    except ValueError as error:
        if "a crash of FFmpeg" in str(error):  # 7.0.2, which imageio-ffmpeg 0.6 brings, on any .ts
            pytest.skip(str(error))
        raise
    before, after = read_video(source), read_video(path)
    assert decibels(after.frames, before.frames) > 34 and after.sounds[0][1] == kept
    start = min(before.seconds[0], 0.05)  # no clock but begins at 0
    assert np.diff(after.seconds) == pytest.approx(np.diff(before.seconds), abs=2e-3)
    assert after.seconds[0] == pytest.approx(start, abs=0.03)
    if kept in sound:
        assert len(after.packets) == len(before.packets) and not notes
        assert name == "a.ts" or [p[3:] for p in after.packets] == [p[3:] for p in before.packets]
    else:
        assert notes == ["its sound (pcm_s16le) is encoded again, as AAC"]


def test_sound_that_no_mp4_takes_is_encoded_anew_and_costs_no_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SOUND", ("wmav2",))  # which is found out in the end
    source = make_video(tmp_path / "a.mkv", moving(5), sound="wmav2")
    path, notes = restore(source)
    clip = read_video(path)
    assert len(clip.frames) == 5 and clip.sounds[0][1] == "aac"
    assert notes == ["its sound (wmav2) is encoded again, as AAC"]


def test_an_avi_with_b_frames_begins_with_its_sound(tmp_path):
    source = make_video(tmp_path / "a.avi", moving(20), "-bf", "2", codec="mpeg4")
    clip = read_video(restore(source)[0])
    assert clip.seconds == pytest.approx([n / 25 for n in range(20)], abs=1e-3)


def test_a_clock_that_begins_late_and_an_edit_list_are_respected(tmp_path):
    whole = make_video(tmp_path / "a.mp4", moving(40), "-g", "40", sound="aac")
    late, cut = tmp_path / "late.mkv", tmp_path / "cut.mp4"
    ffmpeg("-i", whole, "-c", "copy", "-output_ts_offset", "5", late)
    ffmpeg("-ss", "0.6", "-i", whole, "-c", "copy", cut)  # from no key frame: by an edit list
    clip = read_video(restore(late)[0])
    assert len(clip.frames) == 40 and clip.seconds[0] < 0.05 and clip.length_s < 1.7
    before, after = read_video(cut), read_video(restore(cut)[0])
    assert len(after.frames) == len(before.frames) == 25
    assert decibels(after.frames[0], moving(40)[15]) > 30
    assert after.seconds == pytest.approx(before.seconds, abs=1e-3)


def test_languages_defaults_subtitles_and_chapters_are_kept_and_the_rest_is_named(tmp_path):
    clip = make_video(tmp_path / "a.mp4", moving(25), sound="aac")
    (tmp_path / "a.srt").write_text("1\n00:00:00,100 --> 00:00:00,500\nHello\n")
    (tmp_path / "a.txt").write_text(";FFMETADATA1\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=500\n"
                                    "title=First\n")
    source = tmp_path / "all.mkv"
    ffmpeg("-i", clip, "-i", tmp_path / "a.srt", "-i", tmp_path / "a.txt", "-map", "0:v", "-map",
           "0:a", "-map", "0:a", "-map", "1", "-map", "0:v", "-map_metadata", "2", "-c", "copy",
           "-c:s", "srt", "-metadata:s:a:0", "language=eng", "-metadata:s:a:1", "language=deu",
           "-disposition:a:0", "0", "-disposition:a:1", "default", "-metadata:s:s:0",
           "language=fra", source)
    path, notes = restore(source)
    after = read_video(path)
    assert after.sounds == [("eng", "aac", False), ("deu", "aac", True)]
    assert after.subtitles == [("fra", "mov_text")] and "First" in after.text
    assert notes == ["left out, as the mp4 has no place for it: video #4 (h264)"]


def test_what_changes_is_said(tmp_path):
    odd = make_video(tmp_path / "a.mkv", moving(3)[:, :63, :61], pixels="yuv444p10le")
    path, notes = restore(odd)
    frames = read_video(path).frames
    assert frames.shape[1:3] == (64, 62)
    assert decibels(frames[0, :63, :61], moving(3)[0, :63, :61]) > 28
    assert notes == ["its 10 bits become 8",
                     "its 61 x 63 px become even: the last row or column is repeated"]
    fields = make_video(tmp_path / "b.mkv", moving(4), "-flags", "+ildct+ilme", "-field_order",
                        "tt", codec="mpeg2video")
    assert restore(fields)[1] == ["it is interlaced: both fields are restored as one picture"]


def test_alpha_and_hdr_are_refused_with_what_to_do(tmp_path):
    clear = make_video(tmp_path / "a.mkv", moving(2), codec="ffv1", pixels="yuva444p")
    assert "PNG" in refusal(clear)
    hdr = make_video(tmp_path / "b.mkv", moving(2), tags="tv:bt2020nc:bt2020:arib-std-b67")
    assert "in SDR, got HDR (HLG); convert it" in refusal(hdr)


@pytest.mark.parametrize(("name", "codec", "shares"), [
    ("a.mp4", "libx264", (0.6, 0.97)), ("a.mkv", "libx264", (0.5, 0.98)),
    ("a.avi", "mpeg4", (0.5,))])
def test_a_file_cut_off_is_refused_before_anything_is_restored(tmp_path, name, codec, shares):
    path = make_video(tmp_path / name, moving(50), *(
        ["-movflags", "+faststart"] if name == "a.mp4" else []), codec=codec, sound="libmp3lame")
    content = path.read_bytes()
    for share in shares:
        path.write_bytes(content[:int(share * len(content))])
        assert "cut off" in refusal(path)


def test_what_is_no_video_is_refused_by_name(tmp_path):
    path = tmp_path / "a.mp4"
    for content in (b"", b"\0" * 4_096, b"some text that is no video"):
        path.write_bytes(content)
        refusal(path)
    ffmpeg("-f", "lavfi", "-i", "sine=d=0.2", "-c:a", "aac", path)
    assert "no video stream" in refusal(path)


def test_damaged_frames_are_told(tmp_path):
    path = make_video(tmp_path / "a.mp4", moving(20), "-g", "5")
    content = bytearray(path.read_bytes())
    middle = content.index(b"mdat") + len(content) // 2
    content[middle:middle + 300] = bytes(300)
    path.write_bytes(content)
    clip, notes = restore(path)
    assert read_video(clip).frames.shape[0] > 15
    assert any("damaged: what the decoder put there" in note for note in notes)


class Impatient:
    def __init__(self, last):
        self.last = last

    def __call__(self, done, total):
        if done == self.last:
            raise Stopped("now")


@pytest.mark.parametrize("temporal", [0.0, 0.7])
def test_a_killed_restoration_goes_on_and_gives_the_same(tmp_path, monkeypatch, temporal):
    monkeypatch.setattr(video, "PIECE_FRAMES", 3)
    sources = [make_video(tmp_path / f"{name}.mp4", moving(10, 48), sound="aac") for name in "ab"]
    whole, _ = restore(sources[0], Sharper(), temporal=temporal)
    for last in (7, 10):
        with pytest.raises(Stopped):
            restore(sources[1], Sharper(), Impatient(last), temporal=temporal)
        assert not (tmp_path / "b_restored.mp4").exists()
    path, _ = restore(sources[1], model := Sharper(), temporal=temporal)
    assert model.calls == 10 - 9  # three whole pieces were kept
    first, second = read_video(whole), read_video(path)
    assert np.array_equal(first.frames, second.frames)
    assert (first.seconds, first.packets) == (second.seconds, second.packets)
    assert read_mark(whole)["share"] == pytest.approx(read_mark(path)["share"])
    assert len(list(tmp_path.iterdir())) == 4


def test_other_settings_use_no_pieces_of_an_earlier_restoration(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "PIECE_FRAMES", 2)
    source = make_video(tmp_path / "a.mp4", moving(6))
    with pytest.raises(Stopped):
        restore(source, Brighter(60), Impatient(5))
    with pytest.raises(Stopped):
        restore(source, model := Brighter(60), Impatient(5), strength=0.5)
    assert model.calls == 5 and len(list(tmp_path.glob(".*.parts"))) == 1


def test_a_program_that_is_missing_or_too_old_is_said(monkeypatch):
    def of_version(text):
        program.cache_clear()
        monkeypatch.setattr(module.shutil, "which", lambda name: text and "/bin/ffmpeg")
        monkeypatch.setitem(__import__("sys").modules, "imageio_ffmpeg", None)
        monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess(
            [], 0, f"ffmpeg version {text} Copyright"))
        return program()

    try:
        assert of_version("n9.0.2") == of_version("5.1.9-0+deb12u1") == "/bin/ffmpeg"
        for text, message in (("4.4.2-0ubuntu", "4.4.2"), ("", "got none")):
            with pytest.raises(ValueError, match=f"{message}.*pip install imageio-ffmpeg"):
                of_version(text)
    finally:
        program.cache_clear()


def test_only_one_piece_of_a_long_video_is_in_memory(tmp_path):
    source = make_video(tmp_path / "a.mp4", moving(8))
    frames = read_frames(look_at(source, []), [])
    first = [next(frames) for _ in range(2)]
    frames.close()
    assert [time for time, _ in first] == [0, 2_048]
