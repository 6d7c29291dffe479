"""How a procedural head is reconstructed, and badly so: one recipe per identity, by its seed."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import refused
from ..splats import Draws

SIZE_PX = 128  # of the pictures that fits are made from
FEWEST_GAUSSIANS = 4  # a Gaussian starts as large as its three neighbours are far
GOOD_SHARE = 0.3  # of the recipes make a render that is best left alone
# One colour; a studio's green; one studio wall; another wall in every view
BACKDROPS = ("matte", "green", "wall", "changing")


@dataclass(frozen=True)
class Recipe:
    """All that decides a fit. Degrees, head units (a head is two tall) and shares in [0, 1]."""

    identity: int  # seed of the avatar, and of all chance in its fit
    views: int  # that are fitted; few
    arc_deg: float  # they stand within ± this
    pitch_deg: float  # by turns this far above and below
    gaussians: int
    steps: int  # of Adam, one view each; Kerbl et al. (2023) take 30,000
    settle: float  # share of the steps, at their end, in which the rates fall to a tenth
    rate: float  # factor on all learning rates
    strays: float  # share of the starting points that lie anywhere around the head: floaters
    gaps: int  # places without starting points: holes and stretched neighbours
    gap_radius: float
    camera_error_deg: float  # of the tracker, in yaw and pitch: contours that double and blur
    spread: float  # deviation at the start, as a share of the distance to the nearest neighbours
    opacity: float  # at the start, as a logit
    backdrop: str  # what stands behind the head in the fitted views, one of BACKDROPS
    size_px: int = SIZE_PX
    tilt_deg: float = 0.0  # the mean pitch of the cameras

    def __post_init__(self) -> None:
        for name, least in (("views", 1), ("gaussians", FEWEST_GAUSSIANS), ("steps", 1)):
            if getattr(self, name) < least:
                raise refused(f"recipe.{name}", f"{least} or more", getattr(self, name), "raise it")
        if self.backdrop not in BACKDROPS:
            raise refused("recipe.backdrop", f"one of {', '.join(BACKDROPS)}", self.backdrop,
                          "pick one of them")


def draw_recipe(identity: int, size_px: int = SIZE_PX) -> Recipe:
    """The recipe of an identity; about three in ten make a good fit, the others a poor one.

    The poor ones surround 1,800 Gaussians, 200 steps, 10 views within ±35° and 0.7° of camera
    error.
    """
    draws = Draws([identity], "recipe", "cpu")
    dice = iter(draws.uniform(16)[0].tolist())

    def between(low: float, high: float) -> float:
        return round(low + (high - low) * next(dice), 4)

    def geometric(low: float, high: float) -> float:
        return round(low * (high / low) ** next(dice), 4)

    good = next(dice) < GOOD_SHARE
    kind = next(dice)
    backdrop = "matte" if kind < 0.6 else "wall" if kind < 0.85 else "changing"
    if good:
        return Recipe(
            identity, views=round(between(9.5, 16.5)), arc_deg=between(28, 45),
            pitch_deg=between(3, 9), gaussians=round(geometric(1_800, 2_800)),
            steps=round(between(240, 380)), settle=between(0.2, 0.4), rate=between(0.8, 1.2),
            strays=between(0, 0.05), gaps=round(between(-0.5, 3.5)), gap_radius=between(0.1, 0.18),
            camera_error_deg=between(0.05, 0.35), spread=between(0.45, 0.7),
            opacity=between(-0.8, 0.4), backdrop=backdrop, size_px=size_px)
    return Recipe(
        identity, views=round(between(4.5, 14.5)), arc_deg=between(22, 45),
        pitch_deg=between(2, 10), gaussians=round(geometric(900, 3_000)),
        steps=round(between(100, 350)), settle=0.3 * (next(dice) < 0.25), rate=geometric(0.6, 1.6),
        strays=between(0, 0.2), gaps=round(between(-0.5, 12.5)), gap_radius=between(0.1, 0.26),
        camera_error_deg=between(0.1, 1.3), spread=between(0.35, 0.8),
        opacity=between(-1.2, 0.6), backdrop=backdrop, size_px=size_px)
