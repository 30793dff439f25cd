"""Judge a model at several scales: the base plus a part of what was trained.

At scale 0 the model is the base, at scale 1 what was trained. Other scales interpolate the weights
of both (WiSE-FT, Wortsman et al. 2021, arXiv 2109.01903).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from slimdown.judging.budgets import Gate, Outcome, check_budgets
from slimdown.judging.findings import Findings
from slimdown.stats.estimates import Estimate
from slimdown.stats.likelihood import ALPHA


@dataclass(frozen=True)
class ScaledFindings:
    """What a model learned and lost at one scale of what was trained."""

    scale: float
    findings: Findings  # its `training` ended at the validation loss of this scale


def build_simultaneous_curves(
    points: Sequence[ScaledFindings],
) -> dict[str, list[tuple[float, Estimate]]]:
    """Return each benchmark's change by scale, with intervals that hold for all scales at once.

    Each interval is at 5 % divided by the number of scales (Bonferroni), so that the chance that
    any of a benchmark's intervals misses its true change is at most 5 %.

    Args:
        points: The findings at each scale; none at scale 0, which is the base.

    Returns:
        By benchmark, each scale with the change there, a share.
    """
    curves: dict[str, list[tuple[float, Estimate]]] = {}
    for point in points:
        for name, benchmark in point.findings.benchmarks.items():
            difference = benchmark.primary.difference
            low, high = difference.interval(ALPHA / len(points))
            estimate = Estimate(difference.value, difference.standard_error, low, high)
            curves.setdefault(name, []).append((point.scale, estimate))
    return curves


@dataclass(frozen=True)
class ChosenScale:
    """The scale that a gate decides about.

    Attributes:
        point: The chosen one; the smallest one where not even that is shown to be within.
        gate: Its budgets.
    """

    point: ScaledFindings
    gate: Gate


def choose_scale(
    points: Sequence[ScaledFindings], budgets: Mapping[str, float], off: Collection[str] = ()
) -> ChosenScale:
    """Choose the largest scale up to which every loss is shown to be within its budget.

    The search goes up from the smallest scale and ends before the first one whose losses are not
    shown to be within; the smallest is chosen in any case, and its gate says the outcome. The tests
    have a fixed order, so none needs a correction, and the same questions may choose and judge. A
    scale beyond the budgets passes in at most 5 % of cases, however many scales there are, because
    the first such scale would have to pass a test at 5 % (`python -m bench.statistics`, "scale").

    Args:
        points: The findings at each scale, at least one; all scales are above 0.
        budgets: As `check_budgets` takes them.
        off: The benchmarks that decide nothing.

    Raises:
        ConfigError: As `check_budgets`.
    """
    chosen = None
    for point in sorted(points, key=lambda point: point.scale):
        gate = Gate(tuple(check_budgets(point.findings, budgets, off=off)), tuple(off))
        if gate.outcome is not Outcome.within:
            return chosen or ChosenScale(point, gate)  # the scale before, or the smallest
        chosen = ChosenScale(point, gate)
    assert chosen is not None
    return chosen
