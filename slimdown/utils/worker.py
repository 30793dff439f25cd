"""A job in a launcher's worker: what it prints goes into its folder, and it ends when the command does."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_OFTEN = 0.5  # seconds between two looks at whether to stop


def is_queued() -> bool:
    """Whether this process is a job of submitit's, which writes what it prints into files of its own."""
    return "SUBMITIT_EXECUTOR" in os.environ


@contextmanager
def at_worker(stop: Path, folder: Path) -> Iterator[Path | None]:
    """Inside, what is printed goes into the file that is returned, and a signal comes when there is a file `stop`.

    And where the command died, or the queue takes the machine away: submitit queues the job again then.
    """
    ended = threading.Event()
    threading.Thread(
        target=_watch, args=(stop, os.getppid(), ended), name="stop", daemon=True
    ).start()
    try:
        if is_queued():
            _queue_again_and_stop()
            yield None
        else:
            with _printing_into(folder / "job.log") as log:
                yield log
    finally:
        ended.set()


def _watch(stop: Path, parent: int, ended: threading.Event) -> None:
    while not ended.wait(_OFTEN):
        if stop.exists() or os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGINT)
            return


def _queue_again_and_stop() -> None:
    """Let submitit's handler of Slurm's warning queue the job again, and end the run as an interrupted one."""
    warning = getattr(signal, f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}")
    queue_again = signal.getsignal(warning)
    if not callable(queue_again):
        return

    def warned(number: int, frame: Any) -> None:
        try:
            queue_again(number, frame)
        except (
            SystemExit
        ):  # inside whatever was computed just now, where it would be the run's failure
            os.kill(os.getpid(), signal.SIGINT)

    signal.signal(warning, warned)


@contextmanager
def _printing_into(log: Path) -> Iterator[Path]:
    sys.stdout.flush()
    sys.stderr.flush()
    before = [os.dup(number) for number in (1, 2)]
    with log.open("ab") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    try:
        yield log
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, place in zip((1, 2), before, strict=True):
            os.dup2(place, number)
            os.close(place)
