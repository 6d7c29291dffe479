"""The GPU's memory: what is free of it, and how to get back what nothing needs any more."""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Iterable

import torch
from torch import Tensor

GIB = 2**30
SETTINGS = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")  # of torch's allocator
FULL = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def avoid_fragments() -> None:
    """Let torch's allocator grow its segments: less is lost between them. Before CUDA is used.

    Settings of the user's own stand. Windows has no such segments.
    """
    if sys.platform == "linux" and not any(name in os.environ for name in SETTINGS):
        os.environ[SETTINGS[0]] = "expandable_segments:True"


def free_gib(device: torch.device, counted: Iterable[Tensor] = ()) -> float:
    """What a run can have of a GPU's memory right now, in GiB; 0 without a CUDA GPU.

    Args:
        device: of the run.
        counted: tensors that are there already and belong to what will be planned.
    """
    if device.type != "cuda":
        return 0.0
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    own = sum(tensor.nbytes for tensor in counted if tensor.device.type == "cuda")
    return (torch.cuda.mem_get_info(device)[0] + cached + own) / GIB


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU had no room: torch's own error, or that of a library it calls."""
    return isinstance(error, torch.OutOfMemoryError) or any(said in str(error) for said in FULL)


def free_memory(error: BaseException | None = None) -> None:
    """Give back what only an error still holds, and what torch's allocator keeps for later.

    The frames of a step that broke off hold its activations for as long as somebody keeps the
    error, and a notebook keeps its last one.

    Args:
        error: whose frames are cleared; None: the last one that a notebook has shown.
    """
    error = error or getattr(sys, "last_value", None)
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
