"""The harness's tasks as choices of Hydra's group `benchmark`, where no file has their name."""

import re

from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import OmegaConf


class TaskSource(ConfigSource):
    """Holds `task: NAME` for any name; `check_task_names` checks that the harness has it."""

    @staticmethod
    def scheme() -> str:
        """Return what stands before :// in `hydra.searchpath`."""
        return "slimdown-tasks"

    def load_config(self, config_path: str) -> ConfigResult:
        """Return the settings of a benchmark: only its task, which decides all else."""
        task = config_path.removeprefix("benchmark/")
        name = re.sub(r"[^\w-]", "_", task, flags=re.ASCII)  # a dot would separate sections
        config = OmegaConf.create({"task": task})
        return ConfigResult(self.provider, "", config, {"package": f"benchmark.{name}"})

    def is_config(self, config_path: str) -> bool:
        """Whether a path names a choice; the files of `conf/` and your own are asked first."""
        return re.fullmatch("benchmark/.+", config_path) is not None

    def is_group(self, config_path: str) -> bool:
        """Whether choices are listed below a path; never, as there are thousands."""
        return False

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """List nothing."""
        return []

    def available(self) -> bool:
        """Whether the source can be read."""
        return True
