"""The processes of `accelerate launch` or `torchrun` that train together."""

import os
from datetime import timedelta
from typing import TypeVar

from slimdown.utils.errors import ConfigError, describe_error

_T = TypeVar("_T")


def process_count() -> int:
    """Return how many processes a launcher started for this run; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1


def process_rank() -> int:
    """Return which of them this is; 0 measures, writes the record and prints."""
    return int(os.environ.get("RANK", 0)) if "LOCAL_RANK" in os.environ else 0


def check_launcher() -> None:
    """Refuse half of what a launcher sets, on which accelerate would stumble later.

    Raises:
        ConfigError: A number is none, or nobody says where the other processes are.
    """
    found = {n: os.environ[n] for n in ("LOCAL_RANK", "RANK", "WORLD_SIZE") if n in os.environ}
    try:
        is_sound = max(map(int, found.values()), default=0) <= 1 or "MASTER_ADDR" in os.environ
    except ValueError:
        is_sound = False
    if not is_sound:
        shown = " ".join(f"{name}={value}" for name, value in found.items())
        advice = "accelerate launch and torchrun set them all, and MASTER_ADDR; unset them"
        raise ConfigError(f"the environment has {shown}: {advice}")


def broadcast_from_main(value: _T) -> _T:
    """Return the first process's `value` in every process; it waits until all have called.

    Raises:
        ConfigError: The processes do not find each other, or one of them has ended.
    """
    if process_count() == 1:
        return value
    import torch
    from torch import distributed

    box = [value if process_rank() == 0 else None]
    try:
        if not distributed.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            # The others wait while the first measures the base.
            distributed.init_process_group(backend, timeout=timedelta(hours=12))
        distributed.broadcast_object_list(box)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"process {process_rank()} of {process_count()} cannot reach the others "
            f"({describe_error(error)}); look at what the first process printed"
        ) from error
    return box[0]  # type: ignore[return-value]
