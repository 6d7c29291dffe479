"""Pairs: which kind a sample is, where each kind comes from, and how a user's own are read."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from test_faces import picture, settings, write_photographs

from splat_enhancer.config import DegradationConfig
from splat_enhancer.data import pairs as pairs_module
from splat_enhancer.data.faces import draw_batch, prepare_faces
from splat_enhancer.data.pairs import Pairs, load_novel_views, prepare_pairs
from splat_enhancer.degradation.pipeline import degrade

QUICK = DegradationConfig(sparsity=0, oversize=0, needles=0, holes=0, floaters=0, translucency=0,
                          doubling=0, color_error=0, hair=0, surface_blur=0)


def write_novel_views(folder, identities=3):
    """A folder as the embedded novel-view pairs are: the degraded side is darker."""
    folder.mkdir()
    entries = []
    for number in range(4 * identities):
        entry = {"degraded": f"{number}.degraded.png", "clean": f"{number}.png",
                 "identity": number // 4, "split": "test" if number // 4 == 2 else "train",
                 "views": ("interpolated", "extrapolated")[number % 2]}
        picture(number).save(folder / entry["clean"])
        picture(number).point(lambda value: value // 2).save(folder / entry["degraded"])
        entries.append(entry)
    (folder / "index.json").write_text(json.dumps({"images": entries}))
    return folder


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setattr(pairs_module, "NOVEL_VIEWS", write_novel_views(tmp_path / "novel_view"))
    return settings(write_photographs(tmp_path / "photos"), degradation=QUICK, fit_samples=2,
                    weight_synthetic=0.25, weight_wrong_detail=0.0, weight_fit=0.15,
                    weight_novel_view=0.6)


@pytest.fixture
def faces(config, tmp_path):
    return prepare_faces(config, tmp_path / "data")


def test_kinds_have_their_shares_and_follow_from_the_seed(config, faces):
    pairs = Pairs(config, faces)
    first = "".join(kind[0] for kind in pairs.draw_kinds(torch.arange(12)))
    assert first == "ssssnsfsnsfn"  # as before version 0.2.0
    counts = Counter(pairs.draw_kinds(torch.arange(2_000)))
    for kind, weight in {"synthetic": 0.25, "fit": 0.15, "novel_view": 0.6}.items():
        assert counts[kind] / 2_000 == pytest.approx(weight, abs=0.03)


def test_sample_is_the_same_in_any_batch_and_its_kind_says_where_it_is_from(
        config, faces, tmp_path, capsys):
    pairs = prepare_pairs(config, faces, tmp_path / "data")
    clean, regions, seeds = draw_batch(faces, seed=0, step=0, batch=12)
    drawn_clean, degraded, kinds = pairs.draw(clean, regions, seeds)
    assert set(kinds) == {"synthetic", "fit", "novel_view"}
    assert degraded.shape == drawn_clean.shape == (12, 3, 64, 64)
    for row in range(12):
        one = slice(row, row + 1)
        alone = pairs.draw(clean[one], regions[one], seeds[one])
        assert torch.equal(alone[0][0], drawn_clean[row]) and alone[2] == [kinds[row]]
        assert torch.equal(alone[1][0], degraded[row])
        if kinds[row] == "novel_view":
            assert (degraded[row] - drawn_clean[row] / 2).abs().max() < 1 / 255
        if kinds[row] == "synthetic":
            assert torch.equal(drawn_clean[row], clean[row])
    each = pairs.draw_each(clean[:2], regions[:2], seeds[:2])
    assert list(each) == ["synthetic", "fit", "novel_view"]
    assert all(d.shape == c.shape == (2, 3, 64, 64) for d, c in each.values())
    assert str(pairs) == "25% synthetic, 15% fit of 2, 60% novel_view of 8"
    assert "Fitting faces" in capsys.readouterr().err


def test_synthetic_pairs_alone_are_what_degrade_gives(config, faces, tmp_path):
    config = config.replace(weight_fit=0.0, weight_novel_view=0.0, degradation=DegradationConfig(
        **{**vars(QUICK), "strength_min": 1.0, "amount_min": 1.0, "clean_share": 0.0}))
    pairs = prepare_pairs(config, faces, tmp_path / "data")
    clean, regions, seeds = draw_batch(faces, seed=0, step=0, batch=3)
    _, degraded, kinds = pairs.draw(clean, regions, seeds)
    assert kinds == ["synthetic"] * 3 and pairs.fits is pairs.novel_views is None
    torch.testing.assert_close(degraded, degrade(clean, regions, config.degradation, seeds))


def test_wrong_detail_keeps_the_head_and_follows_from_the_seed(config, faces, tmp_path):
    config = config.replace(weight_synthetic=0.0, weight_fit=0.0, weight_novel_view=0.0,
                            weight_wrong_detail=1.0)
    pairs = prepare_pairs(config, faces, tmp_path / "data")
    clean, regions, seeds = draw_batch(faces, seed=0, step=0, batch=2)
    drawn_clean, degraded, kinds = pairs.draw(clean, regions, seeds)
    assert kinds == ["wrong_detail"] * 2
    inside = (regions > 0)[:, None].expand_as(clean)  # the backdrop may be another
    torch.testing.assert_close(drawn_clean[inside], clean[inside], atol=1e-6, rtol=0)
    assert 0.002 < (degraded - drawn_clean).abs().mean() < 0.3
    assert torch.equal(pairs.draw(clean[1:], regions[1:], seeds[1:])[1][0], degraded[1])


def test_fits_are_made_once_and_are_of_the_first_training_faces(config, faces, tmp_path,
                                                              monkeypatch):
    fits = prepare_pairs(config, faces, tmp_path / "data").fits
    degraded, clean = fits.load([0, 1])
    assert torch.equal(clean, faces.load("train", [0, 1])[0])
    assert 0.01 < (degraded - clean).abs().mean() < 0.3
    monkeypatch.setattr(pairs_module, "underfit", None)
    again = prepare_pairs(config, faces, tmp_path / "data").fits
    assert torch.equal(again.load([1])[0][0], degraded[1])


def test_novel_views_are_chosen_by_split_and_view_and_scaled(config):
    test = load_novel_views("test", 128, "extrapolated")
    assert {entry["identity"] for entry in test.entries} == {2} and len(test) == 2
    assert test.load([0])[0].shape == (1, 3, 128, 128)
    assert len(load_novel_views("train", 64)) == 8


def from_pil(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


def render(number, side=80):
    """No two sides alike: bright at the top left, a dark block of its own for each number."""
    y, x = np.mgrid[:side, :side]
    values = np.stack([255 - x * 255 // side, 255 - y * 255 // side, np.full((side, side), 90)], -1)
    values[4:14, 4:34] = 255
    values[side // 2:side // 2 + 10, 10 * number:10 * number + 9] = 0
    return values.astype(np.uint8)


def write_own(folder, renders, photos, **options):
    """Own pairs of arrays; options go to the photographs' files."""
    for part, arrays, suffix in (("renders", renders, ".png"), ("photos", photos, ".png")):
        (folder / part).mkdir(parents=True)
        for number, array in enumerate(arrays):
            extra = options if part == "photos" else {}
            Image.fromarray(array).save(folder / part / f"{number}{suffix}", **extra)
    return folder


