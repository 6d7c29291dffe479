"""Random numbers and filters, pictures described and fitted by Gaussians, scenes and their flow."""

import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from splat_enhancer.gaussians import filters, fit
from splat_enhancer.gaussians.describe import describe
from splat_enhancer.gaussians.fit import draw_recipe, fit_splats, perturb, underfit
from splat_enhancer.gaussians.rasterizer import Camera, rasterize
from splat_enhancer.gaussians.rng import SeededRandom
from splat_enhancer.gaussians.scene import (
    AXES,
    SH_C0,
    Scene,
    carry,
    draw,
    flow_between,
    frame,
    framed,
    orbit,
)

HEADS = np.asarray(Image.open(Path(__file__).parent / "fixtures" / "golden_values" / "heads.png"))
FACES = F.avg_pool2d(torch.from_numpy(np.stack(np.split(HEADS, 3, 1))).permute(0, 3, 1, 2) / 255, 4)
SEEDS = torch.tensor([5, 6, 7])
IMAGE = torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(0))
RECIPES = [draw_recipe(seed, 128) for seed in range(600)]
DISTURBED = {"dropped": "opacities", "shrunk": "scales", "faded": "opacities",
             "stained": "colors", "shifted": "positions"}


# ---- Random numbers

def test_random_numbers_follow_from_seed_and_stage_alone():
    together, alone = SeededRandom([3, 4, 5], "warp", "cpu"), SeededRandom([4], "warp", "cpu")
    for kind, shape in (("uniform", ()), ("normal", (2, 20)), ("uniform", (7,)),
                        ("field", (2, 5, (40, 90)))):
        assert torch.equal(getattr(together, kind)(*shape)[1:2], getattr(alone, kind)(*shape))
    first = [SeededRandom([4], stage, "cpu").uniform(9) for stage in ("warp", "warp", "noise")]
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])


def test_random_numbers_have_their_ranges_shapes_and_moments():
    rng = SeededRandom(range(50), "noise", "cpu")
    even, normal, field = rng.uniform(99), rng.normal(3, 33), rng.field(2, 5, (7, 80))
    assert even.shape == (50, 99) and normal.shape == (50, 3, 33) and field.shape == (50, 2, 7, 80)
    assert even.min() >= 0 and even.max() < 1 and abs(even.mean() - 0.5) < 0.02
    assert abs(normal.mean()) < 0.06 and abs(normal.std() - 1) < 0.05
    assert (field[..., 1:] - field[..., :-1]).abs().max() < 0.5 < field.std() + 0.2


# ---- Filters

def test_resizing_keeps_means_is_the_identity_at_one_size_and_enlarges_as_torch_does():
    assert filters.resize(IMAGE, (24, 32)) is IMAGE
    small = filters.resize(IMAGE, (12, 16))
    torch.testing.assert_close(small.mean(), IMAGE.mean(), atol=0.01, rtol=0)
    torch.testing.assert_close(filters.resize(small, (24, 32)), F.interpolate(
        small, (24, 32), mode="bilinear", antialias=True))


def test_sampling_at_the_pixel_grid_gives_the_picture_back():
    grid = filters.pixel_grid(IMAGE.shape[2:], "cpu").expand(2, -1, -1, -1)
    torch.testing.assert_close(filters.sample(IMAGE, grid), IMAGE, atol=1e-5, rtol=0)


def test_blur_is_as_wide_as_asked_for_and_no_width_leaves_the_picture():
    dots = torch.zeros(8, 1, 128, 128)
    for i in range(8):  # a pyramid treats places differently: on the average it is even
        dots[i, 0, 60, 60 + i] = 1
    xs = torch.arange(128.0)
    for sigma in (1.0, 2.0, 4.0):
        across = filters.blur(dots, torch.full((8, 1, 1, 1), sigma)).sum(2)[:, 0]
        across = across / across.sum(1, keepdim=True)
        mean = (across * xs).sum(1, keepdim=True)
        width = (across * (xs - mean).square()).sum(1).mean().sqrt()
        assert sigma < width < 1.5 * sigma
    assert torch.equal(filters.blur(IMAGE, torch.zeros(2, 1, 1, 1)), IMAGE)
    half = torch.zeros(2, 1, 24, 32)
    half[..., 16:] = 2
    assert torch.equal(filters.blur(IMAGE, half)[..., :16], IMAGE[..., :16])


