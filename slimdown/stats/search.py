"""What a trial of a search learned, and whether it kept to its budget of forgetting: which trial is the better one."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan

from slimdown.config.schema import BenchmarkConfig, Role
from slimdown.stats.runs import RecordedChanges


@dataclass(frozen=True)
class Outcome:
    """What a trial came to, as measured: whether another model would come to it too, intervals and `check` say."""

    learned: float  # mean change of the target tasks; where there is none, the fall of the validation loss
    excess: dict[
        str, float
    ]  # by retained benchmark, its loss less what it may lose; a share, above 0: beyond

    @property
    def is_within(self) -> bool:
        """Whether no retained benchmark lost more than it may."""
        return all(excess <= 0 for excess in self.excess.values())

    @property
    def order(self) -> tuple[float, float]:
        """What trials are sorted by: those within the budget first, what learned most before the others."""
        return sum(max(0.0, excess) for excess in self.excess.values()), -self.learned


def outcome(
    changes: RecordedChanges,
    benchmarks: Mapping[str, BenchmarkConfig],
    max_loss: float | None,
    fall: float,
) -> Outcome:
    """What a trial came to.

    Args:
        changes: of the benchmarks, shares.
        benchmarks: their settings by name, which say what is retained.
        max_loss: what each retained benchmark may lose, as `slimdown.check --max-loss` has it; None: its margin.
        fall: of the validation loss, nats a token.
    """
    learned = changes.mean_target_change.value
    retained = {
        name: b
        for name, b in benchmarks.items()
        if b.role is Role.retained and name in changes.benchmarks
    }
    budgets = {name: b.margin if max_loss is None else max_loss for name, b in retained.items()}
    excess = {
        name: -changes.benchmarks[name].change.value - budget for name, budget in budgets.items()
    }
    return Outcome(fall if isnan(learned) else learned, excess)
