"""Pairs that nobody painted: a fitted head seen from a new view, and the true head from there.

Of the nine artefacts that ArtifactWorld names, sheets of these pairs show *blurring*, *dilation*
(swollen soft rims) and *floaters* (flecks and veils of the fitted backdrop's colour) anywhere,
*colour outliers* and *cracks* (slits and holes that the backdrop shows through) mostly outside the
arc of the fitted views, and there a few *needles*. *Ghosting* is hardly there: cameras known
roughly make blur, seldom a second contour. *Aliasing* is not (a fit is drawn at the size it was
fitted at), nor is *popping* (a pair is a still).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import refused
from ..faces import Head, look_at_head, studio_wall
from ..machine import Bar
from ..splats import Camera, Draws
from .fits import Fit
from .reconstruct import fitted_backdrop, render

OUTSIDE_SHARE = 0.5  # of the views, where nobody asks for inside or outside
BEYOND_DEG = (2.0, 25.0)  # how far outside the arc of the fitted views
OWN_BACKDROP_SHARE = 0.6  # of the views stand before what the fit was made before


@dataclass(frozen=True)
class View:
    """From where a pair is seen, and before what."""

    yaw_deg: float
    pitch_deg: float
    inside: bool  # whether the yaw lies within the arc of the fitted views
    camera: Camera
    backdrop: Tensor  # (3, H, W) in [0, 1]


def draw_view(fit: Fit, seed: int, *, inside: bool | None = None,
              size_px: int | None = None) -> View:
    """Draw a view of a fit: a function of the fit's recipe and the seed alone.

    Args:
        fit: whose arc is meant.
        seed: 0 or more.
        inside: within the arc, or up to 25° beyond either end; None: as the seed has it.
        size_px: side of the picture; None: that of the pictures it was fitted to.
    """
    recipe, size_px = fit.recipe, size_px or fit.recipe.size_px
    dice = Draws([seed], f"view of {recipe.identity}", "cpu").uniform(12)[0].tolist()
    chosen = dice[0] >= OUTSIDE_SHARE if inside is None else inside
    side, beyond = 1 if dice[1] < 0.5 else -1, _between(*BEYOND_DEG, dice[2])
    yaw = _between(-1, 1, dice[2]) * recipe.arc_deg if chosen else side * (recipe.arc_deg + beyond)
    pitch = _between(-1, 1, dice[3]) * (recipe.pitch_deg + 3)
    camera = look_at_head(
        math.radians(yaw), math.radians(pitch), math.radians(_between(-5, 5, dice[4])),
        size_px=size_px, target=(_between(-0.06, 0.06, dice[5]), _between(-0.2, -0.06, dice[6])),
        frame=_between(2.3, 2.8, dice[7]), distance=_between(4.7, 5.9, dice[8]))
    return View(yaw, pitch, chosen, camera, _backdrop(fit, seed, dice[9:], size_px))


@torch.no_grad()
def render_pair(fit: Fit, seed: int, *, inside: bool | None = None, size_px: int | None = None,
                head: Head | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Draw a fit and the truth from the same place, before the same backdrop.

    Args:
        fit: of a procedural head.
        seed: of the view, 0 or more.
        inside: see `draw_view`.
        size_px: side of the picture; None: that of the pictures it was fitted to.
        head: the true head, `Head.of(fit.recipe.identity, size_px)`, if it is at hand.

    Returns:
        degraded (3, size, size) and clean (3, size, size), float32 in [0, 1]; regions
        (size, size), uint8, exact, of the true head.
    """
    size_px = size_px or fit.recipe.size_px
    view = draw_view(fit, seed, inside=inside, size_px=size_px)
    head = head or Head.of(fit.recipe.identity, size_px)
    clean, regions = head.render(view.camera, view.backdrop)
    return render(fit.values, view.camera, view.backdrop).clamp(0, 1), clean, regions


@dataclass(frozen=True)
class RenderedPairs:
    """A set of pairs, kept in 8 bits."""

    degraded: Tensor  # uint8 (N, 3, H, W)
    clean: Tensor  # uint8 (N, 3, H, W)
    regions: Tensor  # uint8 (N, H, W)
    origins: tuple[str, ...]  # head, view and its place, one text per pair

    def __len__(self) -> int:
        return len(self.origins)

    def load(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Some pairs: degraded and clean (B, 3, H, W) float32 in [0, 1], regions (B, H, W)."""
        rows = torch.as_tensor(list(indices))
        return (self.degraded[rows].float().div(255), self.clean[rows].float().div(255),
                self.regions[rows])


def render_pairs(fits: Sequence[Fit], count: int, *, seed: int = 0, inside: bool | None = None,
                 size_px: int | None = None,
                 progress: Callable[..., Iterable[int]] | None = Bar) -> RenderedPairs:
    """Draw a set of pairs; pair n shows fit n modulo their number, and views go up from the seed.

    Each head is built once, and all its views are drawn then.

    Args:
        fits: the heads; those of training, of validation or of the test.
        count: how many pairs, 1 or more.
        seed: of the first view of each head; the next views take the next seeds.
        inside: see `draw_view`.
        size_px: see `render_pair`.
        progress: wraps the loop over heads as `tqdm` does; None shows nothing.

    Raises:
        ValueError: no fits, or a count below 1.
    """
    if not fits or count < 1:
        raise refused("rendered pairs", "one fit or more and a count of 1 or more",
                      (len(fits), count), "ask for some")
    heads: Iterable[int] = range(min(len(fits), count))
    heads = progress(heads, desc="Drawing rendered pairs", unit="head") if progress else heads
    made: dict[int, tuple[tuple[Tensor, ...], str]] = {}
    for which in heads:
        fit = fits[which]
        head = Head.of(fit.recipe.identity, size_px or fit.recipe.size_px)
        for n in range(which, count, len(fits)):
            made[n] = _pair_in_bytes(fit, head, seed + n // len(fits), inside, size_px)
    pairs, origins = zip(*(made[n] for n in range(count)), strict=True)
    return RenderedPairs(*(torch.stack(parts) for parts in zip(*pairs, strict=True)), origins)


def _pair_in_bytes(fit: Fit, head: Head, seed: int, inside: bool | None,
                   size_px: int | None) -> tuple[tuple[Tensor, ...], str]:
    degraded, clean, regions = render_pair(fit, seed, inside=inside, size_px=size_px, head=head)
    view = draw_view(fit, seed, inside=inside, size_px=size_px)
    place = "inside" if view.inside else "outside"
    origin = f"rendered {fit.recipe.identity} view {seed}: {view.yaw_deg:+.0f}°, {place}"
    return (*(image.mul(255).round().byte() for image in (degraded, clean)), regions), origin


def _between(low: float, high: float, place: float) -> float:
    return low + (high - low) * place


def _backdrop(fit: Fit, seed: int, dice: Sequence[float], size_px: int) -> Tensor:
    if dice[0] < OWN_BACKDROP_SHARE:
        return fitted_backdrop(fit.recipe, seed, size_px)
    wall = int(2**31 * dice[1])
    if dice[2] < 0.7:
        return studio_wall(wall, size_px)
    matte = torch.rand(3, generator=torch.Generator().manual_seed(wall))
    return matte[:, None, None].expand(3, size_px, size_px)
