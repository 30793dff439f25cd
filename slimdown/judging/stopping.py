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
    questions of the benchmarks that it leaves out. Benchmarks that cannot stop early were asked all
    their questions before the first look, so the function always leaves them out.

    The function uses the tests and corrections of the final verdict:

    - With `decided`, a benchmark needs more answers until it is forgotten, improved or retained. A
      measured change below the margin needs more even if it is forgotten or improved so far: with
      all questions, the verdict often becomes `retained`.
    - With `budget`, a benchmark that has a budget needs more answers until its loss is shown to be
      within its budget or beyond. The others need them as with `decided`.

    A watched benchmark gets no final verdict. It is treated as if it got one by its own test,
    uncorrected.

    Args:
        until: When to stop asking.
        base: The base's answers to all questions.

    Returns:
        The function. It takes the tuned model's answers so far, by benchmark, and returns the
        names. None if `until` asks all questions.
    """
    if until is Until.all:
        return None
    settings = {name: evaluation.benchmark for name, evaluation in base.benchmarks.items()}
    metrics = {name: b.metric for name, b in settings.items() if b.role is not Role.watched}
    # Tests are corrected within a family. A watched benchmark is a family by itself, so its test is
    # not corrected.
    watched = [[name] for name in settings if name not in metrics]
    families = [*group_comparable(metrics), *watched]
    # Some benchmarks have no budget, such as targets without `max_loss`.
    budgets = default_budgets(settings) if until is Until.budget else {}

    def find_open(answers: dict[str, BenchmarkEvaluation]) -> set[str]:
        """Return the names of the benchmarks that need more answers.

        Raises:
            DataError: base and tuned model were not asked the same.
        """
        differences = {}
        for name, tuned in answers.items():
            if not tuned.looks:  # it cannot stop early: all its questions were asked already
                continue
            pair = pair_benchmark(name, base.benchmarks[name], tuned)
            differences[name] = compare_scores(pair.base_scores, pair.tuned_scores, pair.sampling)
        needs_more = dict[str, bool]()
        for family in families:  # together they have all benchmarks
            needs_more |= _find_undecided(family, differences, settings)
        for name, decision in decide_outcomes(differences, budgets).items():
            needs_more[name] = decision.outcome is Outcome.undecided  # instead of the verdict
        return {name for name in differences if needs_more[name]}

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
    needs_more = {}
    for name, decision in zip(known, decisions, strict=True):
        is_small = abs(differences[name].value) < settings[name].margin
        is_changed = decision.verdict in (Verdict.forgotten, Verdict.improved)
        needs_more[name] = decision.verdict is Verdict.undecided or (is_changed and is_small)
    return needs_more
