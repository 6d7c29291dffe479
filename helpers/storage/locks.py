"""One process at a time in a place on this disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def alone(store: Path, *, wait: bool = True) -> Iterator[None]:
    """Let one process at a time prepare or copy a store; the others say so and wait.

    The lock is the operating system's and ends with its process, however that ends.

    Args:
        wait: False raises instead, where another process is there.

    Raises:
        BlockingIOError: another process is there, and this one shall not wait.
    """
    store.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(store.with_name(f".{store.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        if not wait:
            raise BlockingIOError("another process is at it") from error
        print(f"data: another process prepares {store.name}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
