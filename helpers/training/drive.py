"""Copies of checkpoints on Drive, written by a thread while training goes on.

Drive can be slow, full or gone: that costs one line, and the next save tries again.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Thread

from .checkpoint import Checkpoint, TakenOver, save

SLOW_S = 60.0  # a copy that takes longer is mentioned

Job = tuple[Checkpoint, bytes]


class DriveCopy:
    """Copies the newest checkpoint to a folder on Drive, one at a time.

    Lines are printed by `submit` and `close`: what a thread prints shows in no cell.

    Args:
        folder: of the run, on Drive; None copies nothing.

    Attributes:
        taken_over: why this session is to stop: a later one saves there. Empty before that.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder, self.taken_over = folder, ""
        self._queue: Queue[Job | None] = Queue(maxsize=1)
        self._last: Job | None = None  # handed over
        self._copied: Job | None = None
        self._problem = self._printed = ""
        self._busy_since: float | None = None
        self._thread = Thread(target=self._work, daemon=True)
        if folder:
            self._thread.start()

    def submit(self, checkpoint: Checkpoint, content: bytes) -> None:
        """Hand over a checkpoint; one that still waits for its turn gives way to it.

        Args:
            checkpoint: its step and session are read, its tensors are not.
            content: `checkpoint.to_bytes()`.
        """
        if not self.folder or self.taken_over:
            return
        with suppress(Empty):
            self._queue.get_nowait()
        self._last = checkpoint, content
        self._queue.put(self._last)
        self._print()

    def close(self, timeout_s: float = 120.0) -> None:
        """Wait for what was handed over, and say so if it did not get through."""
        if not self.folder:
            return
        with suppress(Full):
            self._queue.put(None, timeout=timeout_s)
            self._thread.join(timeout_s)
        self._print()
        if self._last is not self._copied and not self.taken_over:
            print(f"{self.folder} lacks the last save, step {self._last[0].step}; it is on this "
                  "machine: copy it before the machine goes, or run again.")

    def _work(self) -> None:
        job = None
        while (following := self._queue.get()) is not None:
            job = following
            self._copy(job)
        if self._problem:
            self._copy(job)  # Drive may be back

    def _copy(self, job: Job) -> None:
        self._busy_since = time.monotonic()
        try:
            self.folder.parent.mkdir(exist_ok=True)  # no parents: an unmounted Drive would become
            save(job[0], self.folder, content=job[1])  # a folder on this disk
            self._copied, self._problem = job, ""
        except TakenOver as error:
            self.taken_over, self._problem = str(error), ""
        except Exception as error:  # whatever Drive does, training goes on
            self._problem = (f"No copy in {self.folder} ({error}); training goes on, the next save "
                             "tries again.")
        finally:
            self._busy_since = None

    def _print(self) -> None:
        """Print what is wrong once, until it works again."""
        message, since = self._problem, self._busy_since
        if since and time.monotonic() - since > SLOW_S:
            message = f"{self.folder} has not answered for {SLOW_S:.0f} s; training goes on."
        if message and not self._printed:
            print(message)
        elif self._printed and self._copied and not message and not since:
            print(f"{self.folder} is back: step {self._copied[0].step} is copied.")
        if not since or message:
            self._printed = message
