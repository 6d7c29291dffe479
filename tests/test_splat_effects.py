"""The splat stage: each defect does what it is named for, seeded, per sample, at any size."""

import pytest
import torch
import torch.nn.functional as F

from splat_enhancer.degradation.effects import Amounts
from splat_enhancer.degradation.splat_effects import DEFECTS, FEWEST, gaussian_count, resplat
from splat_enhancer.gaussians.describe import LIMIT
from splat_enhancer.gaussians.rng import SeededRandom


def make_face(count=1, side=96):
    """A textured oval on a plain ground, with its region map."""
    rng = torch.Generator().manual_seed(0)
    ys, xs = torch.meshgrid(*[torch.linspace(-1, 1, side)] * 2, indexing="ij")
    head = (xs / 0.6) ** 2 + (ys / 0.8) ** 2 < 1
    texture = F.interpolate(torch.rand(count, 3, 16, 16, generator=rng), (side, side),
                            mode="bilinear")
    image = torch.where(head, 0.3 + 0.5 * texture, torch.tensor([0.2, 0.3, 0.6]).view(3, 1, 1))
    return image, head.expand(count, -1, -1).to(torch.uint8), head


def make_amounts(count=1, **chosen):
    return Amounts({name: torch.full((count,), float(chosen.get(name, 0))) for name in DEFECTS},
                   "cpu")


def seeded(*seeds):
    return SeededRandom(seeds, "splat", "cpu")


def render(seed=3, **chosen):
    image, regions, head = make_face()
    return resplat(image, regions, make_amounts(**chosen), seeded(seed)), image, head


def test_counts_are_geometric_between_the_limits():
    counts = gaussian_count(torch.tensor([0.0, 0.5, 1.0]))
    assert counts.tolist() == [LIMIT, round((LIMIT * FEWEST) ** 0.5), FEWEST]


def test_a_flat_picture_of_any_size_stays_what_it_is():
    for size in ((1, 1), (7, 13), (64, 48)):
        image = torch.full((1, 3, *size), 0.4)
        regions = torch.zeros(1, *size, dtype=torch.uint8)
        drawn = resplat(image, regions, make_amounts(sparsity=1), seeded(2))
        assert drawn.shape == image.shape and (drawn - image).abs().max() < 1e-4


@pytest.mark.parametrize("name", DEFECTS)
def test_a_slight_amount_does_little_and_a_full_one_much_and_more_than_the_rendering(name):
    slight, image, _ = render(**{name: 0.02})
    full, plain, degraded = (render(**chosen)[0] for chosen in (
        {name: 1.0}, {"sparsity": 0.2}, {"sparsity": 0.2} | {name: 1.0}))
    assert 0 < (slight - image).abs().mean() < 0.3 * (full - image).abs().mean()
    share = (plain - image).square().mean() / (degraded - image).square().mean()
    assert share < (0.7 if name in ("sparsity", "oversize") else 1)  # these lose all detail


def test_holes_show_a_matte_background_on_the_head():
    grey = torch.full((1, 3, 96, 96), 0.37)
    _, regions, head = make_face()
    mattes = set()
    for seed in range(8):
        drawn = resplat(grey, regions, make_amounts(holes=1), seeded(seed))[0]
        changed = ((drawn - 0.37).abs().amax(0) > 0.05)
        assert changed[~head].float().mean() <= changed[head].float().mean() + 0.02
        if changed.any():
            mattes.add(tuple((drawn[:, changed] > 0.37).float().mean(1).round().int().tolist()))
    assert len(mattes) > 1  # white, black, green: another matte for another seed


def test_a_translucent_silhouette_changes_the_outline_most():
    plain, _, head = render(sparsity=0.2)
    change = (render(sparsity=0.2, translucency=1)[0] - plain).abs().mean((0, 1))
    near = F.max_pool2d(head[None].float(), 13, 1, 6)[0] - -F.max_pool2d(
        -head[None].float(), 13, 1, 6)[0]
    assert change[near > 0.5].mean() > 4 * change[near < 0.5].mean()


def test_doubling_paints_the_head_beside_the_head_and_floaters_and_needles_are_few():
    plain, _, head = render(sparsity=0.2)
    change = (render(sparsity=0.2, doubling=1)[0] - plain).abs().mean((0, 1))
    assert change[F.max_pool2d(head[None].float(), 5, 1, 2)[0] == 0].max() > 0.2
    for name in ("floaters", "needles"):
        change = (render(sparsity=0.2, **{name: 1})[0] - plain).abs().amax((0, 1))
        assert change.max() > 0.1 and (change > 0.05).float().mean() < 0.4


def test_a_colour_error_changes_colours_and_not_shapes():
    _, _, head = make_face()
    grey = torch.full((1, 3, 96, 96), 0.5)
    drawn = resplat(grey, head[None].to(torch.uint8), make_amounts(color_error=1), seeded(4))[0]
    assert drawn.std() > 0.01 and drawn.mean(0).std() < 0.2
    assert (drawn[:, :48].mean((1, 2)) - drawn[:, 48:].mean((1, 2))).abs().max() > 0.005


def test_samples_of_a_batch_are_what_they_are_alone():
    image, regions, _ = make_face(3)
    mixed = {name: torch.rand(3, generator=torch.Generator().manual_seed(k))
             for k, name in enumerate(DEFECTS)}
    together = resplat(image, regions, Amounts(mixed, "cpu"), seeded(5, 6, 7))
    for k in range(3):
        amounts = Amounts({name: value[k:k + 1] for name, value in mixed.items()}, "cpu")
        alone = resplat(image[k:k + 1], regions[k:k + 1], amounts, seeded(5 + k))
        assert torch.allclose(alone, together[k:k + 1], atol=2e-5)


def test_a_seed_has_its_defects_at_the_same_places_at_two_sizes():
    large, regions, _ = make_face(side=256)
    small, few = F.avg_pool2d(large, 4), regions[:, ::4, ::4]
    amounts = make_amounts(holes=1, doubling=1, translucency=1)
    fine, coarse = (F.avg_pool2d(resplat(image, parts, amounts, seeded(9)) - image, factor)
                    for image, parts, factor in ((large, regions, 16), (small, few, 4)))
    assert torch.corrcoef(torch.stack([fine.flatten(), coarse.flatten()]))[0, 1] > 0.8


def test_other_seeds_give_other_pictures():
    assert (render(1, sparsity=0.5)[0] - render(2, sparsity=0.5)[0]).abs().mean() > 0.005
