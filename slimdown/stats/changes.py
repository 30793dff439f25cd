"""Two `Evaluation`s, base and tuned -> `Changes`: what changed, how sure that is, and the paper's metrics.

No torch, no MLflow. The statistics are those of `paired.py`; the formulas are from "Slimming Down LLMs Without Losing
Their Minds" (Mai 2025, section 2.4), whose published numbers are the doctests.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import nan, sqrt
from typing import TYPE_CHECKING

from slimdown.config.schema import PaperMetric, Role
from slimdown.stats.asked import change_of, mean_change, rate_of, score_of, without_error
from slimdown.stats.paired import ALPHA, Difference, Estimate, holm
from slimdown.utils.errors import SlimdownError

if TYPE_CHECKING:  # it would bring pyarrow along
    from slimdown.evaluation.answers import BenchmarkEvaluation, Evaluation


class Verdict(StrEnum):
    """What may be said of a benchmark. That no change is shown is never called retained."""

    retained = "retained"  # shown to have changed by less than the margin, either way
    forgotten = "forgotten"  # shown to have fallen, and not shown to be within the margin
    improved = "improved"  # shown to have risen, and not shown to be within the margin
    undecided = "undecided"  # too few questions to say


@dataclass(frozen=True)
class Counts:
    """Answers by whether they were right before and after."""

    kept: int
    lost: int
    gained: int
    missed: int  # wrong both times


@dataclass(frozen=True)
class Change:
    """One metric of one benchmark, before and after."""

    base: Estimate
    tuned: Estimate
    difference: Difference  # tuned - base, paired
    unpaired_standard_error: float  # of two independent measurements, the paper's and the harness's
    counts: Counts | None  # None where a score is not 0 or 1


@dataclass(frozen=True)
class BenchmarkChange:
    """What one benchmark says of the fine-tuning."""

    role: Role
    metric: str  # the primary one
    n: int  # questions
    n_available: (
        int | None
    )  # of how many, where they were asked in stages until something was known
    chance: float  # what guessing scores on the primary metric
    margin: float  # a change below it counts as none
    max_loss: float | None  # what it may lose, where that is set
    changes: dict[str, Change]  # by metric
    paper_metric: PaperMetric | None
    # In percentage points, a forgetting rate as a share of 1. The error is what the paper prints behind "±", from
    # independent measurements (nan for a forgetting rate); the interval that of paired answers.
    paper_value: Estimate | None
    forgetting_rate: (
        Estimate | None
    )  # may lack an end, see `ratio.forgetting_rate`; None where any rate is possible
    forgetting_rate_above_chance: Estimate | None  # likewise
    verdict: Verdict
    p_value: float  # that the primary metric did not change; corrected for the benchmarks tested together
    equivalence_p_value: float  # that it changed by the margin or more; corrected likewise
    minimum_detectable_change: float  # at 80 % power, for as many questions and benchmarks as these
    n_to_decide: int | None  # questions that would decide, where undecided

    @property
    def primary(self) -> Change:
        """The primary metric's."""
        return self.changes[self.metric]

    @property
    def is_stopped(self) -> bool:
        """Whether not all questions were asked, since enough was known."""
        return self.n_available is not None and self.n < self.n_available


@dataclass(frozen=True)
class Changes:
    """What the fine-tuning changed, by benchmark."""

    benchmarks: dict[str, BenchmarkChange]
    part: str = ""  # which of the questions it is about, where not all

    @property
    def in_stages(self) -> bool:
        """Whether questions were asked until something was known, and not all at once."""
        return any(b.n_available for b in self.benchmarks.values())

    @property
    def mean_retained_change(self) -> Estimate:
        """The mean change of the retained benchmarks' primary metrics; nan where none is chosen."""
        return self._mean_change(Role.retained)

    @property
    def mean_target_change(self) -> Estimate:
        """The mean change of the target tasks' primary metrics; nan where none is chosen."""
        return self._mean_change(Role.target)

    def _mean_change(self, role: Role) -> Estimate:
        return mean_change(
            [b.primary.difference for b in self.benchmarks.values() if b.role is role]
        )


