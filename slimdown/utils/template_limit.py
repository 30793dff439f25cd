"""End a chat template that does not end by itself: it is a program of the model's publisher."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread

from slimdown.utils.errors import DataError

_MOST_SECONDS = 10.0  # for one prompt; templates take milliseconds


@contextmanager
def limit_rendering() -> Iterator[None]:
    """End a chat template that does not end by itself; in the main thread, and not on Windows.

    Raises:
        DataError: It took too long, or more memory than there is.
    """
    problem = "the chat template of the tokenizer"

    def stop(*_: object) -> None:
        raise DataError(f"{problem} does not end a prompt within {_MOST_SECONDS:g} s")

    can_stop = current_thread() is main_thread() and hasattr(signal, "setitimer")
    before = signal.signal(signal.SIGALRM, stop) if can_stop else None
    try:
        if can_stop:
            signal.setitimer(signal.ITIMER_REAL, _MOST_SECONDS)
        yield
    except MemoryError:
        raise DataError(f"{problem} takes more memory for a prompt than there is") from None
    finally:
        if can_stop:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
