"""Give jobs to one of Hydra's launchers: in this process, in workers, or on a cluster."""

import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any, cast

from hydra.core.plugins import Plugins
from hydra.core.utils import run_job, setup_globals
from hydra.experimental.callback import Callback
from hydra.types import HydraContext
from omegaconf import DictConfig

# Our launchers are named as their plugins' own; Hydra 1.3 warns of that, in workers, too.
warnings.filterwarnings("ignore", r"\s*'hydra/launcher", UserWarning)


class _ComposedBefore:
    """Stands in for Hydra's loader of files in launchers: it returns Hydra's own settings.

    The command composed and checked the settings of a job, and the task knows where they are.
    """

    def load_sweep_config(self, hydra: DictConfig, overrides: list[str]) -> DictConfig:
        """Return Hydra's settings for a job."""
        settings = deepcopy(hydra)
        settings.hydra.overrides.task = overrides
        return settings


def launch(hydra: DictConfig, task: Callable[[Any], None], jobs: Sequence[list[str]]) -> None:
    """Start a task for each job with the chosen launcher, and wait for all.

    Args:
        hydra: Hydra's own settings, below `hydra`.
        task: It finds the job's number in `HydraConfig.get().job.num`, and gets nothing else. It is
            pickled where the launcher starts workers.
        jobs: What the command line changed for each job; launchers log it.
    """
    launcher = Plugins.instance().instantiate_launcher(_make_context(), task, hydra)
    launcher.launch(jobs, initial_job_idx=0)


def run_here(hydra: DictConfig, task: Callable[[], object]) -> None:
    """Run one task in this process, with the folder and the logging of Hydra's settings.

    Args:
        hydra: Hydra's own settings, below `hydra`.
        task: It gets nothing; what it returns is not used.

    Raises:
        Exception: Whatever the task raised.
    """
    failures: list[Exception] = []

    def run_task(_: Any) -> None:
        try:
            task()
        except Exception as error:  # Hydra would print its own message, so it is raised below
            failures.append(error)

    setup_globals()
    run_job(run_task, hydra, "hydra.run.dir", job_subdir_key=None, hydra_context=_make_context())
    if failures:
        raise failures[0]


def _make_context() -> HydraContext:
    return HydraContext(cast(Any, _ComposedBefore()), cast(Any, Callback()))