def changes_between(base: "Evaluation", tuned: "Evaluation", n_reports: int = 1) -> Changes:
    """Compare two evaluations of the same benchmarks, question by question; any two models will do.

    Args:
        base, tuned: before and after.
        n_reports: how many such reports are read together; p-values are corrected for all their benchmarks.

    p-values are corrected over the benchmarks (Holm), for the claims of change and those of no change separately: the
    chance of any false claim of change is 5 % at most, that of any false claim of none likewise, and so that of any at
    all below 10 %. Both together at 5 % would cost more true claims than it is worth (docs/studies/statistics.md).

    Raises:
        SlimdownError: the two were not asked the same things, or a score is no number; names the first field that differs.
    """
    if base.benchmarks.keys() != tuned.benchmarks.keys():
        raise SlimdownError(
            f"benchmarks differ: {sorted(base.benchmarks)} and {sorted(tuned.benchmarks)}"
        )
    if differing := _first_difference(*_conditions(base, tuned)):
        raise SlimdownError(differing)
    pairs = {name: (one, tuned.benchmarks[name]) for name, one in base.benchmarks.items()}
    changes = {name: _changes(name, *pair) for name, pair in pairs.items()}
    primary = [changes[name][one.benchmark.metric].difference for name, (one, _) in pairs.items()]
    judged = judgements(primary, [one.benchmark.margin for one, _ in pairs.values()], n_reports)
    n_compared = n_reports * len(pairs)
    compared = {
        name: _benchmark_change(one, other, changes[name], said, n_compared)
        for (name, (one, other)), said in zip(pairs.items(), judged, strict=True)
    }
    return Changes(compared, base.part)


def judgements(
    differences: Sequence[Difference],
    margins: Sequence[float],
    n_reports: int = 1,
    n_unknown: int = 0,
) -> list[tuple[Verdict, float, float]]:
    """Each benchmark's verdict, its p-value and that of equivalence, corrected for all of them in as many reports.

    `n_unknown`: further benchmarks, of which nothing is known yet.
    """
    unknown, margined = [1.0] * n_unknown, zip(differences, margins, strict=True)
    p_values = holm([*(n_reports * d.p_value for d in differences), *unknown])
    equal = holm([*(n_reports * d.equivalence_p_value(margin) for d, margin in margined), *unknown])
    return [
        (verdict(d.value, p, e), p, e)
        for d, p, e in zip(differences, p_values, equal, strict=False)
    ]


def verdict(change: float, p_value: float, equivalence_p_value: float) -> Verdict:
    """What may be said, from corrected p-values.

    A change that is shown to be below the margin is retained even where it is shown to exist: the margin says what
    matters.

    >>> verdict(-0.10, p_value=0.001, equivalence_p_value=1.0).value, verdict(-0.01, 0.3, 0.2).value
    ('forgotten', 'undecided')
    """
    if equivalence_p_value < ALPHA:
        return Verdict.retained
    if p_value < ALPHA:
        return Verdict.forgotten if change < 0 else Verdict.improved
    return Verdict.undecided


def paper_value(metric: PaperMetric, base: float, tuned: float) -> float:
    """One of the paper's three metrics, from the accuracies of base and tuned model.

    Ability augmentation: percentage points gained (HellaSwag's normalized accuracy). Knowledge loss: points lost (MMLU
    college computer science). Forgetting rate, 1 - A_tuned / A_base: the share of the base's accuracy that is gone
    (GSM8K), nan where the base is at 0; the paper prints 88.92 %, its own accuracies give 88.93.

    >>> round(paper_value(PaperMetric.ability_augmentation, base=0.6077, tuned=0.6120), 2)
    0.43
    >>> round(100 * paper_value(PaperMetric.forgetting_rate, base=0.3351, tuned=0.0371), 2)
    88.93
    >>> round(paper_value(PaperMetric.knowledge_loss, base=0.47, tuned=0.34), 2)
    13.0
    """
    if metric is PaperMetric.forgetting_rate:
        return 1 - tuned / base if base > 0 else nan
    return 100 * (tuned - base if metric is PaperMetric.ability_augmentation else base - tuned)


def unpaired_standard_error(base: float, tuned: float) -> float:
    """The standard error of a difference of two independent measurements, from theirs.

    It is what the paper's "±" is; base and tuned answer the same questions, so it is wider than the truth. The paper
    prints 6.93 for knowledge loss; its own standard errors give 6.92.

    >>> round(unpaired_standard_error(5.02, 4.76), 2)
    6.92
    """
    return sqrt(base**2 + tuned**2)


def _changes(
    name: str, base: "BenchmarkEvaluation", tuned: "BenchmarkEvaluation"
) -> dict[str, Change]:
    """By metric, the primary one first; only metrics that score each question by itself."""
    graded = base.is_graded and tuned.is_graded
    if differing := _first_difference(_asked(base, graded), _asked(tuned, graded)):
        raise SlimdownError(f"{name}: base and tuned cannot be compared, {differing}")
    primary = base.benchmark.metric
    metrics = [
        m for m in base.scores if all(m in s.scores for s in (*base.samples, *tuned.samples))
    ]
    if primary not in metrics:
        raise SlimdownError(
            f"{name}: {primary} has no score for each question, so base and tuned cannot be paired; "
            f"choose one that has: {', '.join(sorted(metrics)) or 'this task has none'}"
        )
    try:
        return {
            metric: _change(base, tuned, metric)
            for metric in sorted(metrics, key=lambda m: m != primary)
        }
    except ValueError as error:
        raise SlimdownError(f"{name}: {error}") from None