def prepare_own(folder, tmp_path, **changes):
    """The own pairs of a folder, read in random order by row."""
    config = settings(tmp_path / "photos", weight_synthetic=0, weight_wrong_detail=0, weight_fit=0,
                      weight_novel_view=0, weight_own=1.0, own_pairs=str(folder), **changes)
    return pairs_module.prepare_own(config, tmp_path / "data")


def exif(orientation):
    tag = Image.Exif()
    tag[0x112] = orientation
    return tag


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("width", [80, 60])
def test_photograph_turned_by_exif_beside_a_render_of_the_raw_pixels_is_read_right(
        tmp_path, capsys, orientation, width):
    renders = [render(number)[:, :width] for number in range(3)]
    own = prepare_own(write_own(tmp_path / "own", renders, renders, exif=exif(orientation)),
                      tmp_path)
    degraded, clean = own.load(range(3))
    assert (degraded - clean).abs().mean() < 0.01
    assert "Own pairs 0, 1, 2: the photograph is turned as its render is" in capsys.readouterr().out
    assert torch.allclose(degraded[0], from_pil(Image.fromarray(renders[0]).crop(
        (0, (80 - width) // 2, width, 80 - (80 - width) // 2)).resize((64, 64), 1)), atol=0.1)


@pytest.mark.parametrize("turn", [np.rot90, np.fliplr, np.flipud])
def test_render_that_lies_otherwise_than_its_photograph_is_read_right(tmp_path, capsys, turn):
    """The other way round: no EXIF, and renders that are turned or mirrored."""
    photos = [render(number) for number in range(3)]
    own = prepare_own(write_own(tmp_path / "own", [turn(p) for p in photos], photos), tmp_path)
    degraded, clean = own.load(range(3))
    assert (degraded - clean).abs().mean() < 0.01 and "turned" in capsys.readouterr().out


@pytest.mark.parametrize("change", [
    lambda array: array, lambda array: array // 2,
    lambda array: np.clip(array + np.random.default_rng(0).normal(0, 60, array.shape), 0, 255),
    lambda array: np.asarray(Image.fromarray(array).resize((6, 6), 1).resize((80, 80)))])
def test_pair_that_stands_right_is_left_as_it_is(tmp_path, capsys, change):
    """However bad its render: darker, noisy, blurred, or symmetric."""
    photos = [np.maximum(render(n), render(n)[:, ::-1]) for n in range(3)]
    renders = [change(photo).astype(np.uint8) for photo in photos]
    own = prepare_own(write_own(tmp_path / "own", renders, photos), tmp_path)
    assert "turned" not in capsys.readouterr().out
    assert torch.equal(own.load([1])[1], from_pil(
        Image.fromarray(photos[1]).resize((64, 64), Image.Resampling.LANCZOS))[None])


@pytest.mark.parametrize("background", [(0, 0, 0), (255, 255, 255), (20, 200, 40), None])
def test_transparent_part_of_a_render_is_no_target(tmp_path, capsys, background):
    """Photographs masked to any colour, or not masked: both sides take what is near, as restoring
    does."""
    renders, photos = [], []
    for number in range(3):
        array, alpha = render(number), np.full((80, 80), 255, np.uint8)
        alpha[:36] = 0
        hidden = array.copy()
        hidden[:36] = 255  # what a renderer leaves behind transparent pixels
        renders.append(np.dstack([hidden, alpha]))
        photos.append(array.copy())
        photos[-1][:36] = np.asarray(picture(9, 80))[:36] if background is None else background
    own = prepare_own(write_own(tmp_path / "own", renders, photos), tmp_path)
    degraded, clean = own.load(range(3))
    assert (degraded - clean).abs().max() < 0.15
    assert "0, 1, 2: what is transparent is made the same on both sides" in capsys.readouterr().out


@pytest.mark.parametrize("backdrop", [0, 255])
def test_transparent_part_of_a_photograph_is_no_target(tmp_path, backdrop):
    """The render stands before a colour, its photograph is cut out."""
    renders, photos = [], []
    for number in range(3):
        array = render(number)
        alpha = np.full((80, 80), 255, np.uint8)
        alpha[:36] = 0
        photos.append(np.dstack([array, alpha]))
        array[:36] = backdrop
        renders.append(array)
    degraded, clean = prepare_own(
        write_own(tmp_path / "own", renders, photos), tmp_path).load(range(3))
    assert (degraded - clean).abs().max() < 0.15


def test_both_sides_cut_out_agree(tmp_path):
    renders = [np.dstack([render(n), np.where(np.arange(80) < 40, 0, 255)[:, None]
                          .repeat(80, 1).astype(np.uint8)]) for n in range(2)]
    photos = [np.dstack([array[..., :3], np.roll(array[..., 3], -4, 0)]) for array in renders]
    degraded, clean = prepare_own(
        write_own(tmp_path / "own", renders, photos), tmp_path).load(range(2))
    assert (degraded - clean).abs().max() < 0.1


def test_photograph_beside_several_renders_is_on_one_side_only(tmp_path):
    photos = [render(number // 2) for number in range(8)]
    renders = [photo // 2 + number for number, photo in enumerate(photos)]
    own = prepare_own(write_own(tmp_path / "own", renders, photos), tmp_path, own_held_out=0.25)
    assert len(own.train) == 6 and len(own.held_out) == 2
    assert not set(own.identities(own.train)) & set(own.identities(own.held_out))
    degraded, clean = own.draw(torch.arange(20))
    trained = own.load(own.train)[1]
    assert all(any(torch.equal(one, other) for other in trained) for one in clean)
    assert degraded.shape == clean.shape == (20, 3, 64, 64)


def test_photograph_that_the_faces_have_too_is_on_the_same_side_in_both(config, faces, tmp_path):
    folder = tmp_path / "own"
    for part in ("renders", "photos"):
        (folder / part).mkdir(parents=True)
        for entry in (*faces.train[:2], *faces.test):
            (folder / part / entry["identity"]).write_bytes(
                (tmp_path / "photos" / "images" / entry["identity"]).read_bytes())
    config = config.replace(own_pairs=str(folder), weight_own=0.5)
    pairs = prepare_pairs(config, faces, tmp_path / "data")
    assert set(pairs.own.identities(pairs.own.held_out)) == {e["pixels"] for e in faces.test}
    assert pairs.weights["own"] == pytest.approx(1 / 3) and "2 own" in pairs.trained_on


def test_own_pairs_without_a_weight_are_only_measured(config, faces, tmp_path, capsys):
    folder = write_own(tmp_path / "own", *[[render(0), render(1)]] * 2)
    pairs = prepare_pairs(config.replace(own_pairs=f'"{folder}"'), faces, tmp_path / "data")
    assert "only measured; to learn from them, set weight_own" in capsys.readouterr().out
    assert len(pairs.own.held_out) == 1 and "own" not in pairs.trained_on
    assert not prepare_pairs(config, faces, tmp_path / "data").own.held_out


def test_what_has_no_part_in_a_pair_is_named(tmp_path, capsys):
    folder = write_own(tmp_path / "own", [render(0), render(1), render(2)], [render(0), render(1)])
    (folder / "photos" / "3.jpg").write_bytes(b"\0\0\0\x18ftypheic")
    (folder / "renders" / "3.png").write_bytes((folder / "renders" / "0.png").read_bytes())
    (folder / "photos" / "alone.png").write_bytes(b"")
    own, printed = prepare_own(folder, tmp_path), capsys.readouterr().out
    assert len(own.train + own.held_out) == 2 and "3 left out: " in printed and "HEIC" in printed
    for name in ("renders/2.png", "photos/alone.png"):
        assert f"{name}: the other folder has no file of this name" in printed


@pytest.mark.parametrize(("renders", "photos", "message"), [
    ([], [], "renders and photographs of equal names, got 0 and 0;"),
    ([render(0)], [render(0)], "got 1 different ones; add some"),
    ([render(0), render(1)], [render(0)] * 2, "got 1 different ones"),
    ([render(0), render(1)[:60]], [render(0), render(1)[:70]], "got 1 different ones")])
def test_folder_that_cannot_be_used_is_refused_by_name(tmp_path, capsys, renders, photos, message):
    with pytest.raises(ValueError, match=rf"^own_pairs: expected .*{message}"):
        prepare_own(write_own(tmp_path / "own", renders, photos), tmp_path)
    if len(renders) == 2 and len(renders[1]) == 60:
        assert "1: expected a render with its photograph's proportions, got width / height 1.333 " \
            "beside 1.143" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"own_pairs: expected a folder with renders/ and photos/"):
        prepare_own(tmp_path / "own" / "renders", tmp_path)


def test_renders_of_half_the_size_are_scaled(tmp_path):
    renders = [np.asarray(Image.fromarray(render(n)).resize((40, 40), 1)) for n in range(2)]
    degraded, clean = prepare_own(write_own(tmp_path / "own", renders, [render(0), render(1)]),
                                  tmp_path).load([0, 1])
    assert (degraded - clean).abs().mean() < 0.05


@pytest.mark.parametrize("text", ["~/own [1]", "'~/own [1]'", ' "{home}/own [1]" '])
def test_folder_of_own_pairs_is_read_as_people_paste_it(tmp_path, monkeypatch, text):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_own(tmp_path / "own [1]", *[[render(0), render(1)]] * 2)
    assert prepare_own(text.format(home=tmp_path), tmp_path).held_out
