"""Values of a setting, tested against each other over their seeds.

A difference is a claim about other seeds of both values and other questions of the same kind, as
the verdicts over seeds beside it are (`slimdown.stats.seeds.build_difference_tests`). Values with
the same seeds are compared seed by seed: a seed gives each the same rows in the same order. Where
one value is the reference, the others are compared with it alone. That needs fewer tests.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations

from slimdown.comparison.run_comparison import (
    Comparison,
    Configuration,
    can_average,
    collect_answers,
    list_columns,
)
from slimdown.comparison.run_records import RunRecord
from slimdown.config.benchmark_config import Role
from slimdown.config.fields import nearest
from slimdown.stats.estimates import holm
from slimdown.stats.likelihood import ALPHA
from slimdown.stats.seeds import ENOUGH_SEEDS, SeedAnswers, build_difference_tests
from slimdown.utils.errors import ConfigError


@dataclass(frozen=True)
class ValueDifference:
    """How far two values of a setting lie apart on a benchmark, and how sure that is."""

    setting: str
    benchmark: str
    where: str  # the other settings that are equal, such as ", keep.share=.2"; or empty
    value: str
    other: str
    difference: float  # value - other, a share
    p_value: float  # of no difference; corrected for all pairs, benchmarks and settings

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
    """What was tested between the values of settings, with corrected p-values."""

    tested: tuple[ValueDifference, ...]  # the clearest first
    has_few_seeds: bool
    reason: str  # why nothing was tested; empty if something was

    @property
    def shown(self) -> tuple[ValueDifference, ...]:
        """The differences that are significant."""
        return tuple(difference for difference in self.tested if difference.p_value < ALPHA)


@lru_cache(maxsize=2)  # a console, its records and a page name the same differences
def find_differences(comparison: Comparison, *settings: str) -> Differences:
    """Find the values of settings that differ, and on which benchmark.

    The p-values of all settings and benchmarks are corrected together (Holm).

    Args:
        comparison: The compared runs, grouped by seed.
        settings: Dotted keys. If runs with the same value of such a setting differ in other
            settings, only runs that are equal in these others are compared.

    Returns:
        All tested pairs of values, those with the smallest p-value first; or, if no pair could be
        tested, the reason.

    Raises:
        ConfigError: No run has the comparison's reference.
    """
    uncorrected = list[ValueDifference]()
    for setting in settings:
        uncorrected += _test_values(comparison, setting)
    p_values = holm([difference.p_value for difference in uncorrected])
    tested = [
        replace(difference, p_value=p_value)
        for difference, p_value in zip(uncorrected, p_values, strict=True)
    ]
    tested.sort(key=lambda difference: difference.p_value)
    fewest_seeds = min((len(row.runs) for row in comparison.rows if len(row.runs) > 1), default=0)
    return Differences(
        tuple(tested),
        has_few_seeds=bool(tested) and fewest_seeds < ENOUGH_SEEDS,
        reason="" if tested else _explain_no_test(comparison, settings),
    )


def _explain_no_test(comparison: Comparison, settings: Sequence[str]) -> str:
    crossed = _find_crossed(comparison, settings[0]) if len(settings) == 1 else []
    with_same = f" and the same {', '.join(crossed)}" if crossed else ""
    cells = (cell for row in comparison.rows for cell in row.changes.values())
    whole = " whose evaluations did not stop early" if any(c.is_stopped for c in cells) else ""
    problem = f"no two of them have two seeds each{with_same}{whole}"
    named, advice = ", ".join(settings), "Run them with -m seed=0,1,2 to test them"
    return f"The values of {named} cannot be tested against each other: {problem}. {advice}."


def _find_crossed(comparison: Comparison, setting: str) -> list[str]:
    """Find the other settings that vary within a value of one, and so must be equal in a test."""
    values = {_read_value(row, setting) for row in comparison.rows}
    crossed = []
    for key in comparison.params:
        pairs = {(_read_value(row, setting), row.settings.get(key)) for row in comparison.rows}
        if key not in (setting, "seed") and len(pairs) > len(values):
            crossed.append(key)
    return crossed


def _read_value(row: Configuration, setting: str) -> str:
    """Read a setting; a record has none that is null, and no rank if nothing is a LoRA."""
    return row.settings.get(setting, "null")


def _test_values(comparison: Comparison, setting: str) -> list[ValueDifference]:
    """Test each pair of values of a setting; the p-values are not corrected yet.

    Other settings may vary, too. Their values in a row are the row's context: `keep.share=.2`. In
    each context, only the rows that fit it are compared (`_find_rows`). Each column is tested by
    itself: a benchmark, or the mean of several.

    Args:
        comparison: Its `reference` is the value with which all others are compared. None: each is
            compared with each.
        setting: The setting's dotted key.

    Returns:
        A difference for each pair of values, context and column that can be tested.

    Raises:
        ConfigError: No run has the reference.
    """
    rows, reference = comparison.rows, comparison.reference
    values = {_read_value(row, setting) for row in rows}
    if reference is not None and reference not in values:
        advice = nearest(reference, sorted(values))
        raise ConfigError(f"--against {reference}: no run has this value of {setting}{advice}")
    crossed = _find_crossed(comparison, setting)  # the other settings that vary
    tested = list[ValueDifference]()
    for context in dict.fromkeys(_read_context(row, crossed) for row in rows):
        settings = zip(crossed, context, strict=True)
        where = "".join(f", {key}={'null' if v is None else v}" for key, v in settings)
        row_by_value = _find_rows(comparison, setting, crossed, context)
        for heading, names in _list_claimed_columns(row_by_value.values()).items():
            # Only runs that were asked the same questions are tested against each other.
            for answers_by_value in _group_by_questions(row_by_value, names):
                pairs = _pair_values(list(answers_by_value), reference)
                tests = build_difference_tests(answers_by_value, pairs)
                for (first, second), test in tests.items():
                    # The test is of second - first, so the second value is that of the difference.
                    difference = ValueDifference(
                        setting, heading, where, second, first, test.value, p_value=test.p_value
                    )
                    tested.append(difference)
    return tested


def _read_context(row: Configuration, crossed: Sequence[str]) -> tuple[str | None, ...]:
    """Return a row's values of the crossed settings; None for those that it lacks."""
    return tuple(row.settings.get(key) for key in crossed)


