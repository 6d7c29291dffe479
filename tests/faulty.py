"""A folder whose operating-system calls fail or hang, as a full disk or a lost Drive makes them.

Nothing of ours is replaced: what fails is what Python asks of the system for paths below the
folder, from opening to `fsync`. A write that fails leaves on disk what had still fitted.
"""

from __future__ import annotations

import builtins
import io
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from safetensors import safe_open
from safetensors.torch import load_file, save_file

BY_PATH = ("replace", "rename", "link", "stat", "unlink", "mkdir", "scandir", "listdir", "open")


class Faults:
    """When calls below a folder fail, and how often they have.

    Args:
        folder: what lies in it, and itself.
        errno: of the OSError; None for calls that hang instead.
        hang: calls wait until this event is set, then go on.
        after_calls: how many calls still succeed.
        after_bytes: only writes fail, once so many bytes are written: a full disk.
        until: called at each fault; True ends them.
    """

    def __init__(self, folder: Path, errno: int | None, hang: threading.Event | None,
                 after_calls: int, after_bytes: int | None, until: Callable[[], bool]) -> None:
        self.folder, self.errno, self.hang = os.fspath(folder), errno, hang
        self.calls_left, self.bytes_left, self.until = after_calls, after_bytes, until
        self.hits = 0
        self.descriptors: set[int] = set()  # open files below the folder

    def hit(self, path: object) -> None:
        """Fail or hang now, unless there are calls left or it is over."""
        if self.until():
            return
        if self.calls_left > 0:
            self.calls_left -= 1
            return
        self.hits += 1
        if self.hang:
            self.hang.wait()
        else:
            raise OSError(self.errno, os.strerror(self.errno), str(path))

    def call(self, path: object) -> None:
        """A call that may fail, unless only the room on the disk is short."""
        if self.bytes_left is None:
            self.hit(path)

    def covers(self, path: object) -> bool:
        """Whether a call's argument is the folder, or something in it."""
        if isinstance(path, int):
            return path in self.descriptors
        if not isinstance(path, str | os.PathLike):
            return False
        where = os.path.abspath(os.fspath(path))  # noqa: PTH100 - pathlib may be what is tested
        return where == self.folder or where.startswith(self.folder + os.sep)


class FaultyFile(io.FileIO):
    """A file below the folder."""

    def __init__(self, faults: Faults, path: object, mode: str) -> None:
        super().__init__(path, mode)
        self.faults = faults
        faults.descriptors.add(self.fileno())

    def close(self) -> None:
        if not self.closed:
            self.faults.descriptors.discard(self.fileno())
        super().close()

    def readinto(self, buffer: object) -> int | None:
        self.faults.call(self.name)
        return super().readinto(buffer)

    def readall(self) -> bytes:
        self.faults.call(self.name)
        return super().readall()

    def write(self, data: object) -> int:
        self.faults.call(self.name)
        view, left = memoryview(data).cast("B"), self.faults.bytes_left
        if left is not None and len(view) > left and not self.faults.until():
            self.faults.bytes_left -= super().write(view[:left])
            self.faults.hit(self.name)
        elif left is not None:
            self.faults.bytes_left -= len(view)
        return super().write(view)


@contextmanager
def faulty(folder: Path, *, errno: int | None = None, hang: threading.Event | None = None,
           after_calls: int = 0, after_bytes: int | None = None,
           until: Callable[[], bool] = lambda: False) -> Iterator[Faults]:
    """Let calls below a folder fail (`errno`) or hang (`hang`), in all threads of this process.

    Example: `with faulty(drive, errno=errno.ENOTCONN, until=back.is_set) as faults:` and then
    `assert faults.hits`.

    Yields:
        The faults; the arguments are theirs.
    """
    if (errno is None) == (hang is None):
        raise ValueError("faulty: expected errno or hang, got both or none; pass one of them")
    faults = Faults(Path(folder).absolute(), errno, hang, after_calls, after_bytes, until)
    with mock.patch.multiple(os, **_calls(faults)), \
            mock.patch.object(io, "open", opener := _opener(faults)), \
            mock.patch.object(builtins, "open", opener):
        yield faults


def _calls(faults: Faults) -> dict[str, Callable]:
    def guarded(name: str, original: Callable) -> Callable:
        def call(*args: object, **options: object) -> object:
            for path in filter(faults.covers, args[:2]):
                faults.call(path)
                break
            return original(*args, **options)
        return call

    return {name: guarded(name, getattr(os, name)) for name in (*BY_PATH, "fsync")}


def _opener(faults: Faults) -> Callable:
    original = io.open

    def opener(file: object, mode: str = "r", buffering: int = -1, encoding: str | None = None,
               errors: str | None = None, newline: str | None = None,
               **options: object) -> object:
        if isinstance(file, int) or not faults.covers(file):
            return original(file, mode, buffering, encoding, errors, newline, **options)
        faults.call(file)
        raw = FaultyFile(faults, file, mode.replace("b", "").replace("t", ""))
        if buffering == 0:
            return raw
        kind = io.BufferedRandom if "+" in mode else \
            io.BufferedReader if "r" in mode else io.BufferedWriter
        buffered = kind(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

    return opener


def without_weight(folder: Path, name: str) -> None:
    """Take one tensor out of a saved network's file, as an older or foreign one may lack it."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        texts = file.metadata()
    del tensors[name]
    save_file(tensors, path, texts)
