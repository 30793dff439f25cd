"""A recorded run: its settings and its findings, without its samples."""

from dataclasses import dataclass, field
from datetime import datetime

from slimdown.judging.findings import BenchmarkChange, Findings


@dataclass(frozen=True)
class RunRecord:
    """A run as the record holds it."""

    run_id: str
    name: str
    experiment: str
    status: str  # FINISHED, FAILED, KILLED, RUNNING, SCHEDULED
    started: datetime
    params: dict[str, str] = field(default_factory=dict)  # every setting, by its dotted key
    tags: dict[str, str] = field(default_factory=dict)
    findings: Findings | None = None  # None if there are none, or they were not read
    artifact_uri: str = ""

    @property
    def changes(self) -> dict[str, BenchmarkChange]:
        """The change on each benchmark; empty where no findings were read."""
        return self.findings.benchmarks if self.findings else {}

    @property
    def holdout(self) -> float:
        """The share of each benchmark's questions that its findings leave out."""
        return float(self.params.get("evaluation.holdout", 0))
