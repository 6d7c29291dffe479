"""Gaussian splats: a rasterizer, scenes, fits; and seeded random numbers and image filters."""