def _find_rows(
    comparison: Comparison, setting: str, crossed: Sequence[str], context: Sequence[str | None]
) -> dict[str, Configuration]:
    """Find the row of each value of a setting that is compared in a context.

    A row fits if it has the context's values of the crossed settings, or lacks some of these
    settings, as keep=none lacks a share. So keep=none is compared with keep=replay at each share.

    Args:
        comparison: It has all rows.
        setting: The setting whose values are tested.
        crossed: The other settings that vary.
        context: Their values, in the same order; None: lacking.

    Returns:
        The rows by their value of the tested setting.
    """
    found = dict[str, Configuration]()

    def count_lacking(row: Configuration) -> int:
        return _read_context(row, crossed).count(None)

    # If several rows with the same value fit, the one that lacks fewest settings comes last, and
    # replaces the others.
    for row in sorted(comparison.rows, key=count_lacking, reverse=True):
        own_context = _read_context(row, crossed)
        if all(own in (None, wanted) for own, wanted in zip(own_context, context, strict=True)):
            found[_read_value(row, setting)] = row
    return found


def _pair_values(values: Sequence[str], reference: str | None) -> list[tuple[str, str]]:
    """List the pairs of values to compare: all, or each with the reference, which comes first."""
    if reference is None:
        return list(combinations(values, 2))
    return [(reference, v) for v in values if v != reference] if reference in values else []


def _list_claimed_columns(rows: Iterable[Configuration]) -> dict[str, list[str]]:
    """List the columns of rows about which a claim may be made, see `list_columns`."""
    changes = dict(pair for row in rows for run in row.runs for pair in run.changes.items())
    return list_columns({n: c for n, c in changes.items() if c.role is not Role.watched})


def _group_by_questions(
    row_by_value: Mapping[str, Configuration], names: Sequence[str]
) -> list[dict[str, SeedAnswers]]:
    """Collect the answers to some benchmarks by value, apart for each choice of questions.

    A run is left out if it lacks a benchmark, if its evaluation may have stopped early, or if
    nothing may be claimed about its change (`BenchmarkChange.is_measured`).

    Args:
        row_by_value: The rows of one context, by their value of the tested setting.
        names: The benchmarks of a column: one, or those that it averages.

    Returns:
        For each choice of questions that runs were asked, the answers of all seeds by the value of
        the setting.
    """
    groups: dict[tuple[str, ...], dict[str, SeedAnswers]] = {}
    for value, row in row_by_value.items():
        runs = [run for run in row.runs if all(_is_usable(run, name) for name in names)]
        changes_by_benchmark = [[run.changes[name] for run in runs] for name in names]
        if runs and can_average(changes_by_benchmark):
            # `can_average` says that all runs were asked the same questions.
            first_changes = [changes[0] for changes in changes_by_benchmark]
            questions = tuple(f"{change.question_hash} {change.metric}" for change in first_changes)
            seeds = [run.params.get("seed", "") for run in runs]
            groups.setdefault(questions, {})[value] = collect_answers(changes_by_benchmark, seeds)
    return list(groups.values())


def _is_usable(run: RunRecord, name: str) -> bool:
    return name in run.changes and can_average([[run.changes[name]]])
