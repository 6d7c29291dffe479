"""Parts of hub repositories: fetched once into the hub's own cache, and what to do if not."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from http.client import HTTPException
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import tqdm

HUB_ERRORS = (OSError, *HfHubHTTPError.__bases__)  # with its HTTP library's own base error
TRANSFORMERS_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the better one first
WAITS_S = (2, 4, 8)  # before the tries after the first
LONGEST_WAIT_S = 60  # of those that a hub asks for
BUSY = (408, 429, 500, 502, 503, 504)  # statuses that pass
BROKEN = (ConnectionError, TimeoutError, HTTPException, socket.gaierror,
          *(kind for kind in HfHubHTTPError.__bases__ if kind is not OSError))


def fetch(name: str | Path, files: Sequence[str], weights: Sequence[str] = ()) -> Path:
    """Fetch some files of a hub repository; what lies in the cache is not fetched again.

    The hub's client resumes broken downloads. A hub that is busy, or a connection that is reset,
    it gives up on at once: then all is tried again, up to three times.

    Args:
        name: a hub name, or a folder, which is returned as it is.
        files: patterns of the files.
        weights: patterns, the preferred first; the first that matches anything is fetched too.

    Returns:
        The folder that has them.

    Raises:
        RuntimeError: the hub did not give them; it says what came and what to do.
    """
    if Path(name).is_dir():
        return Path(name)
    for choice in [[pattern] for pattern in weights] or [[]]:
        folder = _persistently(str(name), [*files, *choice])
        if all(any(folder.glob(pattern)) for pattern in choice):
            return folder
    raise RuntimeError(f"hub: expected {name} to have one of {', '.join(weights)}, got none; "
                       "check the connection and the name, or choose the 'demo' preset")


def missing_bytes(name: str, *wanted: tuple[Sequence[str], Sequence[str]]) -> int:
    """Ask the hub for the size of what is not in the cache yet, in bytes.

    Args:
        name: a hub name; a folder misses nothing.
        wanted: `files` and `weights` of each `fetch`.

    Raises:
        RuntimeError: the hub cannot be asked.
    """
    if Path(name).is_dir():
        return 0
    try:
        info = HfApi().model_info(name, files_metadata=True)
    except (*HUB_ERRORS, HFValidationError) as error:
        raise out_of_reach(f"the sizes of {name}", error) from error
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    patterns = {pattern for files, weights in wanted for pattern in (
        *files, *[p for p in weights if any(fnmatch(path, p) for path in sizes)][:1])}
    return sum(size for path, size in sizes.items()
               if any(fnmatch(path, pattern) for pattern in patterns)
               and not isinstance(try_to_load_from_cache(name, path, revision=info.sha), str))


def out_of_reach(what: str, error: BaseException) -> RuntimeError:
    """The error of something that the hub did not give: what came, and what helps against it."""
    return RuntimeError(f"hub: expected to load {what}, got {_reason(error)}; {_remedy(error)}, "
                        "or choose the 'demo' preset")


def passes(error: BaseException) -> bool:
    """Whether another try may succeed: a busy hub or a broken connection, not a refusal."""
    if (response := _response(error)) is not None:
        return response.status_code in BUSY
    causes = list(_causes(error))
    return (any(isinstance(cause, BROKEN) for cause in causes)
            and not any(isinstance(cause, OfflineModeIsEnabled) for cause in causes))


class _Bar(tqdm):
    """Of the three bars that the client shows for one download, that of the bytes."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        hidden = str(options.get("desc")).startswith(("Fetching", "Reconstructing"))
        super().__init__(*arguments, **options | ({"disable": True} if hidden else {}))


def _persistently(name: str, patterns: Sequence[str]) -> Path:
    for wait_s in (*WAITS_S, 0):
        try:
            return Path(snapshot_download(name, allow_patterns=list(patterns), tqdm_class=_Bar))
        except (*HUB_ERRORS, HFValidationError) as error:
            last = error
        if not wait_s or not passes(last):
            break
        wait_s = _asked_wait_s(last) or wait_s
        print(f"hub: {name}: {_reason(last)}; trying again in {wait_s} s")
        time.sleep(wait_s)
    raise out_of_reach(name, last) from last


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it came from, and so on: the client wraps what the hub said."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _response(error: BaseException) -> Any:
    """The hub's answer, if there was one."""
    found = (getattr(cause, "response", None) for cause in _causes(error))
    return next((response for response in found if response is not None), None)


def _asked_wait_s(error: BaseException) -> int:
    """The seconds that the hub asks for in its answer; 0 if it does not."""
    response = _response(error)
    asked = response.headers.get("Retry-After", "") if response is not None else ""
    return min(int(asked), LONGEST_WAIT_S) if asked.isdigit() else 0


def _reason(error: BaseException) -> str:
    """What came, in one line and without the client's advice."""
    named = next((c for c in _causes(error) if getattr(c, "response", None) is not None), error)
    line = next((line for line in str(named).splitlines() if line.strip()), "").strip()
    said = getattr(named, "server_message", None) or ""
    return f"{type(named).__name__}: {line} {said if said not in line else ''}".rstrip()


def _remedy(error: BaseException) -> str:
    causes, response = list(_causes(error)), _response(error)
    status = response.status_code if response is not None else None
    if status == 403 or any(isinstance(cause, GatedRepoError) for cause in causes):
        return "accept its terms on the hub and log in with huggingface_hub.login()"
    if status in (401, 404) or isinstance(error, HFValidationError):
        return "check its name, and log in with huggingface_hub.login() if it is private"
    if status in BUSY:
        return "the hub is busy: run again in some minutes"
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes):
        return "unset HF_HUB_OFFLINE and run again"
    if any(getattr(cause, "errno", None) == errno.ENOSPC for cause in causes):
        return "make room on the disk and run again"
    return "check the connection and run again"
