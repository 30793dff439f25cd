"""Decide which benchmarks need more answers of the tuned model."""

from slimdown.config.schema import RunConfig, Until
from slimdown.evaluation.results import BenchmarkEvaluation, Evaluation, StopRule
from slimdown.judging.budgets import Outcome, decide_outcomes, default_budgets
from slimdown.judging.pairing import pair_benchmark
from slimdown.judging.verdicts import Verdict, decide_verdicts
from slimdown.stats.estimates import compare_scores


def stopping_rule(config: RunConfig, base: Evaluation) -> StopRule | None:
    """Make the function that names the benchmarks that need more answers.

    It uses the tests and corrections of the final verdict. A change that is shown, but measured
    below the margin, stops no evaluation: with all questions it often becomes `retained`. If it
    vanishes instead, other benchmarks may need more questions again (Holm).

    Args:
        config: `evaluation.until` decides. With `decided` a benchmark is done when it is forgotten,
            improved or retained. With `budget` it is done when its loss is shown to be within or
            beyond its budget; a benchmark without a budget follows `decided`.
        base: the base's answers to all questions.

    Returns:
        None where all questions are asked.
    """
    until = Until(config.evaluation.until)
    if until is Until.all:
        return None
    settings = {name: one.benchmark for name, one in base.benchmarks.items()}

    def find_open(answers: dict[str, BenchmarkEvaluation]) -> set[str]:
        differences = {}
        for name, tuned in answers.items():
            if tuned.looks:  # without looks it is asked whole, and unknown until then
                metric = settings[name].metric
                pair = pair_benchmark(name, base.benchmarks[name], tuned)
                before, after = pair.base.scores_of(metric), pair.tuned.scores_of(metric)
                differences[name] = compare_scores(before, after, pair.sampling)
        margins = {name: settings[name].margin for name in differences}
        n_unknown = len(settings) - len(differences)
        verdicts = decide_verdicts(
            list(differences.values()), list(margins.values()), n_unknown=n_unknown
        )
        is_open = {}
        for (name, d), decided in zip(differences.items(), verdicts, strict=True):
            is_claimed = decided.verdict is not Verdict.undecided
            is_shown = is_claimed and abs(d.value) >= margins[name]
            is_open[name] = decided.verdict is not Verdict.retained and not is_shown
        if until is Until.budget:
            by_budget = decide_outcomes(differences, default_budgets(settings))
            is_open |= {n: one.outcome is Outcome.undecided for n, one in by_budget.items()}
        return {name for name in differences if is_open[name]}

    return find_open
