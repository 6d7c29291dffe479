"""Pairs of a degraded and a clean picture that no damage was painted on.

Procedural heads, fitted by few 3D Gaussians from few views, are seen from other views; the truth is
drawn from there. `load_fits` reads the heads that are shipped, `render_pairs` draws a set of pairs.
"""

from .fits import HEAD_SETS, Fit, load_fits, read_fits, write_fits
from .recipes import Recipe, draw_recipe
from .reconstruct import reconstruct
from .rendered import RenderedPairs, draw_view, render_pair, render_pairs

__all__ = [
    "HEAD_SETS",
    "Fit",
    "Recipe",
    "RenderedPairs",
    "draw_recipe",
    "draw_view",
    "load_fits",
    "read_fits",
    "reconstruct",
    "render_pair",
    "render_pairs",
    "write_fits",
]
