"""Summarize a trial of a search: what it learned, and whether it stays within its budget."""

from dataclasses import dataclass
from math import isnan

from slimdown.config.benchmark_config import Role
from slimdown.judging.findings import Findings


@dataclass(frozen=True)
class TrialOutcome:
    """The measured result of a trial; if it stopped early, its changes are on average too large."""

    learned: float  # mean change of the target tasks; else the fall of the validation loss
    excess: dict[str, float]  # by retained benchmark, its loss beyond what it may lose; a share
    unmeasured: tuple[str, ...] = ()  # retained benchmarks about which nothing may be claimed

    @property
    def is_within(self) -> bool:
        """Whether each retained benchmark was measured, and lost no more than it may."""
        return not self.unmeasured and all(excess <= 0 for excess in self.excess.values())

    @property
    def order(self) -> tuple[bool, float, float]:
        """The sort key of trials: those within the budget first, then those that learned most."""
        beyond = sum(max(0.0, excess) for excess in self.excess.values())
        return bool(self.unmeasured), beyond, -self.learned


def summarize_trial(findings: Findings, budget: float | None) -> TrialOutcome:
    """Summarize a trial: what it learned, and by how much each loss exceeds its budget.

    Args:
        findings: The trial's findings.
        budget: What each retained benchmark may lose, a share; None: its margin.
    """
    retained = {n: c for n, c in findings.benchmarks.items() if c.role is Role.retained}
    excess = dict[str, float]()
    for name, change in retained.items():
        if change.is_measured:
            loss = -change.primary.difference.value  # above 0 if the score fell
            excess[name] = loss - (change.margin if budget is None else budget)
    unmeasured = tuple(name for name in retained if name not in excess)
    return TrialOutcome(measure_learning(findings), excess, unmeasured)


def measure_learning(findings: Findings) -> float:
    """Return the mean change of the target tasks; without any, the fall of the validation loss."""
    learned = findings.mean_change(Role.target).value
    if isnan(learned) and (training := findings.training):
        learned = training.validation_loss_before - training.validation_loss_after
    return learned
