"""How a user's own renders are restored; what is left out of it changes no result."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import refused


@dataclass(frozen=True)
class RestoreConfig:
    """Settings of a restoration; a result is made again where one of its kind's has changed."""

    strength: float = 1.0  # 0 keeps the input, 1 takes the restoration; a linear blend between them
    overlay: bool = False  # also write, in blue over the restored picture, where it was repaired

    def __post_init__(self) -> None:
        if isinstance(self.strength, bool) or not 0.0 <= self.strength <= 1.0:
            raise refused("strength", "a number from 0 to 1", self.strength, "lower or raise it")
