"""Which machine this is and what it has; the only module that knows Colab and Kaggle."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from .config import PRESETS, refused

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements.txt"
BRING_THEM = f'run "{sys.executable}" -m pip install -r "{REQUIREMENTS}", then restart the kernel'
try:
    import psutil
    import torch
    from packaging.requirements import Requirement
    from packaging.version import Version
except ModuleNotFoundError as missing:
    raise RuntimeError(f"packages: expected those of {REQUIREMENTS.name}, got no {missing.name}; "
                       f"{BRING_THEM}") from missing

GIB = 2**30
T4_MIN_GIB = 12.0  # what the "t4" preset needs, with room to spare (a T4 shows 14.6)
HOSTED_MISSING = {"lpips": "lpips==0.1.4"}  # all it needs is preinstalled: --no-deps is safe
TORCHAO_MIN = Version("0.16.0")  # peft raises ImportError on anything older
KAGGLE_CREDENTIALS = {"KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN", "KAGGLE_CONFIG_DIR"}
HOMES = {"colab": Path("/content/splat_enhancer"), "kaggle": Path("/kaggle/working"),
         "local": Path(__file__).resolve().parent.parent}
DRIVE = Path("/content/drive")  # where Colab's own button mounts it too


@dataclass(frozen=True)
class Runtime:
    """One machine, as found by `detect()`."""

    place: Literal["colab", "kaggle", "local"]
    device: torch.device
    dtype: torch.dtype  # of the frozen working copies
    gpu: str | None  # its name
    gpu_gib: float  # memory of that GPU, 0 without one
    ram_gib: float
    disk_free_gib: float


def detect() -> Runtime:
    """Look at this machine: place, device, working precision, memory and disk."""
    device = _device()
    cuda = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    return Runtime(
        place=_place(), device=device, dtype=_dtype(device),
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
    if requested not in {"auto", *PRESETS}:
        raise refused("preset", f"one of {sorted(PRESETS)} or 'auto'", requested,
                      "pick one of them")
    name, reason = requested, "you asked for it"
    if requested == "auto" and runtime.gpu_gib >= T4_MIN_GIB:
        name, reason = "t4", f"the GPU has {runtime.gpu_gib:.1f} GiB, {T4_MIN_GIB:g} or more"
    elif requested == "auto":
        lack = f"the GPU has only {runtime.gpu_gib:.1f} GiB" if runtime.gpu_gib else "no CUDA GPU"
        name, reason = "demo", f"{lack}, and the other presets want {T4_MIN_GIB:g} GiB"
    return name, reason


def prepare_packages(runtime: Runtime, *, run: Callable[..., Any] = subprocess.run,
                     installed: Callable[[str], str | None] | None = None) -> list[str]:
    """On Colab and Kaggle, add what is missing and remove a torchao that breaks peft.

    Kaggle's images are Colab's with more in them, but for lpips (github.com/Kaggle/docker-python).
    Call it before diffusers and peft are imported. pip never touches torch, numpy or pillow.
    What was done is printed and returned, one line each. Elsewhere nothing is changed.

    Args:
        run: runs a command as `subprocess.run` does.
        installed: version of an installed package, None if absent.

    Raises:
        RuntimeError: pip failed, peft was imported too early, or a local machine lacks a package.
    """
    version, done = installed or _installed, []
    if runtime.place == "local":
        _refuse_missing(version)
        return done
    for name, wanted in HOSTED_MISSING.items():
        if version(name) is None:
            _pip(run, "install", "--no-deps", wanted)
            done.append(f"Installed {wanted}.")
    torchao = version("torchao")
    if torchao and Version(torchao) < TORCHAO_MIN:
        if "peft" in sys.modules:
            raise RuntimeError(f"torchao: expected {TORCHAO_MIN} or newer, or none, before peft is "
                               f"imported, got {torchao}; restart the session, then run all")
        _pip(run, "uninstall", "--yes", "torchao")
        done.append(f"Removed torchao {torchao}: peft refuses versions before {TORCHAO_MIN}.")
    importlib.invalidate_caches()
    for line in done:
        print(line)
    return done


def mount_drive(runtime: Runtime, want: bool, *, attempts: int = 2,
                point: Path = DRIVE) -> Path | None:
    """Mount Google Drive on Colab and return this project's folder there.

    On Kaggle, which has no Drive, say what keeps a run instead.
    Whether Drive is mounted already is Colab's to say: a folder at its place may be a local one.

    Args:
        want: False leaves Drive alone.
        attempts: how often to try; a refusal in the dialogue is final.
        point: where Drive appears.

    Returns:
        `MyDrive/splat_enhancer`, or None without Drive; a failure prints what that means.
    """
    if runtime.place == "kaggle" and want:
        print(f"No Google Drive on Kaggle: {HOMES['kaggle']} lasts from session to session with "
              "Settings > Persistence > Files only.")
    if runtime.place != "colab" or not want:
        return None
    problem: Exception | None = None
    for attempt in range(attempts):
        try:
            return _drive_folder(point, again=attempt > 0)
        except Exception as error:  # Colab raises its own kinds, and Drive must not stop a run
            problem = error
            if type(error).__name__ == "MessageError":  # the dialogue was closed or refused
                break
    print(f"No Google Drive ({problem}). Checkpoints stay on this machine's disk and are lost when "
          "the session ends, and a run kept on Drive is not found: training goes on from what this "
          f"disk has, or starts anew. {_drive_remedy(point, problem)}")
    return None


def workspace(runtime: Runtime, root: Path | None = None) -> Path:
    """Create and return the local folder for data and runs: the place's own, or `root`.

    Raises:
        RuntimeError: nothing can be written there.
    """
    folder = Path(root) if root else HOMES[runtime.place]
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
    packages = ", ".join(f"{name} {_installed(name) or 'absent'}"
                         for name in ("torch", "diffusers", "peft"))
    dtype = str(runtime.dtype).removeprefix("torch.")
    return (f"{runtime.place} ({platform.system()} {platform.machine()}, {os.cpu_count()} CPUs) | "
            f"{gpu}, {dtype} | {runtime.ram_gib:.1f} GiB memory | "
            f"{runtime.disk_free_gib:.0f} GiB disk free | Python {platform.python_version()}, "
            f"{packages}\npreset '{preset}': {reason}")


def _place() -> Literal["colab", "kaggle", "local"]:
    # Kaggle first: its images set COLAB_RELEASE_TAG as well
    if any(name.startswith("KAGGLE") for name in set(os.environ) - KAGGLE_CREDENTIALS):
        return "kaggle"
    return "colab" if "COLAB_RELEASE_TAG" in os.environ else "local"


def _device() -> torch.device:
    """The first of CUDA and Apple's MPS that can add, else the CPU."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    for kind in (kind for kind, found in there.items() if found):
        try:
            total = torch.ones(8, device=kind).sum().item()
        except RuntimeError as error:  # a GPU too old for this torch, or a broken driver
            total = error
        if total == 8:
            return torch.device(kind)
        print(f"There is a GPU ({kind}), but it does not work (1 + … + 1 = 8 gave {total}): "
              "it is not used.")
    return torch.device("cpu")


