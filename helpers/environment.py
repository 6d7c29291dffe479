"""The machine of a run: place, device, memory, packages, Google Drive; progress bars and stops.

The only module that knows Colab and Kaggle. Heavy imports happen where they are needed.
"""

from __future__ import annotations

import gc
import importlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from .config import preset
from .files import user_path

if TYPE_CHECKING:
    import torch

GIB = 2**30
T4_MIN_GIB = 12.0  # what the preset t4 needs, with some to spare (a T4 has 14.56)
DRIVE = Path("/content/drive")  # where Colab's own button mounts it, too
HOMES = {"colab": Path("/content/splat_enhancer"), "kaggle": Path("/kaggle/working")}
HOSTED_MISSING = {"lpips": "lpips==0.1.4", "stlpips-pytorch": "stlpips-pytorch==0.0.2"}
TORCHAO_MIN = (0, 16)  # peft raises ImportError on anything older


@dataclass(frozen=True)
class Environment:
    """One machine, as found by `detect()`."""

    place: Literal["colab", "kaggle", "local"]
    device: torch.device
    dtype: torch.dtype  # of the frozen working copies
    gpu: str | None  # its name
    gpu_gib: float  # memory of that GPU, 0 without one
    ram_gib: float
    disk_free_gib: float


def detect() -> Environment:
    """Look at this machine: place, device, working precision, memory and disk."""
    if sys.platform == "linux":  # less memory is lost between what is allocated
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    import psutil
    import torch

    device = _device()
    cuda = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return Environment(
        place="kaggle" if "KAGGLE_KERNEL_RUN_TYPE" in os.environ else  # which sets Colab's, too
        "colab" if "COLAB_RELEASE_TAG" in os.environ else "local", device=device,
        # Not bfloat16 where the chip has it: outputs are 8 times as far from those of float32
        dtype=torch.float16 if cuda else torch.float32,
        gpu=cuda.name if cuda else ("Apple GPU" if device.type == "mps" else None),
        gpu_gib=cuda.total_memory / GIB if cuda else 0.0,
        ram_gib=psutil.virtual_memory().total / GIB,
        disk_free_gib=shutil.disk_usage(Path.cwd()).free / GIB)


def choose_preset(name: str, environment: Environment) -> tuple[str, str]:
    """Resolve the preset "auto"; returns a preset's name and the reason in words."""
    if name != "auto":
        return preset(name).preset, "you asked for it"
    gib = environment.gpu_gib
    found = f"the GPU has {gib:.1f} GiB" if gib else "no CUDA GPU"
    return "t4" if gib >= T4_MIN_GIB else "demo", f"{found}, t4 needs {T4_MIN_GIB:g} GiB"


def workspace(environment: Environment, output_dir: Path | str | None = None) -> Path:
    """Make the folder for data and runs: the one given, or the place's own."""
    folder = user_path(output_dir or HOMES.get(environment.place, "work")).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise RuntimeError(f"output_dir: expected a folder to write to, got {folder} ({error}); "
                           "choose another one") from error
    return folder


def report(environment: Environment, preset: str, reason: str) -> str:
    """Two lines: machine, GPU, memory, disk and versions; the preset and why."""
    gpu = environment.gpu or "no GPU"
    gpu += f" {environment.gpu_gib:.1f} GiB" if environment.gpu_gib else ""
    packages = ", ".join(f"{name} {installed_version(name) or 'absent'}"
                         for name in ("torch", "diffusers", "peft"))
    return (f"{environment.place} ({platform.system()} {platform.machine()}, {os.cpu_count()} "
            f"CPUs) | {gpu}, {str(environment.dtype).removeprefix('torch.')} | "
            f"{environment.ram_gib:.1f} GiB memory | {environment.disk_free_gib:.0f} GiB disk free "
            f"| Python {platform.python_version()}, {packages}\npreset '{preset}': {reason}")


def installed_version(name: str) -> str | None:
    """The version of an installed package; None if it is absent."""
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(name)
    return None