# ---- Pictures described by Gaussians

def seeded(seed=1):
    return SeededRandom([seed], "describe", "cpu")


def test_more_gaussians_describe_a_picture_better_and_fewer_are_the_first_of_more():
    image, errors, positions = F.interpolate(FACES[:1], (128, 128), mode="bilinear"), [], []
    for count in (1_000, 4_000, 16_000):
        gaussians = describe(image, torch.tensor([count]), seeded())
        drawn, _ = rasterize(gaussians.splats(128, 128), 128, 128, background=0 * image + 0.4)
        errors.append((drawn - image).square().mean())
        positions.append(gaussians.positions[0])
        assert gaussians.positions.shape == (1, count, 2) and gaussians.positions.abs().max() <= 1
    assert errors[0] > errors[1] > errors[2] and errors[2] < 2e-3
    assert torch.equal(positions[0], positions[2][:1_000])


def test_gaussians_cover_a_wide_picture_as_they_cover_a_square():
    cover = []
    for size in ((128, 128), (32, 512)):
        gaussians = describe(torch.full((1, 3, *size), 0.5), torch.tensor([1_000]), seeded())
        cover.append(rasterize(gaussians.splats(*size), *size)[1].mean())
    assert cover[0] > 0.8 and cover[1] > 0.9 * cover[0]


def test_gaussians_lie_along_edges_and_have_the_colour_of_their_place():
    image = torch.zeros(1, 3, 64, 64)
    image[..., 32:] = torch.tensor([0.9, 0.5, 0.1]).view(1, 3, 1, 1)
    gaussians = describe(image, torch.tensor([400]), seeded())
    edge = gaussians.positions[0, :, 0].abs() < 0.05
    assert edge.sum() > 50 and gaussians.angles[0, edge].sin().abs().mean() > 0.99  # upright
    assert (gaussians.scales[0, edge, 0] > 2 * gaussians.scales[0, edge, 1]).float().mean() > 0.9
    right = gaussians.positions[0, :, 0] > 0.2
    assert torch.allclose(gaussians.colors[0, right], image[0, :, 0, -1], atol=1e-5)


# ---- Pictures fitted by Gaussians

def fit_held_out(image, seeds):
    return fit_splats(image, 40, 4, seeds=seeds)


@pytest.mark.parametrize("fit_each", [fit_held_out, underfit])
def test_a_render_follows_from_picture_and_seed_alone(fit_each):
    clean, state = FACES.clone().requires_grad_(), torch.get_rng_state()
    together = fit_each(clean, SEEDS)
    alone = [fit_each(FACES[i:i + 1], SEEDS[i:i + 1]) for i in (2, 0, 1)]
    assert torch.equal(together[[2, 0, 1]], torch.cat(alone))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(clean, FACES) and clean.grad is None and not together.requires_grad
    assert not torch.equal(together, fit_each(FACES, SEEDS + 1))


@pytest.mark.parametrize("fit_each", [fit_held_out, underfit])
@pytest.mark.parametrize("image", [torch.zeros(1, 3, 16, 40), torch.ones(1, 3, 40, 16),
                                   torch.rand(1, 3, 1, 1), FACES[:1].flip(-1).mT])
def test_renders_are_float_pictures_of_the_same_shape_in_range(fit_each, image):
    for seed in range(3):
        render = fit_each(image, torch.tensor([seed]))
        assert render.shape == image.shape and render.dtype == torch.float32
        assert render.is_contiguous() and render.min() >= 0 and render.max() <= 1


def test_more_steps_and_gaussians_come_closer_and_no_step_returns_the_start():
    def distance(count, steps):
        return float((fit_splats(FACES, count, steps, seeds=SEEDS) - FACES).abs().mean())

    far = [distance(60, steps) for steps in (0, 6, 20)]
    assert far[0] > 1.4 * far[1] > 1.2 * far[2] > 0
    assert distance(10, 12) > 1.2 * distance(200, 12)


