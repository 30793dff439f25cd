"""A run's settings by their dotted keys, and what the run is called."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from omegaconf import OmegaConf

from slimdown.config.schema import TRAINING, RunConfig

_Section = TypeVar("_Section")


def flatten(config: RunConfig) -> dict[str, object]:
    """Every setting that counts, by its dotted key, as it is overridden on the command line."""
    flat: dict[str, object] = {}

    def walk(node: object, prefix: str) -> None:
        if isinstance(node, dict) and node:
            for key, value in node.items():
                walk(value, f"{prefix}{key}.")
        else:
            flat[prefix[:-1]] = node

    walk(OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True), "")
    idle: tuple[str, ...] = (
        TRAINING
        if config.tuned is not None
        else ("tuned",)
        if config.method.is_lora
        else ("tuned", "lora")
    ) + ("rerun", "search")
    unset = [key for key, value in flat.items() if key.startswith("method.") and value is None]
    return {
        key: value
        for key, value in flat.items()
        if key not in unset and key.partition(".")[0] not in idle
    }


def section(flat: Mapping[str, object], prefix: str, kind: type[_Section]) -> _Section:
    """The section of settings below `prefix.`, out of what `flatten` made or a record kept of it, as text or not.

    Raises:
        OmegaConfBaseException: a value that cannot be read, or one that is missing.
    """
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]  # a later version may have more
    keys = {key: key.removeprefix(f"{prefix}.") for key in flat if key.startswith(f"{prefix}.")}
    values = {
        name: None if flat[key] == "None" else flat[key]
        for key, name in keys.items()
        if name in known
    }
    found: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), values))
    return found  # type: ignore[no-any-return]


def base_settings(config: RunConfig) -> dict[str, object]:
    """The settings that a base's evaluation depends on, by their dotted keys."""
    read_only = ("evaluation.holdout", "evaluation.until")
    sections = ("model.", "quantization.", "benchmark.", "evaluation.")
    flat = flatten(config)
    return {key: flat[key] for key in flat if key.startswith(sections) and key not in read_only}


def run_name(model: str, overrides: list[str], swept: tuple[str, ...] = ()) -> str:
    """The model and what the command line changed of its training: what tells one run from another at a glance.

    What a sweep varies comes first; how it is measured and recorded is left out.

    >>> run_name("pocket", ["lora.r=4", "tracking.experiment=ranks"])
    'pocket lora.r=4'
    >>> run_name("smollm2", ["model=smollm2", "dataset=alpaca", "benchmark.gsm8k.limit=8", "lora.r=4"], ("lora.r",))
    'smollm2 lora.r=4 dataset=alpaca'
    """
    unshown = (
        "model=",
        "benchmark",
        "evaluation.",
        "baseline.",
        "tracking.",
        "rerun=",
        "search.",
        "hydra",
    )
    changes = [
        o for o in (override.lstrip("+") for override in overrides) if not o.startswith(unshown)
    ]
    changes.sort(
        key=lambda o: o.partition("=")[0] not in swept
    )  # stable: the order of the command line otherwise
    # What differs in a path is its end.
    short = [o if len(o) <= 60 else f"{o.partition('=')[0]}=…{o[-50:]}" for o in changes]
    return " ".join([model, *short])[:120]
