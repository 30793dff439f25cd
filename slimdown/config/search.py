"""What a search proposes values of, within what budget of forgetting, in how many trials."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import MISSING

from slimdown.config.keys import COUNT, NOT_NEGATIVE, SHARE, Range, ranged, setting_type

SEARCHED = ("dataset", "lora", "method", "quantization", "train")
"""The sections whose settings can be searched: what is trained and how, never what is asked."""


@dataclass
class DimensionConfig:
    """The values that one setting may be given: a range, or choices; the fields are those of Optuna's distributions."""

    low: Any = None
    high: Any = None
    log: bool = False  # as likely between 1e-4 and 1e-3 as between 1e-3 and 1e-2
    choices: list[Any] = field(default_factory=list)

    def problems(self) -> Iterator[str]:
        ends = {
            name: value for name in ("low", "high") if (value := getattr(self, name)) is not None
        }
        if self.choices and (ends or self.log):
            yield f"choices: a range ({', '.join([*ends, *['log'] * self.log])}) is given too; leave one of the two out"
        elif not self.choices and len(ends) < 2:
            has = f"only {next(iter(ends))}" if ends else "no value"
            yield f"low and high, or choices, must be set; there is {has} to try"
        elif words := [
            f"{name}={end!r}" for name, end in ends.items() if type(end) not in (int, float)
        ]:
            yield f"{' and '.join(words)}: the ends of a range are numbers; give choices for anything else"
        elif ends and self.low >= self.high:
            yield f"low={self.low} must be below high={self.high}"
        elif ends and self.log and self.low <= 0:
            yield f"low={self.low}: log=true needs numbers above 0"

    def values(self) -> list[str]:
        """What is to be checked, as a command line has it: every choice, or the ends of the range."""
        return [
            Override._get_value_element_as_str(value)
            for value in self.choices or (self.low, self.high)
        ]


def dimension(override: Override) -> DimensionConfig:
    """The values that the command line gives a setting: choices, or an interval, logarithmic where it has that tag."""
    sweep = override.value()
    if isinstance(sweep, IntervalSweep):
        low, high = (
            int(end) if end and end.is_integer() else end for end in (sweep.start, sweep.end)
        )
        return DimensionConfig(low, high, log="log" in sweep.tags)
    return DimensionConfig(choices=list(override.sweep_iterator()))


class Sampler(StrEnum):
    """Who proposes the values."""

    tpe = "tpe"  # Optuna's TPESampler, from what the trials before have found
    random = "random"  # Optuna's RandomSampler


@dataclass
class SearchConfig:
    """Trials of values for some settings, each a run of its own; without any in `space` nothing is searched."""

    space: dict[str, DimensionConfig] = field(default_factory=dict)  # by the settings' dotted keys
    n_trials: int = ranged(COUNT)  # in all, those of an earlier command counted
    n_jobs: int | None = ranged(
        COUNT, None
    )  # proposed and run at once; null: hydra.launcher.n_jobs, or one
    # share that each retained benchmark may lose; null: its margin
    max_loss: float | None = ranged(
        Range("must be a share from 0 up to 1 (0.03 is three points)", SHARE.holds), None
    )
    sampler: Sampler = MISSING
    n_startup_trials: int = ranged(COUNT)  # random ones, before the sampler goes by what was found
    seed: int = ranged(NOT_NEGATIVE)  # of the proposals
    prune: float = ranged(
        SHARE
    )  # of the trials, those whose validation loss is highest end early; 0: none
    storage: str | None = (
        None  # a database's URL for Optuna; null: the file search.db beside the local record
    )
    study: str | None = None  # its name there; null: made of all that its trials have in common
    trial: int | None = ranged(
        NOT_NEGATIVE, None
    )  # of a run: which of the study's it is; the search sets it

    def problems(self) -> Iterator[str]:
        if self.storage is not None and "://" not in self.storage:
            yield f"storage={self.storage} is no database's URL; give one such as sqlite:///mlruns/search.db"


def searched(
    space: dict[str, DimensionConfig], overrides: Iterable[Override]
) -> dict[str, DimensionConfig]:
    """The settings that are searched: those of `space`, less what the command line gives a value, and its sweeps."""
    given = {override.key_or_group: override for override in overrides}
    left = {key: one for key, one in space.items() if key not in given}
    return left | {key: dimension(o) for key, o in given.items() if o.is_sweep_override()}


def optuna_problem() -> str | None:
    """Say that what a search needs is not installed; None where it is."""
    try:
        found = version("optuna")
    except PackageNotFoundError:
        return "a search needs Optuna, which is not installed; pip install 'slimdown[search]'"
    if int(found.partition(".")[0]) < 5:
        return f"a search needs Optuna 5 or later, found {found}; pip install 'slimdown[search]'"
    return None


def dimension_problem(key: str, given: DimensionConfig, schema: type) -> str | None:
    """Say why values for an existing setting are not to be searched; None where they are."""
    if key.partition(".")[0] not in SEARCHED:
        return f"{key} is not searched: it is no setting of what is trained and how ({', '.join(SEARCHED)})"
    kinds = setting_type(key.split("."), schema)
    if not given.choices and not any(kind in (int, float) for kind in kinds):
        return f"{key} is no number and has no range; give choices"
    return None


def is_whole(key: str, schema: type) -> bool:
    """Whether a setting's values are whole numbers."""
    return float not in setting_type(key.split("."), schema)
