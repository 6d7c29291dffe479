"""A step that the GPU's memory does not hold: taken again with activations recomputed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from ..machine import ALONE, Processes, free_memory, is_out_of_memory
from .trainer import Trainer

Result = TypeVar("Result")


def within_memory(work: Callable[[], Result], trainer: Trainer,
                  team: Processes = ALONE) -> Result:
    """Do the work of a step up to its gradients, once more in lean memory if it does not fit.

    Nothing of the try that failed stays: no activation, no gradient. With `optim.memory` "auto" the
    model recomputes its activations from then on, and the results are those it would have had.

    Args:
        work: adds the step's gradients to the trainer and never returns None; it is called once
            or twice.
        trainer: of the run.
        team: all that take this step; where one has no room, all take it again.

    Raises:
        torch.OutOfMemoryError: it does not fit that way either, or another way was asked for.
    """
    model, memory = trainer.model, trainer.config.optim.memory
    while True:
        done = None
        try:
            done = work()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        if not team.any(done is None):
            return done
        trainer.drop_gradients()
        free_memory()  # after `except`: by then nobody holds the error, nor its frames activations
        if model.lean_memory or memory != "auto":
            break
        model.use_lean_memory()
        print(f"Step {trainer.step + 1} did not fit in the GPU's memory: from here on activations "
              "are recomputed (optim.memory 'lean'), which takes a third longer and changes no "
              "result.")
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()  # the next peak is that of what fits
    lean = "" if model.lean_memory else "set optim.memory to 'lean', or "
    raise torch.OutOfMemoryError(
        f"GPU memory: expected room for step {trainer.step + 1} "
        f"{'with activations recomputed' if model.lean_memory else 'in full memory'}, got out of "
        f"memory; {lean}halve optim.batch and double optim.accumulate, then run again: the run "
        "goes on from where it is saved")
