"""Clean faces in, faces with the defects of a Gaussian-splat render out; read `pipeline.py`."""
