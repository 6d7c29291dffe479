"""Google Drive: mounted by the main thread, in a folder that is empty or not there yet."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from pathlib import Path

from google.colab._message import MessageError

_calls: list[str] = []  # what came of the mounts of this process


def mount(mountpoint: str, force_remount: bool = False, timeout_ms: int = 120_000,
          readonly: bool = False) -> None:
    """Ask the person, then let Drive appear; `dying` takes it away once a run has saved there."""
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("mount: requests to the browser need the main thread")
    planned = os.environ.get("STAND_IN_DRIVE", "granted").split(",")
    outcome = planned[min(len(_calls), len(planned) - 1)]
    _calls.append(outcome)
    if outcome == "refused":
        raise MessageError("Error: credential propagation was unsuccessful")
    point = Path(mountpoint)
    # As Colab asks: unlike Path.is_dir, it also answers where Drive has died
    if os.path.isdir(point / "My Drive") and not force_remount:  # noqa: PTH112
        print(f"Drive already mounted at {point}; to attempt to forcibly remount, call "
              f'drive.mount("{point}", force_remount=True).')
        return
    _unmount(point)
    if point.is_dir() and any(point.iterdir()):
        raise ValueError("Mountpoint must not already contain files")
    if outcome == "failing":
        raise ValueError("mount failed")
    if outcome == "nothing":  # the time-out passed
        return
    _link(point)
    if outcome == "dying":
        threading.Thread(target=_die_after_a_save, args=(point,), daemon=True).start()
    print(f"Mounted at {point}")


def _link(point: Path) -> None:
    cloud = Path(os.environ["STAND_IN_CLOUD"])
    cloud.mkdir(exist_ok=True)
    point.mkdir(exist_ok=True)
    for name in ("MyDrive", "My Drive"):
        (point / name).symlink_to(cloud, target_is_directory=True)


def _unmount(point: Path) -> None:
    """Take Drive away; what else lies in its place stays."""
    if sys.platform == "linux":  # a mount that died, if that is what is there
        ctypes.CDLL(None).umount2(os.fsencode(point), 2)  # 2: MNT_DETACH
    for name in ("MyDrive", "My Drive"):
        if (point / name).is_symlink():
            (point / name).unlink()


def _die(point: Path) -> None:
    """Every access answers with errno 107: the kernel's own, of a mount whose server is gone.

    Where mounting is not allowed, a link to itself takes Drive's place: errno 40, and as final.
    """
    if _mount_without_server(point):
        return
    for name in ("MyDrive", "My Drive"):
        (point / name).unlink()
        (point / name).symlink_to(name)


def _mount_without_server(point: Path) -> bool:
    try:
        server = os.open("/dev/fuse", os.O_RDWR)
    except OSError:
        return False
    options = f"fd={server},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()}"
    failed = ctypes.CDLL(None).mount(b"drive", os.fsencode(point), b"fuse", 0, options.encode())
    os.close(server)
    return not failed


def _die_after_a_save(point: Path) -> None:
    cloud = Path(os.environ["STAND_IN_CLOUD"])
    while not list(cloud.glob("**/latest.safetensors")):
        time.sleep(0.01)
    _die(point)