def test_training_renders_are_poor_yet_closer_than_the_mean_colour():
    render, mean = underfit(FACES, SEEDS), FACES.mean((2, 3), keepdim=True).expand_as(FACES)
    assert 0.01 < float(F.l1_loss(render, FACES)) < 0.8 * float(F.l1_loss(mean, FACES))


def test_recipes_keep_their_bounds_and_fill_them():
    counts = torch.tensor([float(r.gaussians) for r in RECIPES])
    low, high = (128 * bound for bound in fit.COUNT_PER_PX)
    assert counts.min() >= low - 1 and counts.max() <= high + 1
    share = (counts / low).log() / torch.tensor(high / low).log()  # log-uniform: flat in [0, 1]
    assert abs(share.mean() - 0.5) < 0.05 and abs(share.std() - 12**-0.5) < 0.03
    steps = {r.steps for r in RECIPES}
    assert min(steps) == fit.SCHEDULE / 4 and max(steps) == 0.75 * fit.SCHEDULE
    seen = [r.seen for r in RECIPES if not r.patch]
    assert 0.7 <= min(seen) < 0.72 and 0.98 < max(seen) <= 1
    sides = [r.patch for r in RECIPES if r.patch]
    assert abs(len(sides) / len(RECIPES) - fit.PATCH_SHARE) < 0.05
    assert min(sides) >= 0.5 and max(sides) <= 0.8
    good = [r for r in RECIPES if not any(getattr(r, name) for name in DISTURBED)]
    assert abs(len(good) / len(RECIPES) - fit.GOOD_SHARE) < 0.05
    assert {r.backdrop for r in RECIPES} == {"mean", "black", "white", "matte"}


def test_the_training_recipe_is_not_that_of_the_test_set():
    """That one moves Gaussians faster than any recipe here."""
    assert all(1.6 * rate < fit.RATES[name] for name, rate in fit.TRAINING_RATES.items())
    recipe = draw_recipe(5, 32)
    tested = fit_splats(FACES[:1], recipe.gaussians, recipe.steps, seeds=SEEDS[:1])
    assert F.l1_loss(tested, underfit(FACES[:1], SEEDS[:1])) > 0.01


def test_the_share_of_hidden_pixels_is_the_recipes():
    picture = torch.zeros(1, 3, 60, 100)
    for recipe in RECIPES[:20]:
        seen = fit._seen(picture, recipe, seeded())
        share = recipe.patch**2 if recipe.patch else recipe.seen
        assert seen.shape == (1, 1, 60, 100) and set(seen.unique().tolist()) <= {0.0, 1.0}
        assert abs(float(seen.mean()) - share) < 0.015


def values_before_and_after(**shares):
    def make():
        rng = seeded(3)
        return {"positions": 2 * rng.uniform(400, 2) - 1, "scales": rng.normal(400, 2),
                "angles": rng.uniform(400), "colors": rng.uniform(400, 3),
                "opacities": rng.normal(400)}

    before, after = make(), make()
    recipe = SimpleNamespace(**vars(RECIPES[0]) | dict.fromkeys(DISTURBED, 0.0) | shares)
    perturb(after, recipe, seeded(4))
    return before, after, recipe


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_each_disturbance_touches_the_share_it_should_and_nothing_else(share):
    for kind, name in DISTURBED.items():
        before, after, _ = values_before_and_after(**{kind: share})
        changed = (before[name] != after[name]).view(1, 400, -1).any(-1)
        assert int(changed.sum()) == share * 400, kind
        assert all(torch.equal(before[other], after[other]) for other in before if other != name)


def test_disturbances_are_as_large_as_named_and_lie_in_patches():
    before, after, _ = values_before_and_after(dropped=0.2)
    gone = before["opacities"] != after["opacities"]
    assert (after["opacities"][gone].sigmoid() == 0).all()
    before, after, _ = values_before_and_after(shrunk=1.0)
    factors = (after["scales"] - before["scales"]).exp()
    assert factors.min() > 0.6 - 1e-4 and factors.max() < 0.8 + 1e-4
    before, after, _ = values_before_and_after(faded=1.0)
    assert (after["opacities"] < before["opacities"]).all()
    before, after, recipe = values_before_and_after(shifted=0.3)
    moves = (after["positions"] - before["positions"])[0]
    moved = moves.abs().amax(1) > 0
    assert moves[moved].norm(dim=1).tolist() == pytest.approx(
        [2 * recipe.shift] * int(moved.sum()), rel=1e-3)
    distances = torch.cdist(before["positions"], before["positions"])[0]
    near = distances.topk(5, largest=False).indices[:, 1:]
    assert float(moved[near][moved].float().mean()) > 0.45  # by chance: 0.3


