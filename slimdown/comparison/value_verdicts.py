"""The verdicts of a comparison over the seeds of each configuration.

A verdict is a claim about the mean change that other seeds of this configuration would show on
other questions of this kind (`slimdown.stats.seeds.MeanTest`). Two seeds say almost nothing about
how much seeds vary. So below five seeds all configurations are taken to vary alike, and their
spreads are pooled; from five on each has its own. Of a single run the claim is about this training
alone, as in its own report.

The claims of a table are corrected together (Holm), those of change and of no change separately,
the means `learned` and `kept` among them. No claim is made where the test cannot hold: seeds that
answered other questions, that may have stopped early, or about which nothing may be claimed. None
is made about watched benchmarks either, so they take no level from the others.
`python -m bench.statistics` counts the tables that make any false claim.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import nan
from statistics import fmean

from slimdown.comparison.run_comparison import (
    Comparison,
    Configuration,
    can_average,
    collect_answers,
)
from slimdown.comparison.run_records import KEPT, LEARNED
from slimdown.config.benchmark_config import Role
from slimdown.judging.findings import BenchmarkChange
from slimdown.judging.verdicts import (
    Decision,
    TestedChange,
    Verdict,
    decide_verdicts,
    take_one_kind,
    watch_change,
)
from slimdown.stats.estimates import Estimate
from slimdown.stats.seeds import SeedAnswers, build_tests


@dataclass(frozen=True)
class JudgedMean:
    """The mean change of a configuration and what may be claimed about it."""

    value: float  # a share; nan where it was not measured
    verdict: Verdict | None  # None: watched
    decision: Decision | None = None  # and its test; None where no claim is made
    test: TestedChange | None = None
    margin: float = nan
    own: Estimate | None = None  # of a single run, as its own report has it

    @cached_property
    def shown(self) -> Estimate:
        """The mean with the interval that agrees with its decision, where there is one."""
        if self.own:
            return self.own
        if not (self.decision and self.test):
            return Estimate(self.value, nan, nan, nan)
        return self.decision.form_interval(self.test, self.margin)


def judge_configurations(comparison: Comparison) -> list[dict[str, JudgedMean]]:
    """Judge each configuration over its seeds.

    Args:
        comparison: Its rows are judged together.

    Returns:
        For each row what is known, by column: `learned` where a target was measured, benchmarks,
        and `kept`. A mean of one benchmark alone is left out.
    """
    runs = [run for row in comparison.rows for run in row.runs]
    found = {name: change for run in runs for name, change in run.changes.items()}
    roles = {name: change.role for name, change in found.items()}
    columns = {name: [name] for name in comparison.benchmarks}
    for heading, role in ((LEARNED, Role.target), (KEPT, Role.retained)):
        averaged = take_one_kind({n: found[n].metric for n in columns if roles[n] is role})
        if len(averaged) > 1:
            columns[heading] = averaged
    tests: dict[tuple[int, str], TestedChange] = {}
    margins: dict[tuple[int, str], float] = {}
    n_open = 0
    for heading, names in columns.items():
        answers: dict[int, SeedAnswers] = {}
        kinds: dict[int, tuple[object, ...]] = {}
        for i, row in enumerate(comparison.rows):
            if not (changes := _find_changes(row, names)):
                continue
            margins[i, heading] = fmean(of_runs[0].margin for of_runs in changes)
            if [len(of_runs) for of_runs in changes] == [1] and changes[0][0].is_measured:
                tests[i, heading] = changes[0][0].primary.difference
            elif can_average(changes):
                answers[i] = collect_answers(changes)
                kinds[i] = tuple((of[0].question_hash, of[0].metric) for of in changes)
            else:
                n_open += roles.get(heading) is not Role.watched
        for kind in dict.fromkeys(kinds.values()):
            alike = {i: one for i, one in answers.items() if kinds[i] == kind}
            tests |= {(i, heading): test for i, test in build_tests(alike).items()}
    watched = {key for key in tests if roles.get(key[1]) is Role.watched}
    keys = [key for key in tests if key not in watched]
    decided = decide_verdicts(
        [tests[key] for key in keys], [margins[key] for key in keys], n_unknown=n_open
    )
    decisions = dict(zip(keys, decided, strict=True))
    decisions |= {key: watch_change(tests[key], margins[key]) for key in watched}
    judged: list[dict[str, JudgedMean]] = [{} for _ in comparison.rows]
    for i, heading in margins:
        row, decision = comparison.rows[i], decisions.get((i, heading))
        own = row.runs[0].changes.get(heading) if len(row.runs) == 1 else None
        verdict = _soften(row, heading, decision.verdict if decision else Verdict.undecided)
        verdict = None if roles.get(heading) is Role.watched else verdict
        judged[i][heading] = JudgedMean(
            _read_value(row, heading),
            verdict,
            decision,
            tests.get((i, heading)),
            margins[i, heading],
            own.shown_change if own else None,
        )
    return judged


def _find_changes(row: Configuration, names: Sequence[str]) -> list[list[BenchmarkChange]]:
    """Return the changes of all runs on the benchmarks that a column averages."""
    changes = [[run.changes[name] for run in row.runs if name in run.changes] for name in names]
    changes = [of_runs for of_runs in changes if of_runs]
    if len(names) == 1:
        return changes
    return [of_runs for of_runs in changes if all(one.is_measured for one in of_runs)]


def _read_value(row: Configuration, heading: str) -> float:
    means = {LEARNED: row.target, KEPT: row.retained}
    return (means.get(heading) or row.changes[heading].change).value


def _soften(row: Configuration, heading: str, verdict: Verdict | None) -> Verdict | None:
    """Return a verdict; that of a single run is its own, unless the table does not bear it out."""
    if len(row.runs) == 1 and (own := row.runs[0].changes.get(heading)):
        return verdict if own.verdict is verdict else Verdict.undecided
    return verdict
