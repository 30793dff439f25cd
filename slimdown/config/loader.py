"""What Hydra composes -> a checked `RunConfig`. Nothing else in `config/` knows Hydra."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any

from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from slimdown.config.fields import (
    describe_settings,
    explain_unknown_key,
    find_option_problems,
    find_problems,
)
from slimdown.config.paths import CONF_DIR
from slimdown.config.question_files import complete_benchmark
from slimdown.config.rules import find_conflicts
from slimdown.config.schema import RunConfig, default_store
from slimdown.config.upstream import SECTIONS
from slimdown.utils.devices import count_gpus
from slimdown.utils.errors import ConfigError, describe_error
from slimdown.utils.secrets import redact


def register_schema() -> None:
    """Tell Hydra what `conf/` names: the schema and the resolvers.

    Only what composes calls it: both are global, and a program may have its own of these names.
    """
    schema: Any = OmegaConf.structured(RunConfig)
    for section in SECTIONS:
        OmegaConf.set_struct(schema[section].args, False)  # new names need no + before them
    ConfigStore.instance().store(name="schema", node=schema)
    resolvers: dict[str, Any] = {
        "default_store": default_store,  # conf/config.yaml
        "n_gpus": count_gpus,  # conf/hydra/launcher/
        "twice": lambda n: 2 * n,  # conf/experiment/rank.yaml
        "by_method": _choose_by_method,  # conf/train/
        "help_of_settings": _write_help,  # conf/config.yaml
    }
    for name, resolve in resolvers.items():
        OmegaConf.register_new_resolver(name, resolve, replace=True)


def _choose_by_method(values: DictConfig, *, _root_: DictConfig) -> Any:
    """Return, of values by method, that of the method that is chosen, or that under `else`."""
    return values.get(str(_root_.method.name), values.get("else"))


def _write_help() -> str:
    lines = [f"  {key:<42} {text}" for key, text in describe_settings(RunConfig)]
    return "\n".join(lines)


@contextmanager
def open_hydra() -> Iterator[None]:
    """Inside, Hydra's `compose` reads the files of `conf/`."""
    register_schema()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        yield


def load_config(composed: DictConfig) -> RunConfig:
    """Turn the config that Hydra composed into a checked `RunConfig`.

    Args:
        composed: All sections of the config, without Hydra's own.

    Returns:
        The settings, each of its type and in its range.

    Raises:
        ConfigError: Lists every problem, one a line.
    """
    try:
        for name, benchmark in composed.benchmark.items():
            complete_benchmark(name, benchmark)
    except OmegaConfBaseException as error:
        raise ConfigError(reword(error)) from None
    if composed.get("tuned") is not None:  # what the model's own file would train on is idle
        composed = composed.copy()
        composed.dataset = {}
    try:
        missing = sorted(OmegaConf.missing_keys(composed))
        config = RunConfig() if missing else OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise ConfigError(reword(error)) from None
    assert isinstance(config, RunConfig)
    # A file of a group sets its settings, where it is chosen.
    problems = [f"{key} must be set, or chosen by {key.partition('.')[0]}=..." for key in missing]
    if not problems:
        problems = [*find_problems(config), *find_conflicts(config), *find_option_problems(config)]
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def reword(error: Exception) -> str:
    """Return what Hydra or OmegaConf says of a mistake, in one line, with what would be right."""
    reason = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    is_clear = isinstance(reason, HydraException | OmegaConfBaseException)
    text = " ".join((str(reason) if is_clear else describe_error(reason)).split())
    text = text.partition(" full_key:")[0]
    file = re.match("In '((dataset|benchmark|experiment)?[^']*)'", text)
    detail: Any = error.__context__ if file else reason
    schema: Any = getattr(detail, "object_type", None)
    is_unknown = isinstance(detail, ConfigKeyError | ConfigAttributeError) and is_dataclass(schema)
    if is_unknown and detail.key != "experiment":
        text += f"; {explain_unknown_key(str(detail.key), schema)}"
    elif file and file[2] and (file[2] != "experiment" or detail.key == "experiment"):
        package = "_global_" if file[2] == "experiment" else file[1].replace("/", ".")
        text += f"; does {file[1]}.yaml begin with `# @package {package}`?"
    return redact(text)
