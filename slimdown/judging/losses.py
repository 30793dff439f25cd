"""Sort lost answers by cause: the base had them right, the tuned model does not.

A generated answer is lost in one of four ways. A choice is lost by a lead in nats, and perhaps
because the model came to prefer one position. `report/text.py` has the words for each cause.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np

from slimdown.evaluation.results import Sample
from slimdown.judging.pairing import Pair
from slimdown.judging.serialization import NOT_RECORDED
from slimdown.stats.estimates import compare_scores, estimate_mean, to_weighted

# An answer with fewer words than this share of the base's, which was right, has stopped early.
_SHORT = 0.5
# A choice that is behind by less than this is lost to rounding as likely as to forgetting.
_NEARLY_LEVEL_NATS = 0.1
_DOMINANT = 0.5  # the share of lost answers above which one cause is named
_FEWEST_LOST = 5  # fewer lost answers have no cause to speak of
_MOST_MISSED = 10  # questions that the page shows

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

    name: str  # one of those below
    count: int
    share: float  # of the lost answers; 0 where none is lost
    example: Example | None = field(default=None, metadata=NOT_RECORDED)


@dataclass(frozen=True)
class ChoiceShift:
    """The share of answers that take one position of a multiple-choice benchmark."""

    position: int  # the one that the tuned model takes most often, from 0
    share_before: float  # of all questions' answers, those that take it
    share_after: float
    share_right: float  # of all questions, those where it is the right one
    collapsed: bool  # whether it is shown to be preferred now, beyond how often it is right


@dataclass(frozen=True)
class LossBreakdown:
    """The lost answers of one benchmark by cause."""

    n_lost: int  # on any metric
    n_right: int  # of the base, on any metric
    is_loss_shown: bool  # whether the benchmark is forgotten: else its causes say nothing of a loss
    causes: tuple[Cause, ...]  # in a fixed order; empty where they are unknown
    choices: ChoiceShift | None  # of a multiple-choice benchmark
    # an answer that was wrong on the primary metric and is right now
    gained: Example | None = field(default=None, metadata=NOT_RECORDED)
    # the first generated answers that were never right: the score may be too strict
    missed: tuple[Example, ...] = field(default=(), metadata=NOT_RECORDED)

    @property
    def main_cause(self) -> tuple[str, float] | None:
        """The cause of over half of the losses, and its share; None without one or a shown loss."""
        if not self.is_loss_shown or self.n_lost < _FEWEST_LOST or not self.causes:
            return None
        largest = max(self.causes, key=lambda cause: cause.count)
        return (largest.name, largest.share) if largest.share > _DOMINANT else None


@dataclass(frozen=True)
class ChangedAnswers:
    """The lost and the gained answers of one benchmark, each in the order of its questions."""

    lost: tuple[Example, ...]
    gained: tuple[Example, ...]  # wrong on the primary metric before, right after
    n_right: int  # of the base, on any metric
    has_causes: bool  # whether the answers tell why they were lost


def find_changed_answers(pair: Pair) -> ChangedAnswers:
    """Find the answers that one benchmark lost and gained.

    A generated answer is lost if it fails any metric that it passed before; this also finds answers
    that only a stricter reading misses. A choice is lost if it is right before and wrong after, by
    the primary metric. Any answer is gained if it is wrong before and right after by the primary
    metric alone, the one by which the benchmark is judged. So an answer of several metrics can be
    both lost and gained.

    Args:
        pair: Both models' answers, to at least one question.
    """
    examples = list(map(Example, pair.base.samples, pair.tuned.samples))
    primary = pair.base.benchmark.metric
    # All answers of one model to a benchmark have scores by the same metrics. Only the primary one
    # is sure to be among both models' metrics: logs from elsewhere may differ in the others.
    metrics = [primary] if examples[0].base.choices else list(examples[0].base.scores)
    n_right, lost, gained = 0, [], []
    for example in examples:
        base, tuned = example.base, example.tuned
        passed = [metric for metric in metrics if base.is_right(metric)]
        if passed:
            n_right += 1
        # A metric that the tuned model's answers lack says nothing of a loss.
        if any(metric in tuned.scores and not tuned.is_right(metric) for metric in passed):
            lost.append(example)
        if tuned.is_right(primary) and not base.is_right(primary):
            gained.append(example)
    return ChangedAnswers(tuple(lost), tuple(gained), n_right, _have_causes(pair.base.samples))


def _have_causes(samples: Sequence[Sample]) -> bool:
    """Whether a benchmark's answers say why one was lost, see `find_cause`."""
    if samples[0].choices:
        # With several right choices no single one leads. If all choices read alike, the real ones
        # stand in the prompt.
        return all(s.target in s.choices and len(set(s.choices)) > 1 for s in samples)
    # A table may hold no answers. A model that wrote none at all had none right.
    return any(sample.response.strip() for sample in samples)


