"""No picture may stop a run: what draws is guarded at the room's door, once for all."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from matplotlib.figure import Figure

Kind = TypeVar("Kind", bound=type)
_told: set[tuple[str, str]] = set()


def guarded(draw: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which says in one line what went wrong and gives an empty figure instead."""
    @wraps(draw)
    def without_stopping(*arguments: Any, **options: Any) -> Any:
        try:
            return draw(*arguments, **options)
        except Exception as error:
            news = draw.__qualname__, f"{type(error).__name__}: {error!s:.200}"
            if news not in _told:  # a live display would say it at every step
                _told.add(news)
                print("No picture ({}: {}); the run goes on.".format(*news))
            return Figure() if draw.__name__ != "__init__" else None
    return without_stopping


def guarded_methods(kind: Kind) -> Kind:
    """The class, with its public methods and its making guarded."""
    own = {name: guarded(method) for name, method in vars(kind).items()
           if callable(method) and (name == "__init__" or not name.startswith("_"))}
    return type(kind.__name__, (kind,), own | {"__doc__": kind.__doc__})
