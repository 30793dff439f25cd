"""Two `EvalReport`s, base and tuned -> `ForgettingReport`: what changed, in plain numbers and in the paper's metrics.

Pure arithmetic: no torch, no MLflow. Formulas from "Slimming Down LLMs Without Losing Their Minds" (Mai 2025,
section 2.4), whose published numbers are the doctests.
"""

from dataclasses import dataclass
from math import nan, sqrt
from typing import TYPE_CHECKING

from slimdown.config import PaperMetric, Role

if TYPE_CHECKING:
    from slimdown.evaluate import BenchmarkReport, EvalReport, Score


@dataclass(frozen=True)
class Change:
    """One metric of one benchmark, before and after."""

    base: "Score"
    tuned: "Score"
    value: float  # tuned - base
    standard_error: float  # of two independent measurements, as the harness compares models


@dataclass(frozen=True)
class PaperValue:
    """One of the paper's three metrics, with one standard error where the paper gives one."""

    value: float
    standard_error: float


@dataclass(frozen=True)
class BenchmarkChange:
    """What one benchmark says of the fine-tuning."""

    role: Role
    metric: str  # the primary one
    n: int  # questions
    changes: dict[str, Change]  # by metric
    paper_metric: PaperMetric | None
    paper_value: PaperValue | None

    @property
    def primary(self) -> Change:
        return self.changes[self.metric]


@dataclass(frozen=True)
class ForgettingReport:
    """What the fine-tuning changed, by benchmark."""

    benchmarks: dict[str, BenchmarkChange]

    @property
    def mean_retained_change(self) -> float:
        """The mean change of the retained benchmarks' primary metrics; nan where none is chosen."""
        changes = [b.primary.value for b in self.benchmarks.values() if b.role is Role.retained]
        return sum(changes) / len(changes) if changes else nan


def forgetting(base: "EvalReport", tuned: "EvalReport") -> ForgettingReport:
    """Compare two evaluations of the same benchmarks.

    Raises:
        ValueError: the two were not asked the same things; names the first field that differs.
    """
    for field in ("harness_version", "scoring_path"):
        if (before := getattr(base, field)) != (after := getattr(tuned, field)):
            raise ValueError(f"{field} differs: {before} and {after}")
    if base.benchmarks.keys() != tuned.benchmarks.keys():
        raise ValueError(f"benchmarks differ: {sorted(base.benchmarks)} and {sorted(tuned.benchmarks)}")
    compared = {}
    for name, one in base.benchmarks.items():
        other = tuned.benchmarks[name]
        _refuse_unlike(name, one, other)
        changes = {
            metric: _change(one.scores[metric], other.scores[metric]) for metric in one.scores if metric in other.scores
        }
        compared[name] = BenchmarkChange(
            role=one.benchmark.role,
            metric=one.benchmark.metric,
            n=len(one.samples),
            changes=changes,
            paper_metric=one.benchmark.paper_metric,
            paper_value=_paper_value(one.benchmark.paper_metric, changes[one.benchmark.metric]),
        )
    return ForgettingReport(compared)


def ability_augmentation(base: float, tuned: float) -> float:
    """Delta A, percentage points of normalized accuracy gained (HellaSwag).

    >>> round(ability_augmentation(base=0.6077, tuned=0.6120), 2)
    0.43
    """
    return 100 * (tuned - base)


def forgetting_rate(base: float, tuned: float) -> float:
    """FR = 1 - A_tuned / A_base, the share of the base's accuracy that is gone (GSM8K); nan where the base is at 0.

    The paper prints 88.92 %; its own accuracies give 88.93.

    >>> round(100 * forgetting_rate(base=0.3351, tuned=0.0371), 2)
    88.93
    >>> forgetting_rate(base=0.0, tuned=0.1)
    nan
    """
    return 1 - tuned / base if base > 0 else nan


def knowledge_loss(base: float, tuned: float) -> float:
    """Delta K, percentage points of accuracy lost (MMLU college computer science).

    >>> round(knowledge_loss(base=0.47, tuned=0.34), 2)
    13.0
    """
    return 100 * (base - tuned)


def unpaired_standard_error(base: float, tuned: float) -> float:
    """The standard error of a difference of two independent measurements, from theirs.

    It is what the paper's "±" is; base and tuned answer the same questions, so it is wider than the truth. The paper
    prints 6.93 for knowledge loss; its own standard errors give 6.92.

    >>> round(unpaired_standard_error(5.02, 4.76), 2)
    6.92
    """
    return sqrt(base**2 + tuned**2)


def _change(base: "Score", tuned: "Score") -> Change:
    return Change(
        base=base,
        tuned=tuned,
        value=tuned.value - base.value,
        standard_error=unpaired_standard_error(base.standard_error, tuned.standard_error),
    )


def _paper_value(metric: PaperMetric | None, change: Change) -> PaperValue | None:
    base, tuned = change.base, change.tuned
    if metric is PaperMetric.ability_augmentation:
        return PaperValue(ability_augmentation(base.value, tuned.value), 100 * change.standard_error)
    if metric is PaperMetric.knowledge_loss:
        return PaperValue(knowledge_loss(base.value, tuned.value), 100 * change.standard_error)
    if metric is PaperMetric.forgetting_rate:
        return PaperValue(forgetting_rate(base.value, tuned.value), nan)
    return None


def _refuse_unlike(name: str, base: "BenchmarkReport", tuned: "BenchmarkReport") -> None:
    pairs = {
        "task": (base.benchmark.task, tuned.benchmark.task),
        "task_version": (base.task_version, tuned.task_version),
        "num_fewshot": (base.benchmark.num_fewshot, tuned.benchmark.num_fewshot),
        "n": (len(base.samples), len(tuned.samples)),
        "doc_hash": ([s.doc_hash for s in base.samples], [s.doc_hash for s in tuned.samples]),
        "prompt_hash": (
            [s.prompt_hash for s in base.samples],
            [s.prompt_hash for s in tuned.samples],
        ),
        "task_hash": (base.task_hash, tuned.task_hash),
    }
    for field, (before, after) in pairs.items():
        if before != after:
            shown = "" if isinstance(before, list) else f": {before} and {after}"
            raise ValueError(f"{name}: base and tuned cannot be compared, {field} differs{shown}")
