"""A run's settings by their dotted keys, and the run's name."""

from dataclasses import asdict, replace
from enum import Enum
from functools import cache
from pathlib import Path
from textwrap import shorten
from typing import Any

import yaml

from slimdown.config.dataset_config import DatasetConfig
from slimdown.config.schema import BenchmarkConfig, RunConfig

_ANY = "<name>"  # stands for any dataset or benchmark


def flatten(config: RunConfig, as_in_keys: bool = False) -> dict[str, object]:
    """Return every setting that counts, by its dotted key, as a command line would set it.

    Args:
        config: The settings.
        as_in_keys: See `select_for_key`.
    """
    tree = asdict(config)
    flat: dict[str, object] = {}

    def walk(node: object, prefix: str) -> None:
        # An option's value stays whole: names in it are no settings.
        if isinstance(node, dict) and ".args." not in prefix[:-1]:
            for key, value in node.items():
                walk(value, f"{prefix}{key}.")
        else:
            flat[prefix[:-1]] = node.value if isinstance(node, Enum) else node

    walk(select_for_key(tree) if as_in_keys else tree, "")
    idle = {"rerun", "search", *config.idle_sections}
    counting = {key: flat[key] for key in flat if key.partition(".")[0] not in idle}
    optional = ("method.", "keep.", "tuned")  # null: there is no such setting, or no such model
    return {k: v for k, v in counting.items() if v is not None or not k.startswith(optional)}


def select_for_key(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that a key holds, so that it stays the same when the schema changes.

    They are the settings of `first_settings.yaml`, with the value from there if the schema has lost
    them, and those later settings that are not at their default.

    Args:
        settings: A tree of sections, each of them whole.

    >>> select_for_key({"seed": 0, "search": {"seed": 0}})
    {'seed': 0, 'search': {'seed': 0}}
    """

    def select(node: Any, first: Any, defaults: Any) -> Any:
        if not isinstance(first, dict):
            return node
        if _ANY in first:
            return {name: select(one, first[_ANY], defaults[_ANY]) for name, one in node.items()}
        lost = {name: first[name] for name in first.keys() - defaults.keys()}
        counting = [k for k in node if k in first or node[k] != defaults.get(k, ...)]
        return lost | {k: select(node[k], first.get(k), defaults.get(k)) for k in counting}

    return dict(select(settings, *_read_defaults(RunConfig)))


@cache
def _read_defaults(schema: type) -> tuple[Any, Any]:
    """Return the defaults of the settings that each key holds, and of the whole schema."""
    named = {"dataset": {_ANY: DatasetConfig()}, "benchmark": {_ANY: BenchmarkConfig()}}
    first = yaml.safe_load((Path(__file__).parent / "first_settings.yaml").read_text())
    return first, asdict(replace(schema(), **named))


def base_settings(config: RunConfig) -> dict[str, object]:
    """Return the settings that the evaluation of a base depends on, by their dotted keys."""
    sections = ("model.", "quantization.", "benchmark.", "evaluation.")
    read_later = ("evaluation.holdout", "evaluation.until")
    flat = flatten(config)
    return {key: flat[key] for key in flat if key.startswith(sections) and key not in read_later}


def run_name(model: str, overrides: list[str], swept: tuple[str, ...] = ()) -> str:
    """Name a run by its model and by what the command line changed in its training.

    Args:
        model: The choice of the group `model`.
        overrides: The settings of the command line.
        swept: The keys that a sweep varies; they come first.

    >>> run_name("pocket", ["lora.r=4", "tracking.experiment=ranks"])
    'pocket lora.r=4'
    >>> run_name("smollm2", ["model=smollm2", "dataset=alpaca", "lora.r=4"], ("lora.r",))
    'smollm2 lora.r=4 dataset=alpaca'
    >>> run_name("pocket", [f"train.args.option_{n}=value" for n in range(9)])[-27:]
    'train.args.option_3=value …'
    """
    unshown = ("model=", "benchmark", "evaluation.", "baseline.", "tracking.", "rerun=", "search.")
    changes = [override.lstrip("+") for override in overrides]
    changes = [change for change in changes if not change.startswith((*unshown, "hydra"))]
    changes.sort(key=lambda change: change.partition("=")[0] not in swept)
    # Paths differ at their ends.
    short = [c if len(c) <= 60 else f"{c.partition('=')[0]}=…{c[-50:]}" for c in changes]
    return shorten(" ".join([model, *short]), 120, placeholder=" …")
