"""Choices of Hydra's groups that have no file: tasks, rows, questions, models, extensions."""

import os
import re
from pathlib import Path
from typing import Any

from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult, ConfigSource
from omegaconf import OmegaConf

from slimdown.config.dataset_config import is_row_file, name_row_file
from slimdown.config.methods import MethodConfig
from slimdown.config.mitigation import list_mitigations
from slimdown.config.paths import read_group
from slimdown.utils.extensions import list_added_choices


def is_open_choice(group: str, choice: object) -> bool:
    """Whether a choice that has no file means one thing by itself.

    A benchmark is a file of questions or a task of the harness, which `check_task_names` looks for.
    A dataset is a file of rows or a hub id, a model a hub id or a folder. Methods and mitigations
    of other packages have their settings in code.
    """
    if not isinstance(choice, str) or not choice:
        return False
    if group == "model":
        return "/" in choice or os.path.isdir(choice)
    if choice in list_added_choices(group):
        return True
    return group == "benchmark" or (group == "dataset" and ("/" in choice or is_row_file(choice)))


def name_choice(group: str, choice: object) -> str:
    """Return what a dataset or benchmark is called in `dataset.NAME` or `benchmark.NAME`."""
    name = str(choice)
    if is_row_file(name):
        return name_row_file(name)
    name = Path(name).name if group == "dataset" else name
    return re.sub(r"[^\w-]", "_", name, flags=re.ASCII)  # a dot would begin a new section


class OpenChoices(ConfigSource):
    """Makes the settings of a choice that has no file from the choice itself."""

    @staticmethod
    def scheme() -> str:
        """Return what stands before :// in `hydra.searchpath`."""
        return "slimdown-choices"

    def load_config(self, config_path: str) -> ConfigResult:
        """Return the settings of a choice, and in the header the section they belong to.

        Args:
            config_path: GROUP/CHOICE, as Hydra asks for a file: `dataset/rows.jsonl` or
                `model/OWNER/NAME`. The choice itself may contain slashes.
        """
        group, _, choice = config_path.partition("/")
        package = group  # Hydra's word for the section that the settings are put into
        settings: dict[str, Any]
        if group == "model":
            settings = {"id": choice}
        elif group == "keep":
            settings = vars(list_mitigations()[choice]()) | {"name": choice}
        elif group == "method":
            settings = vars(MethodConfig.list_kinds()[choice]()) | {"name": choice}
        else:  # a dataset or a benchmark
            package = f"{group}.{name_choice(group, choice)}"
            if group == "dataset":  # conf/dataset/file.yaml has the settings of any own rows
                settings = read_group("dataset")["file"] | {"path": choice}
            else:  # a file of questions, or a task of the harness
                settings = {"path" if is_row_file(choice) else "task": choice}
        content = OmegaConf.create(settings)
        return ConfigResult(self.provider, path="", config=content, header={"package": package})

    def is_config(self, config_path: str) -> bool:
        """Whether a path names a choice; the files of `conf/` and your own are asked first."""
        group, _, choice = config_path.partition("/")
        return is_open_choice(group, choice)

    def is_group(self, config_path: str) -> bool:
        """Whether choices are listed below a path; never, as there are thousands."""
        return False

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """List nothing."""
        return []

    def available(self) -> bool:
        """Whether the source can be read."""
        return True
