"""The settings of a search: what it varies, its budget of forgetting, and its trials."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from slimdown.config.fields import COUNT, LOSS, NONNEGATIVE, SEED, setting

SEARCHED = ("dataset", "keep", "lora", "method", "quantization", "train")
"""The sections whose settings can be searched: what is trained and how, never what is asked."""

_LARGEST = 1e15  # Optuna computes with floats: larger whole numbers would not be exact


@dataclass
class DimensionConfig:
    """The values of one setting: a range, or choices, as in Optuna's distributions."""

    low: Any = setting("least value", default=None)
    high: Any = setting("greatest value", default=None)
    log: bool = setting("draw its logarithm", default=False)
    choices: list[Any] = setting("the values to try, if they are not a range", default=[])

    def problems(self) -> Iterator[str]:
        ends, least = [self.low, self.high], 0 if self.log else -_LARGEST
        is_range = all(type(end) in (int, float) for end in ends)
        is_range = is_range and least < self.low < self.high < _LARGEST
        # Either choices are set or both ends of a range, never a choice and an end.
        is_right = ends == [None, None] if self.choices else is_range
        if not is_right:
            yield "choices must be set, or numbers low < high < 1e15 (above 0 with log=true)"


@dataclass
class SearchConfig:
    """Trials of values, each a run of its own; without a `space` nothing is searched."""

    space: dict[str, DimensionConfig] = setting(
        "ranges and choices, by dotted key of the setting", default={}
    )
    n_trials: int = setting("number of trials in total, including those of earlier commands", COUNT)
    max_loss: float | None = setting(
        "largest loss allowed for each retained benchmark, as a share; null: its margin", LOSS, None
    )
    n_startup_trials: int = setting(
        "number of random trials before the sampler uses results", COUNT
    )
    seed: int = setting("of the proposals", SEED)
    at_once: int | None = setting(
        "number of trials proposed together; null: the launcher decides", COUNT, None
    )
    study: str | None = setting("name of the search; null: made from its settings", default=None)
    trial: int | None = setting("number of this run; the search sets it", NONNEGATIVE, None)
