"""What a restoration tells while it works, and how it is asked to stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..machine import Stopped, StopRequests

PATIENCE_S = 3.0  # after which one file gets a bar of its own


class Report:
    """How far one file is, as a bar where it takes long; and what was taken for granted.

    Attributes:
        notes: in words, about this file.
    """

    def __init__(self, name: str = "", stop: StopRequests | None = None,
                 progress: Callable[..., Any] | None = None) -> None:
        self.name, self.stop, self.progress = name, stop, progress
        self.notes: list[str] = []
        self.started, self.bar = time.monotonic(), None

    def __call__(self, done: int, total: int) -> None:
        """Say that `done` of `total` (tiles, frames, views) are there.

        Raises:
            Stopped: it was asked for; what is unfinished is to be given up, or kept for next time.
        """
        if self.stop and self.stop.asked and done < total:
            raise Stopped(f"Stopped in the middle of {self.name}.")
        late = done < total and time.monotonic() - self.started > PATIENCE_S
        if self.progress and late and self.bar is None:
            self.bar = self.progress(total=total, desc=self.name, leave=False)
        if self.bar is not None:
            self.bar.update(done - self.bar.n)

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()
