"""The processes of `accelerate launch` or `torchrun` that train together."""

import os
from datetime import timedelta
from typing import TypeVar

from slimdown.utils.errors import ConfigError, describe_error

_T = TypeVar("_T")


def process_count() -> int:
    """Return how many processes a launcher started for this run; 1 without a launcher."""
    return _read_count("WORLD_SIZE", 1) if "LOCAL_RANK" in os.environ else 1


def _read_count(name: str, default: int) -> int:
    if not (text := os.environ.get(name, str(default))).isdecimal():
        raise ConfigError(
            f"{name}={text} is no whole number; torchrun sets it, or unset LOCAL_RANK"
        )
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
    return _read_count("RANK", 0) if "LOCAL_RANK" in os.environ else 0


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
