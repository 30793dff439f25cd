"""Values of a setting, tested against each other over their seeds.

A difference is a claim about other seeds of both values and other questions of the same kind, as
the verdicts over seeds beside it are (`slimdown.stats.seeds.build_difference_tests`). Values with
the same seeds are compared seed by seed: a seed gives each the same rows in the same order. Where
one value is the reference, the others are compared with it alone. That needs fewer tests.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from slimdown.comparison.run_comparison import (
    Comparison,
    Configuration,
    can_average,
    collect_answers,
)
from slimdown.comparison.run_records import KEPT, LEARNED, RunRecord
from slimdown.config.benchmark_config import Role
from slimdown.config.fields import nearest
from slimdown.judging.verdicts import take_one_kind
from slimdown.stats.estimates import holm
from slimdown.stats.likelihood import ALPHA
from slimdown.stats.seeds import ENOUGH_SEEDS, MeanTest, SeedAnswers, build_difference_tests
from slimdown.utils.errors import ConfigError


@dataclass(frozen=True)
class ShownDifference:
    """Two values of a setting that differ on a benchmark."""

    setting: str
    benchmark: str
    where: str  # the other settings that are equal, such as ", keep.share=.2"; or empty
    value: str
    other: str
    difference: float  # value - other, a share
    p_value: float  # corrected for all pairs, benchmarks and settings

    @property
    def points(self) -> str:
        """How far they lie apart."""
        return f"{100 * abs(self.difference):.1f}"

    @property
    def side(self) -> str:
        """Where the value lies."""
        return "above" if self.difference > 0 else "below"


@dataclass(frozen=True)
class Differences:
    """What is shown to differ between the values of settings."""

    shown: tuple[ShownDifference, ...]
    n_tests: int
    has_few_seeds: bool
    reason: str  # why nothing was tested; empty if something was


def find_differences(comparison: Comparison, *settings: str) -> Differences:
    """Find the values of settings that differ, and on which benchmark.

    The p-values are corrected for the pairs of all settings, benchmarks and places together (Holm).

    Args:
        comparison: The compared runs, grouped by seed.
        settings: Dotted keys. If other settings vary within a value of one, only runs with equal
            values of those are compared.

    Raises:
        ConfigError: No run has the comparison's reference.
    """
    made = {setting: _test_values(comparison, setting) for setting in settings}
    every = [
        (setting, *name, pair, test)
        for setting, tests in made.items()
        for name, of_pairs in tests.items()
        for pair, test in of_pairs.items()
    ]
    corrected = holm([test.p_value for *_, test in every])
    shown = [
        ShownDifference(setting, benchmark, where, b, a, test.value, p_value)
        for (setting, benchmark, where, (a, b), test), p_value in zip(every, corrected, strict=True)
        if p_value < ALPHA
    ]
    fewest = min((len(row.runs) for row in comparison.rows if len(row.runs) > 1), default=0)
    reason = "" if every else _explain_no_test(comparison, settings)
    return Differences(tuple(shown), len(every), bool(every) and fewest < ENOUGH_SEEDS, reason)


def _explain_no_test(comparison: Comparison, settings: Sequence[str]) -> str:
    crossed = _find_crossed(comparison, settings[0]) if len(settings) == 1 else []
    with_same = f" and the same {', '.join(crossed)}" if crossed else ""
    cells = (cell for row in comparison.rows for cell in row.changes.values())
    whole = " whose evaluations did not stop early" if any(c.is_stopped for c in cells) else ""
    problem = f"no two have two seeds each{with_same}{whole}"
    named, advice = " or ".join(settings), "-m seed=0,1,2 lets them be tested"
    return f"No difference between values of {named} is shown: {problem}; {advice}."


def _find_crossed(comparison: Comparison, setting: str) -> list[str]:
    """Find the other settings that vary within a value of one, and so must be equal in a test."""
    values = [_read_value(row, setting) for row in comparison.rows]
    crossed = []
    for key in comparison.params:
        others = (row.settings.get(key) for row in comparison.rows)
        pairs = set(zip(values, others, strict=True))
        if key not in (setting, "seed") and len(pairs) > len(set(values)):
            crossed.append(key)
    return crossed


def _read_value(row: Configuration, setting: str) -> str:
    """Read a setting; a record has none that is null, and no rank if nothing is a LoRA."""
    return row.settings.get(setting, "null")


def _test_values(
    comparison: Comparison, setting: str
) -> dict[tuple[str, str], dict[tuple[str, str], MeanTest]]:
    """Test each pair of values of a setting, by benchmark and place.

    A place is one choice of values of the other settings that vary: `keep.share=.2`. Only runs in
    the same place are compared. A row that lacks such a setting, as keep=none lacks a share, is in
    a place of its own, and also stands in every place that has no row of its value.
    """
    rows, crossed = comparison.rows, _find_crossed(comparison, setting)
    of_rows = [tuple(row.settings.get(key) for key in crossed) for row in rows]
    values, reference = {_read_value(row, setting) for row in rows}, comparison.reference
    if reference is not None and reference not in values:
        advice = nearest(reference, sorted(values))
        raise ConfigError(f"--against {reference}: no run has this value of {setting}{advice}")
    tests: dict[tuple[str, str], dict[tuple[str, str], MeanTest]] = {}
    for place in dict.fromkeys(of_rows):
        named = zip(crossed, place, strict=True)
        where = "".join(f", {key}={'null' if one is None else one}" for key, one in named)
        fitting = [row for row, own in zip(rows, of_rows, strict=True) if _fits(own, place)]
        fitting.sort(key=lambda row: tuple(row.settings.get(key) for key in crossed) == place)
        # its own rows come last, and so replace those that lack a setting
        row_of = {_read_value(row, setting): row for row in fitting}
        for heading, names in _list_columns(fitting).items():
            of_pairs = tests.setdefault((heading, where), {})
            for groups in _group_by_questions(row_of, names).values():
                pairs = [pair for pair in combinations(groups, 2) if reference in (None, *pair)]
                pairs = [(b, a) if b == reference else (a, b) for a, b in pairs]
                of_pairs |= build_difference_tests(groups, pairs)
    return {name: of_pairs for name, of_pairs in tests.items() if of_pairs}


def _list_columns(rows: Sequence[Configuration]) -> dict[str, list[str]]:
    """Return the benchmarks that each column averages: itself, or for means those of a role."""
    found = {name: one for row in rows for run in row.runs for name, one in run.changes.items()}
    columns = {name: [name] for name, change in found.items() if change.role is not Role.watched}
    for heading, role in ((LEARNED, Role.target), (KEPT, Role.retained)):
        names = take_one_kind({n: one.metric for n, one in found.items() if one.role is role})
        if len(names) > 1:
            columns[heading] = names
    return columns


def _group_by_questions(
    row_of: dict[str, Configuration], names: Sequence[str]
) -> dict[tuple[str, ...], dict[str, SeedAnswers]]:
    """Collect each value's answers, by the questions that were asked.

    A run is left out if it lacks a benchmark, may have stopped early, or is unclear.
    """
    groups: dict[tuple[str, ...], dict[str, SeedAnswers]] = {}
    for value, row in row_of.items():
        runs = [run for run in row.runs if all(_is_usable(run, name) for name in names)]
        changes = [[run.changes[name] for run in runs] for name in names]
        if runs and can_average(changes):
            asked = tuple(f"{of_runs[0].question_hash} {of_runs[0].metric}" for of_runs in changes)
            seeds = [run.params.get("seed", "") for run in runs]
            groups.setdefault(asked, {})[value] = collect_answers(changes, seeds)
    return groups


def _is_usable(run: RunRecord, name: str) -> bool:
    return name in run.changes and can_average([[run.changes[name]]])


def _fits(own: Sequence[str | None], place: Sequence[str | None]) -> bool:
    """Whether a row stands in a place: it has its values, or lacks the settings."""
    return all(one in (None, wanted) for one, wanted in zip(own, place, strict=True))
