"""Groups of runs that differ in one setting, tested against each other over their seeds.

The test asks whether other seeds would show a difference on these questions. Two seeds say almost
nothing about their variance. So below five seeds all groups are assumed to have one variance, which
is pooled. From five on the test is Welch's, which allows unequal variances.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import sqrt

import numpy as np
import scipy

from slimdown.comparison.run_comparison import Comparison, Configuration
from slimdown.comparison.run_records import RunRecord
from slimdown.config.benchmark_config import Role
from slimdown.judging.findings import BenchmarkChange
from slimdown.judging.verdicts import take_one_kind
from slimdown.stats.estimates import holm
from slimdown.stats.likelihood import ALPHA

LEARNED, KEPT = "learned", "kept"  # the means of targets and of the other benchmarks
ENOUGH_SEEDS = 5  # of each group, to tell how much it varies


@dataclass(frozen=True)
class SeedTest:
    """The difference between the means of two groups of seeds."""

    difference: float  # second - first
    p_value: float  # that the groups have equal means; two-sided
    n_seeds: int  # of the smaller group


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


def compare_seeds(
    groups: Mapping[str, Sequence[float]], step: float = 0.0
) -> dict[tuple[str, str], SeedTest]:
    """Test each pair of groups that have two seeds or more.

    Both tests are Student's with Satterthwaite's degrees of freedom: fewer where one group carries
    most of the variance.

    Args:
        groups: One mean for each seed, by the value of a setting.
        step: How much one question counts. Half of its square is the least variance: else a few
            seeds that agree by chance would look certain.
    """
    samples = {value: np.array(means) for value, means in groups.items() if len(means) > 1}
    lowest = max(step**2 / 2, 1e-24)
    variances = {value: max(float(x.var(ddof=1)), lowest) for value, x in samples.items()}
    degrees = {value: len(x) - 1 for value, x in samples.items()}
    tests = {}
    for (a, x), (b, y) in combinations(samples.items(), 2):
        n_seeds, inverse_n = min(len(x), len(y)), 1 / len(x) + 1 / len(y)
        shares = {a: 1 / len(x), b: 1 / len(y)}
        if n_seeds < ENOUGH_SEEDS:
            shares = {value: inverse_n * k / sum(degrees.values()) for value, k in degrees.items()}
        terms = {value: share * variances[value] for value, share in shares.items()}
        variance = sum(terms.values())
        freedom = variance**2 / sum(term**2 / degrees[value] for value, term in terms.items())
        difference = float(y.mean() - x.mean())
        p_value = 2 * float(scipy.special.stdtr(freedom, -abs(difference) / sqrt(variance)))
        tests[a, b] = SeedTest(difference, p_value, n_seeds)
    return tests


def describe_groups(comparison: Comparison, *settings: str) -> Iterator[str]:
    """Say which values of settings differ, and on which benchmark.

    Args:
        comparison: The compared runs, grouped by seed.
        settings: Dotted keys. If other settings vary within a value of one, only runs with equal
            values of those are compared.

    Yields:
        A sentence for each benchmark on which values differ, with p-values corrected for all pairs,
        benchmarks and settings (Holm); one if other pairs were tested; and one for what the tests
        assume.
    """
    found, every = find_differences(comparison, *settings), " or ".join(settings)
    if not found.n_tests:
        yield found.reason
    places = ((one.setting, one.benchmark, one.where) for one in found.shown)
    for setting, name, where in dict.fromkeys(places):
        parts = [
            f"{one.value} lies {one.points} points {one.side} {one.other} (p = {one.p_value:.2g})"
            for one in found.shown
            if (one.setting, one.benchmark, one.where) == (setting, name, where)
        ]
        yield f"{name} by {setting}{where}: {'; '.join(parts)}."
    if len(found.shown) < found.n_tests:
        is_other = "other " * bool(found.shown)
        yield f"No {is_other}difference between values of {every} is shown."
    if found.has_few_seeds:
        yield f"Below {ENOUGH_SEEDS} seeds all values of {every} are taken to vary alike by seed."


def find_differences(comparison: Comparison, *settings: str) -> Differences:
    """Find the values of settings that differ, and on which benchmark; as `describe_groups`.

    The p-values are corrected for the pairs of all settings together.
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
        ShownDifference(setting, benchmark, where, b, a, test.difference, p_value)
        for (setting, benchmark, where, (a, b), test), p_value in zip(every, corrected, strict=True)
        if p_value < ALPHA
    ]
    has_few_seeds = any(test.n_seeds < ENOUGH_SEEDS for *_, test in every)
    reason = "" if every else _explain_no_test(comparison, settings)
    return Differences(tuple(shown), len(every), has_few_seeds, reason)


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