def prepare_packages(place: str) -> list[str]:
    """On Colab and Kaggle, install what is missing and remove a torchao that breaks peft.

    Call it before peft is imported. What was done is printed and returned, one line each.
    """
    if place == "local":
        return []
    done = []
    for name, wanted in HOSTED_MISSING.items():
        if installed_version(name) is None:
            _pip("install", "--no-deps", wanted)  # all they need is there already
            done.append(f"Installed {wanted}.")
    torchao = installed_version("torchao")
    if torchao and tuple(map(int, torchao.split(".")[:2])) < TORCHAO_MIN:
        if "peft" in sys.modules:
            raise RuntimeError("torchao: expected none or 0.16 and newer before peft is imported, "
                               f"got {torchao}; restart the session, then run all")
        _pip("uninstall", "--yes", "torchao")
        done.append(f"Removed torchao {torchao}: peft does not work beside it.")
    importlib.invalidate_caches()
    if done:
        print("\n".join(done))
    return done


def mount_drive(environment: Environment, wanted: bool, *,
                mount_point: Path = DRIVE) -> Path | None:
    """Mount Google Drive on Colab and return this project's folder in it, `MyDrive/splat_enhancer`.

    Without Drive it is None, and what that means is printed in one line.
    """
    if environment.place == "kaggle" and wanted:
        print("No Google Drive on Kaggle: choose Settings > Persistence > Files only instead.")
    if environment.place != "colab" or not wanted:
        return None
    home = mount_point / "MyDrive"
    try:
        from google.colab import drive
        # Whether it is mounted is Colab's to say, but it would leave a Drive that died as it is
        drive.mount(str(mount_point), force_remount=not os.path.isdir(home))  # noqa: PTH112
        folder = home / "splat_enhancer"
        folder.mkdir(exist_ok=True)  # an error, where mount() returned without Drive
        return folder
    except Exception as error:  # Colab raises its own kinds, and Drive must not stop a run
        print(f"No Google Drive ({error}). Checkpoints stay on this disk, are lost when the "
              "session ends, and a run kept on Drive is not found. To try again, move what lies in "
              f"{mount_point} elsewhere, then run this cell again.")
        return None


def browser_files(environment: Environment) -> ModuleType | None:
    """Colab's `upload()` and `download(path)` dialogues; None where they are not available."""
    with suppress(ImportError):  # an editor attached to such a machine has none
        if environment.place == "colab":
            from google.colab import files
            return files
    return None


def progress(iterable: Iterable[Any] | None = None, **options: Any) -> Any:
    """tqdm's bar as one line of text, in the first process; widgets break saved notebooks."""
    from tqdm.std import tqdm

    defaults = {"mininterval": 1.0, "miniters": 1, "disable": os.environ.get("RANK", "0") != "0"}
    return tqdm(iterable, **defaults | options)


def free_memory(error: BaseException | None = None) -> None:
    """Give back what only the frames of an error (None: the last shown) hold, and torch's cache."""
    error = error or getattr(sys, "last_value", None)
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
    gc.collect()
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Stopped(KeyboardInterrupt):
    """A loop ended because it was asked to; a notebook shows one line instead of a traceback."""

    def _render_traceback_(self) -> list[str]:  # IPython asks for it
        return [str(self)]


class StopRequests:
    """Turns the first SIGINT (Stop button, Ctrl-C) or SIGTERM into `asked`, which a loop looks at.

    So no step is cut in half. The second signal does what it always does.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():  # no other can set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                if isinstance(handler, StopRequests):  # of a loop that was never closed
                    handler = handler._before[number]
                self._before[number] = handler or signal.SIG_DFL
                signal.signal(number, self)
        return self

    def __call__(self, number: int, _: object) -> None:
        self.asked = True
        signal.signal(number, self._before[number])

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            if signal.getsignal(number) is self:
                signal.signal(number, before)


def _device() -> torch.device:
    import torch

    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        try:
            torch.ones(1, device=device).item()
            torch.cuda.set_device(device)
            return device
        except RuntimeError as error:  # torch has left out the oldest ones, such as Kaggle's P100
            print(f"The GPU is not used: {error}")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", *arguments]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        raise RuntimeError(
            f"pip {' '.join(arguments)}: expected success, got {done.stderr.strip()[-300:]}; check "
            "the connection (on Kaggle: Settings > Internet), then restart the session and run all")
