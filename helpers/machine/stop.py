"""How a loop is asked to stop: the Stop button, Ctrl-C, SIGTERM."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Stopped(KeyboardInterrupt):
    """A loop ended because it was asked to; a notebook shows one line instead of a traceback."""

    def _render_traceback_(self) -> list[str]:  # IPython asks for it
        return [str(self)]


class StopRequests:
    """Turns the first SIGINT (Stop button, Ctrl-C) and SIGTERM into a question a loop can ask.

    So no step is cut in half. The second signal finds whatever handled it before, and does what it
    always does: who waits for something that hangs can still leave.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():  # no other can set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                now = signal.getsignal(number)
                if isinstance(now, StopRequests):  # of a loop that was never closed
                    now = now._before[number]
                self._before[number] = now or signal.SIG_DFL
                signal.signal(number, self)
        return self

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(number, self._before[number])

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, before in self._before.items():
                if signal.getsignal(number) is self:
                    signal.signal(number, before)
