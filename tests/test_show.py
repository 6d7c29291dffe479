"""Pictures: as many axes as images, true labels, files that open, refusals."""

import math
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from helpers import show
from helpers.config import DegradeConfig, preset
from helpers.degrade import STAGES
from helpers.evaluate import Result

CLEAN = torch.rand(9, 3, 32, 32, generator=torch.Generator().manual_seed(0))
REGIONS = torch.arange(6, dtype=torch.uint8).repeat(9, 32, 6)[..., :32]


@pytest.mark.parametrize(("samples", "kinds"), [(1, 1), (3, 2), (1, 4)])
def test_grids_have_one_titled_axis_per_image(samples, kinds):
    images = {f"kind {k}": CLEAN[k:k + samples] for k in range(kinds)}
    figure = show.grid(images, rows=[f"row {i}" for i in range(samples)], title="all")
    assert len(figure.axes) == samples * kinds and figure.get_suptitle() == "all"
    assert [axis.get_title() for axis in figure.axes[:kinds]] == list(images)
    turned = show.side_by_side(images)
    assert len(turned.axes) == samples * kinds
    assert [axis.get_ylabel() for axis in turned.axes[::samples]] == list(images)
    assert (turned.axes[-1].images[0].get_array() ==
            CLEAN[kinds + samples - 2].permute(1, 2, 0).numpy()).all()


@pytest.mark.parametrize("images", [{}, {"a": CLEAN[:0]}, {"a": CLEAN[:1], "b": CLEAN[:2]},
                                    {"a": CLEAN[:2], "b": CLEAN[:1]}])
def test_empty_and_ragged_columns_are_refused(images):
    for draw in (show.grid, show.side_by_side):
        with pytest.raises(ValueError, match="expected entries of one length above 0"):
            draw(images)


@pytest.mark.parametrize("draw", [show.degradation_grid, show.degradation_sliders])
def test_no_images_or_more_labels_or_regions_than_images_are_refused(draw):
    for images, regions in ((CLEAN[:0], REGIONS[:0]), (CLEAN[:2], REGIONS[:3])):
        with pytest.raises(ValueError, match="expected entries of one length"):
            draw(images, regions, DegradeConfig())
    with pytest.raises(ValueError, match="expected 2 row labels, got 3"):
        show.grid({"a": CLEAN[:2]}, rows=["one", "two", "three"])


def test_region_colors_are_distinct_and_known():
    colors = show.color_regions(REGIONS[:2])
    assert colors.shape == (2, 3, 32, 32) and colors.min() >= 0 and colors.max() <= 1
    assert torch.equal(colors[1, :, 0, 5], show.PALETTE[5]) and len(show.PALETTE.unique(dim=0)) == 6


def test_degradation_pictures_show_every_sample_and_every_effect():
    figure = show.degradation_grid(CLEAN[:2], REGIONS[:2], DegradeConfig())
    assert len(figure.axes) == 2 * len([a for a in figure.axes if a.get_title()])
    effects = [a for a in show.effect_grid(CLEAN[:1], REGIONS[:1]).axes if a.images]
    assert [a.get_title() for a in effects] == ["clean", *(stage.name for stage in STAGES)]


@pytest.mark.parametrize(("count", "kinds"), [
    (1, "best"), (3, "best best worst"), (4, "best best worst worst"),
    (5, "best best median worst worst"), (9, "best best median median worst worst")])
def test_comparison_labels_best_median_and_worst_truly(count, kinds):
    gains = [float(7 * i % count) for i in range(count)]
    faces = SimpleNamespace(load=lambda _, group: (CLEAN[list(group)], REGIONS[list(group)]),
                            test=range(count))
    result = Result({"psnr": [20.0] * count}, {"psnr": [20 + gain for gain in gains]})
    figure = show.ranked_comparison(preset("demo"), faces, SimpleNamespace(enhance=torch.clone),
                                    result, device="cpu")
    width = len(figure.axes) // 3
    labels = [axis.get_title() for axis in figure.axes[:width]]
    assert " ".join(label.split()[0] for label in labels) == kinds
    for label, axis in zip(labels, figure.axes[2 * width:], strict=True):
        face = gains.index(float(label.split()[-1]) - 20)
        assert (axis.images[0].get_array() == CLEAN[face].permute(1, 2, 0).numpy()).all()


@pytest.mark.parametrize("totals", [[], [1.0], [2.0] * 100, [math.nan, 1.0, math.inf, 0.0]])
def test_training_curve_draws_each_term_over_its_steps(totals, tmp_path):
    history = [{"step": i, "losses": {"l1": x / 2, "total": x}} for i, x in enumerate(totals, 1)]
    lines = (figure := show.training_curve(history, "losses")).axes[0].lines
    assert len(lines) == (4 if totals else 0)  # l1 and total, smoothed and as measured
    assert all(list(line.get_xdata()) == [h["step"] for h in history] for line in lines)
    if len(totals) == 100:
        assert set(lines[2].get_ydata().tolist()) == {2.0}
    show.save_figure(figure, tmp_path / "curve.png")


def test_saved_figures_open_and_other_formats_leave_nothing(tmp_path):
    figure = show.grid({"a": CLEAN[:1]})
    for name, kind in {"a.png": "PNG", "b.jpg": "JPEG", "c.jpeg": "JPEG"}.items():
        with Image.open(show.save_figure(figure, tmp_path / "new" / name, dpi=50)) as image:
            image.load()
            assert image.format == kind and min(image.size) > 50
    with pytest.raises(ValueError, match="not supported"):
        show.save_figure(figure, tmp_path / "new" / "d.words")
    assert {p.name for p in (tmp_path / "new").iterdir()} == {"a.png", "b.jpg", "c.jpeg"}


def test_saved_image_holds_the_nearest_bytes(tmp_path):
    pixels = torch.arange(3 * 256).view(1, 3, 16, 16) % 256
    path = show.save_image(pixels / 255, tmp_path / "new" / "a.png")
    with Image.open(path) as image:
        assert torch.equal(pil_to_tensor(image)[None].long(), pixels)
    odd = torch.tensor([-1.0, 0.9999, 3.0]).half().view(1, 3, 1, 1).requires_grad_()
    with Image.open(show.save_image(odd, path)) as image:
        assert image.getpixel((0, 0)) == (0, 255, 255)
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]
