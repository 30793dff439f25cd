"""The table of Hydra's launchers for which `conf/hydra/launcher/` has a preset.

To add one, write a row here, its preset, and an extra in `pyproject.toml`. Nothing else names it.
A launcher without a row starts jobs, too; its messages are then its own.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from slimdown.utils.errors import ConfigError


@dataclass(frozen=True)
class LauncherFacts:
    """The properties of a launcher.

    Attributes:
        extra: The extra of slimdown that installs Hydra's plugin for it.
        module: What that plugin is imported as.
        purpose: What it is for, a few words.
        at_least_one: Settings that must be at least 1: else it waits for a job that never starts.
        only: The one value that a setting of it may have, with the reason.
        count_jobs: Returns how many jobs it runs at once by its settings; None: a cluster decides.
        marks_job: The variable of the environment by which it marks a job that it queues again
            where `SystemExit` leaves it; empty: it queues none again.
    """

    extra: str
    module: str
    purpose: str
    at_least_one: tuple[str, ...] = ()
    only: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    count_jobs: Callable[[Any], int] | None = None
    marks_job: str = ""

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Refuse settings of `hydra.launcher` that cannot work.

        Raises:
            ConfigError: Names the first.
        """
        for name, (value, reason) in self.only.items():
            if settings.get(name) not in (None, value):
                raise ConfigError(f"hydra.launcher.{name}={settings[name]}: {reason}; leave it out")
        for name in self.at_least_one:
            if (number := settings.get(name)) is not None and number < 1:
                raise ConfigError(f"hydra.launcher.{name} must be at least 1, got {number}")


def _count_processes(settings: Any) -> int:
    import joblib

    return int(joblib.effective_n_jobs(settings.n_jobs or 1))


_SUBMITIT = LauncherFacts(
    extra="slurm",
    module="hydra_plugins.hydra_submitit_launcher",
    purpose="jobs in Slurm's queue",
    at_least_one=("timeout_min", "cpus_per_task", "mem_gb", "tasks_per_node", "nodes"),
    marks_job="SUBMITIT_EXECUTOR",
)

LAUNCHERS: dict[str, LauncherFacts] = {
    "joblib": LauncherFacts(
        extra="joblib",
        module="hydra_plugins.hydra_joblib_launcher",
        purpose="several jobs at once",
        only={"backend": ("loky", "Hydra starts loky")},
        count_jobs=_count_processes,
    ),
    "ray": LauncherFacts(
        extra="ray", module="hydra_plugins.hydra_ray_launcher", purpose="jobs on a Ray cluster"
    ),
    "submitit_slurm": _SUBMITIT,
    "submitit_local": _SUBMITIT,
}


def is_queued_again() -> bool:
    """Return whether the launcher of this job queues it again where `SystemExit` leaves it."""
    marks = [launcher.marks_job for launcher in LAUNCHERS.values() if launcher.marks_job]
    return any(mark in os.environ for mark in marks)
