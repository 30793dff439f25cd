"""`p_right`, the probability of the right choice: a metric of its own for multiple choice.

It is the softmax over the log-likelihoods of a question's different choices. Like acc, it takes
these as they are, not per character as acc_norm does. lm_eval's `brier_score` uses the same
probabilities; Schaeffer et al. 2024 (arXiv 2406.04391) call it "p(choices) of the correct choice".
It may show a change with fewer questions, but it is not accuracy: a temperature changes it and no
answer. So it has its own verdicts, corrected among themselves. It decides no verdict on a
benchmark, no mean over benchmarks, no budget and no exit code.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from math import exp, fsum, isfinite
from typing import Any

from slimdown.evaluation.results import BenchmarkEvaluation
from slimdown.judging.serialization import NOT_RECORDED
from slimdown.stats.estimates import Estimate

# Rules and order are those of a benchmark's verdict: retained, forgotten, improved, undecided.
ProbabilityVerdict = StrEnum("ProbabilityVerdict", "steady lower higher undecided")


@dataclass(frozen=True)
class ProbabilityChange:
    """The probability of the right choice of one benchmark, before and after."""

    base: float
    tuned: float
    change: Estimate  # tuned - base, paired; always with the 95 % interval
    verdict: ProbabilityVerdict
    p_value: float  # that it did not change; corrected for the p_right of all benchmarks
    equivalence_p_value: float  # that it changed by the margin or more; corrected likewise
    # A `Difference`; a number for each question would make a record many times as large.
    difference: Any = field(default=None, repr=False, metadata=NOT_RECORDED)


def score_right_choices(evaluation: BenchmarkEvaluation) -> list[float]:
    """Compute each question's probability of the right choice; choices that read alike count once.

    Returns:
        Nothing if any question has no right choice or several: its score is then not 0 or 1.
    """
    scores = []
    for sample in evaluation.samples:
        likelihoods = dict(zip(sample.choices, sample.log_likelihoods, strict=False))
        is_scored = sample.scores.get(evaluation.benchmark.metric) in (0, 1)
        has_right = is_scored and len(likelihoods) > 1 and sample.target in likelihoods
        if not has_right or not all(map(isfinite, likelihoods.values())):
            return []
        highest = max(likelihoods.values())
        parts = {choice: exp(value - highest) for choice, value in likelihoods.items()}
        scores.append(parts[sample.target] / fsum(parts.values()))
    return scores
