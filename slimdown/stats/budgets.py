"""Check each loss against its budget: is it shown to be within, or beyond?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import nan

from slimdown.config.fields import nearest
from slimdown.config.schema import BenchmarkConfig, Role
from slimdown.stats.estimates import Difference, holm
from slimdown.stats.findings import BenchmarkChange, Findings
from slimdown.stats.likelihood import ALPHA
from slimdown.utils.errors import ConfigError


class Outcome(IntEnum):
    """The result of a budget check, as an exit code."""

    within = 0
    beyond = 1
    undecided = 2
    unanswered = 3  # the question could not be put


@dataclass(frozen=True)
class BudgetCheck:
    """One benchmark's loss against its budget."""

    benchmark: str
    change: BenchmarkChange
    budget: float
    outcome: Outcome
    reason: str


def read_budgets(arguments: Sequence[str]) -> dict[str, float]:
    """Read what each benchmark may lose from arguments such as gsm8k=0.02.

    Raises:
        ConfigError: a budget that is no share, or a second one of a benchmark.
    """
    budgets: dict[str, float] = {}
    for text in arguments:
        name, _, value = text.partition("=")
        try:
            budget = float(value)
        except ValueError:
            budget = nan
        _check_budget(name, budget, f"--max-loss {text}")
        if name in budgets:
            raise ConfigError(f"--max-loss {text}: {name} has {budgets[name]} already; keep one")
        budgets[name] = budget
    return budgets


def default_budgets(
    benchmarks: Mapping[str, BenchmarkChange] | Mapping[str, BenchmarkConfig],
) -> dict[str, float]:
    """Return what each may lose by its settings: `max_loss`, or a retained one's margin."""
    losses = {name: b.max_loss for name, b in benchmarks.items() if b.max_loss is not None}
    return {name: b.margin for name, b in benchmarks.items() if b.role is Role.retained} | losses


def decide_outcomes(
    differences: Mapping[str, Difference], budgets: Mapping[str, float]
) -> dict[str, Outcome]:
    """Decide for each benchmark on which side of its budget the loss is shown to be.

    One-sided tests at 5 %. To pass, every loss must be shown to be within its budget, which needs
    no correction (an intersection-union test). One loss beyond is enough to fail, so those p-values
    are corrected (Holm). Without a difference nothing is known yet.
    """
    outcomes = dict.fromkeys(budgets, Outcome.undecided)
    known = {name: budget for name, budget in budgets.items() if name in differences}
    p_values = [differences[name].p_value_below(-budget) for name, budget in known.items()]
    beyond = holm([*p_values, *[1.0] * (len(budgets) - len(known))])
    for (name, budget), p_beyond in zip(known.items(), beyond, strict=False):
        if differences[name].p_value_above(-budget) < ALPHA:
            outcomes[name] = Outcome.within
        elif p_beyond < ALPHA:
            outcomes[name] = Outcome.beyond
    return outcomes


def check_budgets(findings: Findings, budgets: Mapping[str, float]) -> list[BudgetCheck]:
    """Check for each benchmark whether its loss is shown to be within its budget or beyond.

    Args:
        findings: of a fine-tuning.
        budgets: by benchmark, the most that the primary metric may fall; a share, 0.02 is two
            points. None at all holds each benchmark to its settings, see `default_budgets`.

    Raises:
        ConfigError: a budget that is no share or for what was not measured, or none and no retained
            benchmark.
    """
    benchmarks = findings.benchmarks
    budgets = budgets or default_budgets(benchmarks)
    if not budgets:
        raise ConfigError(
            "no retained benchmark was measured; give another a budget, such as NAME=0.02"
        )
    for name, budget in budgets.items():
        _check_budget(name, budget, f"{name}={budget}")
        if name not in benchmarks:
            advice = nearest(name, list(benchmarks))
            raise ConfigError(f"budget of {name}: no such benchmark was measured{advice}")
    outcomes = decide_outcomes(
        {name: benchmarks[name].primary.difference for name in budgets}, budgets
    )
    checks = []
    for name, budget in budgets.items():
        reason = _explain(name, benchmarks[name], budget, outcomes[name])
        checks.append(BudgetCheck(name, benchmarks[name], budget, outcomes[name], reason))
    return checks


def overall_outcome(checks: Sequence[BudgetCheck]) -> Outcome:
    """Combine the outcomes: beyond if any is, else undecided if any is, else within."""
    outcomes = {check.outcome for check in checks}
    return next(o for o in (Outcome.beyond, Outcome.undecided, Outcome.within) if o in outcomes)


def _check_budget(name: str, budget: float, argument: str) -> None:
    if not name or not isinstance(budget, int | float) or not 0 <= budget < 1:
        raise ConfigError(
            f"{argument}: give a share from 0 up to, not including, 1; "
            f"{name or 'gsm8k'}=0.02 is two points"
        )


def _explain(name: str, benchmark: BenchmarkChange, budget: float, outcome: Outcome) -> str:
    d = benchmark.primary.difference
    low, high = d.interval(2 * ALPHA)  # of two one-sided tests at 5 %, as the outcome
    change = f"changed by {100 * d.value:+.1f} points, 90 % interval"
    change += f" [{100 * low:+.1f}, {100 * high:+.1f}]"
    if benchmark.is_stopped:
        change += f", after {benchmark.n:,} of {benchmark.n_available:,} questions"
    cannot = f"{d.n:,} questions cannot tell"
    if outcome is Outcome.within:
        shown = f"a loss of {100 * budget:g} points or more is ruled out"
    elif outcome is Outcome.beyond:
        shown = f"a loss of more than {100 * budget:g} points is shown"
    elif benchmark.is_stopped:
        setting = f"evaluation.until=budget benchmark.{name}.max_loss={budget:g}"
        shown = f"{cannot}; a run with {setting} asks until they can"
    elif benchmark.n_to_decide:
        needed = f"about {benchmark.n_to_decide:,} would probably decide the verdict"
        shown = f"{cannot}; {needed}"
    else:
        shown = cannot
    return f"{change}: {shown}"
