"""Decide which benchmarks need more answers of the tuned model."""

from slimdown.config.benchmark_config import Role, Until
from slimdown.evaluation.results import BenchmarkEvaluation, Evaluation, StopRule
from slimdown.judging.budgets import Outcome, decide_outcomes, default_budgets
from slimdown.judging.pairing import pair_benchmark
from slimdown.judging.verdicts import Verdict, decide_verdicts, split_kinds
from slimdown.stats.estimates import compare_scores


def stopping_rule(until: Until, base: Evaluation) -> StopRule | None:
    """Make the function that names the benchmarks that need more answers.

    It uses the tests and corrections of the final verdict. A change that is shown, but measured
    below the margin, stops no evaluation: with all questions it often becomes `retained`. If it
    vanishes instead, other benchmarks may need more questions again (Holm). A watched benchmark
    gets no verdict; it is done when its own test, uncorrected, would give it one.

    Args:
        until: With `decided` a benchmark is done when it is forgotten, improved or retained. With
            `budget` it is done when its loss is shown to be within or beyond its budget; a
            benchmark without a budget follows `decided`.
        base: the base's answers to all questions.

    Returns:
        None where all questions are asked.
    """
    if until is Until.all:
        return None
    settings = {name: one.benchmark for name, one in base.benchmarks.items()}
    claimed = {n: one.metric for n, one in settings.items() if one.role is not Role.watched}
    families = [*split_kinds(claimed), *([name] for name in settings if name not in claimed)]

    def find_open(answers: dict[str, BenchmarkEvaluation]) -> set[str]:
        differences = {}
        for name, tuned in answers.items():
            if tuned.looks:  # without looks it is asked whole, and unknown until then
                metric = settings[name].metric
                pair = pair_benchmark(name, base.benchmarks[name], tuned)
                before, after = pair.base.scores_of(metric), pair.tuned.scores_of(metric)
                differences[name] = compare_scores(before, after, pair.sampling)
        is_open = {}
        for family in families:
            known = [name for name in family if name in differences]
            of_family = [differences[name] for name in known]
            margins = [settings[name].margin for name in known]
            n_unknown = len(family) - len(known)
            verdicts = decide_verdicts(of_family, margins, n_unknown=n_unknown)
            for name, d, margin, decided in zip(known, of_family, margins, verdicts, strict=True):
                is_claimed = decided.verdict is not Verdict.undecided
                is_shown = is_claimed and abs(d.value) >= margin
                is_open[name] = decided.verdict is not Verdict.retained and not is_shown
        if until is Until.budget:
            by_budget = decide_outcomes(differences, default_budgets(settings))
            is_open |= {n: one.outcome is Outcome.undecided for n, one in by_budget.items()}
        return {name for name in differences if is_open[name]}

    return find_open
