"""Judge two evaluations, base and tuned: what changed, and how sure that is.

The formulas are from "Slimming Down LLMs Without Losing Their Minds" (2025, section 2.4), whose
published numbers are the doctests.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import hypot, isnan, nan
from typing import Any

import numpy as np
import scipy
from numpy.typing import NDArray

from slimdown.config.benchmark_config import PaperMetric, Role
from slimdown.evaluation.results import Evaluation
from slimdown.judging.answer_traits import NEVER_ENDED, Trait, compare_behaviour
from slimdown.judging.forgetting_rate import forgetting_rate
from slimdown.judging.losses import LossBreakdown, break_down_losses
from slimdown.judging.mean_change import average_changes
from slimdown.judging.pairing import Pair, pair_evaluations
from slimdown.judging.serialization import NOT_RECORDED, from_plain, to_plain
from slimdown.judging.verdicts import (
    Decision,
    Verdict,
    decide_verdicts,
    group_comparable,
    list_comparable,
    watch_change,
)
from slimdown.scoring.refusal import Refusal
from slimdown.stats.estimates import (
    Difference,
    Estimate,
    Sampling,
    compare_scores,
    estimate_mean,
    to_weighted,
)
from slimdown.stats.power import minimum_detectable_change, n_to_decide
from slimdown.training.result import TrainingResult
from slimdown.utils.errors import DataError
from slimdown.utils.files import FORMAT, check_format

_FEWEST_OF_SUBJECT = 40  # questions; a list of many smaller ones hardly marks any
# of harmful and of harmless requests; if all six are lost, p = 0.047; if five of five are, 0.088
_FEWEST_OF_KIND = 6


@dataclass(frozen=True)
class Counts:
    """The number of 0/1 answers, by whether they were right before and after."""

    still_right: int
    lost: int
    gained: int
    missed: int  # wrong both times


# If more of the answers end in the middle of thinking, scores measure the token limit.
MOST_UNFINISHED = 0.05


@dataclass(frozen=True)
class SubjectChange:
    """The change of the primary metric in one subject: a task of a group, or a category."""

    n: int
    change: float
    p_value: float  # that there is none; corrected for the benchmark's subjects
    base: float  # the scores
    tuned: float


@dataclass(frozen=True)
class MetricChange:
    """One metric of one benchmark, before and after."""

    base: Estimate
    tuned: Estimate
    difference: Difference  # tuned - base, paired
    unpaired_standard_error: float  # of two independent measurements, as the paper has it
    counts: Counts | None  # None where a score is not 0 or 1


@dataclass(frozen=True)
class BenchmarkChange:
    """The change on one benchmark, with its tests and its verdict."""

    role: Role
    metric: str  # the primary one
    n: int  # questions
    n_available: int | None  # questions in all, if answers were looked at while they came in
    chance: float  # what guessing scores on the primary metric
    margin: float  # a change below it counts as none
    max_loss: float | None  # what it may lose, where that is set
    changes: dict[str, MetricChange]  # by metric, the primary one first
    paper_metric: PaperMetric | None
    # In percentage points; a forgetting rate is a share of 1. The standard error is what the paper
    # prints after "±": that of independent measurements, nan for a forgetting rate. The interval
    # is that of paired answers.
    paper_value: Estimate | None
    forgetting_rate: Estimate | None  # None where the base is not shown to be above 0
    verdict: Verdict | None  # None of a watched one, about which nothing is claimed
    # The primary change with the interval that agrees with the verdict, see verdicts.py, and the
    # level of that interval. Nothing may be claimed where the interval is nan.
    shown_change: Estimate
    shown_level: float
    # That the primary metric did not change; corrected for all benchmarks but the watched ones.
    p_value: float
    equivalence_p_value: float  # that it changed by the margin or more; corrected likewise
    minimum_detectable_change: float  # at 80 % power, with this many questions and benchmarks
    n_to_decide: int | None  # questions that decide in four of five repetitions, where undecided
    question_hash: str  # of the questions, prompts and targets, in their order
    # the worst first; empty if there is only one
    subjects: dict[str, SubjectChange] = field(default_factory=dict)
    traits: tuple[Trait, ...] = ()  # of answers that are written, and of texts
    max_gen_toks: int | None = None  # of an answer, where that is set
    repeats: int | None = None  # answers drawn to each question

    @property
    def primary(self) -> MetricChange:
        """The primary metric's change."""
        return self.changes[self.metric]

    def find_trait(self, name: str) -> Trait | None:
        """Return a trait of the answers by its name; None where they do not have it."""
        return next((trait for trait in self.traits if trait.name == name), None)

    @property
    def never_ended(self) -> tuple[float, float] | None:
        """Both models' shares of unfinished thinking; None unless one of them is too large."""
        trait = self.find_trait(NEVER_ENDED)
        shares = (trait.base, trait.tuned) if trait else (0.0, 0.0)
        return shares if max(shares) > MOST_UNFINISHED else None

    @property
    def is_measured(self) -> bool:
        """Whether the change may be claimed about, in a verdict, mean, budget, look or trial.

        It may not where too much thinking never ended: scores then measure the limit of tokens.
        """
        return self.never_ended is None

    @property
    def has_no_right_answer(self) -> bool:
        """Whether neither model answered a question correctly."""
        return not (self.primary.base.value or self.primary.tuned.value)

    @property
    def has_nothing_to_lose(self) -> bool:
        """Whether a model that was not trained for this could lose nothing: it had nothing."""
        return self.has_no_right_answer and self.role is not Role.target

    @property
    def may_have_stopped(self) -> bool:
        """Whether a look at the answers could end the evaluation before all were asked."""
        return self.n_available is not None

    @property
    def is_stopped(self) -> bool:
        """Whether the evaluation stopped early; its change is then on average too large."""
        return self.n_available is not None and self.n < self.n_available


