"""One progress bar for all long loops of ours: HTML in a notebook, a line of text in a terminal."""

from __future__ import annotations

import html
import io
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from IPython import get_ipython
from IPython.display import HTML, display
from tqdm.std import tqdm

from .processes import place_in_launch

_TEXT = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


class Bar(tqdm):
    """tqdm's bar with the time left; a saved notebook keeps it as it ended, a reloaded page too.

    Widgets, tqdm's own choice in a notebook, do neither, and make Colab save what GitHub refuses.

    Args:
        iterable: what is looped over; None for a bar that is moved by `update`.
        options: tqdm's own.
    """

    initial = 0  # tqdm gives a bar that is not shown none
    monitor_interval = 0  # no thread that displays on its own: notebooks lose what it shows

    def __init__(self, iterable: Iterable | None = None, **options: Any) -> None:
        self.slot, self.inline = None, hasattr(get_ipython(), "kernel")
        own = {"file": io.StringIO(), "mininterval": 1.0, "bar_format": _TEXT}
        own = (own if self.inline else {}) | {"miniters": 1}  # steps may become slower
        own |= {"disable": True} if place_in_launch()[0] else {}  # the first process shows
        super().__init__(iterable, **own | options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Show where it is; called by tqdm. What cannot be shown stops nothing."""
        with suppress(Exception):
            self._show(msg, pos)

    def close(self) -> None:
        """Leave the bar as it ended."""
        with suppress(Exception):
            super().close()

    def _show(self, msg: str | None, pos: int | None) -> None:
        if not self.inline:
            super().display(msg, pos)
            return
        text = html.escape(str(self) if msg is None else msg)
        value = f'value="{self.n}" max="{self.total}" ' if self.total else ""
        picture = HTML(f'<progress {value}aria-label="{html.escape(self.desc)}" '
                       f'style="vertical-align: middle"></progress> {text}' if text else "")
        if self.slot is None:
            self.slot = display(picture, display_id=True)
        else:
            self.slot.update(picture)