def break_down_losses(pair: Pair, is_loss_shown: bool) -> LossBreakdown:
    """Sort the lost answers of one benchmark by cause.

    Args:
        pair: both models' answers, one to each question.
        is_loss_shown: whether the benchmark is shown to have fallen.

    Returns:
        The numbers of lost answers. The causes and the examples stay empty where answers tell no
        cause, such as those of a table that holds only scores.
    """
    changed, metric = find_changed_answers(pair), pair.base.benchmark.metric
    # Without causes and examples; these are filled in below, where the answers tell them.
    breakdown = LossBreakdown(len(changed.lost), changed.n_right, is_loss_shown, (), choices=None)
    if not changed.has_causes:
        return breakdown
    breakdown = replace(breakdown, gained=next(iter(changed.gained), None))
    examples = list(map(Example, pair.base.samples, pair.tuned.samples))
    if examples[0].base.choices:
        causes = _count_causes(changed.lost, metric, _CHOICE_CAUSES)
        return replace(breakdown, causes=causes, choices=_describe_shift(pair, examples))
    # Answers that neither model got right are shown, too: perhaps the score is too strict.
    never_right = (e for e in examples if e.base.scores[metric] == e.tuned.scores[metric] == 0)
    causes = _count_causes(changed.lost, metric, _TEXT_CAUSES)
    return replace(breakdown, causes=causes, missed=tuple(islice(never_right, _MOST_MISSED)))


def _count_causes(lost: Sequence[Example], metric: str, names: Sequence[str]) -> tuple[Cause, ...]:
    """Count the lost answers of each cause, and take the first as its example."""
    found = [find_cause(example, metric) for example in lost]
    causes = []
    for name in names:
        n = found.count(name)
        first = lost[found.index(name)] if n else None
        causes.append(Cause(name, n, n / max(1, len(lost)), first))
    return tuple(causes)


def find_cause(example: Example, metric: str) -> str:
    """Find the cause of a lost answer; `report/text.py` has the words for each."""
    if example.base.choices:
        is_near = _lead(example.tuned, metric) > -_NEARLY_LEVEL_NATS
        return "nearly_level" if is_near else "clearly_behind"
    if any(score == 1 for score in example.tuned.scores.values()):
        return "other_format"
    words = len(example.tuned.response.split())
    if words == 0:
        return "empty"
    is_short = words < _SHORT * len(example.base.response.split())
    return "stopped_early" if is_short else "wrong_result"


def _lead(sample: Sample, metric: str) -> float:
    """Return by how many nats the right choice leads its best rival; below 0 if it is behind.

    acc_norm divides log-likelihoods by the lengths of the choices. So its lead is multiplied by the
    mean length of the two.
    """
    lengths = [max(len(c), 1) if metric == "acc_norm" else 1 for c in sample.choices]
    scores = [value / n for value, n in zip(sample.log_likelihoods, lengths, strict=True)]
    right = sample.choices.index(sample.target)
    rival = max((i for i in range(len(scores)) if i != right), key=scores.__getitem__)
    return (scores[right] - scores[rival]) * (lengths[right] + lengths[rival]) / 2


def _describe_shift(pair: Pair, examples: list[Example]) -> ChoiceShift | None:
    """Describe how often each model takes the position that the tuned model takes most often.

    A position is the place of a choice in its list, from 0. The tuned model has collapsed to it if
    tests show that it takes it more often than the position is right, and than the base did.

    Args:
        pair: Both models' answers to a multiple-choice benchmark.
        examples: The same answers, question by question.

    Returns:
        The shares; None if questions have unequal numbers of choices, since they then have no
        positions in common.
    """
    if len({len(example.base.choices) for example in examples}) > 1:
        return None
    metric = pair.base.benchmark.metric
    base_positions = np.array([e.base.choices.index(e.base.answers[metric]) for e in examples])
    tuned_positions = np.array([e.tuned.choices.index(e.tuned.answers[metric]) for e in examples])
    right_positions = np.array([e.base.choices.index(e.base.target) for e in examples])
    preferred = Counter(tuned_positions.tolist()).most_common(1)[0][0]
    before = (base_positions == preferred).astype(float)
    after = (tuned_positions == preferred).astype(float)
    is_right = (right_positions == preferred).astype(float)
    share_before, share_after, share_right = (
        float(to_weighted(marks, pair.sampling).mean()) for marks in (before, after, is_right)
    )
    collapsed = (
        share_after > max(share_before, share_right)  # the quick test first
        and estimate_mean(after, pair.sampling).low > share_right
        and compare_scores(before, after, pair.sampling).low > 0
    )
    return ChoiceShift(preferred, share_before, share_after, share_right, collapsed)
