"""Paths as people paste them, and names that are safe for our own folders."""

from __future__ import annotations

from pathlib import Path

QUOTES = ('""', "''", "“”", "‘’", "``", "«»")


def own_path(text: str | Path) -> Path:
    """A user's path: without the quotes and blanks around it that copying leaves, `~` resolved."""
    if isinstance(text, Path):
        return _at_home(text)
    text = text.strip()
    while len(text) > 1 and text[0] + text[-1] in QUOTES:
        text = text[1:-1].strip()
    return _at_home(Path(text))


def _at_home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:  # `~x.png`: nobody is called so, it is a file's name
        return path


def safe_name(text: str, longest: int = 40) -> str:
    """A part of a file's name: letters, digits and `-_.` only, and not too long.

    So no library takes it for an address (`a::b`, `s3:…`), and no file system refuses it.

    Args:
        longest: in bytes, as file systems count.
    """
    kept = "".join(c if c.isalnum() or c in "-_." else "-" for c in text).strip(".") or "unnamed"
    while len(kept.encode()) > longest:
        kept = kept[:-1]
    return kept
