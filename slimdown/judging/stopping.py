"""What was answered so far, before and after -> the benchmarks of which more must be asked.

The same differences, corrections and tests as at the end say it, so that what stopped the asking is what is shown.
"""

from slimdown.judging.asked import change_of
from slimdown.judging.budget import Outcome, outcomes, own_budgets
from slimdown.judging.changes import Verdict, judgements
from slimdown.measuring.answers import Evaluation
from slimdown.settings.schema import Until


def open_benchmarks(before: Evaluation, after: Evaluation, until: Until) -> set[str]:
    """The names of the benchmarks that are not known well enough yet.

    Args:
        before, after: what base and tuned model answered so far to every benchmark.
        until: decided: whether it was forgotten, improved or retained; budget: whether it kept to what it may lose,
            and of one that may lose whatever it does, as for decided.

    Raises:
        ValueError: a score that is no number.
    """
    benchmarks = {name: report.benchmark for name, report in before.benchmarks.items()}
    differences = {
        name: change_of(report, *(one.benchmarks[name].scores_of(report.benchmark.metric) for one in (before, after)))
        for name, report in before.benchmarks.items()
    }
    judged = judgements(list(differences.values()), [benchmark.margin for benchmark in benchmarks.values()])
    known = {name: said is not Verdict.undecided for name, (said, *_) in zip(differences, judged, strict=True)}
    if until is Until.budget:
        held = outcomes(differences, own_budgets(benchmarks))
        known |= {name: outcome is not Outcome.undecided for name, outcome in held.items()}
    return {name for name, enough in known.items() if not enough}
