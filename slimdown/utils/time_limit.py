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
    Windows has none. There, the task goes on for as long as it takes. A process has one alarm, so
    one that the caller has set waits inside and goes on afterwards.

    Args:
        task: What is done inside, for the beginning of a message.

    Raises:
        DataError: It took too long, or more memory than there is.
    """

    def stop(*_: object) -> None:
        raise DataError(f"{task} does not end within {_MOST_SECONDS:g} s")

    can_stop = current_thread() is main_thread() and hasattr(signal, "setitimer")
    if can_stop:
        handler_before = signal.signal(signal.SIGALRM, stop)
        timer_before = signal.setitimer(signal.ITIMER_REAL, _MOST_SECONDS)
    try:
        yield
    except MemoryError:
        raise DataError(f"{task} takes more memory than there is") from None
    finally:
        if can_stop:
            # In this order, neither alarm can reach the handler of the other.
            signal.setitimer(signal.ITIMER_REAL, 0)  # cancels ours
            signal.signal(signal.SIGALRM, handler_before)
            signal.setitimer(signal.ITIMER_REAL, *timer_before)
