"""One process at a time in a place on this disk, or at a file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

with suppress(ImportError):  # Windows has none
    import fcntl


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


@contextmanager
def held(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the operating system's own lock on a file or folder that is there; it leaves no trace.

    Yields:
        False where another process holds it, if this one shall not wait. True otherwise, and also
        where the system or the disk knows no such lock.

    Raises:
        OSError: the file cannot be opened.
    """
    if "fcntl" not in globals():
        yield True
        return
    number, free = os.open(path, os.O_RDONLY | os.O_NONBLOCK), True
    try:
        fcntl.flock(number, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        free = False
    except OSError:
        free = True
    try:
        yield free
    finally:
        os.close(number)
