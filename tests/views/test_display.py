"""Pictures: as many axes as images, true labels, files that open, refusals; the live training."""

import base64
import io
import itertools
import math
import re
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from helpers.checkpoints.checkpoint import Checkpoint, save
from helpers.config import DegradeConfig, preset
from helpers.degradation.pipeline import AMOUNTS, STAGES, degrade
from helpers.faces import regions
from helpers.machine import progress
from helpers.pictures import mask_overlay, tint
from helpers.training.loop import Record
from helpers.views import charts, display, grids, pictures
from helpers.views import live as training
from helpers.views.pictures import PALETTE
from helpers.views.sliders import DegradationSliders

CLEAN = torch.rand(9, 3, 32, 32, generator=torch.Generator().manual_seed(0))
CONFIG = preset("demo").with_({"optim.steps": 5, "run.preview_every_steps": 2})
REGIONS = torch.arange(6, dtype=torch.uint8).repeat(9, 32, 6)[..., :32]


@pytest.mark.parametrize(("samples", "kinds"), [(1, 1), (3, 2), (1, 4)])
def test_grids_have_one_titled_axis_per_image(samples, kinds):
    images = {f"kind {k}": CLEAN[k:k + samples] for k in range(kinds)}
    figure = grids.grid(images, rows=[f"row {i}" for i in range(samples)], title="all")
    assert len(figure.axes) == samples * kinds and figure.get_suptitle() == "all"
    assert [axis.get_title() for axis in figure.axes[:kinds]] == list(images)
    turned = grids.side_by_side(images)
    assert len(turned.axes) == samples * kinds
    assert [axis.get_ylabel() for axis in turned.axes[::samples]] == list(images)
    assert (turned.axes[-1].images[0].get_array() ==
            CLEAN[kinds + samples - 2].permute(1, 2, 0).numpy()).all()


@pytest.mark.parametrize("images", [{}, {"a": CLEAN[:0]}, {"a": CLEAN[:1], "b": CLEAN[:2]},
                                    {"a": CLEAN[:2], "b": CLEAN[:1]}])
def test_empty_and_ragged_columns_are_refused(images):
    for draw in (grids.grid, grids.side_by_side):
        with pytest.raises(ValueError, match="expected entries of one length above 0"):
            draw(images)


def test_no_images_or_more_labels_or_regions_than_images_are_refused():
    for images, maps in ((CLEAN[:0], REGIONS[:0]), (CLEAN[:2], REGIONS[:3]), (CLEAN, REGIONS[:1])):
        for draw in (grids.degradation_grid, DegradationSliders):
            with pytest.raises(ValueError, match="expected entries of one length"):
                draw(images, maps, DegradeConfig())
    with pytest.raises(ValueError, match="expected 2 row labels, got 3"):
        grids.grid({"a": CLEAN[:2]}, rows=["one", "two", "three"])


def test_region_colors_are_distinct_and_known():
    colors = pictures.color_regions(REGIONS[:2])
    assert colors.shape == (2, 3, 32, 32) and colors.min() >= 0 and colors.max() <= 1
    assert torch.equal(colors[1, :, 0, 5], PALETTE[5]) and len(PALETTE.unique(dim=0)) == 6
    legend = pictures.region_legend()
    assert all(name in legend for name in regions.REGIONS) and "rgb(63, 63, 71)" in legend


@pytest.mark.parametrize(("overlay", "full"), [
    (mask_overlay(torch.zeros(2, 4, 4)), 0.0),
    (mask_overlay(torch.ones(2, 4, 4)), 0.6),
    (pictures.region_overlay(torch.full((2, 4, 4), 3, dtype=torch.uint8)), 0.45)])
def test_tints_mix_in_their_colour_by_its_weight_and_change_no_input(overlay, full):
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    before = images.clone()
    tinted = tint(images, overlay)
    torch.testing.assert_close(tinted, (1 - full) * images + full * overlay[:, :3])
    assert torch.equal(images, before)


def test_degradation_grid_shows_every_sample_from_clean_to_degraded():
    figure = grids.degradation_grid(CLEAN[:2], REGIONS[:2], DegradeConfig(), seed=5)
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
    effects = grids.effect_grid(CLEAN[:1], REGIONS[:1]).axes
    titles = [axis.get_title() for axis in effects]
    amounts = [name for name in AMOUNTS if name not in regions.REGIONS]
    assert titles[0] == "clean"
    assert sorted(titles[1:]) == sorted(["regions", *(n.replace("_", " ") for n in amounts)])
    drawn = [axis.images[0].get_array() for axis in effects]
    assert all((picture != drawn[0]).any() for picture in drawn[1:])


def steps_of(totals, **others):
    return [{"step": i, "losses": {"l1": x / 2, **others, "total": x}}
            for i, x in enumerate(totals, 1)]


def test_a_term_far_below_the_others_is_named_so_and_a_bad_step_changes_nothing():
    history = steps_of([math.nan, 1.0, math.inf, 2.0, math.nan], gram=1e-9)
    legend = charts.training_curve(history).axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["l1", "gram (below)", "total"]


