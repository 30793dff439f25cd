"""Judge a model at several scales: the base plus a part of what was trained.

At scale 0 the model is the base, at scale 1 what was trained. Other scales interpolate the weights
of both (WiSE-FT, Wortsman et al. 2021, arXiv 2109.01903).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from slimdown.judging.budgets import check_budgets
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

    The change of its p_right has a curve of its own, `NAME p_right`.

    Each interval is at 5 % divided by the number of scales (Bonferroni), so that the chance that
    any of a benchmark's intervals misses its true change is at most 5 %.

    Args:
        points: Of scales above 0, which is the base. Judged now: a record lacks p_right's answers.
    """
    curves: dict[str, list[tuple[float, Estimate]]] = {}
    for point in points:
        for name, benchmark in point.findings.benchmarks.items():
            differences = {name: benchmark.primary.difference}
            if benchmark.p_right:
                differences[f"{name} p_right"] = benchmark.p_right.difference
            for curve, d in differences.items():
                low, high = d.interval(ALPHA / len(points))
                estimate = Estimate(d.value, d.standard_error, low, high)
                curves.setdefault(curve, []).append((point.scale, estimate))
    return curves


def choose_scale(
    points: Sequence[ScaledFindings], budgets: Mapping[str, float]
) -> ScaledFindings | None:
    """Return the largest scale whose losses, as measured, are within their budgets.

    Measured losses are enough to choose. That the loss is within its budget must be shown on other
    questions than those that choose.

    Args:
        points: Of scales above 0.
        budgets: As `check_budgets` takes them.

    Returns:
        None where not even the smallest scale is within.

    Raises:
        ConfigError: As `check_budgets`.
    """
    for point in sorted(points, key=lambda point: -point.scale):
        checks = check_budgets(point.findings, budgets)
        if all(-one.change.primary.difference.value <= one.budget for one in checks):
            return point
    return None
