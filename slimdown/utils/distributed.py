"""The processes of `accelerate launch` or `torchrun` that train and measure together."""

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

from slimdown.utils.errors import ConfigError, describe_error

MEETING = timedelta(minutes=10)
"""How long a process waits for the others to start."""
_LONGEST_WAIT = timedelta(hours=12)  # for the first process, which measures the base
_T = TypeVar("_T")
_R = TypeVar("_R")


def process_count() -> int:
    """Return how many processes a launcher started for this run; 1 without a launcher."""
    return _read_count("WORLD_SIZE", 1)


def _read_count(name: str, default: int) -> int:
    """Read a number that a launcher puts into the environment; without a launcher, the default."""
    # A cluster may set WORLD_SIZE and RANK for other programs. A launcher of torch sets LOCAL_RANK.
    has_launcher = "LOCAL_RANK" in os.environ
    text = os.environ.get(name, str(default)) if has_launcher else str(default)
    if not text.isdecimal() or len(text) > 6:
        problem = f"{name}={text[:20]} is no whole number"
        raise ConfigError(f"{problem}; torchrun sets it, or unset LOCAL_RANK")
    return int(text)


def check_launcher() -> None:
    """Refuse a launcher that would split the model over processes.

    Raises:
        ConfigError: It is accelerate with FSDP or DeepSpeed.
    """
    for name in ("FSDP", "DEEPSPEED"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in ("true", "1"):
            raise ConfigError(
                f"accelerate launches this with {name}, and each process of slimdown holds the "
                "whole model; train with TRL's own script there, then slimdown run tuned=FOLDER"
            )


def process_rank() -> int:
    """Return the number of this process; process 0 asks, writes the record and prints."""
    rank, n = _read_count("RANK", 0), process_count()
    if rank >= max(1, n):  # such a process would wait forever, or fail silently
        raise ConfigError(f"RANK={rank} must be below WORLD_SIZE={n}; torchrun sets both")
    return rank


def local_rank() -> int:
    """Return the number of this process on its machine, which is that of its GPU."""
    return _read_count("LOCAL_RANK", 0)


def broadcast_from_main(value: _T) -> _T:
    """Return the first process's `value` in every process; it waits until all have called.

    The values that the other processes pass are ignored. All processes must call this the same
    number of times, in the same order.

    Raises:
        ConnectionError: The processes do not find each other, or one of them has ended.
    """
    n = process_count()
    if n == 1:
        return value
    from torch import distributed

    # torch sends the content of the first process's list, and puts it into those of the others.
    box = [value if process_rank() == 0 else None]
    try:
        distributed.broadcast_object_list(box, group=_open_group())
    except (RuntimeError, ValueError) as error:
        raise ConnectionError(
            f"process {process_rank()} of {n} cannot reach the others ({describe_error(error)}); "
            f"start all {n} within {MEETING.seconds // 60} minutes, e.g. by torchrun on each "
            "machine, or unset LOCAL_RANK, RANK and WORLD_SIZE; where they ran, see what the first "
            "one printed"
        ) from error
    return box[0]  # type: ignore[return-value]


def share_work(parts: Sequence[_T], work: Callable[[_T], _R]) -> list[_R]:
    """Let each process do a part of some work, and return the results; for the first process.

    The other processes must be in `assist`, which takes their parts from here.

    Args:
        parts: At most one for each process; the first process does the first part.
        work: Does a part.

    Returns:
        The result of each part, in their order; none for no parts.

    Raises:
        Exception: The error of the first part that failed, in whatever process.
    """
    if not parts:
        return []
    broadcast_from_main(parts)  # to `assist` in the other processes
    results: list[Any] = _gather_on_main(_try(work, parts[0]))
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results[: len(parts)]


def assist(work: Callable[[_T], object]) -> None:
    """Do what `share_work` of the first process asks for, until it calls `end_shared_work`.

    Args:
        work: Does a part, as in `share_work`.
    """
    while parts := broadcast_from_main(None):  # None: from `end_shared_work`
        # There may be fewer parts than processes. The first process waits for a result of all.
        result = _try(work, parts[process_rank()]) if process_rank() < len(parts) else None
        _gather_on_main(result)


def end_shared_work() -> None:
    """Release the processes that are in `assist`."""
    broadcast_from_main(None)


def _try(work: Callable[[_T], _R], part: _T) -> _R | Exception:
    """Do a part of some work; return its result, or the error that it raised."""
    try:
        return work(part)
    except Exception as error:  # the first process raises it when all have answered
        return error


def _gather_on_main(value: object) -> list[Any]:
    """Return the value of each process, by rank, in the first one; an empty list in the others."""
    from torch import distributed

    box = [None] * process_count() if process_rank() == 0 else None
    distributed.gather_object(value, box, group=_open_group())
    return box or []


@cache
def _open_group() -> Any:
    """Wait until all processes have started; return their torch group, with a long timeout.

    If one of them does not start within `MEETING`, torch raises.
    """
    from torch import cuda, distributed

    if not distributed.is_initialized():
        meet: Any = distributed.rendezvous  # type: ignore[attr-defined]  # exported by a star
        # The address of the first process is in variables that the launcher sets.
        store, rank, n = next(meet("env://", timeout=MEETING))
        store.set(f"started/{rank}", "")
        store.wait([f"started/{i}" for i in range(n)], MEETING)
        backend = "cpu:gloo,cuda:nccl" if cuda.is_available() else "gloo"
        # The long timeout: while the others wait in a step, a process may write a checkpoint, or
        # ask the questions of a look.
        group: Any = {"store": store, "rank": rank, "world_size": n, "timeout": _LONGEST_WAIT}
        distributed.init_process_group(backend, **group)
    return distributed.new_group(timeout=_LONGEST_WAIT, backend="gloo")
