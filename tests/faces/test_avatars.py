"""The embedded faces: reproducible, diverse, sane, the same person at every size."""

import pytest
import torch
import torch.nn.functional as F

from helpers.faces.avatars import Head, _Dice, _face, look_at_head, render_avatar, studio_wall
from helpers.faces.hair import Hairstyle, hair_cloud
from helpers.faces.head import Cloud, angles, direction, ellipsoid_cloud, fibonacci, head_cloud

SKIN, EYES, NOSE, MOUTH = 1, 2, 3, 4
FACE = _face(_Dice(0))


@pytest.fixture(scope="module")
def people():
    return [render_avatar(seed, 64) for seed in range(8)]


def test_picture_and_regions_keep_their_contracts(people):
    for image, regions in people:
        assert image.shape == (3, 64, 64) and image.dtype is torch.float32
        assert image.min() >= 0 and image.max() <= 1 and image.std() > 0.05
        assert regions.shape == (64, 64) and regions.dtype is torch.uint8


def test_same_seed_gives_the_same_bits_whatever_the_global_generator_does(people):
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        again = render_avatar(3, 64)
        assert all(torch.equal(a, b) for a, b in zip(again, people[3], strict=True))
        assert torch.equal(torch.get_rng_state(), before)


def test_every_seed_is_another_person(people):
    for i, (image, _) in enumerate(people):
        assert all((image - other).abs().mean() > 0.03 for other, _ in people[:i])


def test_every_face_shows_every_region(people):
    for _, regions in people:
        shares = torch.bincount(regions.flatten(), minlength=6) / regions.numel()
        assert (shares > 0.003).all() and shares[SKIN] > 0.1 and shares[0] > 0.1


def test_eyes_are_above_the_nose_and_the_nose_above_the_mouth(people):
    for _, regions in people:
        rows = [(regions == part).nonzero()[:, 0].float() for part in (EYES, NOSE, MOUTH)]
        assert rows[0].mean() < rows[1].mean() < rows[2].mean()


def test_an_eye_lies_on_each_side_of_the_nose_with_skin_around_it(people):
    for _, regions in people:
        eyes = regions == EYES
        column = eyes.nonzero()[:, 1] < (regions == NOSE).nonzero()[:, 1].float().mean()
        assert 0.2 < column.float().mean() < 0.8
        around = F.max_pool2d(eyes[None].float(), 3, 1, 1)[0].bool() & ~eyes
        assert (regions[around] == SKIN).all()


@pytest.mark.parametrize("seed", [0, 5])
def test_larger_pictures_show_the_same_person_at_the_same_place(people, seed):
    image, regions = render_avatar(seed, 128)
    difference = F.avg_pool2d(image, 2) - people[seed][0]
    assert difference.abs().mean() < 0.04
    assert (regions[::2, ::2] == people[seed][1]).float().mean() > 0.93


@pytest.mark.parametrize(("seed", "size_px"), [(-1, 64), (0, 15), (0, 0), (0, -64)])
@pytest.mark.parametrize("make", [render_avatar, Head.of, studio_wall])
def test_bad_seeds_and_sizes_are_refused(make, seed, size_px):
    with pytest.raises(ValueError, match="expected seed >= 0 and size_px >= 16"):
        make(seed, size_px)


def test_a_head_seen_from_its_left_shows_its_left_side_before_any_backdrop():
    head, wall = Head.of(1, 64), studio_wall(2, 64)
    columns = []
    for yaw in (-0.6, 0.0, 0.6):
        image, regions = head.render(look_at_head(yaw, 0.0, size_px=64), wall)
        assert torch.equal(image[:, 0, 0], wall[:, 0, 0]) and regions[0, 0] == 0
        columns.append((regions == NOSE).nonzero()[:, 1].float().mean())
    assert columns[0] > columns[1] + 5 and columns[1] > columns[2] + 5


def test_the_camera_stands_where_its_angles_say():
    for yaw, pitch, place in ((0.0, 0.0, (0, 0, 4)), (torch.pi / 2, 0.0, (4, 0, 0)),
                              (0.0, torch.pi / 2, (0, 4, 0))):
        camera = look_at_head(yaw, pitch, 0.3, size_px=64, target=(0.0, 0.0), frame=2.0,
                              distance=4.0)
        torch.testing.assert_close(camera.position, torch.tensor(place).float(), atol=1e-5, rtol=0)
        ahead = camera.rotation @ -camera.position  # the target, seen from the camera
        torch.testing.assert_close(ahead, torch.tensor([0.0, 0, -4]), atol=1e-5, rtol=0)
        assert camera.focal_px == 128  # so that two head units at four fill 64 pixels


def test_the_light_stays_with_the_head_when_the_camera_moves():
    light, cloud = Head.of(1, 64).light, Head.of(1, 64).cloud
    matt = Cloud(cloud.means, cloud.axes, cloud.normals, cloud.colors,
                 torch.zeros_like(cloud.gloss), cloud.labels)
    first, second = (light.shade(matt, look_at_head(yaw, 0, size_px=64)) for yaw in (0, 1.0))
    assert torch.equal(first, second)


def test_directions_and_angles_are_inverse_and_known():
    a, b = torch.rand(2, 50, generator=torch.Generator().manual_seed(0)) * 2.8 - 1.4
    for there, back in zip((a, b), angles(3 * direction(a, b)), strict=True):
        torch.testing.assert_close(there, back)
    axes = direction(torch.tensor([0.0, torch.pi / 2, 0]), torch.tensor([0, 0, torch.pi / 2]))
    torch.testing.assert_close(axes, torch.eye(3)[[2, 0, 1]])  # ahead, right, up


def test_fibonacci_points_are_evenly_spread_unit_vectors():
    points = fibonacci(400)
    torch.testing.assert_close(points.norm(dim=1), torch.ones(400))
    assert points.mean(0).abs().max() < 0.01
    nearest = (torch.cdist(points, points) + 9 * torch.eye(400)).min(1).values
    assert nearest.max() < 1.5 * nearest.min()


def test_surface_gaussians_are_flat_and_face_outwards():
    radii = torch.tensor([1.0, 2.0, 0.5])
    ball = ellipsoid_cloud(torch.zeros(3), radii, 0.2, torch.ones(3), SKIN)
    exact = F.normalize(ball.means / radii**2, dim=1)
    assert (ball.normals * exact).sum(1).min() > 0.95
    head = head_cloud(FACE, 0.1, torch.Generator().manual_seed(0))
    assert (head.normals * F.normalize(head.means, dim=1)).sum(1).min() > 0
    for cloud in (ball, head):
        across = (cloud.axes * cloud.normals[..., None]).sum(1).abs()  # (N, 3), along each axis
        assert across[:, :2].max() < 1e-4 < across[:, 2].min()


def test_hair_may_be_missing_and_lies_outside_the_head():
    dice = torch.Generator().manual_seed(0)
    bald, short = (hair_cloud(FACE, Hairstyle(0.4, 0.1, 0, 0.5, 0, 0.1, n), dice)
                   for n in (0, 200))
    assert len(bald.means) == 0 and len(Cloud.join([bald, short]).means) == len(short.means) > 0
    assert short.means.norm(dim=1).min() > 0.6 and (short.labels == 5).all()
