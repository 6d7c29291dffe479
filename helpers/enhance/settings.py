"""How a user's own renders are restored; imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import option

BACKDROPS = {"white": 1.0, "grey": 0.5, "black": 0.0}  # behind a splat
CHOICES = {"up": ("-y", "y", "z", "-z", "x", "-x"), "backdrop": tuple(BACKDROPS)}
RANGES = {"strength": (0, 1), "temporal": (0, 1), "views": (1, 1_000), "view_px": (64, 4_096),
          "arc_deg": (1, 360), "elevation_deg": (-89, 89), "fov_deg": (2, 149)}


@dataclass(frozen=True)
class RestoreConfig:
    """Settings of a restoration; a result is made again where one that changes it has changed."""

    strength: float = option(1.0, "0 keeps the input, 1 takes the restored image; a linear blend")
    overlay: bool = option(False, "pictures: also write, in blue, where it was repaired")
    temporal: float = option(0.25, "video, splat: smoothing, the share of the last frame's change "
                                    "that stays; 0 is off")
    views: int = option(24, "splat: how many views, evenly along the orbit")
    view_px: int = option(512, "splat: side of a view, pixels")
    up: str = option("-y", "splat: axis that points upwards; -y in most scenes, from COLMAP")
    arc_deg: float = option(360.0, "splat: part of the orbit, its middle in front")
    elevation_deg: float = option(5.0, "splat: how far above the centre the cameras stand")
    fov_deg: float = option(40.0, "splat: angle of view")
    backdrop: str = option("white", "splat: white, grey or black")

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value, whole = getattr(self, name), name.startswith("view")
            if not isinstance(value, int if whole else int | float) or isinstance(value, bool) \
                    or not low <= value <= high:
                kind = "a whole number" if whole else "a number"
                raise ValueError(f"{name}: expected {kind} from {low} to {high:,}, got {value!r}")
        for name, values in CHOICES.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name}: expected one of {', '.join(values)}, got "
                                 f"{getattr(self, name)!r}")
