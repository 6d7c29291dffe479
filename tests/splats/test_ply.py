"""Trained scenes on disk: every form of `.ply`, harmonics by scipy, and what is refused."""

import math
import re

import numpy as np
import pytest
import torch
from scipy.special import lpmv

from helpers.splats import ply
from helpers.splats.ply import NEEDED, read_ply, write_ply
from helpers.splats.scene import Scene, harmonics

plyfile = pytest.importorskip("plyfile")


def make_scene(count=5, degree=3, seed=0):
    dice = torch.Generator().manual_seed(seed)
    shapes = (3,), (3,), (4,), (), ((degree + 1) ** 2, 3)
    return Scene(*(torch.randn(count, *shape, generator=dice) for shape in shapes))


def write_by_hand(path, scene, *, form="binary_little_endian", normals=True, leave_out=(),
                  kind="f4"):
    """As the reference does it: one column after the other; colours channel by channel."""
    columns = {name: scene.means[:, n] for n, name in enumerate("xyz")}
    columns |= {f"n{name}": torch.zeros(len(scene)) for name in "xyz" if normals}
    columns |= {f"f_dc_{n}": scene.harmonics[:, 0, n] for n in range(3)}
    terms = scene.harmonics.shape[1] - 1
    columns |= {f"f_rest_{n}": scene.harmonics[:, 1 + n % terms, n // terms]
                for n in range(3 * terms)}
    columns |= {"opacity": scene.opacities}
    columns |= {f"scale_{n}": scene.lengths[:, n] for n in range(3)}
    columns |= {f"rot_{n}": scene.turns[:, n] for n in range(4)}
    columns = {name: value for name, value in columns.items() if name not in leave_out}
    words = {"f4": "float", "f8": "double"}[kind]
    lines = ["ply", f"format {form} 1.0", "comment element vertex 9",
             f"element vertex {len(scene)}",
             *(f"property {words} {name}" for name in columns), "end_header"]
    values = np.stack([value.numpy() for value in columns.values()], 1)
    if form == "ascii":
        body = "".join(" ".join(repr(float(v)) for v in row) + "\n" for row in values).encode()
    else:
        body = values.astype(("<" if "little" in form else ">") + kind).tobytes()
    path.write_bytes("\n".join(lines).encode() + b"\n" + body)
    return path


def assert_same(scene, other):
    for name in Scene.__dataclass_fields__:
        torch.testing.assert_close(getattr(scene, name), getattr(other, name), rtol=0, atol=0)


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_every_form_and_degree_is_read_as_it_was_written(tmp_path, form, degree):
    scene = make_scene(degree=degree)
    for normals in (True, False):
        path = write_by_hand(tmp_path / "a.ply", scene, form=form, normals=normals)
        read, notes = read_ply(path)
        assert_same(read, scene)
        assert notes == ()
    assert_same(read_ply(write_by_hand(path, scene, form=form, kind="f8"))[0], scene)


@pytest.mark.parametrize("degree", [0, 2])
def test_what_is_written_has_the_columns_of_the_reference_and_is_read_back(tmp_path, degree):
    scene = make_scene(degree=degree)
    by_hand = write_by_hand(tmp_path / "hand.ply", scene).read_bytes()
    ours = write_ply(tmp_path / "ours.ply", scene).read_bytes()
    assert ours == by_hand.replace(b"comment element vertex 9\n", b"")
    assert_same(read_ply(tmp_path / "ours.ply")[0], scene)


def by_scipy(directions, terms):
    """Real spherical harmonics from Legendre functions, which carry Condon and Shortley's sign."""
    x, y, z = directions.double().unbind(1)
    azimuth = torch.atan2(y, x).numpy()
    found = []
    for degree in range(math.isqrt(terms)):
        for order in range(-degree, degree + 1):
            m = abs(order)
            norm = (2 * degree + 1) / (4 * math.pi) * math.factorial(degree - m) \
                / math.factorial(degree + m) * (2 if m else 1)
            turn = np.sin(m * azimuth) if order < 0 else np.cos(m * azimuth)
            found.append(math.sqrt(norm) * lpmv(m, degree, z.numpy()) * turn)
    return torch.tensor(np.stack(found, 1))


@pytest.mark.parametrize("terms", [1, 4, 9, 16])
def test_harmonics_are_those_of_scipy(terms):
    directions = torch.nn.functional.normalize(torch.randn(50, 3).double(), dim=1)
    torch.testing.assert_close(harmonics(directions, terms), by_scipy(directions, terms))


def test_colors_are_seen_from_the_camera_to_the_gaussian_and_never_below_zero():
    scene = make_scene(50)
    place = torch.tensor([1.0, 2.0, 3.0])
    away = torch.nn.functional.normalize(scene.means - place, dim=1)
    known = torch.einsum("nk,nkc->nc", by_scipy(away, 16).float(), scene.harmonics) + 0.5
    assert (known < 0).any()
    torch.testing.assert_close(scene.colors_from(place), known.clamp(min=0), atol=1e-5, rtol=1e-5)


def test_what_is_not_finite_is_left_out_and_counted(tmp_path):
    scene = make_scene(6)
    scene.means[0, 1], scene.opacities[2], scene.harmonics[3, 5, 1] = math.nan, math.inf, math.nan
    scene.turns[4], scene.lengths[5, 0] = 0.0, 200.0  # no rotation; e^200 overflows
    read, notes = read_ply(write_by_hand(tmp_path / "a.ply", scene))
    assert_same(read, scene[1:2])
    assert notes == ("5 of 6 Gaussians are left out: not finite",)
    with pytest.raises(ValueError, match=r"expected .* finite .*, got .*none among 5.*; "):
        read_ply(write_by_hand(tmp_path / "a.ply", scene[torch.tensor([0, 2, 3, 4, 5])]))


def refusal(path):
    with pytest.raises(ValueError, match=r"^a\.\w+: expected .*, got .*; \w+") as caught:
        read_ply(path)
    return str(caught.value)


@pytest.mark.parametrize(("form", "lost"), [("ascii", 60), ("ascii", 4_000),
                                            ("binary_little_endian", 1), ("binary_big_endian", 60)])
def test_a_file_cut_off_is_refused(tmp_path, form, lost):
    path = write_by_hand(tmp_path / "a.ply", make_scene(), form=form)
    path.write_bytes(path.read_bytes()[:-lost])
    refusal(path)


@pytest.mark.parametrize("missing", [("opacity",), ("rot_2",), ("f_rest_7",),
                                     ("opacity", "scale_0", "scale_1", "scale_2")])
def test_columns_that_are_missing_are_named(tmp_path, missing):
    told = refusal(write_by_hand(tmp_path / "a.ply", make_scene(), leave_out=missing))
    assert missing[0] in told or "f_rest_0 … numbered" in told
    assert ("a point cloud or a mesh" in told) == (len(missing) == 4)


@pytest.mark.parametrize("count", ["0", "4000001", "999999999999", "9" * 40, "-5", "x"])
@pytest.mark.parametrize("form", ["ascii", "binary_little_endian"])
def test_a_count_is_not_believed(tmp_path, monkeypatch, form, count):
    path = write_by_hand(tmp_path / "a.ply", make_scene(), form=form)
    path.write_bytes(path.read_bytes().replace(b"\nelement vertex 5", b"\nelement vertex " +
                                               count.encode()))
    monkeypatch.setattr(ply.torch, "from_numpy", lambda *_: pytest.fail("taken for granted"))
    refusal(path)


def test_a_promise_larger_than_the_file_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = write_by_hand(tmp_path / "a.ply", make_scene(), form="ascii")
    path.write_bytes(re.sub(rb"\nelement vertex 5", b"\nelement vertex 3000000",
                            path.read_bytes()))
    assert "cut off" in refusal(path)


@pytest.mark.parametrize(("content", "word"), [
    (b"", "got"), (b"ply\n", "got"), (b"ply\nformat ascii 1.0\nelement vertex 1\n" + b"c" * 99_999,
                                      "got"),
    (b"ply\nformat odd 1.0\nend_header\n", "header"), (b"\0" * 320, "got"),
    (b"ply\nformat ascii 1.0\nelement face 0\nend_header\n", "without x"),
    (b"ply\nformat binary_little_endian 1.0\nelement chunk 1\nproperty float min_x\n"
     b"element vertex 9\nproperty uint packed_position\nend_header\n", "compressed")])
def test_other_files_are_refused_by_name_with_what_to_do(tmp_path, content, word):
    path = tmp_path / "a.ply"
    path.write_bytes(content)
    assert word in refusal(path)


@pytest.mark.parametrize("suffix", [".splat", ".ksplat", ".spz", ".sog"])
def test_compressed_kinds_are_refused_with_what_to_do(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(bytes(range(256)))
    assert suffix in (told := refusal(path)) and "uncompressed .ply" in told


def test_lists_are_refused_and_a_missing_file_is_named(tmp_path):
    path = write_by_hand(tmp_path / "a.ply", make_scene())
    path.write_bytes(path.read_bytes().replace(
        b"end_header", b"element face 1\nproperty list int int corners\nend_header") +
        b"\xff\xff\xff\x7f")
    assert "lists" in refusal(path)
    assert "nothing there" in refusal(tmp_path / "a.none")


def test_a_scene_of_other_shapes_is_refused():
    good = make_scene()
    for name in Scene.__dataclass_fields__:
        parts = {own: getattr(good, own) for own in Scene.__dataclass_fields__}
        with pytest.raises(ValueError, match="scene"):
            Scene(**parts | {name: parts[name][:, :2] if parts[name].ndim > 1 else parts[name][:2]})
    assert set(NEEDED) >= {"x", "opacity", "rot_3"}


def test_columns_of_other_widths_may_lie_between(tmp_path):
    content = write_by_hand(tmp_path / "a.ply", scene := make_scene()).read_bytes()
    head, body = content.split(b"end_header\n", 1)
    rows = np.frombuffer(body, np.uint8).reshape(len(scene), -1)
    wider = np.concatenate([rows, rows[:, :3]], 1).tobytes()  # red, green and blue, as many write
    (tmp_path / "a.ply").write_bytes(head + b"property uchar red\nproperty uchar green\n"
                                     b"property uchar blue\nend_header\n" + wider)
    assert_same(read_ply(tmp_path / "a.ply")[0], scene)
