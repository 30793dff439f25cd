"""Decide which benchmarks need more answers of the tuned model."""

from collections.abc import Mapping, Sequence

from slimdown.config.benchmark_config import BenchmarkConfig, Role, Until
from slimdown.evaluation.results import BenchmarkEvaluation, Evaluation, StopRule
from slimdown.judging.budgets import Outcome, decide_outcomes, default_budgets
from slimdown.judging.pairing import pair_benchmark
from slimdown.judging.verdicts import Verdict, decide_verdicts, group_comparable
from slimdown.stats.estimates import Difference, compare_scores


def stopping_rule(until: Until, base: Evaluation) -> StopRule | None:
    """Make the function that names the benchmarks that need more answers of the tuned model.

    An evaluation calls the function at each look (after each block of questions), and asks no more
    questions of the benchmarks that it leaves out.

    The function uses the tests and corrections of the final verdict. A change that is shown, but
    measured below the margin, stops no evaluation: with all questions the verdict often becomes
    `retained`. A watched benchmark gets no verdict. It is done when its own test, uncorrected,
    would give it one.

    Args:
        until: With `decided` a benchmark is done when it is forgotten, improved or retained. With
            `budget` it is done when its loss is shown to be within or beyond its budget; a
            benchmark without a budget follows `decided`.
        base: the base's answers to all questions.

    Returns:
        The function, which takes the tuned model's answers so far; None if all questions are asked.
    """
    if until is Until.all:
        return None
    settings = {name: evaluation.benchmark for name, evaluation in base.benchmarks.items()}
    claimed = {n: b.metric for n, b in settings.items() if b.role is not Role.watched}
    # Tests are corrected within a family. A watched benchmark is one by itself: no correction.
    watched = [[name] for name in settings if name not in claimed]
    families = [*group_comparable(claimed), *watched]

    def find_open(answers: dict[str, BenchmarkEvaluation]) -> set[str]:
        """Return the names of the benchmarks that need more answers.

        Raises:
            DataError: base and tuned model were not asked the same.
        """
        differences = {}
        for name, tuned in answers.items():
            if not tuned.looks:  # a benchmark without looks cannot stop early
                continue
            pair = pair_benchmark(name, base.benchmarks[name], tuned)
            differences[name] = compare_scores(pair.base_scores, pair.tuned_scores, pair.sampling)
        is_open = dict[str, bool]()  # each benchmark is in one of the families
        for family in families:
            is_open |= _find_undecided(family, differences, settings)
        if until is Until.budget:
            # Where a benchmark has a budget, this decides instead of the verdict.
            decisions = decide_outcomes(differences, default_budgets(settings))
            is_open |= {name: d.outcome is Outcome.undecided for name, d in decisions.items()}
        return {name for name in differences if is_open[name]}

    return find_open


def _find_undecided(
    family: Sequence[str],
    differences: Mapping[str, Difference],
    settings: Mapping[str, BenchmarkConfig],
) -> dict[str, bool]:
    """Return whether each measured benchmark of a family needs more answers for a verdict.

    The benchmarks of a family are corrected together, those without answers included. A change that
    is shown, but smaller than the margin, needs more answers: it may become `retained`.
    """
    known = [name for name in family if name in differences]
    decisions = decide_verdicts(
        [differences[name] for name in known],
        [settings[name].margin for name in known],
        n_unknown=len(family) - len(known),
    )
    is_open = {}
    for name, decision in zip(known, decisions, strict=True):
        is_small = abs(differences[name].value) < settings[name].margin
        is_changed = decision.verdict in (Verdict.forgotten, Verdict.improved)
        is_open[name] = decision.verdict is Verdict.undecided or (is_changed and is_small)
    return is_open
