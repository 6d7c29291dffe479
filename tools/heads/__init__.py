"""Procedural heads, 3D Gaussian fits of them, and the pairs and pictures that are made of both."""
