"""What it means that the hub did not give something: busy, broken, refused, and what helps."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from http.client import HTTPException
from typing import Any

from huggingface_hub import get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
)

# A name that cannot be one, and the base error of the client's own HTTP library
HUB_ERRORS = (OSError, HFValidationError, *HfHubHTTPError.__bases__)
LONGEST_WAIT_S = 60  # of those that a hub asks for
DEMO = ", or choose the 'demo' preset"
BUSY = (408, 429, 500, 502, 503, 504)  # statuses that pass
BROKEN = (ConnectionError, TimeoutError, HTTPException, socket.gaierror,
          *(kind for kind in HfHubHTTPError.__bases__ if kind is not OSError))


def out_of_reach(what: str, error: BaseException, instead: str = DEMO) -> RuntimeError:
    """The error of something that the hub did not give: what came, and what helps against it."""
    return RuntimeError(f"hub: expected to load {what}, got {reason(error)}; "
                        f"{_remedy(error)}{instead}")


def is_silence(error: BaseException) -> bool:
    """Whether the hub gave no answer at all, or is not to be asked."""
    return _response(error) is None and any(isinstance(c, BROKEN) for c in _causes(error))


def passes(error: BaseException) -> bool:
    """Whether another try may succeed: a busy hub or a broken connection, not a refusal."""
    if (response := _response(error)) is not None:
        return response.status_code in BUSY
    return is_silence(error) and not any(isinstance(cause, OfflineModeIsEnabled)
                                         for cause in _causes(error))


def asked_wait_s(error: BaseException) -> int:
    """The seconds that the hub asks for in its answer; 0 if it does not."""
    response = _response(error)
    asked = response.headers.get("Retry-After", "") if response is not None else ""
    return min(int(asked), LONGEST_WAIT_S) if asked.isdigit() else 0


def reason(error: BaseException) -> str:
    """What came, in one line and without the client's advice."""
    causes = list(_causes(error))
    named = next((cause for cause in causes if getattr(cause, "response", None) is not None), None)
    broken = [cause for cause in causes if isinstance(cause, BROKEN)]  # the last is what happened
    named = named or (broken or [error])[-1]
    line = next((line for line in str(named).splitlines() if line.strip()), "").strip()
    said = getattr(named, "server_message", None) or ""
    return f"{type(named).__name__}: {line} {said if said not in line else ''}".rstrip()


def _remedy(error: BaseException) -> str:
    causes, response = list(_causes(error)), _response(error)
    status = response.status_code if response is not None else None
    if status == 403 or any(isinstance(cause, GatedRepoError) for cause in causes):
        return "accept its terms on the hub and log in with huggingface_hub.login()"
    if status == 401 and get_token():
        return ("your token is refused, for it has expired or was revoked: log in again with "
                "huggingface_hub.login(), or forget it with huggingface_hub.logout()")
    if status in (401, 404) or isinstance(error, HFValidationError):
        return "check its name, and log in with huggingface_hub.login() if it is private"
    if status in BUSY:
        return "the hub is busy: run again in some minutes"
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in causes):
        return "unset HF_HUB_OFFLINE and run again"
    if any(getattr(cause, "errno", None) == errno.ENOSPC for cause in causes):
        return "make room on the disk and run again"
    return "check the connection and run again"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it came from, and so on: the client wraps what the hub said."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _response(error: BaseException) -> Any:
    """The hub's answer, if there was one."""
    found = (getattr(cause, "response", None) for cause in _causes(error))
    return next((response for response in found if response is not None), None)
