"""Ctrl-C, SIGTERM and a closed terminal: each ends what is going on, and none is lost.

Python raises KeyboardInterrupt wherever it happens to be. Inside a weakref callback or a `__del__` it raises into
nothing and the work goes on; between opening a run and the `with` that closes it, it leaves a run that nobody marks. So
a signal is remembered as well as raised: the work looks at it (`stop_if_interrupted`, at every forward of a model), and
what must not be torn apart is `undisturbed`.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from typing import Any

EXIT_CODE = 130  # of a process that a signal ended
_SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else []))
_ONE_PRESS = 1.0  # seconds: `timeout` and a terminal may deliver one wish to stop twice


class _State:
    came: float | None = None  # when the first signal did, by time.monotonic
    n_undisturbed = 0  # sections being run
    listening = False


def interrupted() -> bool:
    """Whether a signal has come since `listening` began."""
    return _State.came is not None


def stop_if_interrupted() -> None:
    """Raise the KeyboardInterrupt of a signal that was swallowed or put off, where one was."""
    if interrupted():
        raise KeyboardInterrupt


def stop_between_forwards(model: Any, stop: Callable[[], None]) -> None:
    """Make each forward of a model look for a signal first: each step, batch of questions and decoded token.

    Args:
        model: the model.
        stop: called as well, and raises what else ends the work.
    """

    def look(*_: object) -> None:
        stop_if_interrupted()
        stop()

    model.get_input_embeddings().register_forward_pre_hook(look)


class undisturbed:
    """What is inside runs to its end; a signal that comes meanwhile is raised on leaving, unless an error is.

    A class and not a generator: no signal can come between entering and being entered.
    """

    def __enter__(self) -> None:
        _State.n_undisturbed += 1

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        _State.n_undisturbed -= 1
        if kind is None and _State.n_undisturbed == 0 and _State.came is not None:
            raise KeyboardInterrupt


class Undisturbed:
    """An object each of whose methods is `undisturbed`."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        member = getattr(self.inner, name)
        if not callable(member):
            return member

        @wraps(member)
        def to_its_end(*args: Any, **named: Any) -> Any:
            with undisturbed():
                return member(*args, **named)

        return to_its_end


@contextmanager
def listening() -> Iterator[None]:
    """Inside, SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt, are remembered, and a second one ends the process.

    Whatever error they turned into on their way, KeyboardInterrupt comes out. A signal that the process was started
    deaf to, as a shell starts background jobs and `nohup` its own, stays ignored. Inside another `listening`, and in
    threads, which no signal reaches, nothing changes.
    """
    if _State.listening:
        yield
        return
    heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    try:
        before = {number: signal.signal(number, _on_signal) for number in heard}
    except ValueError:  # not the main thread
        yield
        return
    print_unraisable = sys.unraisablehook

    def unraisable(lost: Any) -> None:
        if not (
            interrupted() and lost.exc_type is KeyboardInterrupt
        ):  # remembered, so nothing is lost
            print_unraisable(lost)

    _State.listening, _State.came, sys.unraisablehook = True, None, unraisable
    try:
        yield
        stop_if_interrupted()
    except BaseException as error:
        if not interrupted() or isinstance(error, KeyboardInterrupt):
            raise
        stop = KeyboardInterrupt()
        for note in getattr(error, "__notes__", ()):  # what became of a run
            stop.add_note(note)
        raise stop from error
    finally:
        _State.listening, _State.came, sys.unraisablehook = False, None, print_unraisable
        for number, handler in before.items():
            signal.signal(number, handler)


def end_at_once_when_interrupted() -> None:
    """From now on a signal ends the process with one line: for when no run is open."""
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(
                number, lambda *_: _end("Interrupted while no run was open: nothing is lost.")
            )


def _on_signal(number: int, frame: Any) -> None:
    if _State.came is None:
        _State.came = time.monotonic()
    elif time.monotonic() - _State.came > _ONE_PRESS:
        _end(
            "Ended at once. A run that was open stays marked RUNNING; what it recorded so far is kept."
        )
    else:
        return
    if not _State.n_undisturbed:
        raise KeyboardInterrupt
    _say("Interrupted. Stopping as soon as the record is whole; once more ends at once.")


def _end(line: str) -> None:
    with suppress(Exception):  # it may be in the middle of a write just now
        sys.stdout.flush()
    _say(line)
    os._exit(EXIT_CODE)


def _say(line: str) -> None:
    # Past Python's buffers: the signal may have come while they were written to. A progress bar hides the cursor.
    cursor = "\x1b[?25h" if os.isatty(2) else ""
    with suppress(OSError):
        os.write(2, f"{cursor}{line}\n".encode())