# ---- Scenes and cameras

def make_ball(count=3_000, *, radius=1.0, centre=(0.0, 0.0, 0.0), logit=4.0, seed=0):
    """Gaussians on a sphere, coloured by a smooth pattern of their places."""
    rng = torch.Generator().manual_seed(seed)
    unit = F.normalize(torch.randn(count, 3, generator=rng), dim=1)
    colors = 0.5 + 0.4 * torch.sin(5 * unit + torch.tensor([0.0, 1.0, 2.0]))
    quaternions = torch.tensor([[1.0, 0, 0, 0]]).repeat(count, 1)
    return Scene(radius * unit + torch.tensor(centre), torch.full((count, 3), math.log(0.06)),
                 quaternions, torch.full((count,), logit), ((colors - 0.5) / SH_C0)[:, None])


def join(*scenes):
    return Scene(*(torch.cat([getattr(s, name) for s in scenes])
                   for name in Scene.__dataclass_fields__))


def place_in_picture(camera, point):
    local = camera.rotation @ (torch.as_tensor(point) - camera.position)
    assert local[2] < 0
    return (camera.width_px / 2 + camera.focal_px * float(local[0] / -local[2]),
            camera.height_px / 2 - camera.focal_px * float(local[1] / -local[2]))


@pytest.mark.parametrize("up", AXES)
def test_cameras_are_proper_look_at_the_centre_and_have_up_above(up):
    centre = torch.tensor([0.3, -2.0, 5.0])
    above = torch.tensor(AXES[up][0], dtype=torch.float32)
    for camera in orbit(make_ball(centre=centre.tolist()), views=5, size_px=64, up=up,
                        elevation_deg=20):
        torch.testing.assert_close(camera.rotation @ camera.rotation.T, torch.eye(3), atol=1e-5,
                                   rtol=0)
        assert torch.linalg.det(camera.rotation) == pytest.approx(1, abs=1e-5)
        assert place_in_picture(camera, centre) == pytest.approx((32, 32), abs=1)
        x, y = place_in_picture(camera, centre + 0.5 * above)
        assert x == pytest.approx(32, abs=1) and y < 28
        assert (camera.position - centre) @ above > 0.5  # elevation


def test_first_camera_of_a_head_stands_where_its_face_looks():
    """By COLMAP's axes a face photographed from the front looks along −z."""
    camera = orbit(make_ball(), views=1, size_px=64, elevation_deg=0)[0]
    assert place_in_picture(camera, (0.0, 0.0, -1.0)) == pytest.approx((32, 32), abs=1)
    assert place_in_picture(camera, (0.5, 0.0, 0.0))[0] > 40  # x to the right, y down
    assert place_in_picture(camera, (0.0, 0.5, 0.0))[1] > 40


def test_views_go_round_once_or_along_an_arc_in_even_steps():
    def azimuths(**options):
        back = torch.stack([c.rotation[2] for c in orbit(make_ball(), size_px=32, up="y",
                                                         elevation_deg=0, **options)])
        return torch.atan2(back[:, 0], back[:, 2]).rad2deg().tolist()

    assert azimuths(views=4) == pytest.approx([-180, -90, 0, 90], abs=1e-3)
    assert azimuths(views=3, arc_deg=60) == pytest.approx([-30, 0, 30], abs=1e-3)
    assert azimuths(views=1, arc_deg=60) == pytest.approx([0], abs=1e-3)


