"""A run as the store knows it, without its artifacts: its settings, and what it kept of its findings."""

from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from math import nan
from typing import TYPE_CHECKING

from slimdown.config.schema import PaperMetric
from slimdown.stats.paired import Estimate

if TYPE_CHECKING:
    from slimdown.stats.anatomy import Anatomy
    from slimdown.stats.changes import BenchmarkChange
    from slimdown.stats.findings import Findings

UNKNOWN = Estimate(nan, nan, nan, nan)


@dataclass(frozen=True)
class RecordedChange:
    """What a run keeps of one benchmark's change; nan where there is nothing to keep, or an older run did not."""

    change: Estimate
    n: float = nan
    n_available: float = nan  # of how many, where they were asked in stages
    p_value: float = nan
    equivalence_p_value: float = nan
    p_value_raw: float = nan
    equivalence_p_value_raw: float = nan
    minimum_detectable_change: float = nan
    n_to_decide: float = nan
    forgetting_rate: Estimate = UNKNOWN
    forgetting_rate_above_chance: Estimate = UNKNOWN
    ability_augmentation: Estimate = UNKNOWN
    knowledge_loss: Estimate = UNKNOWN
    kept: float = nan
    lost: float = nan
    gained: float = nan
    missed: float = nan
    lost_any_metric: float = nan
    causes: dict[str, float] = field(default_factory=dict)  # share of the lost answers, by cause
    verdict: str = ""


@dataclass(frozen=True)
class RecordedChanges:
    """What a run keeps of its findings, by benchmark."""

    benchmarks: dict[str, RecordedChange] = field(default_factory=dict)
    mean_retained_change: Estimate = UNKNOWN
    mean_target_change: Estimate = UNKNOWN


@dataclass(frozen=True)
class RecordedRun:
    """What the store knows of a run without opening its artifacts."""

    run_id: str
    name: str
    experiment: str
    status: str  # FINISHED, FAILED, KILLED, RUNNING, SCHEDULED
    started: datetime
    params: dict[str, str] = field(default_factory=dict)  # every setting, by its dotted key
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    # What these say; empty or nan where nothing was recorded.
    changes: RecordedChanges = field(default_factory=RecordedChanges)
    dataset: str = ""
    scoring_path: str = ""
    harness_version: str = ""
    processes: str = "1"  # that made it together

    @cached_property
    def benchmarks(self) -> list[str]:
        """The benchmarks it was measured on, in the order of the settings."""
        names = (key.split(".")[1] for key in self.params if key.startswith("benchmark."))
        return list(dict.fromkeys(names))

    @property
    def holdout(self) -> float:
        """The share of each benchmark's questions that what it shows leaves out; older records know of none."""
        return float(self.params.get("evaluation.holdout", 0))


@dataclass(frozen=True)
class Making:
    """How a run's tuned model came about, as its record has it; nan and empty where an older run did not say."""

    run: RecordedRun
    base: str  # its hub id, or a folder
    revision: str  # its commit, or `sha256:` and the digest of a folder
    licence: str  # as its card says: a name, or `other NAME LINK`
    quantization: str
    dtype: str
    compute_dtype: str  # of 4-bit weights; else empty
    device: str
    data_fingerprint: str
    n_train: float = nan  # rows
    n_validation: float = nan
    validation_loss_before: float = nan  # nats a token
    validation_loss_after: float = nan
    n_trainable: float = nan
    trainable_percent: float = nan

    @property
    def is_of_hub(self) -> bool:
        """Whether the base can be had from the hub."""
        return not self.revision.startswith("sha256:")


def recorded_changes(findings: "Findings") -> RecordedChanges:
    """What is kept of findings."""
    changes = findings.changes
    kept = {
        name: _recorded(benchmark, findings.anatomies[name])
        for name, benchmark in changes.benchmarks.items()
    }
    return RecordedChanges(kept, changes.mean_retained_change, changes.mean_target_change)


def _recorded(benchmark: "BenchmarkChange", lost: "Anatomy") -> RecordedChange:
    d, counts, paper = benchmark.primary.difference, benchmark.primary.counts, benchmark.paper_value
    where_known = {
        "n_available": benchmark.n_available,
        "n_to_decide": benchmark.n_to_decide,
        "forgetting_rate": benchmark.forgetting_rate,
        "forgetting_rate_above_chance": benchmark.forgetting_rate_above_chance,
        **(vars(counts) if counts else {}),
    }
    if paper and benchmark.paper_metric in (
        PaperMetric.ability_augmentation,
        PaperMetric.knowledge_loss,
    ):
        where_known[benchmark.paper_metric.value] = replace(paper, low=nan, high=nan)
    return RecordedChange(
        change=Estimate(d.value, d.standard_error, d.low, d.high),
        n=benchmark.n,
        p_value=benchmark.p_value,
        equivalence_p_value=benchmark.equivalence_p_value,
        p_value_raw=d.p_value,
        equivalence_p_value_raw=d.equivalence_p_value(benchmark.margin),
        minimum_detectable_change=benchmark.minimum_detectable_change,
        lost_any_metric=lost.n_lost,
        causes={cause.name: cause.share.value for cause in lost.causes if cause.share},
        verdict=benchmark.verdict.value,
        **{name: value for name, value in where_known.items() if value is not None},
    )