def _change(base: "BenchmarkEvaluation", tuned: "BenchmarkEvaluation", metric: str) -> Change:
    before, after = base.scores_of(metric), tuned.scores_of(metric)
    one, other = score_of(base, before), score_of(base, after)
    counts = None
    if set(before) | set(after) <= {0.0, 1.0}:
        pairs = list(zip(before, after, strict=True))
        counts = Counts(*(pairs.count(pair) for pair in ((1, 1), (1, 0), (0, 1), (0, 0))))
    error = unpaired_standard_error(one.standard_error, other.standard_error)
    return Change(one, other, change_of(base, before, after), error, counts)


def _benchmark_change(
    base: "BenchmarkEvaluation",
    tuned: "BenchmarkEvaluation",
    changes: dict[str, Change],
    judged: tuple[Verdict, float, float],
    n_benchmarks: int,
) -> BenchmarkChange:
    config = base.benchmark
    primary = changes[config.metric]
    before, after = base.scores_of(config.metric), tuned.scores_of(config.metric)
    raw = rate_of(base, before, after, 0.0)
    alpha = (
        ALPHA / n_benchmarks
    )  # the first of Holm's steps: what a change must pass if no other is shown
    said, p_value, equivalence_p_value = judged
    return BenchmarkChange(
        role=config.role,
        metric=config.metric,
        n=len(base.samples),
        n_available=base.n_available if base.stages else None,
        chance=config.chance,
        margin=config.margin,
        max_loss=config.max_loss,
        changes={
            metric: replace(c, difference=without_error(c.difference))
            for metric, c in changes.items()
        },
        paper_metric=config.paper_metric,
        paper_value=_paper_estimate(config.paper_metric, primary, raw),
        forgetting_rate=raw,
        forgetting_rate_above_chance=rate_of(base, before, after, config.chance),
        verdict=said,
        p_value=p_value,
        equivalence_p_value=equivalence_p_value,
        minimum_detectable_change=primary.difference.minimum_detectable_change(alpha),
        n_to_decide=primary.difference.n_to_decide(config.margin, alpha)
        if said is Verdict.undecided
        else None,
    )


def _paper_estimate(
    metric: PaperMetric | None, change: Change, raw_rate: Estimate | None
) -> Estimate | None:
    if metric is None:
        return None
    value, d = paper_value(metric, change.base.value, change.tuned.value), change.difference
    if metric is PaperMetric.forgetting_rate:
        low, high = (raw_rate.low, raw_rate.high) if raw_rate else (nan, nan)
        return Estimate(value, nan, low, high)
    low, high = (d.low, d.high) if metric is PaperMetric.ability_augmentation else (-d.high, -d.low)
    return Estimate(value, 100 * change.unpaired_standard_error, 100 * low, 100 * high)


def _conditions(base: "Evaluation", tuned: "Evaluation") -> Iterator[dict[str, object]]:
    """Of each, what must be the same of all its benchmarks."""
    attributes = ["scoring_path", "part"]
    if not (
        base.conditions and tuned.conditions
    ):  # they hold what another version of the harness would change
        attributes.append("harness_version")
    keys = dict.fromkeys((*base.conditions, *tuned.conditions))
    for one in (base, tuned):
        further = {key: one.conditions.get(key, "not set") for key in keys}
        yield {**{name: getattr(one, name) for name in attributes}, **further}


def _asked(report: "BenchmarkEvaluation", graded: bool) -> dict[str, object]:
    """What must be the same of a benchmark."""
    return {
        "task": report.benchmark.task,
        "task_version": report.task_version,
        "num_fewshot": report.benchmark.num_fewshot,
        "n": len(report.samples),
        "n_available": report.n_available or len(report.samples),
        "stages": report.stages,
        "doc_hash": [sample.doc_hash for sample in report.samples],
        "prompt_hash": [sample.prompt_hash for sample in report.samples],
        "task_hash": report.task_hash,
        "score_precision": report.score_precision
        if graded
        else "",  # of whole numbers it says nothing
    }


def _first_difference(before: Mapping[str, object], after: Mapping[str, object]) -> str | None:
    for field, value in before.items():
        if value != after[field]:
            return f"{field} differs" + (
                "" if isinstance(value, list) else f": {value} and {after[field]}"
            )
    return None
