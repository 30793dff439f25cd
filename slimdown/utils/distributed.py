"""The processes of `accelerate launch` or `torchrun` that train together."""

import os
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

from slimdown.utils.errors import ConfigError, describe_error

MEETING = timedelta(minutes=10)
"""How long a process waits for the others to start."""
_LONGEST_WAIT = timedelta(hours=12)  # for the first process, which measures the base
_T = TypeVar("_T")


def process_count() -> int:
    """Return how many processes a launcher started for this run; 1 without a launcher."""
    return _read_count("WORLD_SIZE", 1)


def _read_count(name: str, default: int) -> int:
    text = os.environ.get(name, str(default)) if "LOCAL_RANK" in os.environ else str(default)
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
    """Return which of them this is; 0 measures, writes the record and prints."""
    rank = _read_count("RANK", 0)
    if rank >= max(1, n := process_count()):  # such a one would wait for ever, or fail in silence
        raise ConfigError(f"RANK={rank} must be below WORLD_SIZE={n}; torchrun sets both")
    return rank


def broadcast_from_main(value: _T) -> _T:
    """Return the first process's `value` in every process; it waits until all have called.

    Raises:
        ConnectionError: The processes do not find each other, or one of them has ended.
    """
    if (n := process_count()) == 1:
        return value
    from torch import distributed

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


@cache
def _open_group() -> Any:
    """Wait until all processes are there; return torch's group of them, which waits long."""
    from torch import cuda, distributed

    if not distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if cuda.is_available() else "gloo"
        distributed.init_process_group(backend, timeout=MEETING)
    return distributed.new_group(timeout=_LONGEST_WAIT, backend="gloo")
