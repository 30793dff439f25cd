"""What was answered so far, before and after -> the benchmarks of which more must be asked.

The same differences, corrections and tests as at the end say it, so that what ended the asking is what is shown.
"""

from slimdown.config.schema import Until
from slimdown.evaluation.answers import Evaluation
from slimdown.stats.asked import change_of
from slimdown.stats.budget import Outcome, outcomes, own_budgets
from slimdown.stats.changes import Verdict, judgements


def open_benchmarks(before: Evaluation, after: Evaluation, until: Until) -> set[str]:
    """The names of the benchmarks that are not known well enough yet.

    What has no `stages` is asked to its end whatever is said here, and nothing of it counts as known before. A change
    that is shown, but looks smaller than the margin, does not end the asking: of all questions it is often `retained`.
    If such a change then comes to nothing, what was known beside it (Holm) may be open once more, to be asked on.

    Args:
        before, after: what base and tuned model answered so far to every benchmark.
        until: decided: whether it was forgotten, improved or retained; budget: whether it kept to what it may lose,
            and of one that may lose whatever it does, as for decided.

    Raises:
        ValueError: a score that is no number.
    """
    settings = {name: report.benchmark for name, report in before.benchmarks.items()}
    differences = {
        name: change_of(
            report,
            *(one.benchmarks[name].scores_of(report.benchmark.metric) for one in (before, after)),
        )
        for name, report in before.benchmarks.items()
        if report.stages
    }
    margins, n_unknown = (
        [settings[name].margin for name in differences],
        len(settings) - len(differences),
    )
    judged = judgements(list(differences.values()), margins, n_unknown=n_unknown)
    known = [
        said is Verdict.retained or (said is not Verdict.undecided and abs(d.value) >= margin)
        for (said, *_), d, margin in zip(judged, differences.values(), margins, strict=True)
    ]
    is_open = {name: not is_known for name, is_known in zip(differences, known, strict=True)}
    if until is Until.budget:
        is_open |= {
            name: said is Outcome.undecided
            for name, said in outcomes(differences, own_budgets(settings)).items()
        }
    return {name for name in differences if is_open[name]}
