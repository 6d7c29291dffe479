"""Pictures: as many axes as images, true labels, files that open, refusals."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from helpers.config import DegradeConfig, preset
from helpers.degradation.pipeline import AMOUNTS, STAGES, degrade
from helpers.evaluation.results import Result
from helpers.faces import regions
from helpers.views import display as show
from helpers.views import pictures
from helpers.views.pictures import PALETTE

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


def test_no_images_or_more_labels_or_regions_than_images_are_refused():
    for images, maps in ((CLEAN[:0], REGIONS[:0]), (CLEAN[:2], REGIONS[:3])):
        with pytest.raises(ValueError, match="expected entries of one length"):
            show.degradation_grid(images, maps, DegradeConfig())
    with pytest.raises(ValueError, match="expected 2 row labels, got 3"):
        show.grid({"a": CLEAN[:2]}, rows=["one", "two", "three"])


def test_region_colors_are_distinct_and_known():
    colors = pictures.color_regions(REGIONS[:2])
    assert colors.shape == (2, 3, 32, 32) and colors.min() >= 0 and colors.max() <= 1
    assert torch.equal(colors[1, :, 0, 5], PALETTE[5]) and len(PALETTE.unique(dim=0)) == 6
    legend = pictures.region_legend()
    assert all(name in legend for name in regions.REGIONS) and "rgb(63, 63, 71)" in legend


@pytest.mark.parametrize(("overlay", "full"), [
    (pictures.mask_overlay(torch.zeros(2, 4, 4)), 0.0),
    (pictures.mask_overlay(torch.ones(2, 4, 4)), 0.6),
    (pictures.region_overlay(torch.full((2, 4, 4), 3, dtype=torch.uint8)), 0.45)])
def test_tints_mix_in_their_colour_by_its_weight_and_change_no_input(overlay, full):
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    before = images.clone()
    tinted = pictures.tint(images, overlay)
    torch.testing.assert_close(tinted, (1 - full) * images + full * overlay[:, :3])
    assert torch.equal(images, before)


def test_degradation_grid_shows_every_sample_from_clean_to_degraded():
    figure = show.degradation_grid(CLEAN[:2], REGIONS[:2], DegradeConfig(), seed=5)
    groups = [f"after {stage.name}" for stage in STAGES if len(stage.amounts) > 1]
    titles = ["clean", "regions", "variation", *groups, "degraded"]
    assert [axis.get_title() for axis in figure.axes[:len(titles)]] == titles
    assert len(figure.axes) == 2 * len(titles)
    expected = degrade(CLEAN[:2], REGIONS[:2], DegradeConfig(), torch.tensor([5, 6]))
    for row in range(2):
        own = figure.axes[row * len(titles):(row + 1) * len(titles)]
        drawn = [axis.images[0].get_array() for axis in own]
        assert (drawn[0] == CLEAN[row].permute(1, 2, 0).numpy()).all()
        assert (drawn[-1] == expected[row].permute(1, 2, 0).numpy()).all()
        assert all((a != b).any() for a, b in itertools.combinations(drawn, 2))


def test_effect_grid_shows_every_effect_alone_and_the_regions_as_one():
    effects = show.effect_grid(CLEAN[:1], REGIONS[:1]).axes
    titles = [axis.get_title() for axis in effects]
    amounts = [name for name in AMOUNTS if name not in regions.REGIONS]
    assert titles[0] == "clean"
    assert sorted(titles[1:]) == sorted(["regions", *(n.replace("_", " ") for n in amounts)])
    drawn = [axis.images[0].get_array() for axis in effects]
    assert all((picture != drawn[0]).any() for picture in drawn[1:])


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


def test_a_term_far_below_the_others_is_named_so_and_a_bad_step_changes_nothing():
    history = [{"step": i, "losses": {"l1": x / 2, "gram": 1e-9, "total": x}}
               for i, x in enumerate([math.nan, 1.0, math.inf, 2.0, math.nan], 1)]
    legend = show.training_curve(history).axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["l1", "gram (below)", "total"]


def test_faces_are_ranked_by_the_network_that_the_loss_does_not_know():
    faces = SimpleNamespace(load=lambda _, group: (CLEAN[list(group)], REGIONS[list(group)]),
                            test=range(2))
    result = Result({"lpips_vgg": [0.4, 0.4], "lpips_alex": [0.4, 0.4]},
                    {"lpips_vgg": [0.1, 0.3], "lpips_alex": [0.3, 0.1]})
    figure = show.ranked_comparison(preset("demo"), faces, SimpleNamespace(enhance=torch.clone),
                                    result, device="cpu")
    assert figure.axes[0].get_title() == "best (face 2)\n0.40 → 0.10"


@pytest.mark.parametrize("totals", [[], [1.0], [2.0] * 100, [math.nan, 1.0, math.inf, 0.0]])
def test_training_curve_draws_each_term_over_its_steps(totals, tmp_path):
    history = [{"step": i, "losses": {"l1": x / 2, "total": x}} for i, x in enumerate(totals, 1)]
    lines = (figure := show.training_curve(history)).axes[0].lines
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
