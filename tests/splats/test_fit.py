"""Underfitted splats: closer with effort, reproducible, kept in a folder and made once."""

import pytest
import torch
import torch.nn.functional as F

from helpers.faces.avatars import render_avatar
from helpers.splats import fit
from helpers.splats.fit import fit_splats, fitted_pairs
from helpers.storage.sealed import read_metadata

FACES = torch.stack([render_avatar(seed, 32)[0] for seed in range(3)])
SEEDS = torch.tensor([5, 6, 7])


def distance(count, steps):
    return float((fit_splats(FACES, count, steps, seeds=SEEDS) - FACES).abs().mean())


def test_more_steps_and_gaussians_come_closer_and_no_step_returns_the_start():
    far = [distance(60, steps) for steps in (0, 6, 20)]
    assert far[0] > 1.5 * far[1] > 1.5 * 1.2 * far[2] > 0
    assert distance(10, 12) > 1.2 * distance(200, 12)
    start = fit_splats(FACES, 60, 0, seeds=SEEDS)
    grey = FACES.mean((2, 3), keepdim=True).expand_as(FACES)
    assert not torch.equal(start, grey) and F.l1_loss(start, grey) < F.l1_loss(start, FACES) / 2


def test_a_render_follows_from_its_seed_alone_and_leaves_all_else_as_it_was():
    clean, before = FACES.clone().requires_grad_(), torch.get_rng_state()
    with torch.no_grad():
        together = fit_splats(clean, 40, 4, seeds=SEEDS)
    assert torch.equal(clean, FACES) and clean.grad is None and not together.requires_grad
    assert torch.equal(torch.get_rng_state(), before)
    alone = [fit_splats(FACES[i:i + 1], 40, 4, seeds=SEEDS[i:i + 1]) for i in (2, 0, 1)]
    assert torch.equal(together[[2, 0, 1]], torch.cat(alone))
    assert not torch.equal(together, fit_splats(FACES, 40, 4, seeds=SEEDS + 1))


@pytest.mark.parametrize("image", [torch.zeros(1, 3, 16, 40), torch.ones(1, 3, 40, 16),
                                   torch.rand(1, 3, 1, 1), FACES[:1].flip(-1).mT])
def test_renders_are_float_pictures_of_the_same_shape_in_range(image):
    found = fit_splats(image, 7, 3, seeds=SEEDS[:1])
    assert found.shape == image.shape and found.dtype == torch.float32 and found.is_contiguous()
    assert found.min() >= 0 and found.max() <= 1


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
        numbers = {"gaussians": 20, "steps": 2} | changes
        pairs = list(fitted_pairs(clean.split(2), self.folder, **numbers))
        return torch.cat([fitted for _, fitted in pairs]), self.fitted


@pytest.fixture
def kept(tmp_path, monkeypatch):
    return Kept(tmp_path / "new" / "folder", monkeypatch)


def test_a_second_pass_fits_nothing_and_yields_the_same(kept):
    first, fitted = kept.run()
    again, refitted = kept.run()
    assert (fitted, refitted) == (3, 0) and torch.equal(first, again)
    exact = fit_splats(FACES, 20, 2, seeds=torch.arange(3) + fit.FIRST_SEED)
    assert (first - exact).abs().max() <= 0.5001 / 255
    assert [path.name for path in sorted(kept.folder.iterdir())] == [
        f"0000{i}.safetensors" for i in range(3)]


@pytest.mark.parametrize("damage", [
    lambda file: file.write_bytes(file.read_bytes()[:-20]), lambda file: file.unlink(),
    lambda file: file.write_bytes(b""), lambda file: file.write_bytes(b"\xff{"),
    lambda file: file.write_bytes(file.read_bytes().replace(b'"seed', b'"sead')),
    lambda file: file.write_bytes(file.read_bytes()[:-1] + bytes([file.read_bytes()[-1] ^ 1])),
    lambda file: file.write_bytes(file.with_name("00002.safetensors").read_bytes())])
def test_a_damaged_picture_is_made_again_and_only_that(kept, damage):
    first, _ = kept.run()
    damage(kept.folder / "00001.safetensors")
    again, refitted = kept.run()
    assert refitted == 1 and torch.equal(first, again)
    assert kept.run()[1] == 0


@pytest.mark.parametrize("change", [{"gaussians": 21}, {"steps": 3}, {"first_seed": 1},
                                    {"clean": FACES.flip(-1)}, {"clean": FACES[..., :16]}])
def test_other_numbers_or_pictures_are_fitted_anew(kept, change):
    kept.run()
    assert kept.run(**change)[1] == 3


def test_an_interrupted_first_pass_keeps_what_it_made(kept):
    pairs = fitted_pairs(FACES.split(1), kept.folder, gaussians=20, steps=2)
    next(pairs)
    pairs.close()
    assert kept.run()[1] == 2


def test_kept_renders_tell_the_numbers(kept):
    kept.run()
    recipe = read_metadata(kept.folder / "00002.safetensors")["recipe"]
    assert f'"seed": {fit.FIRST_SEED + 2}' in recipe and '"steps": 2' in recipe
