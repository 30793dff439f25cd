"""Turn what Hydra composes into a checked `RunConfig`. Only `open_choices` knows Hydra, too."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigNode, ConfigStore
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from slimdown.config.benchmarks import complete_benchmark
from slimdown.config.fields import explain_unknown_key, find_problems
from slimdown.config.methods import build_method
from slimdown.config.mitigation import build_mitigation
from slimdown.config.open_choices import OpenChoices
from slimdown.config.paths import CONF_DIR
from slimdown.config.refused_options import SECTIONS, find_option_problems
from slimdown.config.rules import find_conflicts
from slimdown.config.schema import QuantType, RunConfig
from slimdown.config.tracking_config import default_store
from slimdown.utils.devices import count_gpus
from slimdown.utils.errors import ConfigError, SlimdownError, describe_error
from slimdown.utils.secrets import redact


def register_schema() -> None:
    """Tell Hydra what the files of `conf/` refer to: the schema, choices without files, resolvers.

    Call it only to compose: the names are global, and a program may use the same ones itself.
    """
    # `ConfigStore.store` would copy the schema each time, and Hydra 1.4 warns of the second.
    ConfigStore.instance().repo["schema.yaml"] = _make_schema()
    Plugins.instance().register(OpenChoices)  # hydra.searchpath in conf/config.yaml
    resolvers: dict[str, Any] = {
        "default_store": default_store,  # conf/config.yaml
        "n_gpus": count_gpus,  # conf/hydra/launcher/
        # conf/lora/: lora_alpha is twice the rank. For a rank of 0, only the rank is refused.
        "twice": lambda n: max(1, 2 * n),
        "by_method": _choose_by_method,  # conf/train/
    }
    for name, resolve in resolvers.items():
        OmegaConf.register_new_resolver(name, resolve, replace=True)


@cache
def _make_schema() -> ConfigNode:
    """Return the schema as Hydra stores it; Hydra copies it before it composes."""
    schema: Any = OmegaConf.structured(RunConfig)
    for section in SECTIONS:
        OmegaConf.set_struct(schema[section].args, False)  # new names need no + before them
    OmegaConf.set_struct(schema.evaluation.chat_template_args, False)
    OmegaConf.set_struct(schema.search.space, False)
    for group in ("method", "keep"):  # each choice has settings of its own
        OmegaConf.set_struct(schema[group], False)
    return ConfigNode("schema.yaml", schema, group=None, package=None, provider=None)


def _choose_by_method(values: DictConfig, *, _root_: DictConfig) -> Any:
    """Return the value of the chosen method from values by method, or the one under `else`."""
    return values.get(str(_root_.method.name), values.get("else"))


@contextmanager
def open_hydra() -> Iterator[None]:
    """Inside, Hydra's `compose` reads the files of `conf/`."""
    register_schema()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        yield


def compose_defaults() -> DictConfig:
    """Compose the settings of a run that names nothing but a model of the hub."""
    with open_hydra():
        return compose("config", ["model=any"])


def load_config(composed: DictConfig) -> RunConfig:
    """Turn the config that Hydra composed into a checked `RunConfig`.

    Args:
        composed: All sections of the config, without Hydra's own. It is changed where values are
            filled in.

    Returns:
        The settings, each of its type and in its range.

    Raises:
        ConfigError: Lists every problem, one a line.
    """
    try:
        # The file of a model also chooses a dataset. With `tuned`, nothing is trained on it.
        if composed.tuned is not None:
            composed.dataset = {}
        if OmegaConf.is_missing(composed.quantization, "load_in_4bit"):  # quantization=auto
            _set_quantization(composed)
        try:
            config = OmegaConf.to_object(composed)
        except MissingMandatoryValue:  # names one value; the message below names all of them
            missing = sorted(OmegaConf.missing_keys(composed))
            # A choice of their group would have set them.
            problems = [f"{k} must be set, or chosen by {k.partition('.')[0]}=..." for k in missing]
            raise ConfigError("\n".join(problems)) from None
    except OmegaConfBaseException as error:
        raise ConfigError(reword(error)) from None
    assert isinstance(config, RunConfig)
    method = build_method(vars(config.method))
    keep = build_mitigation(vars(config.keep))
    # `build_mitigation` gave the values their types: 1 became 1.0. MLflow shows the composed
    # settings, so they get the converted values as well.
    OmegaConf.update(composed, "keep", vars(keep), merge=True)
    return complete_config(replace(config, method=method, keep=keep))


