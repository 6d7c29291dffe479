"""Gaussian splats: an exact rasteriser, pictures described by Gaussians or fitted with them, and
trained scenes from `.ply` files with cameras around them.

Beside them the two things that need them most: numbers drawn per sample, and image filters.
"""

from .draws import FIELD_SIZE, Draws
from .fit import GAUSSIANS, STEPS, descend, draw_fit, fit_splats
from .gaussians import GRID, LIMIT, Gaussians, describe, sample_at
from .orbit import AXES, carry, flow_between, framed, orbit
from .ply import read_ply, write_ply
from .rasteriser import Camera, Splats, drawing_device, project, rasterise
from .scene import BASE, FIRST, Scene, View, draw, rotations
