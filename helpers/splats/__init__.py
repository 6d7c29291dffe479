"""Gaussian splats: an exact rasteriser, pictures described by Gaussians or fitted with them.

Beside them the two things that need them most: numbers drawn per sample, and image filters.
"""

from .draws import FIELD_SIZE, Draws
from .fit import GAUSSIANS, STEPS, descend, draw_fit, fit_splats
from .gaussians import GRID, LIMIT, Gaussians, describe, sample_at
from .rasteriser import Camera, Splats, drawing_device, project, rasterise
