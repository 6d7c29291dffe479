"""Several processes at one work, as `accelerate launch` starts them: who this one is, what is told.

The only module that knows accelerate and torch.distributed. Gradients are summed by hand, once a
step, and nothing is wrapped: tensors keep their names, batches that are accumulated are not sent
one by one, and a checkpoint cannot tell how many processes made it.

Words go over gloo, gradients of a GPU over NCCL. Before gradients are sent all have agreed that
they have some, so that nobody waits for a process that failed: if one ends, gloo tells the others
at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import refused

ANSWER = timedelta(days=1)  # one may still prepare its faces, or restore the longest video
Result = TypeVar("Result")


class Processes:
    """One process by itself: what several do together costs it nothing.

    Attributes:
        rank: number of this process; 0, the first, alone prints and writes.
        ranks: how many there are.
        orphaned: the launcher is gone, and with it whoever could stop this process.
    """

    rank, ranks, orphaned = 0, 1, False

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def rows(self, batch: int) -> slice:
        """This process's share of the rows of a batch, in order; one row at least.

        Raises:
            ValueError: there are fewer rows than processes.
        """
        if batch < self.ranks:
            raise refused("optim.batch", f"a picture or more for each of {self.ranks} processes",
                          batch, f"raise optim.batch to {self.ranks} (it is that of all processes "
                          "together) and lower optim.accumulate as much, or start fewer processes")
        return slice(self.rank * batch // self.ranks, (self.rank + 1) * batch // self.ranks)

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        return flag

    def gather(self, word: Any) -> list[Any]:
        """What each process says, in order of their numbers."""
        return [word]

    def from_first(self, make: Callable[[], Result]) -> Result:
        """What the first process makes; the others get it from there."""
        return make()

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one device and dtype by their sums over all processes."""

    @contextmanager
    def one_before_others(self) -> Iterator[None]:
        """Let one process of each machine go first: the others find what it has made."""
        yield


class _Launched(Processes):
    """One process of several; each waits for the words of all."""

    def __init__(self) -> None:
        from accelerate import PartialState
        from torch import distributed

        gpus = torch.cuda.device_count()
        if gpus and (wanted := int(os.environ.get("LOCAL_WORLD_SIZE", 1))) > gpus:
            raise refused("--num_processes", f"{gpus} for each machine, one a GPU", wanted,
                          "lower it")
        state = PartialState(cpu=not gpus)
        self.torch = distributed
        self.rank, self.ranks = state.process_index, state.num_processes
        self.launcher = os.getppid()
        self.leads_machine = state.local_process_index == 0
        self.words = distributed.new_group(backend="gloo", timeout=ANSWER)
        if not self.first:
            from huggingface_hub.utils import disable_progress_bars
            disable_progress_bars()
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115  (until this process ends)

    @property
    def orphaned(self) -> bool:
        return os.getppid() != self.launcher

    def any(self, flag: bool) -> bool:
        found = torch.tensor(float(flag))
        self.add_up([found])
        return bool(found)

    def gather(self, word: Any) -> list[Any]:
        said: list[Any] = [None] * self.ranks
        with self._answered():
            self.torch.all_gather_object(said, word, group=self.words)
        return said

    def from_first(self, make: Callable[[], Result]) -> Result:
        made = [make() if self.first else None]
        with self._answered():
            self.torch.broadcast_object_list(made, src=0, group=self.words)
        return made[0]

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])  # one message for all
        with self._answered():
            self.torch.all_reduce(flat, group=None if flat.is_cuda else self.words)
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    @contextmanager
    def one_before_others(self) -> Iterator[None]:
        if not self.leads_machine:
            self.gather(None)
        yield
        if self.leads_machine:
            self.gather(None)

    @contextmanager
    def _answered(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise RuntimeError(f"process {self.rank} of {self.ranks}: expected an answer of the "
                               "others, got none: one of them has ended, and said why "
                               f"({str(error).split('. ')[0]:.200})") from error


ALONE = Processes()


def place_in_launch() -> tuple[int, int, int]:
    """Rank, number of processes and rank on this machine, as the launcher says; joins nobody."""
    rank, ranks, local = (int(os.environ.get(name, default)) for name, default in (
        ("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    return (rank, ranks, local) if ranks > 1 else (0, 1, 0)


@cache
def processes() -> Processes:
    """This process among those it was launched with; the first call waits until all are there.

    From then on only the first process prints: the others' errors go to stderr as ever.

    Raises:
        ValueError: more processes than GPUs, or a launcher that started one instead of several.
    """
    if place_in_launch()[1] > 1:
        return _Launched()
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ:
        raise refused("accelerate launch", "several processes, as --num_processes says",
                      "one: without --multi_gpu it starts no more on this machine",
                      "add --multi_gpu, on CPUs too")
    return ALONE
