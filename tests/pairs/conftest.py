"""One tiny head that the tests of the room share."""

from __future__ import annotations

import pytest

from helpers.pairs.fits import Fit
from helpers.pairs.recipes import Recipe
from helpers.pairs.reconstruct import reconstruct


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """Four views of 64 pixels, 400 Gaussians, 40 steps: a second's work."""
    return Recipe(
        5, views=4, arc_deg=30.0, pitch_deg=5.0, gaussians=400, steps=40, settle=0.2, rate=1.5,
        strays=0.1, gaps=2, gap_radius=0.15, camera_error_deg=0.5, spread=0.7, opacity=0.0,
        backdrop="wall", size_px=64)


@pytest.fixture(scope="session")
def fit(recipe: Recipe) -> Fit:
    """The head, fitted."""
    return Fit(recipe, reconstruct(recipe))
