"""Several processes in one run, as `accelerate launch` starts them.

Gradients are summed by hand, once a step, and no module is wrapped: tensors keep their names, and
a checkpoint does not depend on how many processes made it. One process imports no accelerate.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn


class Processes:
    """This process, number `rank` of `count`; by itself, all of this costs nothing."""

    def __init__(self) -> None:
        self.rank, self.count = 0, 1
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            from accelerate import PartialState

            # One may still prepare its faces while the others wait
            self._state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=1))
            self.rank, self.count = self._state.process_index, self._state.num_processes
        if not self.first:
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def rows(self, batch: int) -> slice:
        """This process's rows of a batch, in order, one at least."""
        if batch < self.count:
            raise ValueError(f"train_batch_size: expected {self.count} or more, one for each "
                             f"process, got {batch}; raise it and lower "
                             "gradient_accumulation_steps as much, or start fewer processes")
        return slice(self.rank * batch // self.count, (self.rank + 1) * batch // self.count)

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their sums; those that no process has stay None."""
        if self.count == 1:
            return
        parameters = list(parameters)
        present = torch.tensor([float(p.grad is not None) for p in parameters])
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        total = self.sum(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        parts = total.split([p.numel() for p in parameters])
        for p, part, count in zip(parameters, parts, self.sum(present).tolist(), strict=True):
            p.grad = part.view_as(p) if count else None

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        if self.count == 1:
            return values
        total = values.to(self._state.device, copy=True)
        torch.distributed.all_reduce(total)
        return total.to(values.device)

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        return bool(self.sum(torch.tensor(float(flag))))

    def broadcast(self, value: Any) -> Any:
        """What the first process passes, in all of them."""
        values = [value]
        if self.count > 1:
            torch.distributed.broadcast_object_list(values, src=0, device=self._state.device)
        return values[0]

    @contextmanager
    def one_first(self) -> Iterator[None]:
        """Let one process of each machine go first: the others find what it has made."""
        with self._state.local_main_process_first() if self.count > 1 else nullcontext():
            yield


@cache
def processes() -> Processes:
    """The processes; the first call waits until all are there, and then only the first prints."""
    return Processes()
