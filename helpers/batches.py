"""Training batches by their number, read in this process or ahead of it in others.

Little is imported here, because every loader process imports it anew.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .data import Faces, draw_batch


class NumberedBatches(Dataset):
    """The batches of a run as a sequence without end: number → `draw_batch` of that number."""

    def __init__(self, faces: Faces, *, seed: int, batch: int) -> None:
        self.faces, self.seed, self.batch = faces, seed, batch

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        return draw_batch(self.faces, seed=self.seed, step=number, batch=self.batch)


def load_batches(faces: Faces, numbers: range, *, seed: int, batch: int,
                 workers: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Draw batches in order, the same ones whoever draws them. Closing it ends the processes.

    Args:
        numbers: of the batches.
        seed, batch: as for `draw_batch`.
        workers: processes that read ahead, on the CPU; 0 reads here, when asked.

    Yields:
        What `draw_batch` returns: clean (B, 3, H, W), regions (B, H, W), sample_seeds (B,).
    """
    yield from DataLoader(
        NumberedBatches(faces, seed=seed, batch=batch), sampler=numbers, batch_size=None,
        num_workers=workers, worker_init_fn=_leave_interrupts_to_the_trainer,
        multiprocessing_context="spawn" if workers else None,  # a fork would copy CUDA's state
        generator=torch.Generator())  # its own: the global one is left alone


def _leave_interrupts_to_the_trainer(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal reaches every process
