"""A run's settings by their dotted keys, and what the run is called."""

from dataclasses import asdict
from enum import Enum

from slimdown.config.schema import RunConfig


def flatten(config: RunConfig) -> dict[str, object]:
    """Return every setting that counts, by its dotted key, as a command line would set it."""
    flat: dict[str, object] = {}

    def walk(node: object, prefix: str) -> None:
        # An option's value stays whole: names in it are no settings.
        if isinstance(node, dict) and ".args." not in prefix[:-1]:
            for key, value in node.items():
                walk(value, f"{prefix}{key}.")
        else:
            flat[prefix[:-1]] = node.value if isinstance(node, Enum) else node

    walk(asdict(config), "")
    idle = {"rerun", "search", *config.idle_sections}
    counting = {key: flat[key] for key in flat if key.partition(".")[0] not in idle}
    optional = ("method.", "keep.", "tuned")  # null: there is no such setting, or no such model
    return {k: v for k, v in counting.items() if v is not None or not k.startswith(optional)}


def base_settings(config: RunConfig) -> dict[str, object]:
    """Return the settings that the evaluation of a base depends on, by their dotted keys."""
    sections = ("model.", "quantization.", "benchmark.", "evaluation.")
    read_later = ("evaluation.holdout", "evaluation.until")
    flat = flatten(config)
    return {key: flat[key] for key in flat if key.startswith(sections) and key not in read_later}


def run_name(model: str, overrides: list[str], swept: tuple[str, ...] = ()) -> str:
    """Name a run by its model and by what the command line changed of its training.

    Args:
        model: The choice of the group `model`.
        overrides: The settings of the command line.
        swept: The keys that a sweep varies; they come first.

    >>> run_name("pocket", ["lora.r=4", "tracking.experiment=ranks"])
    'pocket lora.r=4'
    >>> run_name("smollm2", ["model=smollm2", "dataset=alpaca", "lora.r=4"], ("lora.r",))
    'smollm2 lora.r=4 dataset=alpaca'
    """
    unshown = ("model=", "benchmark", "evaluation.", "baseline.", "tracking.", "rerun=", "search.")
    changes = [override.lstrip("+") for override in overrides]
    changes = [change for change in changes if not change.startswith((*unshown, "hydra"))]
    changes.sort(key=lambda change: change.partition("=")[0] not in swept)
    # Paths differ at their ends.
    short = [c if len(c) <= 60 else f"{c.partition('=')[0]}=…{c[-50:]}" for c in changes]
    return " ".join([model, *short])[:120]
