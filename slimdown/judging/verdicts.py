"""One function makes a verdict and the interval beside it, so that the two never disagree.

Claims of change and claims of no change are corrected (Holm) in two families. So a verdict is
decided at a level of its own, and a plain 95 % interval may contradict it. The interval here is at
that level (`docs/studies/statistics.md`):

- retained: the interval of the test against the margin, at twice the level of its step; it lies
  within the margin.
- else: the interval of the test of a change, at the level of its step, or of the step where Holm
  stopped. The ends that the claim leaves open (forgotten: the lower, improved: the upper,
  undecided: both) reach at least as far as the interval of the test against the margin. So
  forgotten and improved exclude 0, and undecided holds 0 and reaches the margin.

Each covers its own benchmark's change in at least 95 % of cases, retained in 90 %.

Accuracies and the probabilities of `p_right` ask different questions. Each of the two kinds has its
families, at 5 % each.

Of a watched benchmark nothing is claimed. So it stands in neither family and takes no level from
the others: had it a part of the 5 %, their claims would need more questions for no claim of its
own. Its interval is the plain 95 % one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import nextafter
from typing import Protocol

from slimdown.config.benchmark_config import CHOICE_PROBABILITY
from slimdown.stats.estimates import Estimate, holm
from slimdown.stats.likelihood import ALPHA


class Verdict(StrEnum):
    """The verdict on a benchmark. A change that is merely not shown is never called retained."""

    retained = "retained"  # shown to have changed by less than the margin, either way
    forgotten = "forgotten"  # shown to have fallen, and not shown to be within the margin
    improved = "improved"  # shown to have risen, and not shown to be within the margin
    undecided = "undecided"  # too few questions to say


class TestedChange(Protocol):
    """A change and its tests: a `Difference`, or a mean over seeds."""

    @property
    def value(self) -> float:
        """What was measured."""

    @property
    def standard_error(self) -> float:
        """Of the value; nan where it is not known."""

    @property
    def p_value(self) -> float:
        """Of no change, two-sided."""

    def equivalence_p_value(self, margin: float) -> float:
        """Return the p-value of a true change of `margin` or more, in either direction."""

    def shown_sign(self, alpha: float) -> int:
        """Return -1 or 1 for a fall or rise that is shown at `alpha`, two-sided; 0 for neither."""

    def interval(self, alpha: float = ALPHA) -> tuple[float, float]:
        """Return the interval of changes that are not ruled out by the test of no change."""

    def margin_interval(self, alpha: float = 2 * ALPHA) -> tuple[float, float]:
        """Return the interval of the test against a margin, `alpha` / 2 at each end."""


@dataclass(frozen=True)
class Decision:
    """A verdict, and the levels at which it was decided.

    Attributes:
        verdict: What is claimed; None where the change is only watched.
        p_value: That there is no change; corrected.
        equivalence_p_value: That the change is the margin or more; corrected likewise.
        change_level: Of the test of a change in its step, or in the step where Holm stopped.
        equivalence_level: The same of the test against the margin.
    """

    verdict: Verdict | None
    p_value: float
    equivalence_p_value: float
    change_level: float
    equivalence_level: float

    @property
    def level(self) -> float:
        """The two-sided level of the interval beside the verdict."""
        if self.verdict is Verdict.retained:
            return 2 * self.equivalence_level
        return self.change_level

    def form_interval(self, d: TestedChange, margin: float) -> Estimate:
        """Return the change with the interval that agrees with the verdict.

        Args:
            d: The difference that was decided about.
            margin: A smaller change counts as none.
        """
        if self.verdict is None:
            return Estimate(d.value, d.standard_error, *d.interval(self.change_level))
        low, high = d.margin_interval(2 * self.equivalence_level)
        if self.verdict is Verdict.retained:  # the ends are found to 7 digits
            low, high = max(low, -margin), min(high, margin)
            return Estimate(d.value, d.standard_error, low, high)
        change_low, change_high = d.interval(self.change_level)
        low, high = min(low, change_low), max(high, change_high)
        if self.verdict is Verdict.forgotten:
            high = min(change_high, nextafter(0.0, -1.0))
        elif self.verdict is Verdict.improved:
            low = max(change_low, nextafter(0.0, 1.0))
        else:  # looks may rule out both sides
            low, high = min(low, d.value, 0.0), max(high, d.value, 0.0)
        return Estimate(d.value, d.standard_error, low, high)


def split_kinds(metrics: Mapping[str, str]) -> list[list[str]]:
    """Divide benchmarks by what their scores are: answers first, then probabilities.

    Tests are corrected, and means are taken, over one kind alone.

    Args:
        metrics: The primary metric by benchmark.

    Returns:
        The names of each kind that there is.

    >>> split_kinds({"a": "acc", "b": "p_right", "c": "f1"})
    [['a', 'c'], ['b']]
    """
    kinds: dict[bool, list[str]] = {False: [], True: []}
    for name, metric in metrics.items():
        kinds[metric == CHOICE_PROBABILITY].append(name)
    return [names for names in kinds.values() if names]


def take_one_kind(metrics: Mapping[str, str]) -> list[str]:
    """Return the benchmarks whose changes have a mean: those of the first kind that there is."""
    return next(iter(split_kinds(metrics)), [])


def decide_verdicts(
    differences: Sequence[TestedChange],
    margins: Sequence[float],
    n_reports: int = 1,
    n_unknown: int = 0,
) -> list[Decision]:
    """Decide each benchmark's verdict (Holm).

    Args:
        differences: Of the primary metrics.
        margins: One for each difference; a smaller change counts as none.
        n_reports: As in `judge`.
        n_unknown: Further benchmarks, which have no answers yet.
    """
    n = len(differences)
    margined = list(zip(differences, margins, strict=True))
    changed, change_levels = correct_with_levels(
        [d.p_value for d in differences], n_reports, n_unknown
    )
    p_values = [d.equivalence_p_value(margin) for d, margin in margined]
    equal, equal_levels = correct_with_levels(p_values, n_reports, n_unknown)
    decisions = []
    for i in range(n):
        verdict, d = Verdict.undecided, differences[i]
        # A change below the margin is retained even where it is shown to exist. Looks may rule out
        # both sides of the margin, far from what all answers say; then nothing is claimed.
        if equal[i] < ALPHA and abs(d.value) <= margins[i]:
            verdict = Verdict.retained
        elif changed[i] < ALPHA and (sign := d.shown_sign(change_levels[i])):
            verdict = Verdict.forgotten if sign < 0 else Verdict.improved
        p_values_of, levels = (changed[i], equal[i]), (change_levels[i], equal_levels[i])
        decisions.append(Decision(verdict, *p_values_of, *levels))
    return decisions


def watch_change(d: TestedChange, margin: float) -> Decision:
    """Return what is shown of a change about which nothing is claimed; nothing is corrected."""
    return Decision(None, d.p_value, d.equivalence_p_value(margin), ALPHA, ALPHA)


def correct_with_levels(
    p_values: Sequence[float], n_reports: int = 1, n_unknown: int = 0, alpha: float = ALPHA
) -> tuple[list[float], list[float]]:
    """Correct p-values (Holm); return them, and the level of each one's step before correction.

    A p-value that Holm does not reject has the level of the step at which he stopped.
    """
    corrected = holm([*(n_reports * p for p in p_values), *[1.0] * n_unknown])[: len(p_values)]
    n, levels = len(p_values) + n_unknown, [alpha] * len(p_values)
    n_rejected = 0
    for i in sorted(range(len(p_values)), key=lambda i: p_values[i]):
        levels[i] = alpha / (n_reports * (n - n_rejected))
        n_rejected += corrected[i] < alpha
    return corrected, levels
