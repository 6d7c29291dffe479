"""Trained scenes on disk: every form of `.ply`, what other writers mean, and what is an error."""

from __future__ import annotations

import gzip
import math
from dataclasses import fields

import numpy as np
import pytest
import torch

from splat_enhancer.gaussians.ply import SCALES, read_ply, write_ply
from splat_enhancer.gaussians.scene import SH_C0, Scene

WORDS = {"f4": "float", "f8": "double", "u1": "uchar"}


def columns(count=40, degree=0, seed=0):
    """What 3D Gaussian Splatting trains, as a shell of Gaussians: values by column."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(count, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    table = dict(zip("xyz", points.T, strict=True))
    table |= {f"n{axis}": np.zeros(count) for axis in "xyz"}
    table |= {f"f_dc_{n}": rng.normal(size=count) for n in range(3)}
    table |= {f"f_rest_{n}": rng.normal(size=count) for n in range(3 * ((degree + 1) ** 2 - 1))}
    table |= {"opacity": rng.normal(size=count)}
    table |= {f"scale_{n}": rng.normal(size=count) - 3 for n in range(3)}
    table |= {f"rot_{n}": rng.normal(size=count) for n in range(4)}
    return {name: values.astype("f4") for name, values in table.items()}


def write(path, table, *, form="binary_little_endian", more="", kinds=None):
    kinds = kinds or {}
    row = np.dtype([(name, ("<" if "little" in form else ">") + kinds.get(name, "f4"))
                    for name in table])
    rows = np.zeros(len(table["x"]), row)
    for name, values in table.items():
        rows[name] = values
    body = rows.tobytes() if form != "ascii" else "".join(
        " ".join(repr(float(value)) for value in line) + "\n" for line in rows.tolist()).encode()
    lines = ["ply", f"format {form} 1.0", "comment element vertex 9",
             f"element vertex {len(rows)}",
             *(f"property {WORDS[kinds.get(name, 'f4')]} {name}" for name in table)]
    path.write_bytes("\n".join([*lines, f"{more}end_header\n"]).encode() + body)
    return path


def known(table):
    """The scene that these columns are."""
    def gather(*names):
        return torch.from_numpy(np.stack([table[name] for name in names], 1))
    rest = sum(name.startswith("f_rest") for name in table)
    harmonics = gather("f_dc_0", "f_dc_1", "f_dc_2")[:, None]
    if rest:
        more = gather(*(f"f_rest_{n}" for n in range(rest))).unflatten(1, (3, -1)).mT
        harmonics = torch.cat([harmonics, more], 1)
    return Scene(gather(*"xyz"), gather(*SCALES), gather("rot_0", "rot_1", "rot_2", "rot_3"),
                 gather("opacity")[:, 0], harmonics)


def assert_same(scene, other, tolerance=0.0):
    for field in fields(Scene):
        torch.testing.assert_close(getattr(scene, field.name), getattr(other, field.name),
                                   atol=tolerance, rtol=tolerance)


def refusal(path):
    with pytest.raises(ValueError, match=rf"^{path.name}: expected .*, got .*; \w+") as caught:
        read_ply(path)
    return str(caught.value)


@pytest.mark.parametrize("degree", [0, 1, 3])
@pytest.mark.parametrize("form", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_every_form_and_degree_is_read_as_it_was_written(tmp_path, form, degree):
    table = columns(degree=degree)
    path = write(tmp_path / "a.ply", table, form=form)
    assert_same(read_ply(path)[0], known(table))
    assert read_ply(path)[1] == []
    assert_same(read_ply(write(path, table, form=form, kinds={"x": "f8", "opacity": "f8"}))[0],
                known(table))
    (tmp_path / "a.ply.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert_same(read_ply(tmp_path / "a.ply.gz")[0], known(table))


@pytest.mark.parametrize("degree", [0, 2])
def test_what_is_written_has_the_columns_of_the_reference_and_is_read_back(tmp_path, degree):
    table = columns(degree=degree)
    by_hand = write(tmp_path / "hand.ply", table).read_bytes()
    ours = write_ply(tmp_path / "ours.ply", known(table))
    assert ours.read_bytes() == by_hand.replace(b"comment element vertex 9\n", b"")
    assert_same(read_ply(ours)[0], known(table))


def test_infinite_opacity_is_one_and_minus_infinity_none(tmp_path):
    table = columns()
    table["opacity"][:5], table["opacity"][5:9], table["scale_1"][3] = np.inf, -np.inf, -np.inf
    scene, notes = read_ply(write(tmp_path / "a.ply", table))
    opacity = scene.opacity_logits.sigmoid()
    assert (opacity[:5] == 1).all() and (opacity[5:9] < 1e-9).all() and not notes
    assert scene.log_scales.isfinite().all()


def test_the_3d_filter_of_mip_splatting_is_applied(tmp_path):
    table = columns() | {"filter_3D": np.linspace(0, 0.2, 40, dtype="f4")}
    scene, notes = read_ply(write(tmp_path / "a.ply", table))
    before, size = known(table), torch.from_numpy(table["filter_3D"])[:, None]
    square = before.log_scales.exp().square()
    wide = square + size.square()  # scene/gaussian_model.py, get_opacity_with_3D_filter
    share = (square.prod(1) / wide.prod(1)).sqrt()
    torch.testing.assert_close(scene.log_scales.exp(), wide.sqrt())
    torch.testing.assert_close(scene.opacity_logits.sigmoid(),
                               before.opacity_logits.sigmoid() * share, atol=1e-6, rtol=1e-4)
    assert notes == ["its filter_3D (Mip-Splatting) is applied"]


@pytest.mark.parametrize("unit", [1.0, 100.0])
def test_values_stored_after_their_activation_are_recognised(tmp_path, unit):
    table = columns(400)
    for axis in "xyz":
        table[axis] *= unit
    for name in SCALES:
        table[name] += np.log(unit)
    scene = known(table)
    stored = table | {"opacity": 1 / (1 + np.exp(-table["opacity"]))}
    read, notes = read_ply(write(tmp_path / "a.ply", stored))
    assert_same(read, scene, 1e-4)
    assert "opacities lie in [0, 1]" in notes[0] and len(notes) == 1
    stored = table | {name: np.exp(table[name]) for name in SCALES}
    read, notes = read_ply(write(tmp_path / "a.ply", stored))
    assert_same(read, scene, 1e-4)
    assert "scales fit the scene as lengths" in notes[0] and len(notes) == 1
    stored["opacity"] = np.full(400, 255)
    read, _ = read_ply(write(tmp_path / "a.ply", stored, kinds={"opacity": "u1"}))
    assert (read.opacity_logits.sigmoid() == 1).all()


def test_logarithms_of_a_scene_in_large_units_stay_logarithms(tmp_path):
    table = columns()
    for name in ("x", "y", "z"):
        table[name] *= 1e9
    for name in SCALES:
        table[name] += np.log(np.float32(1e9))
    assert min(table[name].min() for name in SCALES) > 0
    assert read_ply(write(tmp_path / "a.ply", table))[1] == []


def test_flat_gaussians_and_plain_colours_are_read(tmp_path):
    table = columns()
    flat = {name: values for name, values in table.items() if name != "scale_2"}
    scene, notes = read_ply(write(tmp_path / "a.ply", flat))
    assert (scene.log_scales[:, 2] < scene.log_scales[:, :2].amin(1) - 5).all()
    assert "2DGS" in notes[0]
    plain = {name: values for name, values in table.items() if not name.startswith("f_dc")}
    for kind, scale in (("u1", 1), ("f4", 255), ("f4", 1)):
        colors = {name: np.full(40, value / scale) for name, value in
                  zip(("red", "green", "blue"), (200, 51, 0), strict=True)}
        scene, notes = read_ply(write(tmp_path / "a.ply", plain | colors,
                                      kinds=dict.fromkeys(colors, kind)))
        shown = scene.harmonics[0, 0] * SH_C0 + 0.5
        assert shown.tolist() == pytest.approx([200 / 255, 0.2, 0], abs=1e-3)
        assert "red, green and blue" in notes[0]
    scene, notes = read_ply(write(tmp_path / "a.ply", table | colors))  # beside the harmonics
    assert notes == [] and torch.equal(scene.harmonics, known(table).harmonics)


def test_columns_and_elements_that_are_not_used_are_named(tmp_path):
    table = columns() | {f"semantic_{n}": np.zeros(40) for n in range(8)}
    more = "element camera 1\nproperty list int int pixels\n"
    _, notes = read_ply(write(tmp_path / "a.ply", table, more=more))
    assert notes[0] == "not used: camera"
    assert notes[1].startswith("columns not used: semantic_0, ") and notes[1].endswith(", …")


def test_what_is_not_finite_is_left_out_and_named_and_refused_where_it_is_most(tmp_path):
    table = columns(degree=1)
    table["x"][0], table["f_rest_5"][1], table["scale_0"][2] = math.nan, math.inf, 200.0
    for n in range(4):
        table[f"rot_{n}"][3] = 0  # no rotation
    scene, notes = read_ply(write(tmp_path / "a.ply", table))
    assert_same(scene, known(table)[4:])
    assert notes == ["left out: 4 of 40 Gaussians with numbers that cannot be drawn in x, "
                     "f_rest_5, scale_0, rot_0"]
    table["f_dc_1"][:30] = math.nan
    assert "30 of 40 Gaussians" in (message := refusal(write(tmp_path / "a.ply", table)))
    assert "f_dc_1" in message
    table = columns()
    table["f_dc_0"], table["f_dc_1"] = table["f_dc_0"] * 100 + 128, table["f_dc_1"] * 100 + 128
    assert "no harmonics" in refusal(write(tmp_path / "a.ply", table))


@pytest.mark.parametrize(("form", "lost"), [("ascii", 60), ("ascii", 4_000),
                                            ("binary_little_endian", 1), ("binary_big_endian", 60)])
def test_a_file_cut_off_is_refused(tmp_path, form, lost):
    path = write(tmp_path / "a.ply", columns(), form=form)
    content = path.read_bytes()
    path.write_bytes(content[:-lost])
    assert "cut off" in refusal(path)
    path = tmp_path / "b.ply.gz"
    path.write_bytes(gzip.compress(content)[:-lost])
    refusal(path)


@pytest.mark.parametrize("missing", [("opacity",), ("rot_2",), ("scale_1", "scale_2"),
                                     ("opacity", "scale_0", "scale_1", "scale_2"), ("f_rest_7",)])
def test_columns_that_are_missing_are_named(tmp_path, missing):
    table = {name: values for name, values in columns(degree=1).items() if name not in missing}
    message = refusal(write(tmp_path / "a.ply", table))
    assert missing[0] in message or "0, 9, 24 or 45 columns" in message
    assert ("a point cloud or a mesh" in message) == (len(missing) == 4)


@pytest.mark.parametrize("count", ["0", "4000001", "9" * 40, "-5", "x", "3000000"])
def test_a_count_is_not_believed(tmp_path, count):
    path = write(tmp_path / "a.ply", columns())
    path.write_bytes(path.read_bytes().replace(b"\nelement vertex 40", b"\nelement vertex " +
                                               count.encode()))
    refusal(path)


@pytest.mark.parametrize(("content", "word"), [
    (b"", "something else"), (b"ply\n", "something else"), (b"\0" * 320, "something else"),
    (b"ply\nformat odd 1.0\nend_header\n", "format odd"),
    (b"ply\nformat ascii 1.0\nelement face 0\nend_header\n", "with face"),
    (b"ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float x\nend_header\n"
     b"1 1", "numbers alone"),
    (b"ply\nformat binary_little_endian 1.0\nelement chunk 1\nproperty float min_x\n"
     b"element vertex 9\nproperty uint packed_position\nend_header\n", "compressed")])
def test_other_files_are_refused_by_name_with_what_to_do(tmp_path, content, word):
    path = tmp_path / "a.ply"
    path.write_bytes(content)
    assert word in (message := refusal(path)) and "uncompressed .ply" in message


@pytest.mark.parametrize("suffix", [".splat", ".ksplat", ".spz", ".sog"])
def test_compressed_kinds_are_refused_with_what_to_do(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(b"NGSP") if suffix == ".spz" else bytes(range(256)))
    assert f"got {suffix}; export it as an uncompressed .ply" in refusal(path)
    assert "nothing there" in refusal(tmp_path / "none.ply")
