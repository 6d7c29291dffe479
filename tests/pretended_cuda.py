"""A CUDA that is not there: tensors that say cuda:0, with their content in this machine's memory.

Every operation is checked as a GPU would check it, computed on the CPU, and counted; so are the
moments at which Python would wait for the GPU, and what is uploaded to it. Autograd's engine has no
thread for a device that does not exist: to it they are CPU tensors, and what runs within a backward
pass is therefore computed and counted, but not checked.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)
VALUE_ASKED = ("_local_scalar_dense", "is_nonzero", "equal")  # Python waits for what they return
SIZE_ASKED = ("nonzero", "repeat_interleave", "bincount", "_unique2", "masked_select")
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")
NO_CPU_SCALAR = ("index_select", "gather", "embedding", "mm", "bmm", "convolution", "cat",
                 "grid_sampler_2d")


@dataclass
class Counts:
    """What a GPU would have been asked for."""

    launches: int = 0
    waits: int = 0
    uploads: int = 0

    def clear(self) -> None:
        """Begin anew."""
        self.launches = self.waits = self.uploads = 0


counts = Counts()


class OnCuda(Tensor):
    """A tensor of the pretended GPU."""

    content: Tensor

    @staticmethod
    def __new__(cls, content: Tensor) -> OnCuda:
        return Tensor._make_wrapper_subclass(
            cls, content.size(), strides=content.stride(), dtype=content.dtype,
            storage_offset=content.storage_offset(), layout=content.layout, device=content.device)

    def __init__(self, content: Tensor) -> None:
        self.content = content

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: tuple = (),
                           kwargs: dict | None = None) -> Any:
        return _compute(operation, args, kwargs or {})

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, other: Tensor) -> None:
        if not isinstance(other, OnCuda):
            raise RuntimeError(f"data of a tensor on cuda:0 set to one on {other.device}")
        self.content = other.content.detach()

    def __repr__(self, **_: Any) -> str:
        return f"OnCuda({tuple(self.shape)}, {self.dtype})"

    def tolist(self) -> Any:
        counts.waits += 1
        return self.content.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy

    def data_ptr(self) -> int:
        return self.content.data_ptr()

    def get_device(self) -> int:
        return 0


def _says_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


def _compute(operation: Any, args: tuple, kwargs: dict) -> Any:
    """An operation of which an argument or the result lies on the pretended GPU."""
    name = operation._schema.name.split("::")[1]
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, OnCuda)]
    asked = kwargs.get("device")
    if there and _in_backward():
        asked = CUDA  # C++ asks for the device it sees, the CPU's
    if not there and not _says_cuda(asked):
        return operation(*args, **kwargs)
    if name == "_to_copy":
        return _copied(operation, args, kwargs, asked)
    plain_args, plain = tree_map(lambda x: x.content if isinstance(x, OnCuda) else x,
                                 (args, kwargs))
    if "device" in plain:
        plain["device"] = torch.device("cpu")
    if name == "copy_":
        operation(*plain_args, **plain)
        counts.uploads += isinstance(args[0], OnCuda) and not isinstance(args[1], OnCuda)
        counts.waits += isinstance(args[1], OnCuda) and not isinstance(args[0], OnCuda)
        return args[0]
    if not _in_backward():
        _refuse_strangers(name, operation, tensors)
    counts.waits += name in VALUE_ASKED or name in SIZE_ASKED
    counts.launches += not operation.is_view
    owners = {id(tensor.content): tensor for tensor in there}  # in place: the same tensor returns
    return tree_map(lambda x: owners.get(id(x)) if id(x) in owners else
                    OnCuda(x) if isinstance(x, Tensor) and not isinstance(x, OnCuda) else x,
                    operation(*plain_args, **plain))


def _refuse_strangers(name: str, operation: Any, tensors: list[Tensor]) -> None:
    """Raise where a GPU would: a CPU tensor among its own, but for scalars and indices."""
    if not any(isinstance(tensor, OnCuda) for tensor in tensors):
        return
    for tensor in tensors:
        index = name in INDEXING and not tensor.is_floating_point()
        scalar = tensor.ndim == 0 and name not in NO_CPU_SCALAR
        if not (isinstance(tensor, OnCuda) or index or scalar):
            raise RuntimeError(f"{operation}: expected all tensors to be on the same device, found "
                               f"cuda:0 and {tensor.device} {tuple(tensor.shape)}")


def _copied(operation: Any, args: tuple, kwargs: dict, device: Any) -> Tensor:
    source = args[0]
    was, goes = isinstance(source, OnCuda), _says_cuda(device)
    goes = goes or (was and device is None)
    options = {name: value for name, value in kwargs.items() if name != "device"}
    content = operation(source.content if was else source, *args[1:], **options)
    counts.waits += was and not goes
    counts.uploads += goes and not was
    counts.launches += was and goes
    return OnCuda(content) if goes else content


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (),
                           kwargs: dict | None = None) -> Any:
        return _compute(operation, args, kwargs or {})


class _Calls(TorchFunctionMode):
    """Calls that C++ would answer without asking the dispatcher, or by copying beneath it."""

    def __torch_function__(self, call: Callable, types: Any, args: tuple = (),
                           kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        if call in (Tensor.to, Tensor.cpu, Tensor.cuda, Tensor.type_as):
            return _moved(call, *args, **kwargs)
        if call in (torch.tensor, torch.as_tensor) and _says_cuda(kwargs.get("device")):
            del kwargs["device"]
            counts.uploads += not isinstance(args[0], OnCuda)
            made = call(*args, **kwargs)
            return made if isinstance(made, OnCuda) else OnCuda(made)
        if call is Tensor.new_tensor and isinstance(args[0], OnCuda):
            counts.uploads += 1
            return OnCuda(torch.tensor(args[1], dtype=kwargs.get("dtype") or args[0].dtype))
        return call(*args, **kwargs)


def _moved(call: Callable, source: Tensor, *args: Any, device: Any = None,
           dtype: torch.dtype | None = None, other: Tensor | None = None, copy: bool = False,
           **_: Any) -> Tensor:
    device = {Tensor.cpu: "cpu", Tensor.cuda: "cuda"}.get(call, device)
    for argument in (*args, other):
        if isinstance(argument, Tensor):
            device, dtype = argument.device, argument.dtype
        elif isinstance(argument, torch.dtype):
            dtype = argument
        elif isinstance(argument, str | torch.device):
            device = argument
    was, dtype = isinstance(source, OnCuda), dtype or source.dtype
    goes = was if device is None else _says_cuda(device)
    plain = torch._C.TensorBase.to
    if was == goes:
        return plain(source, dtype=dtype, copy=copy)
    if was:
        counts.waits += 1
        return plain(source.content.detach(), dtype=dtype, copy=True)
    counts.uploads += 1
    there = OnCuda(plain(source.detach(), dtype=dtype, copy=True))
    return there.requires_grad_() if source.requires_grad and source.is_leaf else there


@contextlib.contextmanager
def pretended_cuda(*, capability: tuple[int, int] = (7, 5), gib: float = 14.56,
                   name: str = "Tesla T4") -> Iterator[Counts]:
    """Within, there is a GPU; what it would have been asked for is counted from 0."""
    properties = SimpleNamespace(total_memory=int(gib * 2**30), name=name, major=capability[0],
                                 minor=capability[1], multi_processor_count=40)
    silent = ("reset_peak_memory_stats", "synchronize", "empty_cache", "_lazy_init")
    numbers = ("max_memory_allocated", "max_memory_reserved", "memory_allocated", "memory_reserved")
    answers = dict.fromkeys(silent) | dict.fromkeys(numbers, 0) | {
        "is_available": True, "is_initialized": True, "current_device": 0, "device_count": 1,
        "is_current_stream_capturing": False, "get_device_properties": properties,
        "get_device_capability": capability, "get_device_name": name,
        "mem_get_info": (properties.total_memory,) * 2}
    counts.clear()
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    with contextlib.ExitStack() as stack:
        # To C++ all is of one kind: without it a module would keep its parameters when it moves
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, before)
        for function, answer in answers.items():
            stack.enter_context(mock.patch.object(torch.cuda, function,
                                                  lambda *_, answer=answer, **__: answer))
        if hasattr(torch, "accelerator"):
            idle = SimpleNamespace(is_capturing=lambda: False)
            stack.enter_context(mock.patch.object(torch.accelerator, "current_stream",
                                                  lambda *_: idle))
        stack.enter_context(_Calls())
        stack.enter_context(_Operations())
        yield counts
