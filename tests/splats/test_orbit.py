"""Cameras around a scene: they stand where they should, strays or not, and the flow is exact."""

import math
from dataclasses import replace

import pytest
import torch

from helpers.splats.orbit import AXES, carry, flow_between, frame, orbit
from helpers.splats.rasteriser import Camera
from helpers.splats.scene import BASE, Scene, draw


def make_ball(count=3_000, *, radius=1.0, centre=(0.0, 0.0, 0.0), spread=0.06, seed=0):
    """Nearly opaque Gaussians on a sphere, coloured by a smooth pattern of their places."""
    dice = torch.Generator().manual_seed(seed)
    unit = torch.nn.functional.normalize(torch.randn(count, 3, generator=dice), dim=1)
    colors = 0.5 + 0.4 * torch.sin(5 * unit + torch.tensor([0.0, 1.0, 2.0]))
    turns = torch.tensor([[1.0, 0, 0, 0]]).repeat(count, 1)
    return Scene(radius * unit + torch.tensor(centre), torch.full((count, 3), math.log(spread)),
                 turns, torch.full((count,), 4.0), ((colors - 0.5) / BASE)[:, None])


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
    scene = make_ball(centre=centre.tolist())
    above = torch.tensor(AXES[up][0], dtype=torch.float32)
    for camera in orbit(scene, views=5, size_px=64, up=up, elevation_deg=20):
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
    mist = replace(make_ball(2_000, radius=50.0, seed=2), opacities=torch.full((2_000,), -5.0))
    centre, radius = frame(ball)
    moved, wider = frame(join(ball, stray, mist))
    assert radius == pytest.approx(1, rel=0.05)
    assert wider == pytest.approx(radius, rel=0.1) and (moved - centre).norm() < 0.15
    seen = draw(ball, orbit(ball, views=1, size_px=64)[0], torch.zeros(3, 64, 64)).alpha
    rows = (seen.amax(1) > 0.5).sum()
    assert 64 * 0.7 < rows < 64 * 0.95  # it fills the picture, and nothing is cut


@pytest.mark.parametrize("bad", [{"up": "w"}, {"views": 0}, {"arc_deg": 361}, {"fov_deg": 180},
                                 {"elevation_deg": 90}])
def test_orbits_of_no_use_are_refused(bad):
    with pytest.raises(ValueError, match=r"expected .*, got .*; "):
        orbit(make_ball(9), **{"views": 2, "size_px": 32} | bad)


def test_depth_is_the_distance_to_the_surface_along_the_axis():
    camera = orbit(make_ball(), views=1, size_px=64, up="y", elevation_deg=0)[0]
    view = draw(make_ball(), camera, torch.zeros(3, 64, 64))
    assert float(view.depth[32, 32]) == pytest.approx(float(camera.position[2]) - 1, rel=0.03)
    assert view.depth[0, 0] == 0 and view.alpha[0, 0] == 0


def test_flow_carries_one_view_to_another_where_both_see_it():
    scene, wall = make_ball(), torch.ones(3, 96, 96)
    before, now = (draw(scene, camera, wall)
                   for camera in orbit(scene, views=60, size_px=96)[:2])
    flow, visible = flow_between(now, before)
    assert flow.abs().amax() > 2
    error = (now.picture - carry(before.picture[None], flow)[0]).abs().mean(0)
    still = (now.picture - before.picture).abs().mean(0)
    covered = (now.alpha > 0.9) & (visible[0, 0] > 0)
    assert covered.sum() > 0.8 * (now.alpha > 0.9).sum()
    assert error[covered].mean() < 0.25 * still[covered].mean()


def test_flow_of_a_plane_under_a_sideways_step_is_its_known_shift_and_the_hidden_is_not_seen():
    side = torch.linspace(-3, 3, 80)
    x, y = (grid.flatten() for grid in torch.meshgrid(side, side, indexing="xy"))
    lengths, turns = torch.full((6_400, 3), math.log(0.06)), torch.eye(4)[:1].repeat(6_400, 1)

    def plane(z, keep):
        means = torch.stack([x, y, torch.full_like(x, z)], 1)
        return Scene(means, lengths, turns, torch.full((6_400,), 5.0),
                     torch.zeros(6_400, 1, 3))[keep]

    scene = join(plane(0.0, slice(None)), plane(2.0, (x.abs() < 0.5) & (y.abs() < 0.5)))
    cameras = [Camera(torch.eye(3), torch.tensor([at, 0.0, 6.0]), 64.0, 64, 64) for at in (0, 0.5)]
    before, now = (draw(scene, camera, torch.zeros(3, 64, 64)) for camera in cameras)
    flow, visible = flow_between(now, before)
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
