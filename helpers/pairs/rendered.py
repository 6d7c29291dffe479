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
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..faces import Head, look_at_head, studio_wall
from ..splats import Camera, Draws
from .fits import Fit, load_fits
from .pair import pick
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
    pitch = recipe.tilt_deg + _between(-1, 1, dice[3]) * (recipe.pitch_deg + 3)
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


class RenderedPairs:
    """Pairs of the shipped training heads: a `PairSource`, drawn when they are asked for.

    Each seed decides on a head and on a view of it, half of them beyond the arc. A head is built
    when it is first seen, and kept.

    Args:
        size_px: side of the pictures.

    Raises:
        DamagedFile: the shipped fits are missing or not as they were written.
    """

    kind = "rendered"

    def __init__(self, size_px: int) -> None:
        self.fits, self.size_px = load_fits("train"), size_px
        self._heads: dict[int, Head] = {}

    def __len__(self) -> int:
        return len(self.fits)

    def draw(self, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """See `PairSource.draw`."""
        which = pick(seeds, len(self), self.kind)
        pairs = [self._pair(self.fits[n], seed)
                 for n, seed in zip(which, seeds.tolist(), strict=True)]
        degraded, clean = (torch.stack(side) for side in zip(*pairs, strict=True))
        return degraded, clean

    def _pair(self, fit: Fit, seed: int) -> tuple[Tensor, Tensor]:
        identity = fit.recipe.identity
        if identity not in self._heads:
            self._heads[identity] = Head.of(identity, self.size_px)
        return render_pair(fit, seed, size_px=self.size_px, head=self._heads[identity])[:2]


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
