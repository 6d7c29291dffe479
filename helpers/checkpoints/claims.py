"""One trainer per run: a lock on this machine, a fence on a Drive that several machines see."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from ..storage import write_whole

LOCK, OWNER = "run.lock", "owner.json"
RECENT_S = 600  # whoever published within this time may still be running


class Claim:
    """A run's folder as one training holds it.

    Args:
        folder: of the run.
        lock: held already.
    """

    # A lock belongs to the process, so the process has to know who in it came last. A forked
    # child inherits the entries but not the lock, hence the process id
    held: dict[tuple[int, Path], Claim] = {}  # noqa: RUF012

    def __init__(self, folder: Path, lock: FileLock) -> None:
        self.place, self.lock = (os.getpid(), folder), lock
        self.held[self.place] = self

    def still_ours(self) -> bool:
        """Whether no later training of this process has taken the folder over."""
        return self.held.get(self.place) is self

    def release(self) -> None:
        """Let go, unless a later training of this process has taken over."""
        if self.still_ours():
            del self.held[self.place]
            self.lock.release()


@contextmanager
def claim(folder: Path, *, wait_s: float = 7.0) -> Iterator[Claim]:
    """Hold a run's folder for one training on this machine; it ends with the process, however.

    Args:
        folder: of the run, on this machine's disk; made if need be.
        wait_s: how long a holder may take to leave: after a kill, the loader's workers live on
            for up to five seconds.

    Yields:
        The claim. A later claim of the same process (a cell that is run again while an error
        keeps the first run's frames alive) takes the folder over from it.

    Raises:
        RuntimeError: another process trains here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    earlier = Claim.held.get((os.getpid(), folder))
    ours = Claim(folder, earlier.lock if earlier else _locked(folder, wait_s))
    with suppress(OSError):  # it only serves the message; a full disk must not stop the run here
        write_whole(folder / OWNER, json.dumps(_introduce()).encode())
    try:
        yield ours
    finally:
        ours.release()


class Fence:
    """The right to write to a folder that several machines see, and that none of them can lock.

    Whoever came last has it: a session that died cannot stand in the way, and one that still
    runs finds out before it writes again.

    Args:
        folder: on Drive.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / OWNER
        self.owner = _introduce() | {"id": uuid.uuid4().hex}

    def take_over(self) -> str | None:
        """Become the owner; returns a line on the one before if it may still be running.

        Raises:
            OSError: the folder does not answer.
        """
        before = _read_owner(self.file)
        recent = [path.stat().st_mtime for path in (self.file, self.folder / "run.json")
                  if path.is_file()]
        write_whole(self.file, json.dumps(self.owner).encode())
        if before.get("host") in (None, self.owner["host"]) or not recent:
            return None  # on one machine the lock has settled it
        if (ago_s := time.time() - max(recent)) > RECENT_S:
            return None
        return (f"{_name(before)} wrote to {self.folder} {max(0, ago_s) / 60:.0f} minutes ago and "
                "may still be running there; it will stop at its next save.")

    def intruder(self) -> str | None:
        """Who has taken over since, or None.

        Raises:
            OSError: the folder does not answer.
        """
        now = _read_owner(self.file)
        return None if now.get("id", self.owner["id"]) == self.owner["id"] else _name(now)


def _locked(folder: Path, wait_s: float) -> FileLock:
    # Not bound to a thread: whoever drops a generator may do so in another one
    lock = FileLock(folder / LOCK, timeout=wait_s, thread_local=False)
    try:
        lock.acquire(poll_interval=0.1)
    except Timeout as error:
        raise RuntimeError(f"{folder}: expected to be the only one training here, got "
                           f"{_name(_read_owner(folder / OWNER))}; stop it (in a notebook: restart "
                           "its kernel), or choose another run.name") from error
    return lock


def _introduce() -> dict[str, str | int]:
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": since}


def _read_owner(file: Path) -> dict[str, str | int]:
    """{} where there is none, or a file that nobody can read anything from."""
    try:
        owner = json.loads(file.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _name(owner: dict[str, str | int]) -> str:
    if not owner:
        return "another process"
    return "process {} on {}, since {}".format(*(owner.get(k, "?") for k in ("pid", "host",
                                                                             "since")))
