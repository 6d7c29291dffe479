"""Splat Enhancer: renders of Gaussian splats, restored; `from helpers import load, restore`.

Nothing is imported before it is asked for.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    if name not in ("load", "restore"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .restoring import library

    return getattr(library, name)