@dataclass
class _Groups:
    """The groups of seeds that are compared on one benchmark, in one place."""

    means: dict[str, list[float]]  # by value of the setting, one for each seed
    step: float = 0.0  # how much one question counts, at most


def _test_values(
    comparison: Comparison, setting: str
) -> dict[tuple[str, str], dict[tuple[str, str], SeedTest]]:
    """Test each pair of values of a setting, by benchmark and place.

    A place is one choice of values of the other settings that vary: `keep.share=.2`. Only runs in
    the same place are compared. A row that lacks such a setting, as keep=none lacks a share, is in
    a place of its own, and also stands in every place that has no row of its value.
    """
    rows, crossed = comparison.rows, _find_crossed(comparison, setting)
    of_rows = [tuple(row.settings.get(key) for key in crossed) for row in rows]
    groups: dict[tuple[str, str], _Groups] = {}
    for place in dict.fromkeys(of_rows):
        named = zip(crossed, place, strict=True)
        where = "".join(f", {key}={'null' if one is None else one}" for key, one in named)
        fitting = [row for row, own in zip(rows, of_rows, strict=True) if _fits(own, place)]
        fitting.sort(key=lambda row: tuple(row.settings.get(key) for key in crossed) == place)
        for row in fitting:  # its own rows come last, and so replace those that lack a setting
            for benchmark, (means, step) in _collect_means(row.runs).items():
                group = groups.setdefault((benchmark, where), _Groups({}))
                group.means[_read_value(row, setting)] = means
                group.step = max(step, group.step)
    tests = {name: compare_seeds(group.means, group.step) for name, group in groups.items()}
    return {name: of_pairs for name, of_pairs in tests.items() if of_pairs}


def _fits(own: Sequence[str | None], place: Sequence[str | None]) -> bool:
    """Whether a row stands in a place: it has its values, or lacks the settings."""
    return all(one in (None, wanted) for one, wanted in zip(own, place, strict=True))


def _collect_means(runs: Sequence[RunRecord]) -> dict[str, tuple[list[float], float]]:
    """Return by benchmark the runs' changes, and how much one question counts.

    A benchmark that stopped early is left out: its change is on average too large. So is one about
    which nothing may be claimed, or that is only watched. Where each run has all others, so has
    their mean (`learned` of several targets, `kept` of several retained benchmarks).
    """
    means: dict[str, tuple[list[float], float]] = {}
    found: dict[str, BenchmarkChange] = {}
    for run in runs:
        for name, change in run.changes.items():
            found[name] = change
            if change.verdict and change.is_measured and not change.is_stopped:
                difference = change.primary.difference
                of_runs, _ = means.setdefault(name, ([], 1 / len(difference.observations)))
                of_runs.append(difference.value)
    for heading, role in ((LEARNED, Role.target), (KEPT, Role.retained)):
        names = take_one_kind({n: one.metric for n, one in found.items() if one.role is role})
        every = [means[name] for name in names if name in means]
        if len(every) == len(names) > 1 and all(len(of[0]) == len(runs) for of in every):
            averaged = np.mean([of_runs for of_runs, _ in every], axis=0)
            means[heading] = averaged.tolist(), max(step for _, step in every) / len(names)
    return means
