"""Where a run was made: package versions, machine, git commit. Never the environment variables: they hold secrets."""

import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from slimdown import __version__
from slimdown.models.dtype import processor_name
from slimdown.models.memory import process_peak
from slimdown.training.watching import Watch

_PACKAGES = (
    "torch", "transformers", "peft", "bitsandbytes", "trl", "lm-eval", "datasets", "accelerate", "mlflow", "hydra-core",
    "unsloth",
)  # fmt: skip


@dataclass(frozen=True)
class About:
    """What a run is called and how it came about, for the record."""

    name: str
    config_yaml: str  # as composed, secrets blanked
    overrides: list[str]  # what the command line changed
    folder: Path  # scratch space of this run
    sweep: str | None = None  # what the runs that one command started have in common
    on_opened: Callable[[str], None] = lambda run_id: (
        None
    )  # told the run's id as soon as it has one
    environment: dict[str, Any] = field(default_factory=lambda: environment())
    tags: Mapping[str, str] = field(default_factory=dict)  # of the run, besides
    watch: Watch | None = None  # told the validation loss at each quarter of the training
    goes_on: str = ""  # the id of a run that was not finished, and is from here on


def environment() -> dict[str, Any]:
    """Versions, machine and git state as a JSON-able object."""
    found: dict[str, Any] = {
        "slimdown": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "git_commit": git_commit(),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["cuda"] = torch.version.cuda
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # e.g. a mlflow-skinny in mlflow's place
            found[package] = None
    return found


def git_commit() -> str | None:
    """The commit of the folder that the run is started in, with `-dirty` where files differ from it."""
    try:
        commit = _git("rev-parse", "HEAD")
        return (
            f"{commit}-dirty" if _git("status", "--porcelain", "--untracked-files=no") else commit
        )
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    answer = subprocess.run(
        ["git", *arguments], capture_output=True, text=True, check=True, timeout=10
    )
    return answer.stdout.strip()


def peak_memory_bytes() -> dict[str, float]:
    """The most memory that this process has held so far, by its name among the costs."""
    return {"peak_memory_bytes": float(process_peak())}
