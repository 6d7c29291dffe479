"""How a procedural head is photographed and reconstructed: one recipe per identity, by its seed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from .person import Rng


@dataclass(frozen=True)
class Recipe:
    """All that decides a fit. Degrees, head units (a head is two tall) and shares in [0, 1]."""

    identity: int  # seed of the head, and of all chance in its fit
    views: int  # that are fitted; few
    arc_deg: float  # they stand within ± this
    pitch_deg: float  # and within ± this above and below
    size_px: int  # of the fitted pictures
    backdrop: str  # "white", "black", "matte", "wall"
    # what is not the same in all pictures
    camera_error_deg: float  # of the tracker
    exposure: float  # deviation of the pictures' brightness and colour
    leaks: float  # specks of the room behind per picture, which the mattes let through: floaters
    movement: float  # of eyes, lids and mouth, in moved_share of the pictures
    moved_share: float
    # the point cloud at the start
    gaussians: int
    depth_error: float  # deviation of the points
    strays: float  # share of the points that lie anywhere around the head: floaters
    stray_radius: float
    stray_size: float  # factor on their deviation
    gaps: int  # places without points: holes and stretched neighbours
    gap_radius: float
    spread: float  # deviation at the start, as a share of the distance to the nearest neighbours
    opacity: float  # at the start, as a logit
    # the optimisation
    steps: int  # of Adam, one view each; Kerbl et al. (2023) take 30,000
    rate: float  # factor on all learning rates
    slope_rate: float  # factor on the rate of the colours' change with direction
    fade_rate: float  # factor on the opacities' rate: how fast floaters vanish
    settle: float  # share of the steps, at their end, in which the rates fall to a tenth
    floaters: int  # added in the empty space that few cameras see
    shrunk: bool  # the render is drawn larger and shrunk, as the fitted pictures were
    picture: str = ""  # that covers the head


def draw_recipe(identity: int) -> Recipe:
    """The recipe of an identity; seven in ten keep the texture, the others lose part of it."""
    rng = Rng(identity, "recipe")
    d, geometric = rng.between, rng.geometric
    textured = rng.chance(0.7)
    kind = d(0, 1)
    backdrop = ("white" if kind < 0.5 else "black" if kind < 0.6 else
                "matte" if kind < 0.8 else "wall")
    arc = geometric(18, 55) if rng.chance(0.8) else d(55, 90)
    views = min(16, max(4, round(arc / d(3.5, 10))))
    return Recipe(
        identity, views, arc, d(2, 18), size_px=(160, 192, 192, 224)[int(d(0, 4))],
        backdrop=backdrop,
        camera_error_deg=d(0, 0.12) if textured else geometric(0.05, 0.5),
        exposure=geometric(0.006, 0.045), leaks=geometric(0.5, 14), movement=d(0.1, 1.0),
        moved_share=d(0.1, 0.5) if rng.chance(0.4) else 0.0,
        gaussians=round(geometric(6_000, 15_000) if textured else geometric(2_000, 6_000)),
        depth_error=geometric(0.01, 0.07), strays=geometric(0.03, 0.4),
        stray_radius=d(0.9, 1.8), stray_size=geometric(0.6, 2.0),
        gaps=max(0, round(d(-4, 8))), gap_radius=d(0.06, 0.2), spread=d(0.35, 0.7),
        opacity=d(-1.5, 1.0),
        steps=round(geometric(280, 600) if textured else geometric(160, 420)),
        rate=geometric(0.7, 1.6), slope_rate=geometric(0.2, 1.6),
        fade_rate=geometric(0.4, 1.2), floaters=round(geometric(8, 200)) if rng.chance(0.7) else 0,
        settle=d(0.1, 0.5) if rng.chance(0.6) else 0.0, shrunk=rng.chance(0.75))


def careful(recipe: Recipe) -> Recipe:
    """The same head, captured and fitted with care: its renders are nearly right."""
    d = Rng(recipe.identity, "careful").between
    return replace(
        recipe, views=16, arc_deg=min(recipe.arc_deg, d(15, 40)), camera_error_deg=d(0, 0.04),
        exposure=d(0.002, 0.01), leaks=0.0, moved_share=0.0, gaussians=round(d(12_000, 18_000)),
        depth_error=d(0.008, 0.02), strays=0.02, gaps=0, steps=round(d(600, 1100)),
        rate=d(0.7, 1.1), settle=d(0.3, 0.5), fade_rate=1.0, floaters=0)
