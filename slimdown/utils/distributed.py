"""The processes of `accelerate launch` or `torchrun` that train together."""

import os
from datetime import timedelta
from typing import TypeVar

from slimdown.utils.errors import ConfigError

_T = TypeVar("_T")
_MEETING = timedelta(minutes=30)  # for the last process to start
_WAITING = timedelta(hours=12)  # for the first to measure the base


def process_count() -> int:
    """Return how many processes a launcher started for this run; 1 without a launcher."""
    return _read_number("WORLD_SIZE", 1) if "LOCAL_RANK" in os.environ else 1


def process_rank() -> int:
    """Return which of them this is, from 0."""
    return _read_number("RANK", 0) if "LOCAL_RANK" in os.environ else 0


def is_main_process() -> bool:
    """Return whether this process measures, keeps the record and speaks."""
    return process_rank() == 0


def broadcast_from_main(value: _T) -> _T:
    """Return in every process what the first one has for `value`; it waits until all have called.

    Raises:
        ConfigError: The processes do not find each other, or one of them has ended.
    """
    if process_count() == 1:
        return value
    import torch
    from torch import distributed
    from torch.distributed.rendezvous import rendezvous

    box = [value if is_main_process() else None]
    try:
        if not distributed.is_initialized():
            store, rank, count = next(rendezvous("env://", timeout=_MEETING))
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            distributed.init_process_group(
                backend, store=store, rank=rank, world_size=count, timeout=_WAITING
            )
        distributed.broadcast_object_list(box)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"process {process_rank()} of {process_count()} cannot reach the others "
            f"({' '.join(str(error).split())[:200]}); look at what the first process says"
        ) from error
    return box[0]  # type: ignore[return-value]


def _read_number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise ConfigError(f"the environment variable {name} is {text!r}; a launcher sets a number")
    return int(text)
