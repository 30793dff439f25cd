"""One function makes a verdict and the interval beside it, so that the two never disagree.

Claims of change and claims of no change are corrected (Holm) in two families. So a verdict is
decided at a level of its own, and a plain 95 % interval may contradict it. The interval here is at
that level (`docs/studies/statistics.md`):

- retained: the interval of the test against the margin, at twice the level of its step. It lies
  within the margin.
- every other verdict: the interval of the test of a change, at the level of its step, or of the
  step where Holm stopped. The ends that the claim leaves open (forgotten: the lower, improved: the
  upper, undecided: both) reach at least as far as the interval of the test against the margin. So
  the interval of forgotten and improved excludes 0. That of undecided includes 0 and reaches the
  margin.

Each interval covers its own benchmark's change in at least 95 % of cases, that of retained in 90 %.

Accuracies and the probabilities of `p_right` measure different things. Each of the two kinds has
its own families, at 5 % each.

A watched benchmark makes no claim, so it belongs to neither family. If it did, the others would
need more questions for the same claims. Its interval is the plain 95 % one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import nextafter

from slimdown.config.benchmark_config import CHOICE_PROBABILITY
from slimdown.stats.estimates import Difference, Estimate, holm
from slimdown.stats.likelihood import ALPHA
from slimdown.stats.seeds import MeanTest


class Verdict(StrEnum):
    """The verdict on a benchmark. A change that is merely not shown is never called retained."""

    retained = "retained"  # shown to have changed by less than the margin, either way
    forgotten = "forgotten"  # shown to have fallen, and not shown to be within the margin
    improved = "improved"  # shown to have risen, and not shown to be within the margin
    undecided = "undecided"  # too few questions to say


TestedChange = Difference | MeanTest
_VERDICT_BY_SIGN = {-1: Verdict.forgotten, 0: Verdict.undecided, 1: Verdict.improved}


@dataclass(frozen=True)
class Decision:
    """A verdict, and the levels at which it was decided.

    Attributes:
        verdict: What is claimed; None where the change is only watched.
        p_value: That there is no change; corrected.
        equivalence_p_value: That the change is the margin or more; corrected likewise.
        change_level: Of the test of a change in its step, or in the step where Holm stopped.
        equivalence_level: The same of the test against the margin.
        first_level: Of the test of a change in Holm's first step: what a change must pass if no
            other one is shown.
    """

    verdict: Verdict | None
    p_value: float
    equivalence_p_value: float
    change_level: float
    equivalence_level: float
    first_level: float = ALPHA

    @property
    def level(self) -> float:
        """The two-sided level of the interval beside the verdict."""
        if self.verdict is Verdict.retained:
            return 2 * self.equivalence_level
        return self.change_level

    def form_interval(self, change: TestedChange, margin: float) -> Estimate:
        """Return the change with the interval that agrees with the verdict.

        Args:
            change: The change that was decided about.
            margin: A smaller change counts as none.
        """
        low, high = self._find_ends(change, margin)
        return Estimate(change.value, change.standard_error, low, high)

    def _find_ends(self, change: TestedChange, margin: float) -> tuple[float, float]:
        """Return the lower and the upper end of the interval beside the verdict.

        The test of a change has an interval, and so has the test against the margin. Where the
        verdict claims that an end lies on one side of 0 or of the margin, the end is that of the
        test that showed it. Any other end is the farther one of the two tests.

        | verdict | lower end | upper end |
        |---|---|---|
        | None (watched) | test of a change | test of a change |
        | retained | test against the margin | test against the margin |
        | forgotten | the farther one | test of a change, below 0 |
        | improved | test of a change, above 0 | the farther one |
        | undecided | the farther one | the farther one |

        Ends are found to 7 digits. So an end that would contradict the verdict by less than that is
        set to the margin, or to the number next to 0.
        """
        if self.verdict is None:
            return change.interval(self.change_level)
        # The test against the margin is one-sided at each end, so its level counts twice.
        margin_low, margin_high = change.margin_interval(2 * self.equivalence_level)
        if self.verdict is Verdict.retained:
            return max(margin_low, -margin), min(margin_high, margin)
        low, high = change.interval(self.change_level)
        farther_low, farther_high = min(low, margin_low), max(high, margin_high)
        if self.verdict is Verdict.forgotten:
            return farther_low, min(high, nextafter(0.0, -1.0))  # the first number below 0
        if self.verdict is Verdict.improved:
            return max(low, nextafter(0.0, 1.0)), farther_high  # the first number above 0
        # Looks may contradict each other: one rules out a rise, another a fall. Then the measured
        # change, or 0, may lie outside both intervals, and the ends are moved to hold it.
        return min(farther_low, change.value, 0.0), max(farther_high, change.value, 0.0)


def group_comparable(metrics: Mapping[str, str]) -> list[list[str]]:
    """Group the benchmarks whose scores mean the same: those of answers, those of probabilities.

    Tests are corrected, and means are taken, within one group.

    Args:
        metrics: The primary metric by benchmark.

    Returns:
        The names in each group, answers first; no group is empty.

    >>> group_comparable({"a": "acc", "b": "p_right", "c": "f1"})
    [['a', 'c'], ['b']]
    """
    answers = [name for name, metric in metrics.items() if metric != CHOICE_PROBABILITY]
    probabilities = [name for name, metric in metrics.items() if metric == CHOICE_PROBABILITY]
    return [names for names in (answers, probabilities) if names]


def list_comparable(metrics: Mapping[str, str]) -> list[str]:
    """Return the benchmarks whose changes have a mean: the first group that can be compared."""
    return next(iter(group_comparable(metrics)), [])


def decide_verdicts(
    differences: Sequence[TestedChange],
    margins: Sequence[float],
    n_reports: int = 1,
    n_unknown: int = 0,
) -> list[Decision]:
    """Decide each benchmark's verdict by two tests: of a change, and of equivalence.

    The test of equivalence is that of a change smaller than the margin. The p-values of the tests
    of a change are corrected together (Holm), and so are those of the tests of equivalence.

    Args:
        differences: Of the primary metrics.
        margins: One for each difference; a smaller change counts as none.
        n_reports: How many such reports are read together; p-values are corrected for all.
        n_unknown: How many further benchmarks belong to the family, but have no answers yet.

    Returns:
        A decision for each difference, in their order.
    """
    tested = list(zip(differences, margins, strict=True))
    p_values, levels = correct_with_levels([d.p_value for d in differences], n_reports, n_unknown)
    equivalence_p_values, equivalence_levels = correct_with_levels(
        [d.equivalence_p_value(margin) for d, margin in tested], n_reports, n_unknown
    )
    decisions = []
    for i, (difference, margin) in enumerate(tested):
        # After several looks, an early one may have ruled out the margin although the change that
        # all answers together measure exceeds it. Such a change is not retained.
        is_within_margin = equivalence_p_values[i] < ALPHA and abs(difference.value) <= margin
        if is_within_margin:  # even if a change is shown to exist: it is too small to matter
            verdict = Verdict.retained
        elif p_values[i] < ALPHA:
            # The sign is 0 if looks contradict each other; then the verdict is undecided.
            verdict = _VERDICT_BY_SIGN[difference.shown_sign(levels[i])]
        else:
            verdict = Verdict.undecided
        decision = Decision(
            verdict,
            p_value=p_values[i],
            equivalence_p_value=equivalence_p_values[i],
            change_level=levels[i],
            equivalence_level=equivalence_levels[i],
            first_level=ALPHA / (n_reports * (len(tested) + n_unknown)),
        )
        decisions.append(decision)
    return decisions


def watch_change(change: TestedChange, margin: float) -> Decision:
    """Return the decision on a watched change: no verdict, and no p-value is corrected."""
    return Decision(None, change.p_value, change.equivalence_p_value(margin), ALPHA, ALPHA)


def correct_with_levels(
    p_values: Sequence[float], n_reports: int = 1, n_unknown: int = 0, alpha: float = ALPHA
) -> tuple[list[float], list[float]]:
    """Correct p-values (Holm), for reports that are read together and for tests to come.

    Args:
        p_values: Those of one family of tests.
        n_reports: How many reports are read together; each is corrected by Bonferroni besides.
        n_unknown: How many tests of the family have no p-value yet. They count as not significant.
        alpha: The level of the family.

    Returns:
        The corrected p-values. And for each the level that Holm's method compares the uncorrected
        p-value with: the smallest one with the strictest level. After the first p-value that is not
        significant, all have its level.
    """
    n = len(p_values) + n_unknown
    together = [n_reports * p for p in p_values]
    unknown = [1.0] * n_unknown
    corrected = holm([*together, *unknown])[: len(p_values)]
    levels = [alpha] * len(p_values)
    n_significant = 0
    # From the smallest p-value on. One that is not significant leaves the count as it is, and so
    # gives its level to all that follow.
    for i in sorted(range(len(p_values)), key=lambda i: p_values[i]):
        levels[i] = alpha / (n_reports * (n - n_significant))
        n_significant += 1 if corrected[i] < alpha else 0
    return corrected, levels
