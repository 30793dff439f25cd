"""Check each loss against its budget: is it shown to be within, or beyond?"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import IntEnum
from math import nan
from numbers import Real

from slimdown.config.benchmark_config import BenchmarkConfig, Role
from slimdown.config.fields import nearest, read_share
from slimdown.judging.findings import BenchmarkChange, Findings
from slimdown.judging.forgetting_rate import RatioTest
from slimdown.judging.pairing import Pair
from slimdown.judging.verdicts import correct_with_levels
from slimdown.stats.estimates import Difference, Estimate
from slimdown.stats.likelihood import ALPHA
from slimdown.stats.power import can_show_within, n_to_decide
from slimdown.utils.errors import ConfigError

TestedLoss = Difference | RatioTest
_SMALLEST_SCALE = 0.1  # of those that `slimdown scale` measures


class Outcome(IntEnum):
    """The result of a budget check; its number is the exit code."""

    within = 0
    beyond = 1
    undecided = 2


@dataclass(frozen=True)
class BudgetCheck:
    """One benchmark's loss against its budget.

    Attributes:
        benchmark: The benchmark's name.
        change: What changed on it.
        budget: What it may lose, a share.
        outcome: On which side of the budget the loss is shown to be.
        bound: The end of the change's one-sided interval that decides, a share. It is the upper end
            where the loss is shown to be beyond its budget, and else the lower one.
        level: The level of that interval.
        reason: A sentence for the user.
    """

    benchmark: str
    change: BenchmarkChange
    budget: float
    outcome: Outcome
    bound: float
    level: float
    reason: str = ""

    @property
    def n_to_decide(self) -> int | None:
        """About how many questions show the outcome if the change stays as large as measured."""
        return n_to_decide(self.change.primary.difference, self.change.margin, budget=self.budget)

    @property
    def expected(self) -> str:
        """What more questions show if the change stays as large as measured."""
        loss = -self.change.primary.difference.value
        return "PASSED" if loss <= self.budget else "FAILED"


@dataclass(frozen=True)
class Gate:
    """Whether a model has lost more than it may.

    Attributes:
        checks: one for each benchmark with a budget.
        off: the benchmarks that decide nothing.
        mean: of the retained benchmarks' changes, if it must not be shown to be below 0.
    """

    checks: tuple[BudgetCheck, ...]
    off: tuple[str, ...] = ()
    mean: Estimate | None = None

    @property
    def is_worse(self) -> bool:
        """Whether the retained benchmarks are shown to be worse together, and must not be."""
        return self.mean is not None and self.mean.high < 0

    @property
    def outcome(self) -> Outcome:
        """The outcome of all together, which is the exit code."""
        return Outcome.beyond if self.is_worse else overall_outcome(self.checks)


def read_budgets(arguments: Sequence[str], option: str = "--max-loss") -> dict[str, float]:
    """Read what each benchmark may lose from arguments such as gsm8k=0.02.

    A share without a name is for every retained benchmark; it gets the name "".

    Args:
        arguments: What the user wrote after the option, each NAME=SHARE or SHARE.
        option: The option's name, for messages.

    Returns:
        The largest loss allowed, a share of 1, by benchmark.

    Raises:
        ConfigError: a budget is no share, or a benchmark has two.
    """
    budgets: dict[str, float] = {}
    for text in arguments:
        name, sign, value = text.rpartition("=")
        budget = nan  # which `_check_budget` refuses
        if name or not sign:  # "=0.02" lacks the name
            with suppress(ValueError):
                budget = float(read_share(value))  # "2%" is 0.02
        _check_budget(name, budget, f"{option} {text}")
        if name in budgets:
            reason = f"{name or 'every benchmark'} has {budgets[name]} already"
            raise ConfigError(f"{option} {text}: {reason}; keep one")
        budgets[name] = budget
    return budgets


def default_budgets(
    benchmarks: Mapping[str, BenchmarkChange] | Mapping[str, BenchmarkConfig],
) -> dict[str, float]:
    """Return each benchmark's budget by its settings: `max_loss`, or a retained one's margin."""
    budgets = {name: b.margin for name, b in benchmarks.items() if b.role is Role.retained}
    return budgets | _list_max_losses(benchmarks)


def _list_max_losses(
    benchmarks: Mapping[str, BenchmarkChange] | Mapping[str, BenchmarkConfig],
) -> dict[str, float]:
    """Return the budgets that settings name."""
    return {name: b.max_loss for name, b in benchmarks.items() if b.max_loss is not None}


def keeps_budgets_as_measured(
    benchmarks: Mapping[str, BenchmarkChange], budgets: Mapping[str, float]
) -> bool:
    """Whether each benchmark with a budget was measured and lost no more; this tests nothing."""
    return all(
        benchmarks[name].is_measured and benchmarks[name].primary.difference.value >= -budget
        for name, budget in budgets.items()
    )


@dataclass(frozen=True)
class BudgetDecision:
    """On which side of its budget a loss is shown to be, and the level of the test that decided."""

    outcome: Outcome
    level: float

    def find_bound(self, change: TestedLoss, budget: float) -> float:
        """Return the end of the change's one-sided interval that decides, see `BudgetCheck`.

        The ends are found to 7 digits. So a bound that would contradict the outcome by less than
        that is set to the budget.
        """
        low, high = change.margin_interval(2 * self.level)
        if self.outcome is Outcome.beyond:
            return min(high, -budget)
        return max(low, -budget) if self.outcome is Outcome.within else low


def decide_outcomes(
    differences: Mapping[str, TestedLoss],
    budgets: Mapping[str, float],
    alpha: float = ALPHA,
    n_reports: int = 1,
) -> dict[str, BudgetDecision]:
    """Decide for each benchmark on which side of its budget the loss is shown to be.

    The tests are one-sided at `alpha`. A gate passes only if every loss is shown to be within its
    budget, so the tests of "within" need no correction (an intersection-union test). A gate fails
    if a single loss is shown to be beyond its budget. So the p-values of "beyond" are corrected for
    all benchmarks (Holm), those without a difference included, and for the gates that are read
    together.

    Args:
        differences: The measured changes by benchmark.
        budgets: By benchmark, the largest loss allowed, a share.
        alpha: The level of each test before the correction.
        n_reports: How many gates are read together.

    Returns:
        A decision for each budget. A benchmark without a difference is undecided.
    """
    decisions = dict.fromkeys(budgets, BudgetDecision(Outcome.undecided, alpha))
    measured = {name: budget for name, budget in budgets.items() if name in differences}
    # A loss beyond its budget is a change below -budget.
    p_values = [differences[name].p_value_below(-budget) for name, budget in measured.items()]
    n_unknown = len(budgets) - len(measured)
    corrected, levels = correct_with_levels(p_values, n_reports, n_unknown, alpha)
    for (name, budget), p_beyond, level in zip(measured.items(), corrected, levels, strict=True):
        if differences[name].p_value_above(-budget) < alpha:
            decisions[name] = BudgetDecision(Outcome.within, alpha)
        elif p_beyond < alpha:
            decisions[name] = BudgetDecision(Outcome.beyond, level)
    return decisions


def judge_look(findings: Findings, budgets: Mapping[str, float], n_looks: int) -> tuple[bool, str]:
    """Judge one look: a test of the model while it is in training.

    Each look tests another model, so the level of each test is 5 % divided by the number of looks.
    The chance that any look ends a training that keeps its budgets is then at most 5 %.

    Args:
        findings: of the questions that every look asks.
        budgets: by benchmark, the most that it may lose.
        n_looks: how many looks the training has in all.

    Returns:
        Whether these weights are worth keeping: each loss was measured, and is not above its budget
        (the plain score, untested). And a few words on the losses that tests show to be beyond
        their budgets, which end the training; empty if there are none.
    """
    measured = {n: b for n, b in findings.benchmarks.items() if n in budgets and b.is_measured}
    differences = {name: benchmark.primary.difference for name, benchmark in measured.items()}
    beyond = list[str]()
    for name, decision in decide_outcomes(differences, budgets, ALPHA / n_looks).items():
        if decision.outcome is Outcome.beyond:
            least_loss = -decision.find_bound(differences[name], budgets[name])
            lost = f"{name} lost at least {100 * least_loss:.1f} points"
            beyond.append(f"{lost} (its budget is {100 * budgets[name]:.3g})")
    return keeps_budgets_as_measured(findings.benchmarks, budgets), ", ".join(beyond)


def resolve_budgets(
    findings: Findings,
    budgets: Mapping[str, float],
    relative: Mapping[str, float] | None = None,
    off: Collection[str] = (),
) -> tuple[dict[str, float], dict[str, float]]:
    """Find out what each benchmark may lose; the arguments are those of `check_budgets`.

    A budget that names its benchmark goes before one for all, and both go before the settings. The
    name "" has two meanings. In budgets it stands for all retained benchmarks: a budget for all. In
    `off` it stands for all benchmarks that no budget names, which have one by their settings alone.

    Returns:
        All budgets by benchmark, in shares of 1 (100 points). And by benchmark, those of them that
        were given as a share of what the base scored, as that share.

    Raises:
        ConfigError: a budget is no share, its benchmark was not measured or is off, or there is no
            budget at all.
    """
    benchmarks, relative = findings.benchmarks, relative or {}
    for name in (*budgets, *relative, *off):
        _refuse_conflict(name, list(benchmarks), budgets, relative, off)
    retained = [n for n, b in benchmarks.items() if b.role is Role.retained and n not in off]
    # The budget for all is in `budgets` or in `relative`, as `_refuse_conflict` refuses both. It
    # holds for the retained benchmarks that have a budget of their own in neither.
    others = [name for name in retained if name not in budgets and name not in relative]
    absolute, all_relative = _expand(budgets, others), _expand(relative, others)
    shares_of_base = {n: s * benchmarks[n].primary.base.value for n, s in all_relative.items()}
    by_settings = {} if "" in off else default_budgets(benchmarks)  # "" switches off all of these
    resolved = by_settings | absolute | shares_of_base
    resolved = {name: budget for name, budget in resolved.items() if name not in off}
    if not resolved:
        problem = "every benchmark is off" if off else "no retained benchmark was measured"
        raise ConfigError(f"{problem}; give one a budget, such as NAME=0.02")
    for name, budget in resolved.items():
        _check_budget(name, budget, f"{name}={budget}")
    return resolved, all_relative


def _refuse_conflict(
    name: str,
    measured: list[str],
    budgets: Mapping[str, float],
    relative: Mapping[str, float],
    off: Collection[str],
) -> None:
    """Refuse a benchmark that was not measured, or that has two kinds of budget.

    The empty name stands for all retained benchmarks.

    Raises:
        ConfigError: It says what to leave out, or which name was meant.
    """
    if name and name not in measured:
        raise ConfigError(f"{name} was not measured{nearest(name, measured)}")
    benchmark = name or "every retained benchmark"
    if name in budgets and name in relative:
        raise ConfigError(
            f"budget of {benchmark}: give points (--max-loss) or a share of the base's score "
            "(--max-relative-loss), not both"
        )
    if name in off and (name in budgets or name in relative):
        raise ConfigError(f"budget of {benchmark}: give a number or off, not both")


def _expand(budgets: Mapping[str, float], others: Sequence[str]) -> dict[str, float]:
    """Return budgets by benchmark; that for all, under "", is given to `others`."""
    named = {name: budget for name, budget in budgets.items() if name}
    return named | dict.fromkeys(others, budgets[""]) if "" in budgets else named


def can_show_budget(findings: Findings, budget: float) -> bool:
    """Whether there are enough questions for `slimdown scale` to prove this budget.

    `slimdown scale` shrinks what was trained, at most to a tenth (`_SMALLEST_SCALE`), and asks the
    same questions. So this is whether a tenth of each measured loss, on as many questions, would be
    shown to be within its budget.

    Args:
        findings: Of all that was trained.
        budget: What each retained benchmark may lose; others have the budgets of their settings.
    """
    try:
        budgets, _ = resolve_budgets(findings, {"": budget})
    except ConfigError:  # no benchmark is retained
        return False
    changes = [(findings.benchmarks[name], allowed) for name, allowed in budgets.items()]
    return all(
        change.is_measured and can_show_within(change.primary.difference, allowed, _SMALLEST_SCALE)
        for change, allowed in changes
    )


def check_budgets(
    findings: Findings,
    budgets: Mapping[str, float],
    relative: Mapping[str, float] | None = None,
    *,
    off: Collection[str] = (),
    n_reports: int = 1,
    read_pairs: Callable[[], Mapping[str, Pair]] | None = None,
) -> list[BudgetCheck]:
    """Check for each benchmark whether its loss is shown to be within its budget or beyond.

    Args:
        findings: of a fine-tuning.
        budgets: by benchmark, the most that the primary metric may fall; a share, 0.02 is two
            points. "" stands for every retained benchmark that is not named. The others keep the
            budgets of their settings, see `default_budgets`.
        relative: the same as a share of what the base scored. That score is not known for sure, so
            the test is that of the forgetting rate.
        off: the benchmarks that are not checked. "" stands for every one that is not named.
        n_reports: how many such gates are read together; losses beyond are corrected for all.
        read_pairs: returns both models' answers, which `relative` needs. None: the findings hold
            them.

    Returns:
        A check for each benchmark with a budget, with the reason of its outcome.

    Raises:
        ConfigError: see `resolve_budgets`.
    """
    benchmarks = findings.benchmarks
    # From here on `budgets` holds every budget, in shares of 1 (100 points). The relative ones are
    # among them: each is multiplied by what the base scored.
    budgets, relative = resolve_budgets(findings, budgets, relative, off)
    measured = {name: benchmarks[name] for name in budgets if benchmarks[name].is_measured}
    tests: dict[str, TestedLoss] = {n: b.primary.difference for n, b in measured.items()}
    if shares := [name for name in relative if name in tests]:
        pairs = read_pairs() if read_pairs else findings.pairs
        for name in shares:
            pair = pairs[name]
            ratio_test = RatioTest.build(pair.base_scores, pair.tuned_scores, pair.sampling)
            # None if the base scored 0, because there is no ratio then. The test of the difference
            # stays in its place. What that decides is not used: `_give_reason` makes such a check
            # undecided.
            tests[name] = ratio_test or tests[name]
    checks = []
    for name, decision in decide_outcomes(tests, budgets, n_reports=n_reports).items():
        check = BudgetCheck(
            name,
            change=benchmarks[name],
            budget=budgets[name],
            outcome=decision.outcome,
            bound=decision.find_bound(tests[name], budgets[name]) if name in tests else nan,
            level=decision.level,
        )
        checks.append(_give_reason(check, is_relative=name in relative))
    return checks


def _give_reason(check: BudgetCheck, is_relative: bool) -> BudgetCheck:
    """Return a check with its reason; undecided if its test says nothing about the budget.

    `is_relative`: the budget is a share of what the base scored.
    """
    name, change = check.benchmark, check.change
    if is_relative and change.forgetting_rate is None:  # a share of 0 has no meaning
        reason = (
            "the base model does not score significantly above 0; give this benchmark a "
            "budget in points (--max-loss)"
        )
        return replace(check, outcome=Outcome.undecided, reason=reason)
    if not change.is_measured:  # there was no test, so the outcome is undecided
        problem = "in too many answers the thinking did not end"
        return replace(check, reason=f"{problem}; raise benchmark.{name}.max_gen_toks")
    if change.has_no_right_answer:  # a PASSED would say nothing
        reason = (
            "neither model answered a question correctly, and more questions would not help; "
            f"mend the benchmark, or leave it out with --max-loss {name}=off"
        )
        return replace(check, outcome=Outcome.undecided, reason=reason)
    return replace(check, reason=_explain(check))


def decide_by_settings(findings: Findings) -> Gate | None:
    """Check the budgets that a run's settings name (`max_loss`); None where they name none."""
    budgets = _list_max_losses(findings.benchmarks)
    return Gate(tuple(check_budgets(findings, budgets, off=[""]))) if budgets else None


