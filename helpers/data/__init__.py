"""Faces, regions and pairs, in one kind of prepared folder."""
