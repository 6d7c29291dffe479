"""How a user's own renders are restored; what is left out of it changes no result."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import refused
from ..splats import AXES

BACKDROPS = {"white": 1.0, "grey": 0.5, "black": 0.0}  # behind a splat

@dataclass(frozen=True)
class RestoreConfig:
    """Settings of a restoration; a result is made again where one of its kind's has changed."""

    strength: float = 1.0  # 0 keeps the input, 1 takes the restoration; a linear blend between them
    overlay: bool = False  # pictures: also write, in blue over the restored one, what was repaired
    steady: float = 0.25  # video, splat: share of the last frame's change that stays; 0 is off
    views: int = 24  # splat: how many, evenly round the orbit
    view_px: int = 512  # splat: side of a view, pixels
    up: str = "-y"  # splat: axis that points upwards; that of most trained scenes, from COLMAP
    arc_deg: float = 360.0  # splat: part of the orbit, its middle in front; 360 is all of it
    elevation_deg: float = 5.0  # splat: how far above the centre the cameras stand
    fov_deg: float = 40.0  # splat: angle of view
    backdrop: str = "white"  # splat: white, grey or black

    def __post_init__(self) -> None:
        if isinstance(self.strength, bool) or not 0.0 <= self.strength <= 1.0:
            raise refused("strength", "a number from 0 to 1", self.strength, "lower or raise it")
        if isinstance(self.steady, bool) or not 0.0 <= self.steady <= 1.0:
            raise refused("steady", "a number from 0 to 1", self.steady, "lower or raise it")
        if not (1 <= self.views <= 1_000 and 64 <= self.view_px <= 4_096):
            raise refused("views, view_px", "1 to 1,000 views of 64 to 4,096 px",
                          (self.views, self.view_px), "change them")
        for name, known in (("up", AXES), ("backdrop", BACKDROPS)):
            if getattr(self, name) not in known:
                raise refused(name, f"one of {', '.join(known)}", getattr(self, name),
                              "pick one of them")
