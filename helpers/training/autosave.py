"""When a run is saved, when it is not, and what happens if that fails."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from .. import checkpoints
from ..checkpoints import Claim, Publisher
from .trainer import Trainer

SKIPS_IN_A_ROW = 20  # mean that gradients are broken: a loss scale of 2^16 is below 1 by then


class Autosave:
    """Saves a run every so many steps and every so many seconds, and hands the file to Drive.

    A new run is saved before its first step: what cannot be saved is told then, not after hours.

    Args:
        trainer: whose state is saved.
        folder: on this machine's disk.
        publisher: copies what was saved to Drive.
        claimed: the claim on the folder; nothing is written once it is lost. None where another
            process of this run saves.

    Raises:
        OSError: nothing can be written there.
    """

    def __init__(self, trainer: Trainer, folder: Path, publisher: Publisher,
                 claimed: Claim | None) -> None:
        self.trainer, self.folder = trainer, folder
        self.publisher, self.claimed = publisher, claimed
        self.saved_step = self.tried_step = trainer.step
        self.tried_at = time.monotonic()  # a clock that is set back does not move this one
        if not trainer.step or self._best():  # a kill may have come before it was kept as best
            self.save()
        elif publisher.folder and checkpoints.step_or_none(
                folder / checkpoints.LATEST) == trainer.step:
            publisher.submit(folder / checkpoints.LATEST)  # Drive may have been gone before

    def before_step(self) -> None:
        """Raise RuntimeError if somebody else goes on with this run."""
        if self.claimed and not self.claimed.still_ours():
            raise RuntimeError(f"{self.folder}: expected to be the only one training there, but a "
                               "later call took over; this one stops without saving")
        if self.publisher.lost:
            raise RuntimeError("Drive: expected to be the only one saving this run there, but "
                               "another notebook took over; this one is saved in "
                               f"{self.folder} and stops. Go on in one of them")

    def after_step(self) -> None:
        """Save if it is time. A full disk does not stop a run: the next save tries again.

        Raises:
            FloatingPointError: this run learns nothing any more.
        """
        if self.trainer.history[-1]["skipped"]:
            self._refuse_collapse()
            self._tell_skips()
        elif self._due():
            try:
                self.save()
            except OSError as error:
                print(f"Step {self.trainer.step} is not saved ({error}); the last one that is: "
                      f"{self.saved_step}. Training goes on, the next save tries again.")

    def save(self) -> None:
        """Save the state, as the best too if it is; OSError if it cannot be written."""
        if self.claimed is None:
            return
        best = self._best()
        self.tried_step, self.tried_at = self.trainer.step, time.monotonic()
        file = checkpoints.save(self.trainer.checkpoint(), self.folder, best=best)
        self.saved_step = self.trainer.step
        self.publisher.submit(file, best=best)

    def finish(self) -> None:
        """Save what is not saved yet, if it is worth it; OSError if that fails."""
        trainer = self.trainer
        if (self.claimed and self.claimed.still_ours() and trainer.step > self.saved_step
                and trainer.whole and not has_collapsed(trainer)):
            self.save()

    def _due(self) -> bool:
        late = time.monotonic() - self.tried_at >= self.trainer.config.run.save_every_s
        return late or self._windows_since(self.tried_step) > 0

    def _best(self) -> bool:
        run, step = self.trainer.config.run, self.trainer.step
        ended = step % run.save_every_steps == 0 or self._windows_since(self.saved_step)
        return bool(ended) and is_best(self.trainer.history, run.save_every_steps)

    def _windows_since(self, step: int) -> int:
        every = self.trainer.config.run.save_every_steps
        return self.trainer.step // every - step // every

    def _refuse_collapse(self) -> None:
        if has_collapsed(self.trainer):
            raise FloatingPointError(
                f"losses and gradients: expected finite ones, got {SKIPS_IN_A_ROW} steps in a row "
                f"without; the last good state is that after step {self.saved_step} in "
                f"{self.folder}: lower optim.learning_rate or look for broken images, then run "
                "this again")

    def _tell_skips(self) -> None:
        skips = sum(record["skipped"] for record in self.trainer.history)
        if skips & (skips - 1) == 0:  # the 1st, 2nd, 4th, 8th: news, but no wall of lines
            print(f"Step {self.trainer.step} is skipped: a loss or gradient is not finite "
                  f"({skips} so far; a few are usual in half precision).")


def has_collapsed(trainer: Trainer) -> bool:
    """Whether the run has stopped learning: its state is not to replace a good one.

    A low loss scale is no sign of it: bad steps here and there halve it, good ones double it again.
    """
    recent = [record["skipped"] for record in trainer.history[-SKIPS_IN_A_ROW:]]
    return recent == [True] * SKIPS_IN_A_ROW


def is_best(history: Sequence[Mapping[str, Any]], every: int) -> bool:
    """Whether the last whole window of `every` steps has the lowest mean loss of all so far.

    Steps that were skipped do not count. It follows from the history alone, so a resumed run
    keeps the same best as an uninterrupted one.
    """
    windows = (history[i:i + every] for i in range(0, len(history) - every + 1, every))
    means = [fmean(losses) if losses else math.inf for losses in
             ([r["losses"]["total"] for r in window if not r["skipped"]] for window in windows)]
    return bool(means) and means[-1] < min(means[:-1], default=math.inf)
