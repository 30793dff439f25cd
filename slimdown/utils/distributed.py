"""The processes that make one run together, as `accelerate launch` and `torchrun` start them, one a device.

All go through the same page with the same settings. The first reads the command line, keeps the record and speaks; the
others are told by it what it found, and compute their share. Torch is imported when they meet, not before.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import accumulate
from typing import Any, NoReturn, TypeVar

from slimdown.utils.errors import SlimdownError
from slimdown.utils.redaction import redact

_T = TypeVar("_T")
_FAILED = "slimdown.failed"  # in the launcher's store: why a process cannot go on
_GRACE = (
    20.0  # seconds for the first to mark its run, before another that cannot go on ends them all
)


class _Met:
    """What is known once they have met; of a process by itself, and in somebody else's training, nothing is."""

    rank, count = 0, 1
    store: Any = None  # the launcher's, through which they found each other


def started() -> tuple[int, int]:
    """Which of how many processes a launcher says that this is; (0, 1) without a launcher."""
    if "LOCAL_RANK" not in os.environ:
        return 0, 1
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def count() -> int:
    """How many make this run."""
    return _Met.count


def is_first() -> bool:
    """Whether this is the one that keeps the record and speaks."""
    return _Met.rank == 0


def suffix() -> str:
    """What sets the files of a process apart from the first's and from those of a process by itself."""
    return "" if is_first() else f"-{_Met.rank}"


def device_index() -> int | None:
    """Which of the machine's GPUs is this process's; None where it is the only one and takes whatever is current."""
    return int(os.environ["LOCAL_RANK"]) if _Met.count > 1 else None


def from_first(value: _T) -> _T:
    """What the first process has for `value`, in all of them."""
    if _Met.count == 1:
        return value
    from torch import distributed

    box = [value if is_first() else None]
    with missing_told():
        distributed.broadcast_object_list(box)
    return box[0]  # type: ignore[return-value]


def gathered(value: _T) -> list[_T]:
    """What each process has for `value`, in all of them."""
    if _Met.count == 1:
        return [value]
    from torch import distributed

    box: list[Any] = [None] * _Met.count
    with missing_told():
        distributed.all_gather_object(box, value)
    return box


def share(sizes: Sequence[int]) -> list[int]:
    """The indices of this process's parts of a work: neighbours, together about as large as every other's.

    >>> share([5, 1, 1])
    [0, 1, 2]
    """
    total, ends = max(1, sum(sizes)), accumulate(sizes)
    owners = [
        int((end - size / 2) * _Met.count / total) for size, end in zip(sizes, ends, strict=True)
    ]
    return [i for i, owner in enumerate(owners) if min(owner, _Met.count - 1) == _Met.rank]


def start_problem() -> str | None:
    """Say that accelerate started one process where several were asked for; None where it did not."""
    if (
        "LOCAL_RANK" in os.environ
        or not {"MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"} <= os.environ.keys()
    ):
        return None
    return (
        "accelerate was asked for several processes and started one, as it does without several GPUs (1.15); on CPUs "
        "use `accelerate launch --multi_gpu --num_processes 2 -m slimdown.run ...`, which starts them on any device, "
        "or `torchrun --nproc_per_node 2 -m slimdown.run ...`"
    )


@contextmanager
def leading() -> Iterator[None]:
    """Inside is the first process: on leaving, the others end, too."""
    try:
        yield
    except SystemExit as end:
        if not end.code:
            tell(None)
        raise
    else:
        tell(None)
    finally:
        _part()


def tell(about: Any) -> None:
    """Call the other processes to their share of a run, once: they are told what it is about, None for none."""
    if started()[1] > 1 and _Met.count == 1:
        _meet()
        from_first(about)


def assist(work: Callable[[Any], object]) -> None:
    """A process beside the first: waits for what that one tells and does `work` with it, in silence.

    It has nothing to lose, so a signal ends it at once. What keeps it from going on is said by the first.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    try:
        _meet()
        if (about := from_first(None)) is not None:
            work(about)
        _part()
    except BaseException as error:
        _fail(error)


def _meet() -> None:
    rank, n = started()
    if n == 1 or _Met.count > 1:
        return
    import torch
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    # Objects and CPUs meet by gloo. The first may measure, or wait for a lock or a server, for as long as that takes.
    backend, long = (
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        timedelta(days=365),
    )
    _Met.store, *_ = next(rendezvous("env://", timeout=long))
    distributed.init_process_group(backend, store=_Met.store, rank=rank, world_size=n, timeout=long)
    _Met.rank, _Met.count = rank, n


def _part() -> None:
    if _Met.count > 1:
        from torch import distributed

        _Met.rank, _Met.count = 0, 1
        with suppress(Exception):  # another has gone before
            distributed.destroy_process_group()


def _fail(error: BaseException) -> NoReturn:
    """End all of them: by the first, who says why, or where it does not get to it by ourselves."""
    rank = started()[0]
    reason = str(error) if isinstance(error, SlimdownError) else f"{type(error).__name__}: {error}"
    with suppress(Exception):
        _Met.store.set(_FAILED, f"process {rank}: {reason}")
    _part()
    time.sleep(_GRACE)  # the launcher ends us as soon as the first has ended
    told = (
        reason if isinstance(error, SlimdownError) else "".join(traceback.format_exception(error))
    )
    sys.stderr.write(redact(f"Process {rank} of this run cannot go on:\n  {told}\n"))
    sys.stderr.flush()
    os._exit(1)


@contextmanager
def missing_told() -> Iterator[None]:
    """Inside, what torch raises where another process has ended is a `SlimdownError`, if that one said why."""
    try:
        yield
    except RuntimeError as error:
        reason = ""
        with suppress(Exception):  # none was left, or there are no others
            _Met.store.wait([_FAILED], timedelta(seconds=2))
            reason = _Met.store.get(_FAILED).decode()
        if not reason:
            raise
        raise SlimdownError(f"another process of this run cannot go on: {reason}") from error
