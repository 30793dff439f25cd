"""How a run came about: its name, the command, package versions, machine and git commit.

Environment variables are never recorded: they hold secrets.
"""

import getpass
import os
import platform
import socket
import subprocess
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psutil

from slimdown.config.engines import list_engines
from slimdown.utils.extensions import describe_extensions
from slimdown.utils.hashing import hash_json
from slimdown.utils.versions import find_version

# The packages that every run's numbers come from; their versions are in its key.
PACKAGES = (
    "accelerate", "bitsandbytes", "datasets", "lm-eval", "numpy", "peft", "scipy", "tokenizers",
    "torch", "transformers", "trl",
)  # fmt: skip


def collect_environment() -> dict[str, Any]:
    """Return versions, machine and git commit for JSON, None for each that is not known.

    The commit is that of the working folder: the user's project, not slimdown's own code.
    """
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    commit = None
    with suppress(OSError, subprocess.SubprocessError):  # no git, or no commit
        commit = subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL).strip()
    names = ["slimdown", "mlflow", "hydra-core", *PACKAGES]
    for _setting, engine in list_engines():
        names += engine.packages
    # A package may add several methods or scores. The dictionary keeps its name once, in order.
    extensions = ", ".join(dict.fromkeys(package for package, _kind in describe_extensions()))
    return {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "git_commit": commit,
        **({"extensions": extensions} if extensions else {}),
        **{name: find_version(name) for name in names},
    }


@dataclass(frozen=True)
class RunInfo:
    """What a run is called and how it came about.

    Args:
        name: Shown in tables and in MLflow.
        overrides: What the command line changed.
        shown: Settings that MLflow shows beside the few of every run.
        sweep: The name that all runs of one command share.
        run_key: See `resume.run_key`; empty: the run is never skipped or resumed.
        environment: Versions and machine.
        tags: More tags of the run, by name.
        resume_run_id: An unfinished run of the same key, which is resumed.
        on_open: Called with the run's id as soon as it has one.
    """

    name: str
    overrides: Sequence[str] = ()
    shown: Mapping[str, str] = field(default_factory=dict)
    sweep: str | None = None
    run_key: str = ""
    environment: Mapping[str, Any] = field(default_factory=collect_environment)
    tags: Mapping[str, str] = field(default_factory=dict)
    resume_run_id: str = ""
    on_open: Callable[[str], None] | None = None


def name_machine() -> str:
    """Return the host name and a digest of the network address: two machines may share a name."""
    name, address = socket.gethostname(), uuid.getnode()
    is_drawn = address >> 40 & 1  # Python found no address, and each process draws another one
    return name if is_drawn else f"{name} {hash_json(address)[:8]}"


def read_user() -> str:
    """Return the name of the user, for the record."""
    with suppress(OSError, KeyError):  # a container's user may have no entry
        return getpass.getuser()
    return "unknown"