def _set_quantization(composed: DictConfig) -> None:
    """Set what quantization=auto means: as an adapter was trained, or in four bits."""
    quantization, tuned = composed.quantization, composed.tuned
    kind = read_trained_quantization(tuned) if tuned else quantization.bnb_4bit_quant_type.value
    quantization.load_in_8bit = quantization.load_in_8bit or kind == "int8"
    quantization.load_in_4bit = not quantization.load_in_8bit and kind != "none"
    if quantization.load_in_4bit:
        quantization.bnb_4bit_quant_type = kind


def complete_config(config: RunConfig) -> RunConfig:
    """Return the settings with what files of questions decide filled in, after checking them all.

    Args:
        config: Settings of the right classes, as Hydra or a record gave them.

    Returns:
        The complete settings. `evaluation.limit` has become the limit of each benchmark. The key
        by which a finished evaluation is found again is made from a benchmark's settings, so it
        does not depend on which of the two settings limited the questions.

    Raises:
        ConfigError: Lists every problem, one a line.
    """
    benchmarks = {name: complete_benchmark(name, b) for name, b in config.benchmark.items()}
    config = replace(config, benchmark=benchmarks)
    problems = [*find_problems(config), *find_conflicts(config), *find_option_problems(config)]
    if problems:
        raise ConfigError("\n".join(problems))
    if limit := config.evaluation.limit:
        for name, benchmark in config.benchmark.items():
            config.benchmark[name] = replace(benchmark, limit=min(limit, benchmark.limit or limit))
        config.evaluation = replace(config.evaluation, limit=None)
    return config


def read_trained_quantization(folder: str | Path) -> str:
    """Return the quantization that an adapter was trained with, as the model card beside it says.

    Args:
        folder: Where slimdown saved an adapter; other tools write no such card.

    Returns:
        nf4, fp4 or int8; "none" also if there is no card.
    """
    folder = Path(folder).expanduser()
    card = folder / "README.md"
    is_adapter = (folder / "adapter_config.json").is_file()
    # A larger file is no card of slimdown's.
    is_card = card.is_file() and is_adapter and card.stat().st_size < 1_000_000
    text = card.read_text(errors="replace") if is_card else ""
    settings = dict(re.findall(r"^quantization\.(\w+): (\w+)$", text, re.MULTILINE))
    kind = settings.get("bnb_4bit_quant_type")
    if settings.get("load_in_4bit") == "true" and kind in list(QuantType):
        return str(kind)
    return "int8" if settings.get("load_in_8bit") == "true" else "none"


def reword(error: Exception) -> str:
    """Return an error of Hydra or OmegaConf in one line, with advice.

    For an unknown setting, the advice is the nearest known one. Some other errors come from a file
    that lacks its first line, `# @package ...`, so that Hydra puts its settings into another
    section. For these, the advice asks about the line:

    - The settings of an experiment are then below `experiment`, which is no section.
    - Those of a dataset or a benchmark are then refused, because their section holds whole datasets
      or benchmarks, by name. Every error in such a file gets this advice, except for an unknown
      setting.
    """
    # Hydra raises some errors of its own from OmegaConf's, which is then their cause and says more.
    reason = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    is_clear = isinstance(reason, HydraException | OmegaConfBaseException | SlimdownError)
    message = str(reason) if is_clear else describe_error(reason)
    text = " ".join(message.split()).partition(" full_key:")[0]
    # An error in a file has no cause. Hydra's own says more, "In 'dataset/mine': ...", but only
    # OmegaConf's knows the key. That is the context: what Hydra had caught when it raised its own.
    in_file = re.match("In '([^']*)'", text)
    file_name = in_file[1] if in_file else ""  # GROUP/CHOICE, or `config`
    detailed_error: Any = error.__context__ if in_file else reason
    key = getattr(detailed_error, "key", None)
    schema: Any = getattr(detailed_error, "object_type", None)  # of the section that lacks the key
    # OmegaConf's errors of a key that is not there are of these classes of Python, too.
    is_unknown = isinstance(detailed_error, KeyError | AttributeError) and is_dataclass(schema)
    if is_unknown and key != "experiment":
        text += f"; {explain_unknown_key(str(key), schema)}"
    elif key == "experiment" and file_name.startswith("experiment/"):
        text += f"; does {file_name}.yaml begin with `# @package _global_`?"
    elif file_name.startswith(("dataset/", "benchmark/")):
        text += f"; does {file_name}.yaml begin with `# @package {file_name.replace('/', '.')}`?"
    return redact(text)
