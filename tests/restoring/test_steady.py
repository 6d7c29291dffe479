"""Less flicker along the flow, cuts found, and off means off."""

import math

import pytest
import torch

from helpers.faces import Head, look_at_head, studio_wall
from helpers.restoring.steady import Steadier, estimate_flow, is_cut, misfit_of_blocks
from helpers.splats import carry
from helpers.splats.filters import resize
from tests.restoring.films import moving

SIZE_PX = 96


@pytest.fixture(scope="module")
def heads():
    return [Head.of(seed, SIZE_PX) for seed in (1, 2, 3)]


def turning(head, wall, *yaws_deg):
    return [head.render(look_at_head(math.radians(yaw), 0.05, size_px=SIZE_PX),
                        studio_wall(wall, SIZE_PX))[0][None] for yaw in yaws_deg]


def flickering(frames, amount=0.05):
    """A restoration that is the frame and fine noise of its own each time."""
    dice = torch.Generator().manual_seed(0)
    return [(frame + amount * torch.randn(frame.shape, generator=dice)).clamp(0, 1)
            for frame in frames]


def flicker(frames, degraded):
    """Mean difference of a frame to the one before, along the estimated flow of the inputs."""
    found = []
    for n in range(1, len(frames)):
        flow, seen = estimate_flow(degraded[n], degraded[n - 1])
        found.append(((frames[n] - carry(frames[n - 1], flow)).abs() * seen).mean())
    return float(torch.stack(found).mean())


def test_nought_is_off_bit_for_bit():
    degraded = [frame[None] for frame in moving(4)]
    steadier = Steadier(0.0)
    for frame, restored in zip(degraded, flickering(degraded), strict=True):
        assert steadier(frame, restored) is restored


def test_flicker_shrinks_where_things_move_and_what_is_carried_is_the_change():
    degraded = [frame[None] for frame in moving(8, SIZE_PX)]
    restored = flickering(degraded)
    steadier = Steadier(0.8)
    steadied = [steadier(*pair) for pair in zip(degraded, restored, strict=True)]
    assert torch.equal(steadied[0], restored[0])
    assert flicker(steadied, degraded) < 0.6 * flicker(restored, degraded)
    late = slice(4, None)  # of independent noise a mean is left, never a trail of the picture
    noise = [float((a - b).square().mean()) for a, b in zip(steadied[late], degraded[late],
                                                            strict=True)]
    assert max(noise) < 0.6 * 0.05**2


def test_an_unchanged_picture_stays_as_it_is_however_it_moves():
    degraded = [frame[None] for frame in moving(5, step_px=4)]
    steadier = Steadier(1.0)
    for frame in degraded:
        assert torch.equal(steadier(frame, frame), frame)


def test_where_the_flow_does_not_hold_each_frame_keeps_its_own_change():
    before, now = (frame[None] for frame in moving(2, step_px=0))
    now = now.clone()
    now[..., :32] = 1 - now[..., :32]  # something else appears on the left
    steadier, change = Steadier(1.0), torch.full_like(now, 0.1)
    steadier(before, before)
    still = torch.zeros(1, 2, 64, 64), torch.ones(1, 1, 64, 64)
    steadied = steadier(now, (now * 0.8 + change), still)
    own = now * 0.8 + change
    misfit = (now - before).abs().mean(1, keepdim=True).expand_as(now)
    assert ((steadied - own).abs()[misfit > 0.3]).max() < 1e-3
    torch.testing.assert_close(steadied[..., 34:], now[..., 34:], atol=1e-6, rtol=0)
    unseen = still[0], torch.zeros(1, 1, 64, 64)
    torch.testing.assert_close(steadier(now, own, unseen), own)


@pytest.mark.parametrize(("dx", "dy"), [(3, 0), (0, -2), (-4, 3)])
def test_estimated_flow_of_a_slide_is_the_slide(dx, dy):
    picture = resize(torch.rand(1, 3, 14, 14, generator=torch.Generator().manual_seed(4)), (96, 96))
    before = picture[..., 10:74, 10:74]
    now = picture[..., 10 + dy:74 + dy, 10 + dx:74 + dx]
    flow, seen = estimate_flow(now, before)
    middle = flow[0, :, 12:-12, 12:-12].flatten(1).median(1).values
    assert middle.tolist() == pytest.approx([dx, dy], abs=0.3)
    assert seen[..., 12:-12, 12:-12].mean() > 0.9
    large = [resize(frame, (320, 320)) for frame in (now, before)]
    wide = estimate_flow(*large)[0][0, :, 60:-60, 60:-60].flatten(1).median(1).values
    assert wide.tolist() == pytest.approx([5 * dx, 5 * dy], abs=2)


def test_every_cut_is_found_and_nothing_else(heads):
    """Three heads turn fast, one of them in a flash; then the camera pans. Cuts are known."""
    shots = [turning(head, n, *range(-30, 31, 12)) for n, head in enumerate(heads)]
    shots[1][3] = 0.5 * shots[1][3] + 0.4
    shots.append([frame[None] for frame in moving(6, SIZE_PX, step_px=16)])
    shots.append([frame[None] for frame in moving(3, SIZE_PX, seed=9, step_px=3)])
    frames = [frame for shot in shots for frame in shot]
    starts = [sum(map(len, shots[:n])) for n in range(1, len(shots))]
    found = [n for n in range(1, len(frames)) if is_cut(frames[n], frames[n - 1])]
    assert found == starts
    assert misfit_of_blocks(frames[0], frames[0]) < 0.01


def test_the_blend_starts_anew_at_a_cut(heads):
    first, second = turning(heads[0], 0, 0)[0], turning(heads[1], 1, 10)[0]
    steadier = Steadier(1.0)
    steadier(first, (first + 0.2).clamp(0, 1))
    restored = (second * 0.9)
    torch.testing.assert_close(steadier(second, restored), restored, atol=1e-6, rtol=0)


def test_frames_of_one_colour_are_no_cut_and_no_error():
    grey = torch.full((1, 3, 48, 64), 0.5)
    assert not is_cut(grey, grey) and not is_cut(grey, grey + 0.1)
    flow, _ = estimate_flow(grey, grey)
    assert flow.abs().max() < 1e-3 and flow.isfinite().all()
