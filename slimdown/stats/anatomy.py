"""Why a score fell: what became of the answers that the base had right and the tuned model has not.

Reads samples and nothing else. A generated answer is lost in one of four ways; a choice is lost by so many nats, and
perhaps because the model came to prefer one position.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from math import nan
from statistics import fmean, median

from slimdown.evaluation.answers import BenchmarkEvaluation, Sample
from slimdown.stats.asked import change_of, score_of
from slimdown.stats.paired import Difference, Estimate, difference, mean

# An answer with fewer words than this share of the base's, which was right, has stopped early.
SHORT = 0.5
# A choice that is behind by less than this has lost to rounding as likely as to forgetting.
NEARLY_LEVEL_NATS = 0.1
_DOMINANT = 0.5  # the share of lost answers above which one cause is named
_FEWEST_LOST = 5  # fewer lost answers have no cause to speak of

EXPLANATIONS = {
    "other_format": "right in another format: one of the benchmark's ways to read an answer still finds it",
    "empty": "empty: nothing was written",
    "stopped_early": "stopped early: less than half the words of the base's right answer",
    "wrong_result": "wrong result: an answer of full length that does not hold the right one",
    "nearly_level": f"nearly level: the right choice is behind by less than {NEARLY_LEVEL_NATS} nats",
    "clearly_behind": f"clearly behind: another choice leads by {NEARLY_LEVEL_NATS} nats or more",
}
_TEXT_CAUSES = ("other_format", "empty", "stopped_early", "wrong_result")
_CHOICE_CAUSES = ("nearly_level", "clearly_behind")


@dataclass(frozen=True)
class Example:
    """One question with both answers."""

    base: Sample
    tuned: Sample


@dataclass(frozen=True)
class Cause:
    """One way to lose an answer."""

    name: str  # a key of EXPLANATIONS
    count: int
    share: Estimate | None  # of the lost answers; None where none is lost
    example: Example | None


@dataclass(frozen=True)
class Choices:
    """How the choices of a multiple-choice benchmark moved."""

    median_lead_before: (
        float  # nats, of the right choice over the best other one, of the lost answers; nan if none
    )
    median_lead_after: float
    position: int  # the one that the tuned model takes most often, from 0
    share_before: Estimate  # of all questions, how many take this position
    share_after: Estimate
    share_right: float  # of how many it is the right one
    drift: Difference  # of the share, paired

    @property
    def collapsed(self) -> bool:
        """Whether the tuned model is shown to have moved to this position, beyond how often it is right."""
        return self.drift.low > 0 and self.share_after.low > self.share_right


@dataclass(frozen=True)
class Anatomy:
    """What became of the answers of one benchmark that were right before."""

    n_lost: int  # on any metric
    n_right: int  # before, on any metric
    causes: tuple[Cause, ...]  # in the order of EXPLANATIONS
    choices: Choices | None  # of a multiple-choice benchmark
    gained: Example | None  # an answer that was wrong on the primary metric and is right

    @property
    def main_cause(self) -> tuple[str, float] | None:
        """What most of the lost answers were lost to, with its share; None where no cause has most of them."""
        return main_cause(
            {cause.name: cause.share.value for cause in self.causes if cause.share}, self.n_lost
        )


def anatomy(base: BenchmarkEvaluation, tuned: BenchmarkEvaluation) -> Anatomy:
    """Sort the lost answers of one benchmark by cause.

    Both answer the same questions in the same order, as `changes_between` demands. A generated answer is lost where any
    metric that it passed fails, so that an answer which only a stricter reading misses is found; a choice is lost where
    the primary metric fails.
    """
    pairs = [Example(one, other) for one, other in zip(base.samples, tuned.samples, strict=True)]
    metric = base.benchmark.metric
    is_choice = bool(base.samples[0].choices)
    metrics = [metric] if is_choice else list(base.samples[0].scores)
    right = [p for p in pairs if any(p.base.scores.get(m) == 1 for m in metrics)]
    lost = [
        p
        for p in right
        if any(p.base.scores.get(m) == 1 and p.tuned.scores.get(m, 1.0) < 1 for m in metrics)
    ]
    if is_choice and not all(sample.target in sample.choices for sample in base.samples):
        return Anatomy(
            len(lost), len(right), (), None, None
        )  # several right choices: no one lead to speak of
    cause_of = [_why_choice(pair, metric) if is_choice else _why_text(pair) for pair in lost]
    causes = []
    for name in _CHOICE_CAUSES if is_choice else _TEXT_CAUSES:
        of_it = [float(cause == name) for cause in cause_of]
        example = next((pair for pair, cause in zip(lost, of_it, strict=True) if cause), None)
        # How many were lost, on what metric, may be why asking ended: no interval made for a fixed number holds.
        share = (
            Estimate(fmean(of_it), nan, nan, nan)
            if base.stages and of_it
            else mean(of_it)
            if of_it
            else None
        )
        causes.append(Cause(name, int(sum(of_it)), share, example))
    gained = next(
        (p for p in pairs if p.base.scores[metric] < 1 and p.tuned.scores[metric] == 1), None
    )
    choices = _choices(base, pairs, lost) if is_choice else None
    return Anatomy(len(lost), len(right), tuple(causes), choices, gained)


def main_cause(causes: Mapping[str, float], n_lost: float) -> tuple[str, float] | None:
    """The cause that has most of the lost answers, with its share; None where none has, or few answers were lost.

    >>> main_cause({"empty": 0.2, "other_format": 0.8}, 10), main_cause({"empty": 0.5, "other_format": 0.5}, 10)
    (('other_format', 0.8), None)
    """
    name, share = max(causes.items(), key=lambda pair: pair[1], default=("", 0.0))
    return (name, share) if share > _DOMINANT and not n_lost < _FEWEST_LOST else None


def _why_text(pair: Example) -> str:
    if any(score == 1 for score in pair.tuned.scores.values()):
        return "other_format"
    words = len(pair.tuned.response.split())
    if words == 0:
        return "empty"
    return "stopped_early" if words < SHORT * len(pair.base.response.split()) else "wrong_result"


def _why_choice(pair: Example, metric: str) -> str:
    return "nearly_level" if _lead(pair.tuned, metric) > -NEARLY_LEVEL_NATS else "clearly_behind"


def _lead(sample: Sample, metric: str) -> float:
    """Nats of the right choice over the best other one; for acc_norm at the mean length of the two."""
    right = sample.choices.index(sample.target)
    ranked = _ranked(sample, metric)
    other = max((i for i in range(len(ranked)) if i != right), key=ranked.__getitem__)
    lead = ranked[right] - ranked[other]
    if metric == "acc_norm":
        lead *= (max(len(sample.choices[right]), 1) + max(len(sample.choices[other]), 1)) / 2
    return lead


def _ranked(sample: Sample, metric: str) -> list[float]:
    """By what the metric ranks the choices."""
    if metric != "acc_norm":
        return list(sample.log_likelihoods)
    return [
        value / max(len(c), 1)
        for value, c in zip(sample.log_likelihoods, sample.choices, strict=True)
    ]


def _taken(sample: Sample, metric: str) -> int:
    """The position of the choice that the metric takes for the answer."""
    ranked = _ranked(sample, metric)
    return max(range(len(ranked)), key=ranked.__getitem__)


def _choices(
    base: BenchmarkEvaluation, pairs: list[Example], lost: list[Example]
) -> Choices | None:
    if len({len(pair.base.choices) for pair in pairs}) > 1:
        return None  # questions with unequal numbers of choices have no positions in common
    metric = base.benchmark.metric
    before, after = (
        [_taken(pair.base, metric) for pair in pairs],
        [_taken(pair.tuned, metric) for pair in pairs],
    )
    right = [pair.base.choices.index(pair.base.target) for pair in pairs]
    position = Counter(after).most_common(1)[0][0]
    taken_before, taken_after = ([float(p == position) for p in taken] for taken in (before, after))
    share, drift = (
        (partial(score_of, base), partial(change_of, base)) if base.stages else (mean, difference)
    )
    return Choices(
        median_lead_before=median(_lead(pair.base, metric) for pair in lost) if lost else nan,
        median_lead_after=median(_lead(pair.tuned, metric) for pair in lost) if lost else nan,
        position=position,
        share_before=share(taken_before),
        share_after=share(taken_after),
        share_right=right.count(position) / len(right),
        drift=drift(taken_before, taken_after),
    )
