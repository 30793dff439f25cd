"""Two evaluations, before and after -> `Findings`: what is shown, recorded, compared and returned as one thing."""

from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING

from slimdown.evaluation.answers import Evaluation
from slimdown.stats.anatomy import Anatomy, anatomy
from slimdown.stats.changes import Changes, changes_between

if TYPE_CHECKING:  # it would bring torch along
    from slimdown.training.fine_tune import TrainResult


@dataclass(frozen=True)
class Findings:
    """What a model learned and what it lost."""

    before: Evaluation
    after: Evaluation
    changes: Changes
    anatomies: dict[str, Anatomy]  # by benchmark: what became of lost answers
    training: "TrainResult | None" = None  # None where somebody else tuned the model
    # By name: seconds (`..._seconds`), bytes (`..._bytes`), and how many questions were asked.
    costs: dict[str, float] = field(default_factory=dict)


def judge(
    before: Evaluation,
    after: Evaluation,
    training: "TrainResult | None" = None,
    costs: dict[str, float] | None = None,
    n_reports: int = 1,
) -> Findings:
    """What changed from one evaluation to the other, how sure that is, and what became of lost answers.

    Args:
        before, after: the same questions, asked of the base and of the tuned model.
        training: how the tuned model came about, where that was seen.
        costs: seconds and bytes by name, of the run as a whole.
        n_reports: how many such findings are read together, see `changes_between`.

    Raises:
        SlimdownError: the two were not asked the same things, see `changes_between`.
    """
    changes = changes_between(before, after, n_reports)
    anatomies = {
        name: anatomy(before.benchmarks[name], after.benchmarks[name])
        for name in changes.benchmarks
    }
    seconds = {"base_evaluation_seconds": before.seconds, "tuned_evaluation_seconds": after.seconds}
    peaks = {
        "base_evaluation_peak_bytes": before.peak_bytes,
        "tuned_evaluation_peak_bytes": after.peak_bytes,
    }
    both = {"base": before, "tuned": after}
    shares = {
        f"{model}_accepted_draft_share": one.accepted_draft_share for model, one in both.items()
    }
    if training:
        peaks["training_peak_bytes"] = training.peak_bytes
    known = {name: n_bytes for name, n_bytes in (peaks | shares).items() if isfinite(n_bytes)}
    asked = {"questions_asked": sum(b.n for b in changes.benchmarks.values())}
    return Findings(
        before, after, changes, anatomies, training, seconds | known | asked | (costs or {})
    )