def test_strays_neither_move_nor_push_away_the_camera():
    ball = make_ball(2_000, centre=(1.0, 2.0, 3.0))
    stray = make_ball(150, radius=300.0, centre=(500.0, 0.0, 0.0), seed=1)
    mist = make_ball(2_000, radius=50.0, logit=-5.0, seed=2)
    centre, radius = frame(ball)
    moved, wider = frame(join(ball, stray, mist))
    assert radius == pytest.approx(1, rel=0.05)
    assert wider == pytest.approx(radius, rel=0.1) and (moved - centre).norm() < 0.15
    small = framed(dataclasses.replace(ball, means=1e-6 * ball.means,
                                       log_scales=ball.log_scales + math.log(1e-6)))
    assert frame(small)[1] == pytest.approx(1, rel=1e-3)
    alpha = draw(small, orbit(small, views=1, size_px=64)[0], torch.zeros(3, 64, 64)).alpha
    rows = (alpha.amax(1) > 0.5).sum()
    assert 64 * 0.7 < rows < 64 * 0.95  # it fills the picture, and nothing is cut


def test_depth_is_the_distance_to_the_surface_along_the_axis():
    camera = orbit(make_ball(), views=1, size_px=64, up="y", elevation_deg=0)[0]
    view = draw(make_ball(), camera, torch.zeros(3, 64, 64))
    assert float(view.depth[32, 32]) == pytest.approx(float(camera.position[2]) - 1, rel=0.03)
    assert view.depth[0, 0] == 0 and view.alpha[0, 0] == 0


def test_flow_carries_one_view_to_another_where_both_see_it():
    scene, backdrop = make_ball(), torch.ones(3, 96, 96)
    earlier, view = (draw(scene, camera, backdrop)
                     for camera in orbit(scene, views=60, size_px=96)[:2])
    flow, visible = flow_between(view, earlier)
    assert flow.abs().amax() > 2
    error = (view.picture - carry(earlier.picture[None], flow)[0]).abs().mean(0)
    still = (view.picture - earlier.picture).abs().mean(0)
    covered = (view.alpha > 0.9) & (visible[0, 0] > 0)
    assert covered.sum() > 0.8 * (view.alpha > 0.9).sum()
    assert error[covered].mean() < 0.25 * still[covered].mean()


def test_flow_of_a_plane_under_a_sideways_step_is_its_known_shift_and_the_hidden_is_not_seen():
    side = torch.linspace(-3, 3, 80)
    x, y = (grid.flatten() for grid in torch.meshgrid(side, side, indexing="xy"))
    scales, turns = torch.full((6_400, 3), math.log(0.06)), torch.eye(4)[:1].repeat(6_400, 1)

    def plane(z, keep):
        means = torch.stack([x, y, torch.full_like(x, z)], 1)
        return Scene(means, scales, turns, torch.full((6_400,), 5.0),
                     torch.zeros(6_400, 1, 3))[keep]

    scene = join(plane(0.0, slice(None)), plane(2.0, (x.abs() < 0.5) & (y.abs() < 0.5)))
    cameras = [Camera(torch.eye(3), torch.tensor([at, 0.0, 6.0]), 64.0, 64, 64) for at in (0, 0.5)]
    earlier, view = (draw(scene, camera, torch.zeros(3, 64, 64)) for camera in cameras)
    flow, visible = flow_between(view, earlier)
    assert float(flow[0, 0, 8, 32]) == pytest.approx(64 * 0.5 / 6, abs=0.3)  # f·b/z
    assert float(flow[0, 0, 32, 26]) == pytest.approx(64 * 0.5 / 4, abs=0.5)
    assert flow[0, 1].abs().max() < 0.3
    hidden = (visible[0, 0, 28:36] == 0).float().mean(0)  # right of the square by 8 − 5.3 px
    assert hidden[32 + 3:32 + 5].min() > 0.4 and visible[0, 0, 8, 8:56].min() == 1


def test_carry_by_no_flow_changes_nothing_and_by_whole_pixels_shifts():
    image = torch.rand(1, 3, 7, 9)
    torch.testing.assert_close(carry(image, torch.zeros(1, 2, 7, 9)), image)
    flow = torch.zeros(1, 2, 7, 9)
    flow[:, 0] = 2
    torch.testing.assert_close(carry(image, flow)[..., :7], image[..., 2:])