def _dtype(device: torch.device) -> torch.dtype:
    if device.type != "cuda":
        return torch.float32
    # The capability, because is_bf16_supported() says True on a T4, which emulates it
    bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.bfloat16 if bf16 else torch.float16


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _refuse_missing(version: Callable[[str], str | None]) -> None:
    if not REQUIREMENTS.is_file():  # only `helpers` was copied here
        return
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    names = [Requirement(line).name for line in lines if line and not line.startswith("#")]
    if missing := [name for name in names if version(name) is None]:
        raise RuntimeError(f"packages: expected those of {REQUIREMENTS.name}, got no "
                           f"{', '.join(missing)}; {BRING_THEM}")


def _pip(run: Callable[..., Any], *arguments: str) -> None:
    command = [sys.executable, "-m", "pip", *arguments]
    try:
        run(command, check=True, capture_output=True, encoding="utf-8")
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"pip {' '.join(arguments)}: expected success, got "
                           f"{(error.stderr or '').strip()[-300:]}; check the connection "
                           "(on Kaggle: Settings > Internet), then restart the session and run "
                           "all") from error


def _drive_folder(point: Path, *, again: bool) -> Path:
    """The project's folder in Drive, mounted if it is not yet."""
    from google.colab import drive
    drive.mount(str(point), force_remount=again)
    if not (point / "MyDrive").is_dir():
        raise TimeoutError(f"mount() returned, but {point / 'MyDrive'} is not there")
    folder = point / "MyDrive" / "splat_enhancer"
    folder.mkdir(exist_ok=True)
    return folder


def _drive_remedy(point: Path, problem: Exception | None) -> str:
    """What the user can do about Drive; files in its place are theirs to move."""
    if "already contain files" not in str(problem):
        return "To try again, run this cell again."
    found = ", ".join(sorted(path.name for path in point.iterdir()))
    return (f"Something wrote {found} to {point} before Drive was there: move that elsewhere, "
            "then run this cell again.")
