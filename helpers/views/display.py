"""Figures and images into the notebook and into files."""

from __future__ import annotations

import io
from pathlib import Path

from IPython.display import HTML, display
from matplotlib.figure import Figure
from torch import Tensor

from ..storage import write_whole
from .pictures import divided, shown, to_tag


def save_figure(figure: Figure, path: Path, dpi: int = 130) -> Path:
    """Write a figure as JPEG or PNG, by the path's suffix, whole or not at all."""
    kind = path.suffix.lstrip(".").replace("jpg", "jpeg")
    return write_whole(path, rendered(figure, kind, dpi))


def show(figure: Figure, alt: str) -> None:
    """Display a figure inline as JPEG, with a text for those who cannot see it."""
    display(picture(figure, alt))


def compare(before: Tensor, after: Tensor, where: Tensor | None = None) -> None:
    """Display two images (1, 3, H, W) in [0, 1], one over the other, with a divider to drag.

    Args:
        where: (1, 3, H, W), shown beside them: the second image, marked where it was repaired.
    """
    beside = shown(where[0], "where it repaired") if where is not None else ""
    display(HTML(f'<div style="display: flex; flex-wrap: wrap; gap: 8px; align-items: flex-start">'
                 f"<div>{divided(before[0], after[0])}</div><div>{beside}</div></div>"))


def rendered(figure: Figure, kind: str, dpi: int = 130) -> bytes:
    """A figure as the bytes of a "jpeg" or "png"."""
    buffer = io.BytesIO()
    options = {"pil_kwargs": {"quality": 88}} if kind == "jpeg" else {}
    figure.savefig(buffer, format=kind, dpi=dpi, facecolor="white", **options)
    return buffer.getvalue()


def picture(figure: Figure, alt: str) -> HTML:
    """A figure as inline JPEG, with a text for those who cannot see it."""
    return HTML(to_tag(rendered(figure, "jpeg", 100), alt))
