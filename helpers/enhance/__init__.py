"""Restoring a user's own pictures, videos and splats."""
