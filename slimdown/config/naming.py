"""A run's settings by their dotted keys, and the run's name."""

from dataclasses import asdict, is_dataclass
from enum import Enum
from functools import cache
from textwrap import shorten
from typing import Any

from slimdown.config.benchmark_config import BenchmarkConfig
from slimdown.config.dataset_config import DatasetConfig
from slimdown.config.schema import RunConfig

NOT_IN_KEY = ("tracking.", "baseline.", "train.checkpoint_minutes", "served.timeout")
"""What settings begin with on which no result depends."""

_NOT_NAMED = (
    "model=", "benchmark", "evaluation.", "baseline.", "tracking.", "rerun=", "search.", "hydra",
    "note=",
)  # fmt: skip


def flatten(config: RunConfig, without_defaults: bool = False) -> dict[str, object]:
    """Return the settings of a run by their dotted keys, as a command line would set them.

    Args:
        config: The settings.
        without_defaults: Whether to leave out settings that have their default value.

    Returns:
        The settings without those that the run does not read or that change nothing in it, such as
        its name.
    """
    tree = _read_tree(config)
    flat = flatten_tree(drop_defaults(tree) if without_defaults else tree)
    # What a run measures does not depend on these sections and settings.
    without_effect = {"rerun", "search", "name", "note", *config.idle_sections}
    used = {key: flat[key] for key in flat if key.partition(".")[0] not in without_effect}
    # Each method and mitigation has settings of its own, and null stands for those that the chosen
    # one does not have. `tuned` is null if no tuned model was given.
    optional = ("method.", "keep.", "tuned")
    return {k: v for k, v in used.items() if v is not None or not k.startswith(optional)}


def flatten_tree(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return every value of a tree of sections by its dotted key; lists are whole.

    Args:
        tree: Dictionaries in dictionaries, or a single value.
        prefix: The dotted key of `tree` and a dot; empty for the whole tree.

    >>> flatten_tree({"seed": 0, "train": {"optim": "sgd", "args": {"fsdp": {"a": 1}}}})
    {'seed': 0, 'train.optim': 'sgd', 'train.args.fsdp': {'a': 1}}
    """
    key = prefix.removesuffix(".")
    # `train.args.fsdp` is one setting. If its value is a dictionary, it stays whole, because the
    # keys in it belong to another library.
    if not isinstance(tree, dict) or ".args." in key:
        return {key: tree.value if isinstance(tree, Enum) else tree}
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= flatten_tree(value, f"{prefix}{name}.")
    return flat


def _read_tree(node: object) -> Any:
    """Return sections as dictionaries, without copies of their values, as `asdict` makes them."""
    if is_dataclass(node) or isinstance(node, dict):
        values = node if isinstance(node, dict) else vars(node)
        return {key: _read_tree(value) for key, value in values.items()}
    return node


def drop_defaults(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that differ from their default, and those that have none.

    The keys of runs and evaluations are made from these settings only, so that a new setting
    changes no key. If you change a default, raise the version in the keys
    (`tests/config/test_key_defaults.py`).

    Args:
        settings: A tree of sections, each with all of its settings.

    >>> drop_defaults({"seed": 0, "tuned": None, "contamination": {"max_share": 0.01}})
    {'seed': 0, 'contamination': {'max_share': 0.01}}
    """

    def drop(node: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
        kept = {k: v for k, v in node.items() if k not in defaults or v != defaults[k]}
        for key, value in kept.items():
            # A dictionary that is empty by default is one setting. Any other is a section.
            if type(value) is dict and defaults.get(key):
                kept[key] = drop(value, defaults[key])
        return kept

    defaults = read_defaults()
    for group in settings.keys() & {"dataset", "benchmark"}:
        # All datasets have the same defaults, and so have all benchmarks.
        defaults = defaults | {group: dict.fromkeys(settings[group], defaults[group]["<name>"])}
    return drop(settings, defaults)


@cache
def read_defaults() -> dict[str, Any]:
    """Return the tree of all defaults, `<name>` for any dataset or benchmark; ??? where is none."""
    return asdict(RunConfig()) | {
        "dataset": {"<name>": asdict(DatasetConfig())},
        "benchmark": {"<name>": asdict(BenchmarkConfig())},
    }


def base_settings(config: RunConfig) -> dict[str, object]:
    """Return the settings that the evaluation of a base depends on, by their dotted keys."""
    sections = ("model.", "quantization.", "benchmark.", "evaluation.")
    read_later = ("evaluation.holdout", "evaluation.until")
    flat = flatten(config)
    return {key: flat[key] for key in flat if key.startswith(sections) and key not in read_later}


def describe_identity(config: RunConfig) -> dict[str, str]:
    """Return the few settings by which people tell runs apart, as texts by dotted key."""
    flat = flatten(config)
    named = ("model.id", "tuned", "method.name", "lora.r", "train.learning_rate", "keep.name")
    texts = {key: str(flat[key]) for key in (*named, "seed") if flat.get(key, "???") != "???"}
    if flat.get("quantization.load_in_4bit") != "???":  # logs do not name it
        texts["quantization"] = config.quantization.name
    texts |= {"dataset": ",".join(config.dataset), "benchmark": ",".join(config.benchmark)}
    idle = {*config.idle_sections}
    if texts.get("keep.name") == "none":
        idle.add("keep")
    return {k: v for k, v in texts.items() if v and k.partition(".")[0] not in idle}


def run_name(
    model: str, overrides: list[str], swept: tuple[str, ...] = (), given: str | None = None
) -> str:
    """Name a run by its model and by what the command line changed in its training.

    If the user gives a name, it stands instead of the model and the changes. Only what a sweep
    varies still follows, so that the sweep's runs differ in name.

    Args:
        model: The choice of the group `model`.
        overrides: The settings of the command line.
        swept: The keys that a sweep varies; they come first.
        given: The value of the setting `name`.

    >>> run_name("pocket", ["lora.r=4", "tracking.experiment=ranks"])
    'pocket lora.r=4'
    >>> run_name("smollm2", ["model=smollm2", "dataset=alpaca", "lora.r=4"], ("lora.r",))
    'smollm2 lora.r=4 dataset=alpaca'
    >>> run_name("pocket", ["lora.r=4", "seed=1", "name=ranks"], ("lora.r",), "ranks")
    'ranks lora.r=4'
    >>> run_name("pocket", [f"train.args.option_{n}=value" for n in range(9)])[-27:]
    'train.args.option_3=value …'
    """
    changes = [override.lstrip("+") for override in overrides]
    if given:
        changes = [change for change in changes if change.partition("=")[0] in swept]
    else:
        changes = [change for change in changes if not change.startswith(_NOT_NAMED)]
    changes.sort(key=lambda change: change.partition("=")[0] not in swept)  # False comes first
    # Long values keep their end, because paths differ there.
    short = [c if len(c) <= 60 else f"{c.partition('=')[0]}=…{c[-50:]}" for c in changes]
    width = 120 + len(given or "")  # so a given name is never cut
    return shorten(" ".join([given or model, *short]), width, placeholder=" …")
