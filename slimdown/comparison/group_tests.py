"""Groups of runs that differ in one setting, tested against each other over their seeds.

The test asks whether other seeds would show a difference on these questions. Two seeds say almost
nothing about their variance. So below five seeds all groups are assumed to have one variance, which
is pooled. From five on the test is Welch's, which allows unequal variances.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import ceil, inf, sqrt

import numpy as np
import scipy

from slimdown.comparison.run_comparison import Comparison
from slimdown.comparison.run_records import RunRecord
from slimdown.config.schema import Role
from slimdown.stats.estimates import holm
from slimdown.stats.likelihood import ALPHA
from slimdown.stats.power import POWER

_LOSS = "validation loss"
ENOUGH_SEEDS = 5  # of each group, to tell how much it varies


@dataclass(frozen=True)
class SeedTest:
    """The difference between the means of two groups of seeds."""

    difference: float  # second - first
    p_value: float  # that the groups have equal means; two-sided
    n_seeds: int  # of the smaller group
    spread: float  # from seed to seed, of a difference of two seeds


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
        tests[a, b] = SeedTest(difference, p_value, n_seeds, sqrt(2 * variance / inverse_n))
    return tests


def seeds_to_show(test: SeedTest, alpha: float = ALPHA) -> float:
    """Estimate how many seeds a group needs to show this difference in four of five repetitions.

    The normal approximation, with Guenther's (1981) correction for Student's quantiles; infinity
    where there is no difference.
    """
    beyond, power = -scipy.special.ndtri(alpha / 2), scipy.special.ndtri(POWER)
    ratio = test.spread / abs(test.difference) if test.difference else inf
    return float(((beyond + power) * ratio) ** 2 + beyond**2 / 4)


def describe_groups(comparison: Comparison, setting: str) -> Iterator[str]:
    """Say which values of a setting differ, on which benchmark, and which learned unequally.

    Args:
        comparison: The compared runs, grouped by seed.
        setting: A dotted key. If other settings vary within one of its values, only runs with
            equal values of those are compared.

    Yields:
        A sentence for each benchmark, with p-values corrected for all pairs and benchmarks (Holm);
        one for each sign of unequal learning, which is tested by itself; and one for what the
        tests assume.
    """
    rows = comparison.rows
    # A record has no keep.weight=null, and no rank if nothing is a LoRA.
    values = [row.settings.get(setting, "null") for row in rows]
    crossed = []
    for key in comparison.params:
        pairs = set(zip(values, (row.settings.get(key) for row in rows), strict=True))
        if key not in (setting, "seed") and len(pairs) > len(set(values)):
            crossed.append(key)
    groups: dict[str, dict[str, list[float]]] = {}
    steps: dict[str, float] = {}
    places = [tuple(row.settings.get(key) for key in crossed) for row in rows]
    for place in dict.fromkeys(one for one in places if None not in one) or dict.fromkeys(places):
        where = "".join(f", {key}={one}" for key, one in zip(crossed, place, strict=True))
        for value, row, own in zip(values, rows, places, strict=True):
            # A row that lacks a setting, as keep=none lacks a share, stands in every place.
            if any(one not in (None, wanted) for one, wanted in zip(own, place, strict=True)):
                continue
            for measure, (means, step) in _collect_means(row.runs).items():
                name = f"{measure} by {setting}{where}"
                groups.setdefault(name, {})[value] = means
                steps[name] = max(step, steps.get(name, 0.0))
    tests = {name: compare_seeds(by_value, steps[name]) for name, by_value in groups.items()}
    tests = {name: of_pairs for name, of_pairs in tests.items() if of_pairs}
    if not tests:
        with_same = f" and the same {', '.join(crossed)}" if crossed else ""
        problem = f"No two values of {setting} have two seeds each{with_same}"
        yield f"{problem}: -m seed=0,1,2 lets them be tested."
    losses = {name for name in tests if name.startswith(_LOSS)}
    keys = [(name, pair) for name in tests.keys() - losses for pair in tests[name]]
    p_values = holm([tests[name][pair].p_value for name, pair in keys])
    corrected = dict(zip(keys, p_values, strict=True))
    targets = {n for row in rows for n, c in row.changes.items() if c.role is Role.target}
    for name, of_pairs in tests.items():
        parts = []
        for (a, b), test in of_pairs.items():
            side = "above" if test.difference > 0 else "below"
            p_value = corrected.get((name, (a, b)), 1.0)
            if p_value < ALPHA:
                size = f"{100 * abs(test.difference):.1f} points"
                parts.append(f"{b} lies {size} {side} {a} (p = {p_value:.2g})")
            elif name not in losses:
                needed = max(test.n_seeds + 1, seeds_to_show(test, ALPHA / len(keys)))
                about = f"about {ceil(needed):,}" if needed < 1000 else "over 1,000"
                parts.append(f"{test.n_seeds} seeds cannot tell {a} from {b} ({about} would)")
        if parts:
            yield f"{name}: {'; '.join(parts)}."
        unequal = [f"{a} and {b}" for (a, b), test in of_pairs.items() if test.p_value < ALPHA]
        if unequal and (name in losses or name.partition(" by ")[0] in targets):
            yield f"{', '.join(unequal)} learned unequally ({name}): so may what they lost differ."
    every = [test for of_pairs in tests.values() for test in of_pairs.values()]
    if any(test.n_seeds < ENOUGH_SEEDS for test in every):
        yield f"Below {ENOUGH_SEEDS} seeds all values of {setting} are taken to vary alike by seed."


def _collect_means(runs: Sequence[RunRecord]) -> dict[str, tuple[list[float], float]]:
    """Return by benchmark the runs' changes and how much one question counts; then their loss.

    A benchmark that stopped early is left out: its change is on average too large.
    """
    means: dict[str, tuple[list[float], float]] = {}
    for run in runs:
        for name, change in run.changes.items():
            if not change.is_stopped:
                difference = change.primary.difference
                of_runs, _ = means.setdefault(name, ([], 1 / len(difference.observations)))
                of_runs.append(difference.value)
        if run.findings and (training := run.findings.training):
            means.setdefault(_LOSS, ([], 0.0))[0].append(training.validation_loss_after)
    return means
