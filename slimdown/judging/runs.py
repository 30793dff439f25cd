"""A run as the store knows it, without its artifacts."""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class RecordedRun:
    """What the store knows of a run without opening its artifacts."""

    run_id: str
    name: str
    experiment: str
    status: str  # FINISHED, FAILED, KILLED, RUNNING, SCHEDULED
    started: datetime
    params: dict[str, str]  # every setting, by its dotted key
    tags: dict[str, str]
    metrics: dict[str, float]

    @property
    def benchmarks(self) -> list[str]:
        """The benchmarks it was measured on, in the order of the settings."""
        found = (key.split(".")[1] for key in self.params if key.startswith("benchmark."))
        return list(dict.fromkeys(found))

    @property
    def holdout(self) -> float:
        """The share of each benchmark's questions that what it shows leaves out; older records know of none."""
        return float(self.params.get("evaluation.holdout", 0))