@pytest.mark.parametrize("totals", [[], [1.0], [2.0] * 100, [math.nan, 1.0, math.inf, 0.0]])
def test_training_curve_draws_each_term_over_its_steps(totals, tmp_path):
    lines = (figure := charts.training_curve(steps_of(totals))).axes[0].lines
    assert len(lines) == (4 if totals else 0)  # l1 and total, smoothed and as measured
    assert all(list(line.get_xdata()) == list(range(1, len(totals) + 1)) for line in lines)
    if len(totals) == 100:
        assert set(lines[2].get_ydata().tolist()) == {2.0}
    display.save_figure(figure, tmp_path / "curve.png")


def test_saved_figures_open_and_other_formats_leave_nothing(tmp_path):
    figure = grids.grid({"a": CLEAN[:1]})
    for name, kind in {"a.png": "PNG", "b.jpg": "JPEG", "c.jpeg": "JPEG"}.items():
        with Image.open(display.save_figure(figure, tmp_path / "new" / name, dpi=50)) as image:
            image.load()
            assert image.format == kind and min(image.size) > 50
    with pytest.raises(ValueError, match="not supported"):
        display.save_figure(figure, tmp_path / "new" / "d.words")
    assert {p.name for p in (tmp_path / "new").iterdir()} == {"a.png", "b.jpg", "c.jpeg"}


def record(step):
    return Record(step, {"l1": 0.5, "total": 1.0}, 1e-4, 1.0, False, 1.0, 2.0, 0.0)


def jpeg(picture):
    return base64.b64decode(re.search(r'src="data:image/jpeg;base64,([^"]+)"', picture.data)[1])


@pytest.fixture
def shown(monkeypatch):
    """What a notebook shows, slot or not."""
    found = []
    slot = SimpleNamespace(update=found.append)
    monkeypatch.setattr(progress, "get_ipython", lambda: SimpleNamespace(kernel=None))
    for module in (display, training, progress):
        monkeypatch.setattr(module, "display", lambda page, **_: found.append(page) or slot)
    return found


def test_live_training_begins_where_training_goes_on_outside_a_notebook_too(tmp_path):
    for step in (1, 2):
        history = [vars(record(n)) for n in range(1, step + 1)]
        path = save(Checkpoint(step, CONFIG, {"a": torch.zeros(1)}, history=history), tmp_path)
    content = bytearray(path.read_bytes())
    content[8 + int.from_bytes(content[:8], "little")] ^= 1  # in a tensor: the history is legible
    path.write_bytes(content)
    seen = []
    model = SimpleNamespace(enhance=lambda images: seen.append(len(images)) or images)
    live = training.LiveTraining(CONFIG, model, CLEAN[:1], CLEAN[1:2], folders=[tmp_path, None])
    assert [entry["step"] for entry in live.history] == [1] and "1/5" in str(live.bar)
    for step in range(2, 6):
        live.update(record(step))
    live.close()
    assert seen == [1, 1, 1] and "5/5" in str(live.bar)  # drawn after steps 2 and 4, and at the end
    assert [entry["step"] for entry in live.history] == [1, 2, 3, 4, 5]


def test_live_training_shows_bar_curve_and_grid_each_in_one_slot(shown):
    model = SimpleNamespace(enhance=torch.clone)
    live = training.LiveTraining(CONFIG, model, CLEAN[:1], CLEAN[1:2])
    live.draw()  # before the first step there is no curve yet
    live.update(record(1))
    live.close()
    bars, drawn = ([p for p in shown if p.data.startswith(f"<{tag}")] for tag in ("prog", "img"))
    assert 'value="0" max="5"' in bars[0].data and "Training: 0/5" in bars[0].data
    assert 'value="1" max="5"' in bars[-1].data and "loss=1.000" in bars[-1].data
    assert len(drawn) == 2 and jpeg(drawn[0]) != jpeg(drawn[1])
    assert all(jpeg(p)[:2] == b"\xff\xd8" and 'alt="loss over steps' in p.data for p in drawn)


def test_shown_figures_are_jpeg_with_a_text_for_those_who_cannot_see(shown):
    display.show(grids.grid({"a": CLEAN[:1]}), alt='a "face"')
    assert 'alt="a &quot;face&quot;"' in shown[0].data and jpeg(shown[0])[:2] == b"\xff\xd8"


def test_compared_images_keep_their_pixels_and_their_order(shown):
    display.compare(CLEAN[:1, :, :24], CLEAN[1:2, :, :24])
    tags = re.findall(r"<img [^>]+>", shown[0].data)
    for tag, name, image in zip(tags, ("input", "restored"), CLEAN[:2, :, :24], strict=True):
        assert f'alt="{name}" width="420" height="315"' in tag
        assert base64.b64encode(pictures.to_bytes(image, "JPEG")).decode() in tag
    large = pictures.divided(torch.rand(3, 1000, 10), torch.rand(3, 1000, 10))
    with Image.open(io.BytesIO(base64.b64decode(large.split("base64,")[1].split('"')[0]))) as seen:
        assert seen.size == (8, 768)
