"""A recorded run: its settings and its findings, without its samples."""

from dataclasses import dataclass, field
from datetime import datetime

from slimdown.judging.findings import BenchmarkChange, Findings

LEARNED, KEPT = "learned", "kept"  # the means of targets and of the other benchmarks


@dataclass(frozen=True)
class RunRecord:
    """A run as the record holds it."""

    run_id: str
    name: str
    experiment: str
    status: str  # FINISHED, FAILED, KILLED, RUNNING, SCHEDULED
    started: datetime
    params: dict[str, str] = field(default_factory=dict)  # settings by dotted key, as MLflow shows
    tags: dict[str, str] = field(default_factory=dict)
    findings: Findings | None = None  # None if there are none, or they were not read
    held_out: float | None = None  # evaluation.holdout, read with the findings
    artifact_uri: str = ""
    given_name: str = ""  # the setting `name`; empty: the run is called after its settings
    note: str = ""
    model_files: str = ""  # the folder of what the run trained

    @property
    def changes(self) -> dict[str, BenchmarkChange]:
        """The change on each benchmark; empty where no findings were read."""
        return self.findings.benchmarks if self.findings else {}

    @property
    def holdout(self) -> float:
        """The share of each benchmark's questions that its findings leave out.

        Raises:
            LookupError: It was not read. It is never taken for 0: that would judge a run by the
                questions that chose it.
        """
        if self.held_out is None:
            raise LookupError(f"the settings of run {self.run_id} were not read")
        return self.held_out
