"""Which machine this is and what it has, and the preset that suits it."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from ..config import PACKAGE, preset
from .memory import GIB, avoid_fragments
from .packages import installed_version
from .place import Place, this_place
from .processes import place_in_launch

T4_MIN_GIB = 12.0  # what the "t4" preset needs, with room to spare (a T4 shows 14.6)
ROOT = Path(__file__).resolve().parents[2]  # of a checkout
HOMES = {"colab": Path("/content/splat_enhancer"), "kaggle": Path("/kaggle/working"),
         "local": ROOT if PACKAGE == "helpers" else Path()}  # installed: the current folder


@dataclass(frozen=True)
class Runtime:
    """One machine, as found by `detect()`."""

    place: Place
    device: torch.device
    dtype: torch.dtype  # of the frozen working copies
    gpu: str | None  # its name
    gpu_gib: float  # memory of that GPU, 0 without one
    ram_gib: float
    disk_free_gib: float


def detect() -> Runtime:
    """Look at this machine: place, device, working precision, memory and disk."""
    avoid_fragments()
    device = _device()
    cuda = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return Runtime(
        place=this_place(), device=device, dtype=_dtype(device),
        gpu=cuda.name if cuda else ("Apple GPU" if device.type == "mps" else None),
        gpu_gib=cuda.total_memory / GIB if cuda else 0.0,
        ram_gib=psutil.virtual_memory().total / GIB,
        disk_free_gib=shutil.disk_usage(Path.cwd()).free / GIB)


def choose_preset(requested: str, runtime: Runtime) -> tuple[str, str]:
    """Resolve "auto".

    Returns:
        The preset's name, and the reason for it in words.

    Raises:
        ValueError: an unknown name.
    """
    if requested != "auto":
        return preset(requested).preset, "you asked for it"
    if runtime.gpu_gib >= T4_MIN_GIB:
        return "t4", f"the GPU has {runtime.gpu_gib:.1f} GiB, {T4_MIN_GIB:g} or more"
    lack = f"the GPU has only {runtime.gpu_gib:.1f} GiB" if runtime.gpu_gib else "no CUDA GPU"
    return "demo", f"{lack}, and the other presets want {T4_MIN_GIB:g} GiB"


def workspace(runtime: Runtime, root: Path | None = None) -> Path:
    """Create and return the local folder for data and runs: the place's own, or `root`.

    Raises:
        RuntimeError: nothing can be written there.
    """
    folder = Path(root) if root else HOMES[runtime.place].absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise RuntimeError(f"workspace: expected a folder to write to, got {folder} ({error}); "
                           "pass another root") from error
    return folder


def report(runtime: Runtime, preset: str, reason: str) -> str:
    """Two lines: machine, GPU, memory, disk and versions; the preset and why."""
    gpu = f"{runtime.gpu} {runtime.gpu_gib:.1f} GiB" if runtime.gpu_gib else runtime.gpu or "no GPU"
    packages = ", ".join(f"{name} {installed_version(name) or 'absent'}"
                         for name in ("torch", "diffusers", "peft"))
    dtype = str(runtime.dtype).removeprefix("torch.")
    return (f"{runtime.place} ({platform.system()} {platform.machine()}, {os.cpu_count()} CPUs) | "
            f"{gpu}, {dtype} | {runtime.ram_gib:.1f} GiB memory | "
            f"{runtime.disk_free_gib:.0f} GiB disk free | Python {platform.python_version()}, "
            f"{packages}\npreset '{preset}': {reason}")


def _device() -> torch.device:
    """The first of CUDA and Apple's MPS that can add, else the CPU."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    for kind in (kind for kind, found in there.items() if found):
        try:
            total = torch.ones(8, device=(own := _own(kind))).sum().item()
        except RuntimeError as error:  # a GPU too old for this torch, or a broken driver
            total = error
        if total == 8:
            return own
        print(f"There is a GPU ({kind}), but it does not work (1 + … + 1 = 8 gave {total}): "
              "it is not used.")
    return torch.device("cpu")


def _own(kind: str) -> torch.device:
    """Of the GPUs of a machine this process's, where several were launched."""
    _, ranks, local = place_in_launch()
    if kind != "cuda" or ranks == 1:
        return torch.device(kind)
    torch.cuda.set_device(local)  # for what says "cuda" and no more
    return torch.device(kind, local)


def _dtype(device: torch.device) -> torch.dtype:
    if device.type != "cuda":
        return torch.float32
    # Not bfloat16 where the chip has it: outputs are 8 times as far from float32's
    # (helpers/README.md), and against overflow there is the loss scale, on every card alike
    return torch.float16
