"""Underfitted splats: closer with effort, reproducible, kept in a folder and made once."""

import re

import pytest
import torch
import torch.nn.functional as F

from helpers import fit
from helpers.avatars import render_avatar
from helpers.fit import fit_splats, fitted_pairs
from helpers.gaussians import LIMIT

FACES = torch.stack([render_avatar(seed, 32)[0] for seed in range(3)])
SEEDS = torch.tensor([5, 6, 7])


def distance(count, steps):
    return float((fit_splats(FACES, count, steps, seeds=SEEDS) - FACES).abs().mean())


def test_more_steps_come_closer_and_no_step_returns_the_start():
    far = [distance(60, steps) for steps in (0, 6, 20)]
    assert far[0] > 1.5 * far[1] > 1.5 * 1.2 * far[2] > 0
    start = fit_splats(FACES, 60, 0, seeds=SEEDS)
    grey = FACES.mean((2, 3), keepdim=True).expand_as(FACES)
    assert not torch.equal(start, grey) and F.l1_loss(start, grey) < F.l1_loss(start, FACES) / 2


def test_more_gaussians_come_closer():
    assert distance(10, 12) > 1.2 * distance(200, 12)


def test_a_render_follows_from_its_seed_alone_and_leaves_the_input_as_it_was():
    clean = FACES.clone().requires_grad_()
    with torch.no_grad():
        together = fit_splats(clean, 40, 4, seeds=SEEDS)
    assert torch.equal(clean, FACES) and clean.grad is None and not together.requires_grad
    alone = [fit_splats(FACES[i:i + 1], 40, 4, seeds=SEEDS[i:i + 1]) for i in (2, 0, 1)]
    assert torch.equal(together[[2, 0, 1]], torch.cat(alone))
    assert not torch.equal(together, fit_splats(FACES, 40, 4, seeds=SEEDS + 1))


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    fit_splats(FACES[:1], 10, 1, seeds=SEEDS[:1])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("image", [torch.zeros(1, 3, 16, 40), torch.ones(1, 3, 40, 16),
                                   torch.rand(1, 3, 1, 1), FACES[:1].flip(-1).mT])
def test_renders_are_float_pictures_of_the_same_shape_in_range(image):
    found = fit_splats(image, 7, 3, seeds=SEEDS[:1])
    assert found.shape == image.shape and found.dtype == torch.float32 and found.is_contiguous()
    assert found.min() >= 0 and found.max() <= 1


def test_progress_counts_every_step_of_every_picture():
    seen = []

    def bar(steps, **labels):
        for step in steps:
            yield step
            seen.append(step)
        seen.append(labels)

    fit_splats(FACES[:2], 5, 3, seeds=SEEDS[:2], progress=bar)
    assert seen == [*range(6), {"desc": "Fitting splats", "unit": "step"}]


@pytest.mark.parametrize(("name", "change"), [
    ("image", {"image": FACES[0]}), ("image", {"image": FACES[:, :1]}),
    ("image", {"image": FACES[:0]}), ("image", {"image": FACES.double()}),
    ("image", {"image": FACES + 1}), ("image", {"image": FACES * torch.nan}),
    ("seeds", {"seeds": SEEDS[:2]}), ("seeds", {"seeds": SEEDS.float()}),
    ("gaussians", {"gaussians": 0}), ("gaussians", {"gaussians": LIMIT + 1}),
    ("gaussians", {"gaussians": 10.0}), ("steps", {"steps": -1}), ("steps", {"steps": True})])
def test_what_cannot_be_fitted_is_refused_by_name(name, change):
    call = {"image": FACES, "gaussians": 10, "steps": 1, "seeds": SEEDS} | change
    with pytest.raises(ValueError, match=rf"^{name}: expected .*, got .*; \w+"):
        fit_splats(**call)


class Kept:
    """A folder of fitted pictures, and how many were fitted at each pass."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.fitted = folder, 0
        monkeypatch.setattr(fit, "fit_splats", self._count)

    def _count(self, image, *rest, **options):
        self.fitted += len(image)
        return fit_splats(image, *rest, **options)

    def run(self, clean=FACES, **changes):
        self.fitted = 0
        numbers = {"gaussians": 20, "steps": 2, "progress": None} | changes
        pairs = list(fitted_pairs(clean.split(2), self.folder, **numbers))
        return torch.cat([fitted for _, fitted in pairs]), self.fitted


@pytest.fixture
def kept(tmp_path, monkeypatch):
    return Kept(tmp_path / "new" / "folder", monkeypatch)


def test_a_second_pass_fits_nothing_and_yields_the_same(kept):
    first, fitted = kept.run()
    again, refitted = kept.run(progress=fit.Bar)
    assert (fitted, refitted) == (3, 0) and torch.equal(first, again)
    exact = fit_splats(FACES, 20, 2, seeds=torch.arange(3) + fit.FIRST_SEED)
    assert (first - exact).abs().max() <= 0.5001 / 255
    assert {path.suffix for path in kept.folder.iterdir()} == {".png", ".json"}


@pytest.mark.parametrize("damage", [
    lambda png: png.write_bytes(png.read_bytes()[:-20]), lambda png: png.unlink(),
    lambda png: png.write_bytes(b""), lambda png: png.with_suffix(".json").unlink(),
    lambda png: png.with_suffix(".json").write_bytes(b"\xff{"),
    lambda png: png.write_bytes(png.with_name("00002.png").read_bytes())])
def test_a_damaged_picture_is_made_again_and_only_that(kept, damage):
    first, _ = kept.run()
    damage(kept.folder / "00001.png")
    again, refitted = kept.run()
    assert refitted == 1 and torch.equal(first, again)
    assert kept.run()[1] == 0


@pytest.mark.parametrize("change", [{"gaussians": 21}, {"steps": 3}, {"first_seed": 1},
                                    {"clean": FACES.flip(-1)}, {"clean": FACES[..., :16]}])
def test_other_numbers_or_pictures_are_fitted_anew(kept, change):
    kept.run()
    assert kept.run(**change)[1] == 3


def test_an_interrupted_first_pass_keeps_what_it_made(kept):
    pairs = fitted_pairs(FACES.split(1), kept.folder, gaussians=20, steps=2, progress=None)
    next(pairs)
    pairs.close()
    assert kept.run()[1] == 2


def test_kept_labels_tell_the_numbers(kept):
    kept.run()
    label = (kept.folder / "00002.json").read_text()
    assert re.search(rf'"seed": {fit.FIRST_SEED + 2}', label) and '"steps": 2' in label
