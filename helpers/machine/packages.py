"""The packages a run needs: named where they are missing, mended where this project may."""

from __future__ import annotations

import importlib
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import refused
from .place import this_place

REQUIREMENTS = Path(__file__).resolve().parents[2] / "requirements.txt"
THEM = f'-r "{REQUIREMENTS}"' if REQUIREMENTS.is_file() else "them"  # none beside an install
BRING_THEM = f'run "{sys.executable}" -m pip install {THEM}, then restart the kernel'
try:  # what the other rooms import before a machine can be looked at
    import filelock  # noqa: F401
    import huggingface_hub  # noqa: F401
    import IPython  # noqa: F401
    import psutil  # noqa: F401
    import safetensors  # noqa: F401
    import torch  # noqa: F401
    from packaging.requirements import Requirement
    from packaging.version import Version
except ModuleNotFoundError as missing:
    raise RuntimeError(f"packages: expected those of {REQUIREMENTS.name}, got no {missing.name}; "
                       f"{BRING_THEM}") from missing

# All they need is preinstalled: --no-deps is safe.
HOSTED_MISSING = {"lpips": "lpips==0.1.4", "stlpips-pytorch": "stlpips-pytorch==0.0.2"}
TORCHAO_MIN = Version("0.16.0")  # peft raises ImportError on anything older


def prepare_packages(place: str, *, run: Callable[..., Any] = subprocess.run,
                     installed: Callable[[str], str | None] | None = None) -> list[str]:
    """On Colab and Kaggle, add what is missing and remove a torchao that breaks peft.

    Kaggle's images are Colab's with more in them, but for these (github.com/Kaggle/docker-python).
    Call it before diffusers and peft are imported. pip never touches torch, numpy or pillow.
    What was done is printed and returned, one line each. Elsewhere nothing is changed.

    Args:
        place: of the machine, as `Runtime.place` names it.
        run: runs a command as `subprocess.run` does.
        installed: version of an installed package, None if absent.

    Raises:
        RuntimeError: pip failed, peft was imported too early, or a local machine lacks a package.
    """
    version, done = installed or installed_version, []
    if place == "local":
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


def needed(name: str, purpose: str, *, run: Callable[..., Any] = subprocess.run) -> ModuleType:
    """Import a package that only some need, when they need it; on Colab and Kaggle bring it first.

    Args:
        name: of the module and of its package.
        purpose: what it is for, in words.
        run: runs a command as `subprocess.run` does.

    Raises:
        ValueError: it is not installed; the message has the command that brings it.
        RuntimeError: pip failed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as missing:
        if missing.name != name:
            raise
        if this_place() == "local":
            raise refused(f"package {name}", f"it installed, to {purpose}", "none",
                          f'run "{sys.executable}" -m pip install {name}') from missing
    print(f"Installing {name}, to {purpose}.")
    _pip(run, "install", name)
    importlib.invalidate_caches()
    return importlib.import_module(name)


def installed_version(name: str) -> str | None:
    """The version of an installed package; None if it is absent."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def versions(*names: str) -> dict[str, str | None]:
    """Of Python and of some packages, by name."""
    return {"python": platform.python_version()} | {n: installed_version(n) for n in names}


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