def overall_outcome(checks: Sequence[BudgetCheck]) -> Outcome:
    """Combine all checks: beyond if any is, else undecided if any is, else within."""
    outcomes = {check.outcome for check in checks}
    return next((o for o in (Outcome.beyond, Outcome.undecided) if o in outcomes), Outcome.within)


def _check_budget(name: str, budget: float, argument: str) -> None:
    if not isinstance(budget, Real) or not 0 <= budget < 1:
        raise ConfigError(
            f"{argument}: give a share from 0 to below 1, or percent; {name or 'gsm8k'}=0.02 is "
            "two points, and so is 2%"
        )


def _explain(check: BudgetCheck) -> str:
    """Say of a measured loss which bound decided about its budget, and at which level."""
    benchmark = check.change
    # In points: the least loss if the outcome is beyond, else the largest one; below 0 for a gain.
    loss_bound = -100 * check.bound
    loss = f"{loss_bound:.1f} points"
    after = f" after {benchmark.n:,} of {benchmark.n_available:,}" if benchmark.is_stopped else ""
    basis = f"{after} (one-sided, {100 - 100 * check.level:.4g} % confidence)"
    if check.outcome is Outcome.beyond:
        return f"it lost at least {loss}{basis}"
    if check.outcome is Outcome.within:
        lost = f"it lost at most {loss}" if loss_bound > 0 else "it lost nothing"
        risk = ""
        if check.budget > 0.5:  # see "exit 0" in docs/studies/statistics.md
            risk = "; with a budget above 50 points, PASSED is wrong in up to 10 % of cases"
        return f"{lost}{basis}{risk}"
    # No budget is below 0, and more than the budget may be lost. So here `loss_bound` is above 0.
    reason = f"{benchmark.n:,} questions are too few: it may have lost up to {loss}{basis}"
    if benchmark.is_stopped:
        setting = f"evaluation.until=budget benchmark.{check.benchmark}.max_loss={check.budget:g}"
        return f"{reason}; a run with {setting} asks until the budget is decided"
    if needed := check.n_to_decide:
        condition = f"for {check.expected} if the change stays as large as measured"
        reason += f"; about {needed:,} questions would be enough {condition}"
    return reason
