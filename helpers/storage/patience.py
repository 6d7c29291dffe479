"""Waiting with an end: a dead Drive answers neither yes nor no, and nothing can interrupt it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import Any, TypeVar

Result = TypeVar("Result")


def within(timeout_s: float, work: Callable[..., Result], *arguments: Any) -> Result:
    """Do something in a thread that is left behind if it hangs.

    Args:
        timeout_s: how long it may take.
        work, arguments: what is called, with what.

    Returns:
        What `work` returns; what it raises is raised.

    Raises:
        TimeoutError: it has not ended in time.
    """
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work(*arguments))
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    try:
        return future.result(timeout_s)
    except TimeoutError as error:
        raise TimeoutError(str(error) or f"no answer within {timeout_s:g} s") from error
