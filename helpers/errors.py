"""The one form of this project's errors: what was expected, what came, what to do."""

from __future__ import annotations


def refused(name: str, expected: str, got: object, remedy: str) -> ValueError:
    """The error of a value that cannot be used: `name: expected …, got …; remedy`."""
    return ValueError(f"{name}: expected {expected}, got {got!r}; {remedy}")
