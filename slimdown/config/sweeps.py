"""One argument of the command line, and the values that a sweep or a search gives it."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from hydra.errors import HydraException

from slimdown.config.files import group_choices
from slimdown.config.search import dimension
from slimdown.utils.errors import ConfigError
from slimdown.utils.redaction import redact

_MOST_CHECKED = 64  # combinations of swept values; of more, each value once


@dataclass(frozen=True)
class Alternatives:
    """One argument of the command line: a setting with one value, or with those that a sweep gives it."""

    override: Override
    key: str  # what is set
    n: int  # values in the sweep; of an interval 2
    each: list[Override]  # with one value each; of a range or an interval, its ends


def alternatives(text: str, folders: tuple[Path, ...]) -> Alternatives:
    """What an argument of the command line asks for; `folders` are where group files are looked for.

    Raises:
        ConfigError: it is not setting=value, or has no value to try.
    """
    try:
        override = parsed(text)
        if not override.key_or_group:
            raise ValueError("there is no name before the =")
        n, each = 1, [override]
        if override.is_sweep_override():
            n, values = _to_check(override, folders)
            each = [parsed(f"{override.get_key_element()}={value}") for value in values]
    except (HydraException, ValueError, RecursionError, ArithmeticError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{redact(text)[:80]!r} is not setting=value: {reason}") from None
    if not each:
        raise ConfigError(f"{text}: no value is left to try")
    return Alternatives(override, str(override.key_or_group), n, each)


def parsed(text: str) -> Override:
    """The argument as Hydra reads it."""
    return OverridesParser.create().parse_override(text)


def _to_check(override: Override, folders: tuple[Path, ...]) -> tuple[int, list[str]]:
    """How many values a sweep has, and those to check: all, or the ends of a range, which may be long."""
    sweep: Any = override.value()
    if isinstance(sweep, IntervalSweep):
        return 2, dimension(override).values()
    if override.is_range_sweep():
        if not sweep.step:
            raise ValueError("a range needs a step other than 0")
        n = max(0, ceil((sweep.stop - sweep.start) / sweep.step))
        return n, list(
            dict.fromkeys(str(value) for value in (sweep.start, sweep.start + (n - 1) * sweep.step))
        )[:n]
    if isinstance(sweep, Glob):
        values = sweep.filter(group_choices(override.key_or_group, folders))
    else:
        values = list(override.sweep_string_iterator())
    return len(values), values


def combinations(given: list[Alternatives]) -> Iterator[tuple[Override, ...]]:
    """Every combination of values; where they are many, each value once beside the others' first."""
    if prod(len(one.each) for one in given) <= _MOST_CHECKED:
        yield from itertools.product(*(one.each for one in given))
        return
    first = [one.each[0] for one in given]
    yield tuple(first)
    for i, one in enumerate(given):
        yield from ((*first[:i], value, *first[i + 1 :]) for value in one.each[1:])
