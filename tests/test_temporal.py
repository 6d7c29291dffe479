"""Less flicker along the flow, cuts that start again, and off means off."""

from __future__ import annotations

import pytest
import torch
from videos import moving

from splat_enhancer.enhance.temporal import Smoother, estimate_flow
from splat_enhancer.gaussians.filters import resize
from splat_enhancer.gaussians.scene import carry


def slide(count, size_px=64, **options):
    """A smooth picture that slides to the left: frames (1, 3, H, W)."""
    frames = torch.from_numpy(moving(count, size_px, **options)).permute(0, 3, 1, 2).float() / 255
    return [frame[None] for frame in frames]


def flickering(frames, amount=0.05):
    """A restoration that is the frame and fine noise of its own each time."""
    rng = torch.Generator().manual_seed(0)
    return [(frame + amount * torch.randn(frame.shape, generator=rng)).clamp(0, 1)
            for frame in frames]


def flicker(frames, degraded):
    """Mean difference of a frame to the one before, along the estimated flow of the inputs."""
    total = 0.0
    for n in range(1, len(frames)):
        flow, seen = estimate_flow(degraded[n], degraded[n - 1])
        total += float(((frames[n] - carry(frames[n - 1], flow)).abs() * seen).mean())
    return total


def test_nought_is_off_bit_for_bit():
    degraded, smoother = slide(4), Smoother(0.0)
    for frame, restored in zip(degraded, flickering(degraded), strict=True):
        assert smoother(frame, restored) is restored


def test_flicker_shrinks_where_things_move_and_what_is_carried_is_the_change():
    degraded = slide(8, 96)
    restored, smoother = flickering(degraded), Smoother(0.8)
    smooth = [smoother(*pair) for pair in zip(degraded, restored, strict=True)]
    assert torch.equal(smooth[0], restored[0])
    assert flicker(smooth, degraded) < 0.6 * flicker(restored, degraded)
    # Of independent noise a mean is left, never a trail of the picture
    assert max(float((a - b).square().mean())
               for a, b in zip(smooth[4:], degraded[4:], strict=True)) < 0.6 * 0.05**2


def test_an_unchanged_picture_stays_as_it_is_however_it_moves():
    smoother = Smoother(1.0)
    for frame in slide(4, step_px=4):
        assert torch.equal(smoother(frame, frame), frame)


def test_where_the_flow_does_not_hold_each_frame_keeps_its_own_change():
    before, image = slide(2, step_px=0)
    image = image.clone()
    image[..., :16] = 1 - image[..., :16]  # something else appears on the left
    smoother, own = Smoother(1.0), image * 0.8 + 0.1
    smoother(before, before)
    still = torch.zeros(1, 2, 64, 64), torch.ones(1, 1, 64, 64)
    smooth = smoother(image, own, still)
    misfit = (image - before).abs().mean(1, keepdim=True).expand_as(image)
    assert (smooth - own).abs()[misfit > 0.3].max() < 1e-3
    torch.testing.assert_close(smooth[..., 18:], image[..., 18:], atol=1e-6, rtol=0)
    unseen = still[0], torch.zeros(1, 1, 64, 64)
    torch.testing.assert_close(smoother(image, own, unseen), own)


@pytest.mark.parametrize(("dx", "dy"), [(3, 0), (-4, 3)])
def test_estimated_flow_of_a_slide_is_the_slide(dx, dy):
    rng = torch.Generator().manual_seed(4)
    picture = resize(torch.rand(1, 3, 14, 14, generator=rng), (96, 96))
    before = picture[..., 10:74, 10:74]
    image = picture[..., 10 + dy:74 + dy, 10 + dx:74 + dx]
    flow, seen = estimate_flow(image, before)
    middle = flow[0, :, 12:-12, 12:-12].flatten(1).median(1).values
    assert middle.tolist() == pytest.approx([dx, dy], abs=0.3)
    assert seen[..., 12:-12, 12:-12].mean() > 0.9
    large = [resize(frame, (320, 320)) for frame in (image, before)]
    wide = estimate_flow(*large)[0][0, :, 60:-60, 60:-60].flatten(1).median(1).values
    assert wide.tolist() == pytest.approx([5 * dx, 5 * dy], abs=2)


def test_a_cut_and_a_flash_start_anew():
    first, second = slide(1, seed=1)[0], slide(1, seed=2)[0]
    for following in (second, 0.4 * first + 0.5):
        smoother = Smoother(1.0)
        smoother(first, (first + 0.2).clamp(0, 1))
        restored = following * 0.9
        torch.testing.assert_close(smoother(following, restored), restored, atol=1e-6, rtol=0)


def test_frames_of_one_colour_are_no_error():
    grey = torch.full((1, 3, 48, 64), 0.5)
    flow, _ = estimate_flow(grey, grey)
    assert flow.abs().max() < 1e-3 and flow.isfinite().all()


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "skimage.registration", None)
    frame = torch.zeros(1, 3, 8, 8)
    with pytest.raises(ValueError, match="temporal: expected the package scikit-image"):
        estimate_flow(frame, frame)
