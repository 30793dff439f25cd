"""End what somebody else wrote and what does not end by itself: chat templates, and patterns."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread

from slimdown.utils.errors import DataError

_MOST_SECONDS = 10.0  # for one prompt or one adapter, which take milliseconds


@contextmanager
def limit_time(task: str) -> Iterator[None]:
    """Inside, end a task that takes too long.

    An alarm of the operating system interrupts it. Only the main thread can receive the alarm, and
    Windows has none. There, the task goes on for as long as it takes.

    Args:
        task: What is done inside, for the beginning of a message.

    Raises:
        DataError: It took too long, or more memory than there is.
    """

    def stop(*_: object) -> None:
        raise DataError(f"{task} does not end within {_MOST_SECONDS:g} s")

    can_stop = current_thread() is main_thread() and hasattr(signal, "setitimer")
    handler_before = signal.signal(signal.SIGALRM, stop) if can_stop else None
    try:
        if can_stop:
            signal.setitimer(signal.ITIMER_REAL, _MOST_SECONDS)
        yield
    except MemoryError:
        raise DataError(f"{task} takes more memory than there is") from None
    finally:
        if can_stop:
            signal.setitimer(signal.ITIMER_REAL, 0)  # cancels the alarm
            signal.signal(signal.SIGALRM, handler_before)
