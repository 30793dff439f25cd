"""A recorded run: its settings and its findings, without its samples."""

from dataclasses import dataclass, field
from datetime import datetime

from slimdown.judging.findings import BenchmarkChange, Findings

# The headings of the mean change of all target benchmarks, and of all retained benchmarks.
LEARNED, KEPT = "learned", "kept"


@dataclass(frozen=True)
class RunRecord:
    """A run as the record holds it."""

    run_id: str
    name: str
    experiment: str
    status: str  # FINISHED, FAILED, KILLED, RUNNING, SCHEDULED
    started: datetime
    params: dict[str, str] = field(default_factory=dict)  # settings by dotted key, as MLflow shows
    tags: dict[str, str] = field(default_factory=dict)  # MLflow's, by name
    findings: Findings | None = None  # None if there are none, or they were not read
    held_out: float | None = None  # evaluation.holdout; None if the findings were not read
    artifact_uri: str = ""  # the address of the folder of the run's files, such as its page
    given_name: str = ""  # the setting `name`; empty: the run is called after its settings
    note: str = ""  # the setting `note`
    model_files: str = ""  # the address of the folder of what the run trained; empty: nothing

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
