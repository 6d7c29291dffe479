"""Splat Enhancer: restores renders of Gaussian splats in a single forward pass.

    from splat_enhancer import load, restore
    restored = restore(load(), "render.png")

`load` takes an export's folder or hub name, nothing for the enhancer that is shipped; `Run` is a
training run. Nothing is imported before it is asked for.
"""

from importlib import import_module
from typing import Any

__all__ = ["Run", "__version__", "load", "restore"]
__version__ = "0.2.0"
_PLACES = {"load": ".model.export", "restore": ".enhance.restore", "Run": ".run"}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name], __name__), name)
