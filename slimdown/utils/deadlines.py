"""Limit calls that may never end: a server can send single letters, and each renews a timeout."""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import Any


def call_within(seconds: float, call: Callable[[], Any]) -> Any:
    """Return what a call returns; a call that takes longer is left behind in its thread.

    Raises:
        TimeoutError: It takes longer.
    """
    future: Future[Any] = Future()
    # No executor: it waits for its threads when the process ends.
    Thread(target=_answer, args=(call, future), daemon=True).start()
    try:
        return future.result(seconds)
    finally:
        del future  # breaks a cycle with the traceback, which keeps a socket open


def _answer(call: Callable[[], Any], future: "Future[Any]") -> None:
    try:
        future.set_result(call())
    except Exception as error:
        future.set_exception(error)
        del future
