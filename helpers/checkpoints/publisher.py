"""Checkpoints on Drive: copied by a thread, read back and compared before they count."""

from __future__ import annotations

import errno
import time
from pathlib import Path
from queue import Queue, SimpleQueue
from threading import Event, Lock, Thread

from ..storage import copy_to_drive, damage_named, verify
from .checkpoint import BEST, LATEST, NAMES, PREVIOUS, is_earlier, whole_step
from .claims import Fence
from .summary import write_summary

START_S = 5.0  # how long a start waits for Drive's first answer
SLOW_S = 60.0  # a copy that takes longer is mentioned
REMEDIES = {errno.ENOSPC: "free some space there and empty its trash",
            errno.EDQUOT: "free some space there and empty its trash",
            errno.ENOTCONN: "mount Drive again", errno.ENOENT: "mount Drive again",
            errno.EACCES: "allow this account to write there"}


def publish(content: bytes, target: Path) -> int:
    """Copy a whole checkpoint into a folder on Drive, as `copy_to_drive` does.

    Args:
        content: of the checkpoint.
        target: its place in a folder that is there; a whole `latest` moves on to `previous`.

    Returns:
        Its step.

    Raises:
        OSError: the copy did not get through.
        ValueError: not a whole checkpoint, or the one there is of a later step.
    """
    texts = verify(content, f"{target.name} of this machine")
    with damage_named(target):
        step = int(texts["step"])
    earlier = target.name == LATEST and is_earlier(whole_step(target), step, target)
    copy_to_drive(content, target, before=target.with_name(PREVIOUS) if earlier else None)
    return step


class Publisher:
    """Publishes a run's checkpoints while training goes on; nothing it meets stops training.

    What there is to say is printed by `submit` and `close`, for what a thread prints does not
    show in every notebook.

    Args:
        folder: on Drive; None publishes nothing.

    Attributes:
        lost: another session has taken the folder over; nothing is published any more.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder, self.lost = folder, False
        self._fence: Fence | None = None  # once the folder has answered
        self._files: dict[str, bytes] = {}  # by name: not yet published
        self._lock, self._calls, self._answered = Lock(), Queue(), Event()
        self._busy_since: float | None = None
        self._lines: SimpleQueue[str] = SimpleQueue()  # to be printed
        self._told: set[object] = set()  # the kinds of problems told, until it works again
        self._thread = Thread(target=self._work, daemon=True)
        if folder:
            self._thread.start()
            if not self._answered.wait(START_S):
                self._lines.put(f"{self.folder} has not answered for {START_S:.0f} s; training "
                                "goes on.")
            self._print()

    def submit(self, file: Path, *, best: bool = False) -> None:
        """Hand over a checkpoint; one that still waits for its turn gives way to it.

        Args:
            file: whole; what happens to it afterwards does not matter.
            best: publish it as `best` too.
        """
        if self.folder and not self.lost:
            try:
                content = file.read_bytes()
            except OSError as error:
                self._tell(error)
            else:
                with self._lock:
                    self._files |= {LATEST: content} | ({BEST: content} if best else {})
                self._calls.put(True)
                self._tell_if_slow()
        self._print()

    def close(self, timeout_s: float = 120.0) -> None:
        """Wait for what was handed over, and say so if it did not get through."""
        if self.folder:
            self._calls.put(False)
            self._thread.join(timeout_s)
            if self._files:
                self._lines.put(f"{self.folder}: expected the last save, got no copy of it; the "
                                "files on this machine are whole: copy them before it goes, or "
                                "run again.")
        self._print()

    def _work(self) -> None:
        self._attempt()
        self._answered.set()
        while self._calls.get():
            self._attempt()
            self._calls.task_done()
        if self._files:
            self._attempt()

    def _attempt(self) -> None:
        self._busy_since = time.monotonic()
        try:
            if not self.lost:
                self._pass_fence()
                self._publish()
        except Exception as error:  # whatever it is, the next save tries again
            self._tell(error)
        finally:
            self._busy_since = None

    def _pass_fence(self) -> None:
        """Take the folder over, once; afterwards stop for good when another session has."""
        if self._fence is None:
            for place in (self.folder.parent, self.folder):  # not the one above: an unmounted
                place.mkdir(exist_ok=True)  # Drive would become a folder on this disk
            fence = Fence(self.folder)
            if line := fence.take_over():
                self._lines.put(line)
            self._fence = fence
        elif intruder := self._fence.intruder():
            with self._lock:
                self.lost = True
                self._files.clear()
            self._lines.put(f"{self.folder}: expected to be the only one training here, got "
                            f"{intruder}; this session publishes nothing more.")

    def _publish(self) -> None:
        with self._lock:
            files = {name: self._files[name] for name in (LATEST, BEST) if name in self._files}
        steps = []
        for name, content in files.items():
            steps.append(publish(content, self.folder / name))
            with self._lock:
                if self._files.get(name) is content:
                    del self._files[name]
        if files:
            write_summary(self.folder / LATEST, NAMES)
            if self._told:
                self._lines.put(f"{self.folder} is back: step {max(steps)} published.")
            self._told.clear()

    def _tell(self, error: Exception) -> None:
        """Say what went wrong, once for each kind until it works again."""
        number = getattr(error, "errno", None)
        if (kind := (type(error), number)) not in self._told:
            self._told.add(kind)
            remedy = f"{REMEDIES[number]}; " if number in REMEDIES else ""
            self._lines.put(f"No copy in {self.folder} ({error}); {remedy}training goes on, and "
                            "the next save tries again.")

    def _tell_if_slow(self) -> None:
        since = self._busy_since
        if since and time.monotonic() - since > SLOW_S and "slow" not in self._told:
            self._told.add("slow")
            self._lines.put(f"{self.folder} has not answered for {SLOW_S:.0f} s; training goes on.")

    def _print(self) -> None:
        while not self._lines.empty():
            print(self._lines.get())
