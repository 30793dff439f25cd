"""What a search proposes values of, within what budget of forgetting, in how many trials."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Any

from slimdown.config.fields import COUNT, NOT_NEGATIVE, SEED, SHARE, ranged

SEARCHED = ("dataset", "keep", "lora", "method", "quantization", "train")
"""The sections whose settings can be searched: what is trained and how, never what is asked."""


@dataclass
class DimensionConfig:
    """The values of one setting: a range, or choices, as in Optuna's distributions."""

    low: Any = None
    high: Any = None
    log: bool = False  # as likely between 1e-4 and 1e-3 as between 1e-3 and 1e-2
    choices: list[Any] = field(default_factory=list)

    def problems(self) -> Iterator[str]:
        ends, least = [self.low, self.high], 0 if self.log else -inf
        is_range = all(type(end) in (int, float) for end in ends) and least < self.low < self.high
        if bool(self.choices) == (ends != [None, None]) or not (self.choices or is_range):
            yield "choices must be set, or numbers low < high, which log=true wants above 0"


@dataclass
class SearchConfig:
    """Trials of values, each a run of its own; without a `space` nothing is searched."""

    space: dict[str, DimensionConfig] = field(default_factory=dict)  # by the settings' dotted keys
    n_trials: int = ranged(COUNT)  # in all, those of earlier commands counted
    # share that each retained benchmark may lose; null: its margin
    max_loss: float | None = ranged(SHARE, None, "; 0.03 is three points")
    n_startup_trials: int = ranged(COUNT)  # random ones, before the sampler goes by results
    seed: int = ranged(SEED)  # of the proposals
    # trials proposed together; null: joblib's n_jobs, of Ray and Slurm n_startup_trials
    at_once: int | None = ranged(COUNT, None)
    study: str | None = None  # its name; null: made of all that its trials have in common
    trial: int | None = ranged(NOT_NEGATIVE, None)  # the number of this run; the search sets it
