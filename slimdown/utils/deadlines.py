"""Limit calls that may never end: a server can send single letters, and each renews a timeout."""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import Any


def call_within(seconds: float, call: Callable[[], Any]) -> Any:
    """Return what a call returns, or raise what it raises; do not wait for longer than `seconds`.

    A call that takes longer cannot be ended: it goes on in its thread, and nobody waits for it.

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
    """Put what a call returns, or the error that it raises, into a future."""
    try:
        future.set_result(call())
    except Exception as error:
        future.set_exception(error)
        del future  # as above: the error's traceback holds this function's variables
