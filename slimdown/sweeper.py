"""The sweep of a command, started by any of Hydra's launchers: what becomes of each job, whatever ends it."""

import sys
from functools import partial
from pathlib import Path

from hydra.core.plugins import Plugins

Plugins.instance()  # whose search executes the next modules once more: classes derived before are of none (Hydra 1.3.8)

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from slimdown.job import work


class Sweeper(BasicSweeper):
    """Hydra's sweeper, whose jobs come back as data: one that fails, or whose process dies, stops no other."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Make the launcher, which is given `job.work` in place of the function of a single run."""
        from slimdown.showing.sweep import Sweep

        self.jobs = Sweep(Path(config.hydra.sweep.dir))
        super().setup(hydra_context=hydra_context, task_function=partial(work, self.jobs), config=config)
        self.jobs.in_process = isinstance(self.launcher, BasicLauncher)

    def sweep(self, arguments: list[str]) -> None:
        """Start the jobs, and show what became of them.

        Raises:
            SystemExit: 1, where a job failed.
        """
        from slimdown.showing import console
        from slimdown.showing.sweep import State

        assert self.hydra_context is not None
        assert self.config is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        batches = self.split_arguments(overrides, self.max_batch_size)
        swept = [override.get_key_element() for override in overrides if override.is_sweep_override()]
        self.jobs.plan([job for batch in batches for job in batch], swept)
        self.jobs.folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, self.jobs.folder / "multirun.yaml")
        n_launched = 0
        try:
            for batch in batches:
                self._launch(batch, n_launched)
                n_launched += len(batch)
        finally:
            console.show_sweep(self.jobs)
        if any(job.state is State.failed for job in self.jobs.jobs):
            sys.exit(1)

    def _launch(self, batch: list[list[str]], first: int) -> None:
        # Hydra's sweeper would compose every job before, as `check_command_line` has, and raise what the first raised.
        assert self.launcher is not None
        returned: list[JobReturn] = list(self.launcher.launch(batch, initial_job_idx=first))
        for number, job in enumerate(returned, start=first):
            if job.status is JobStatus.COMPLETED:
                self.jobs.jobs[number] = job.return_value


def register(sweeper: type[BasicSweeper]) -> None:
    """Let configs name a sweeper as `hydra_plugins.slimdown.NAME`.

    Hydra takes plugins out of the package `hydra_plugins` alone, and whatever lies there is imported by all programs
    of this Python that use Hydra.
    """
    Plugins.instance().class_name_to_class[f"hydra_plugins.slimdown.{sweeper.__name__}"] = sweeper
