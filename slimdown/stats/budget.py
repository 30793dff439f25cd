"""What a fine-tuning may lose, and whether it is shown to have kept to that: `slimdown.check`, `slimdown.verdict`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import isnan, nan

from slimdown.config.keys import nearest
from slimdown.config.schema import BenchmarkConfig, Role
from slimdown.stats.changes import BenchmarkChange, Changes
from slimdown.stats.paired import ALPHA, CLUSTERED_T, Difference, holm
from slimdown.utils.errors import SlimdownError


class Outcome(IntEnum):
    """What is shown, as the exit code that says it."""

    within = 0
    beyond = 1
    undecided = 2
    unasked = 3  # the question could not be asked


@dataclass(frozen=True)
class Judgement:
    """One benchmark's loss against its budget."""

    benchmark: str
    change: BenchmarkChange
    budget: float
    outcome: Outcome
    reason: str


def read_budgets(arguments: Sequence[str]) -> dict[str, float]:
    """What each benchmark may lose, of arguments such as gsm8k=0.02.

    Raises:
        SlimdownError: a share that is none, or two for one benchmark.
    """
    budgets: dict[str, float] = {}
    for text in arguments:
        name, _, value = text.partition("=")
        try:
            budget = float(value)
        except ValueError:
            budget = nan
        _check_share(name, budget, f"--max-loss {text}")
        if name in budgets:
            raise SlimdownError(
                f"--max-loss {text}: {name} has a budget already, {budgets[name]:g}; keep one of the two"
            )
        budgets[name] = budget
    return budgets


def _check_share(name: str, budget: float, given: str) -> None:
    if not name or not 0 <= budget < 1:
        raise SlimdownError(
            f"{given}: give a share from 0 up to, not including, 1; {name or 'gsm8k'}=0.02 is two points"
        )


def own_budgets(
    benchmarks: Mapping[str, BenchmarkChange] | Mapping[str, BenchmarkConfig],
) -> dict[str, float]:
    """What each may lose by its settings: `max_loss`, else a retained benchmark's margin; targets may lose all."""
    losses = {name: b.max_loss for name, b in benchmarks.items() if b.max_loss is not None}
    return {name: b.margin for name, b in benchmarks.items() if b.role is Role.retained} | losses


def outcomes(
    differences: Mapping[str, Difference], budgets: Mapping[str, float]
) -> dict[str, Outcome]:
    """Of each benchmark with a budget, by its primary metric, which side of it the loss is shown to be on.

    One-sided tests at 5 %. To pass, every loss must be shown to be within its budget, which needs no correction (an
    intersection-union test); one loss beyond is enough to fail, so those p-values are corrected (Holm). Without a
    difference nothing is known yet.
    """
    found = dict.fromkeys(budgets, Outcome.undecided)
    known = [
        (name, budget, differences[name]) for name, budget in budgets.items() if name in differences
    ]
    unknown = [1.0] * (len(budgets) - len(known))
    beyond = holm([*(d.p_value_below(-budget) for _, budget, d in known), *unknown])
    for (name, budget, d), p_beyond in zip(known, beyond, strict=False):
        shown = Outcome.beyond if p_beyond < ALPHA else Outcome.undecided
        found[name] = Outcome.within if d.p_value_above(-budget) < ALPHA else shown
    return found


def hold_to_budgets(changes: Changes, budgets: dict[str, float]) -> list[Judgement]:
    """For each benchmark with a budget, whether its loss is shown to be within it, beyond it, or neither.

    Args:
        changes: a fine-tuning's.
        budgets: by benchmark, the most that the primary metric may fall; a share, 0.02 is two points. None at all
            holds each benchmark to what its settings say, see `own_budgets`.

    Raises:
        SlimdownError: a budget that is no share or for what was not measured, or none and no retained benchmark.
    """
    budgets = budgets or own_budgets(changes.benchmarks)
    if not budgets:
        raise SlimdownError(
            "no retained benchmark was measured; give another a budget, such as NAME=0.02"
        )
    for name, budget in budgets.items():
        _check_share(name, budget, f"{name}={budget}")
        if name not in changes.benchmarks:
            advice = nearest(name, list(changes.benchmarks))
            raise SlimdownError(f"budget of {name}: no such benchmark was measured{advice}")
    found = outcomes(
        {name: changes.benchmarks[name].primary.difference for name in budgets}, budgets
    )
    held = [(name, changes.benchmarks[name], budget) for name, budget in budgets.items()]
    return [
        Judgement(name, b, budget, found[name], _reason(name, b, budget, found[name]))
        for name, b, budget in held
    ]


def _reason(name: str, benchmark: BenchmarkChange, budget: float, outcome: Outcome) -> str:
    d = benchmark.primary.difference
    interval = "" if isnan(d.low) else f" [{100 * d.low:+.1f}, {100 * d.high:+.1f}]"
    so_far = (
        f" after {benchmark.n:,} of {benchmark.n_available:,} questions"
        if benchmark.is_stopped
        else ""
    )
    said = f"changed by {100 * d.value:+.1f} points{interval}{so_far}" + (
        f", for {d.population}" if d.n_groups else ""
    )
    return (
        f"{said}: "
        + {
            Outcome.within: f"a loss of {100 * budget:g} points or more is ruled out",
            Outcome.beyond: f"a loss of more than {100 * budget:g} points is shown",
            Outcome.undecided: _why_undecided(name, benchmark, budget),
        }[outcome]
    )


def overall(judgements: Sequence[Judgement]) -> Outcome:
    """What holds for all together: beyond if any is, else undecided if any is, else within."""
    outcomes = {judgement.outcome for judgement in judgements}
    return next(o for o in (Outcome.beyond, Outcome.undecided, Outcome.within) if o in outcomes)


def _why_undecided(name: str, benchmark: BenchmarkChange, budget: float) -> str:
    """What keeps a loss from being shown on either side of its budget, and what would help."""
    d = benchmark.primary.difference
    if benchmark.is_stopped:
        setting = f"benchmark.{name}.max_loss={budget:g}"
        return f"more were not asked; a run with evaluation.until=budget {setting} asks until this is known"
    if d.n == 1:
        return "1 question cannot tell"
    if benchmark.n_available:
        return f"all {d.n:,} questions, looked at as they were asked, cannot tell"
    if isnan(d.standard_error):
        return f"all {d.n:,} questions changed by the same, which does not tell how others would"
    if d.test == CLUSTERED_T:
        return f"{d.n_groups} subjects differ too much to tell; more subjects would, more questions of these would not"
    if n := d.n_to_bound(-budget):
        return f"{d.n:,} questions cannot tell; about {n:,} would"
    return f"{d.n:,} questions cannot tell; it lies too near the budget for any number to"