@dataclass(frozen=True)
class Findings:
    """The changes on all benchmarks: what the model learned and what it forgot."""

    benchmarks: dict[str, BenchmarkChange]
    lost_answers: dict[str, LossBreakdown]  # by benchmark
    training: TrainingResult | None  # None where somebody else tuned the model
    costs: dict[str, float]  # seconds (`..._seconds`), bytes (`..._bytes`)
    part: str  # which questions, if not all
    conditions: dict[str, str]  # harness_version, backend and what else both evaluations share
    # over the primary metrics of the benchmarks of a role; watched ones have no mean
    mean_changes: dict[Role, Estimate]
    base: Evaluation | None = field(default=None, repr=False, metadata=NOT_RECORDED)
    tuned: Evaluation | None = field(default=None, repr=False, metadata=NOT_RECORDED)
    # The answers that were judged, by benchmark; none in findings that were read from a record.
    pairs: Mapping[str, Pair] = field(
        default_factory=dict, repr=False, compare=False, metadata=NOT_RECORDED
    )
    # The tuned model's answers as it is served, to what its files have it asked otherwise; and what
    # they have otherwise, a line each.
    served: Evaluation | None = field(default=None, repr=False, metadata=NOT_RECORDED)
    serving: tuple[str, ...] = ()
    served_by: str = ""  # the server that answered as the tuned model: engine, address, model
    not_run: dict[str, str] = field(default_factory=dict)  # the reason, by benchmark of a suite

    def mean_change(self, role: Role) -> Estimate:
        """The mean change of a role's primary metrics; nan where no benchmark has the role."""
        return self.mean_changes.get(role, Estimate(nan, nan, nan, nan))

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON: all but samples, the questions' changes as packed text."""
        return {"format": FORMAT, **to_plain(self)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Findings":
        """Restore findings from what `to_dict` returned, without base and tuned evaluation.

        Args:
            plain: What was returned.

        Raises:
            DataError: this is something else, of another format, or contradicts itself.
        """
        try:
            check_format(plain.get("format"))
            findings: Findings = from_plain(cls, plain)
            for benchmark in findings.benchmarks.values():
                _ = benchmark.primary.difference.observations  # raises if weights do not fit
                # Watched benchmarks have no verdict, and all others have one.
                if (benchmark.verdict is None) is not (benchmark.role is Role.watched):
                    raise ValueError(f"verdict {benchmark.verdict} of a {benchmark.role} benchmark")
            if unknown := findings.lost_answers.keys() - findings.benchmarks.keys():
                raise ValueError(f"lost answers of {min(unknown)}, which was not measured")
            return findings
        except DataError:
            raise
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"[:200]
            raise DataError(
                f"this version cannot read the findings ({problem}); the version that made them "
                "does (environment.json beside them names it)"
            ) from None


def judge(
    base: Evaluation,
    tuned: Evaluation,
    training: TrainingResult | None = None,
    n_reports: int = 1,
    same_prompts: bool = True,
) -> Findings:
    """Judge what changed from one evaluation to the other, and sort the lost answers by cause.

    p-values are corrected over the benchmarks (Holm), separately for claims of change and for the
    verdict `retained`. The chance of any false claim of change is at most 5 %, and so is that of
    any false verdict `retained`. Watched benchmarks have no verdict, and are not counted in the
    correction. Benchmarks whose metric is p_right, the probability of the right choice, are
    corrected apart from the others, so both chances are at most 5 % for them and 5 % for the rest.

    Args:
        base, tuned: The same questions, asked of both models; either may have stopped early.
        training: the training of the tuned model; None if somebody else tuned it.
        n_reports: how many such findings are read together; p-values are corrected for all their
            benchmarks.
        same_prompts: see `pair_evaluations`.

    Raises:
        DataError: the two were not asked the same, or a benchmark's primary metric cannot be
            judged.
    """
    pairs = pair_evaluations(base, tuned, same_prompts)
    changes = {name: _compare_metrics(name, pair) for name, pair in pairs.items()}
    decisions = _decide_verdicts(pairs, changes, n_reports)
    benchmarks, lost_answers = {}, {}
    for name, pair in pairs.items():
        benchmarks[name] = _judge_benchmark(pair, changes[name], decisions[name])
        # If several answers were drawn to a question, only the first one's text is recorded.
        is_loss_shown = benchmarks[name].verdict is Verdict.forgotten
        lost_answers[name] = break_down_losses(pair.with_first_answers, is_loss_shown)
    asked_by = {"harness_version": base.harness_version, "backend": base.backend}
    return Findings(
        benchmarks=benchmarks,
        lost_answers=lost_answers,
        training=training,
        costs=_list_costs(base, tuned, training),
        part=base.part,
        conditions={**asked_by, **base.conditions},
        served_by=tuned.served_by,
        mean_changes={r: average_role(benchmarks, pairs, r) for r in (Role.target, Role.retained)},
        base=base,
        tuned=tuned,
        pairs=pairs,
    )


def _decide_verdicts(
    pairs: Mapping[str, Pair], changes: Mapping[str, dict[str, MetricChange]], n_reports: int
) -> dict[str, Decision]:
    """Decide all verdicts; benchmarks whose metrics are comparable are corrected together."""
    decisions = dict[str, Decision]()
    claimed_metrics = dict[str, str]()  # the primary metric of each benchmark that gets a verdict
    for name, pair in pairs.items():
        config = pair.base.benchmark
        if config.role is Role.watched:
            difference = changes[name][config.metric].difference
            decisions[name] = watch_change(difference, config.margin)
        else:
            claimed_metrics[name] = config.metric
    for family in group_comparable(claimed_metrics):
        differences = [changes[name][claimed_metrics[name]].difference for name in family]
        margins = [pairs[name].base.benchmark.margin for name in family]
        decided = decide_verdicts(differences, margins, n_reports)
        decisions |= dict(zip(family, decided, strict=True))
    return decisions


def _judge_benchmark(
    pair: Pair, changes: dict[str, MetricChange], decision: Decision
) -> BenchmarkChange:
    """Gather what is known of the change on one benchmark.

    If too many answers never ended their thinking, nothing is claimed: the verdict is undecided,
    the shown change has no interval, and no number of questions would decide.

    Args:
        pair: Both models' answers.
        changes: The change of each metric.
        decision: The verdict by the test of the primary metric.
    """
    config = pair.base.benchmark
    primary = changes[config.metric]
    difference = primary.difference
    has_right_answer = bool(primary.base.value or primary.tuned.value)
    has_nothing_to_lose = not has_right_answer and config.role is not Role.target
    if decision.verdict is Verdict.retained and has_nothing_to_lose:
        # What the base model cannot do cannot be lost, so "retained" would say nothing.
        decision = replace(decision, verdict=Verdict.undecided)
    # What more questions would show is planned at the strictest of Holm's levels, the first one.
    # The interval beside the verdict has `decision.level`, at which the verdict was decided.
    alpha = decision.first_level
    # More questions help an undecided benchmark only if there is something to lose.
    needs_more = decision.verdict is Verdict.undecided and not has_nothing_to_lose
    rate = forgetting_rate(pair.base_scores, pair.tuned_scores, pair.sampling)
    change = BenchmarkChange(
        role=config.role,
        metric=config.metric,
        n=difference.n,
        n_available=pair.sampling.n_available,
        chance=config.chance or 0.0,
        margin=config.margin,
        max_loss=config.max_loss,
        changes=changes,
        paper_metric=config.paper_metric,
        paper_value=_estimate_paper_metric(config.paper_metric, primary, rate),
        forgetting_rate=rate,
        verdict=decision.verdict,
        shown_change=decision.form_interval(difference, config.margin),
        shown_level=decision.level,
        p_value=decision.p_value,
        equivalence_p_value=decision.equivalence_p_value,
        minimum_detectable_change=minimum_detectable_change(difference, alpha),
        n_to_decide=n_to_decide(difference, config.margin, alpha) if needs_more else None,
        subjects=compare_subjects(pair),
        traits=compare_behaviour(pair),
        question_hash=pair.question_hash,
        max_gen_toks=config.max_gen_toks,
        repeats=config.repeats,
    )
    if change.is_measured:  # the thinking ended, in all answers but a few
        return change
    without_interval = Estimate(difference.value, standard_error=nan, low=nan, high=nan)
    verdict = None if config.role is Role.watched else Verdict.undecided
    return replace(change, verdict=verdict, shown_change=without_interval, n_to_decide=None)


def _list_costs(
    base: Evaluation, tuned: Evaluation, training: TrainingResult | None
) -> dict[str, float]:
    costs = {
        "base_evaluation_seconds": base.seconds,
        "tuned_evaluation_seconds": tuned.seconds,
        "base_evaluation_peak_bytes": base.peak_bytes,
        "tuned_evaluation_peak_bytes": tuned.peak_bytes,
        "training_peak_bytes": training.peak_bytes if training else nan,
    }
    return {name: cost for name, cost in costs.items() if not isnan(cost)}


def average_role(
    benchmarks: Mapping[str, BenchmarkChange], pairs: Mapping[str, Pair], role: Role
) -> Estimate:
    """Estimate the mean change of a role's measured, comparable benchmarks; nan for none."""
    measured = {n: b.metric for n, b in benchmarks.items() if b.role is role and b.is_measured}
    averaged = list_comparable(measured)
    return average_changes([(pairs[n], benchmarks[n].primary.difference) for n in averaged])


def judge_pair(first: Evaluation, second: Evaluation) -> Findings:
    """Judge how one tuned model differs from another, on questions that may have chosen them.

    Its `part` says that part of the difference is then luck.

    Raises:
        DataError: as for `judge`.
    """
    luck = "if their answers were used to choose the runs, part of the difference is chance"
    return replace(judge(first, second), part=f"{first.part or 'all questions'}; {luck}")


def paper_value(metric: PaperMetric, base: float, tuned: float) -> float:
    """Compute one of the paper's three metrics from the accuracies of base and tuned model.

    The paper is the one that the module's docstring names.

    - Ability augmentation: percentage points gained (HellaSwag's normalized accuracy).
    - Knowledge loss: percentage points lost (MMLU college computer science).
    - Forgetting rate, 1 - A_tuned / A_base: the share of the base's accuracy that is gone (GSM8K);
      nan if the base is at 0. The paper prints 88.92 %, its own accuracies give 88.93.

    >>> round(paper_value(PaperMetric.ability_augmentation, base=0.6077, tuned=0.6120), 2)
    0.43
    >>> round(100 * paper_value(PaperMetric.forgetting_rate, base=0.3351, tuned=0.0371), 2)
    88.93
    >>> round(paper_value(PaperMetric.knowledge_loss, base=0.47, tuned=0.34), 2)
    13.0
    """
    if metric is PaperMetric.forgetting_rate:
        return 1 - tuned / base if base > 0 else nan
    change = tuned - base if metric is PaperMetric.ability_augmentation else base - tuned
    return 100 * change


def compare_subjects(pair: Pair) -> dict[str, SubjectChange]:
    """Compare each subject by itself, the worst first; empty if there is only one.

    Subjects with too few questions are left out. p-values are corrected by Benjamini and Hochberg
    (1995): of the subjects that the report marks as changed, on average at most one in twenty has
    not changed. That finds more of them than Holm does. It is enough here, because the claim is the
    benchmark's verdict, and the list only says where to look.
    """
    subjects = np.array([sample.category or sample.task for sample in pair.base.samples])
    counts = Counter(map(str, subjects))
    if len(counts) == 1:
        return {}
    # The subjects of a refusal benchmark are harmful and harmless requests. They are only two, and
    # both are of interest, so fewer questions are enough to list them.
    is_refusal = pair.base.benchmark.metric == Refusal.name
    fewest = _FEWEST_OF_KIND if is_refusal else _FEWEST_OF_SUBJECT
    changes = {
        name: _compare_subject(pair, is_in_subject=subjects == name)
        for name, n in counts.items()
        if n >= fewest
    }
    names = sorted(changes, key=lambda name: changes[name].change)
    p_values = [changes[name].p_value for name in names]
    corrected = scipy.stats.false_discovery_control(p_values).tolist() if p_values else []
    return {
        name: replace(changes[name], p_value=p_value)
        for name, p_value in zip(names, corrected, strict=True)
    }


def _compare_subject(pair: Pair, is_in_subject: NDArray[np.bool_]) -> SubjectChange:
    """Compare the questions of one subject; the p-value is not corrected yet.

    Args:
        pair: Both models' answers to the whole benchmark.
        is_in_subject: [questions], whether a question belongs to the subject.
    """
    sampling = Sampling()
    is_used = is_in_subject  # whether a question goes into the test
    if pair.sampling.looks:
        # The evaluation could stop at a look, which counts the questions of the whole benchmark. So
        # the other questions stay, with weight 0.
        is_used = np.full_like(is_in_subject, fill_value=True)
        weights = is_in_subject / is_in_subject.mean()  # with a mean of 1
        sampling = Sampling(weights, pair.sampling.looks, pair.sampling.n_available)
    if pair.sampling.clusters is not None:
        sampling = replace(sampling, clusters=pair.sampling.clusters[is_used])
    before, after = pair.base_scores[is_used], pair.tuned_scores[is_used]
    difference = compare_scores(before, after, sampling)
    return SubjectChange(
        n=int(is_in_subject.sum()),
        change=difference.value,
        p_value=difference.p_value,
        base=float(to_weighted(before, sampling).mean()),
        tuned=float(to_weighted(after, sampling).mean()),
    )


def _compare_metrics(name: str, pair: Pair) -> dict[str, MetricChange]:
    """Compare the metrics that score every question from 0 to 1, the primary one first.

    Raises:
        DataError: There is no question, or the primary metric does not score each from 0 to 1.
    """
    primary = pair.base.benchmark.metric
    samples = (*pair.base.samples, *pair.tuned.samples)
    if not samples:
        raise DataError(f"{name}: there is no question to compare")
    metrics = [
        metric
        for metric in pair.base.scores
        if all(0 <= sample.scores.get(metric, nan) <= 1 for sample in samples)
    ]
    if primary not in metrics:
        raise DataError(
            f"{name}: {primary} has no score from 0 to 1 for each question, so base and tuned "
            f"cannot be paired; divide it with benchmark.{name}.scale, or choose one that has: "
            f"{', '.join(sorted(metrics)) or 'this task has none'}"
        )
    changes = {}
    for metric in sorted(metrics, key=lambda metric: metric != primary):  # False comes first
        before, after = pair.base.scores_of(metric), pair.tuned.scores_of(metric)
        base, tuned = estimate_mean(before, pair.sampling), estimate_mean(after, pair.sampling)
        difference = compare_scores(before, after, pair.sampling)
        # The paper's "±". It is too wide, because both answer the same questions. The paper
        # prints 6.93 for knowledge loss; its own standard errors, 5.02 and 4.76, give 6.92.
        unpaired_error = hypot(base.standard_error, tuned.standard_error)
        counts = _count_answers(before, after) if difference.is_binary else None
        changes[metric] = MetricChange(base, tuned, difference, unpaired_error, counts)
    return changes


def _count_answers(before: Sequence[float], after: Sequence[float]) -> Counts:
    """Count 0/1 answers by whether they were right before and after."""
    counts = Counter(zip(before, after, strict=True))
    return Counts(counts[1, 1], lost=counts[1, 0], gained=counts[0, 1], missed=counts[0, 0])


def _estimate_paper_metric(
    metric: PaperMetric | None, change: MetricChange, rate: Estimate | None
) -> Estimate | None:
    if metric is None:
        return None
    value = paper_value(metric, change.base.value, change.tuned.value)
    if metric is PaperMetric.forgetting_rate:
        return Estimate(value, nan, rate.low, rate.high) if rate else Estimate(value, nan, nan, nan)
    low, high = change.difference.low, change.difference.high
    if metric is PaperMetric.knowledge_loss:  # points lost, so a fall is above 0
        low, high = -high, -low
    return Estimate(value, 100 * change.unpaired_standard_error, 100 * low, 100 * high)
