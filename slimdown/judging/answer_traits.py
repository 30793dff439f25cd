"""Traits of answers: what changed in them, whether right or wrong (CapTrack, arXiv 2603.06610).

A score is a metric. Every other statistic on all answers is a trait and belongs in this module.
Statistics on lost answers belong in `losses.py`.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf, log2, nan
from unicodedata import name as unicode_name

import numpy as np

from slimdown.config.benchmark_config import BYTE_PROBABILITY
from slimdown.evaluation.results import BenchmarkEvaluation, Sample
from slimdown.judging.pairing import Pair
from slimdown.scoring.refusal import read_refusal
from slimdown.stats.bootstrap import find_ratio_interval
from slimdown.stats.estimates import Sampling, compare_scores, to_weighted
from slimdown.stats.sequential import Floats

LENGTHS = ("words", "words thought")
NEVER_ENDED, THINKS, RAN_OUT = "thinking never ended", "thinks", "ran out of tokens"
BITS = "bits a byte"  # the name in recorded findings; pages say "bits per byte"


@dataclass(frozen=True)
class Trait:
    """One trait of answers, before and after.

    Attributes:
        name: Of a mean (words, bits per byte), or of a share (of answers that are empty, ...).
        base: The mean or share of the base's answers.
        tuned: The mean or share of the tuned model's answers.
        low: The lower end of the 95 % interval of the change, paired; nan where none can be given.
        high: The upper end.
    """

    name: str
    base: float
    tuned: float
    low: float
    high: float

    @property
    def is_mean(self) -> bool:
        """Whether it is a mean number of words or bits, and not a share."""
        return self.name in (*LENGTHS, BITS)


def compare_behaviour(pair: Pair) -> tuple[Trait, ...]:
    """Compare the traits of both models' answers to one benchmark.

    Args:
        pair: Both models' answers.

    Returns:
        The traits, by the kind of benchmark.

        - The models read texts and write nothing: the bits per byte.
        - The models write answers: the mean number of words without thinking, and those of the
          following that are not 0 for both models: the mean number of words of thinking, and the
          shares of answers that think, never end thinking, ran out of tokens, are empty, are
          unreadable, refuse, or are in another script than the base's.
        - The models choose among given answers, or no answers are recorded: none.
    """
    benchmark = pair.base.benchmark
    base, tuned = pair.base.samples, pair.tuned.samples  # one sample per question: its answer
    if benchmark.metric == BYTE_PROBABILITY:
        return (_compare_bits(pair),)
    if not base or base[0].choices or base[0].log_likelihoods:  # nothing was written
        return ()
    if not any(sample.response for sample in (*base, *tuned)):  # a table may hold no answers
        return ()
    phrases = benchmark.refusal_phrases or ()
    before = _measure_answers(base, benchmark.metric, phrases)
    after = _measure_answers(tuned, benchmark.metric, phrases)
    before["other script"] = np.zeros(len(base))
    after["other script"] = _find_other_scripts(base, tuned)
    # A word takes at least one token, so an answer has no more words than the token limit.
    limit = pair.base.max_new_tokens or pair.tuned.max_new_tokens or 0
    lengths = [*(before[name].max() for name in LENGTHS), *(after[name].max() for name in LENGTHS)]
    longest = max(1, limit, *map(float, lengths))
    traits = []
    for name in before:
        if name != "words" and not before[name].any() and not after[name].any():
            continue  # no answer has this trait
        is_length = name in LENGTHS
        highest = longest if is_length else 1
        trait = _compare_trait(name, before[name], after[name], highest, pair.sampling)
        if is_length and not limit:
            # The next answer may be longer than all of these, so no interval holds.
            trait = replace(trait, low=nan, high=nan)
        traits.append(trait)
    return tuple(traits)


def _measure_answers(
    samples: Sequence[Sample], metric: str, phrases: Sequence[str]
) -> dict[str, Floats]:
    """Return each trait of all answers of one model, by the trait's name.

    Args:
        samples: The model's answers, one per question.
        metric: The primary metric, by which the benchmark's reading of an answer is recorded.
        phrases: What marks a refusal, besides the phrases that `read_refusal` knows.

    Returns:
        An array for each trait, [questions]. It holds numbers of words for those in `LENGTHS`; for
        the others 1 where an answer has the trait, and else 0.
    """
    measures: dict[str, Callable[[Sample], float]] = {
        "words": lambda sample: len(sample.response.split()),
        "words thought": lambda sample: len(sample.thinking.split()),
        THINKS: lambda sample: bool(sample.thinking.split()),
        NEVER_ENDED: lambda sample: sample.never_ended,
        RAN_OUT: lambda sample: sample.ran_out,
        "empty": lambda sample: not sample.response.strip(),
        # No answer was found in the text by the benchmark; "[invalid]" is the harness's word.
        "unreadable": lambda sample: sample.answers.get(metric, "").strip() in ("", "[invalid]"),
        "refusal": lambda sample: read_refusal(sample.response, phrases) == "refuse",
    }
    return {
        name: np.array([float(measure(sample)) for sample in samples])
        for name, measure in measures.items()
    }


def _find_other_scripts(base: Sequence[Sample], tuned: Sequence[Sample]) -> Floats:
    """Return 1 for each tuned answer in another script than the base's; without letters, 0."""
    # Many answers recur, such as the letter of a choice; each is looked at once.
    script_of = {text: _find_script(text) for text in {s.response for s in (*base, *tuned)}}
    differs = []
    for before, after in zip(base, tuned, strict=True):
        scripts = {script_of[before.response], script_of[after.response]}
        differs.append(float(len(scripts) == 2 and "" not in scripts))
    return np.array(differs)


def _compare_trait(
    name: str, before: Floats, after: Floats, highest: float, sampling: Sampling
) -> Trait:
    """Compare the means of numbers from 0 to `highest`, as scores from 0 to 1 are compared."""
    x, y = before / highest, after / highest
    change = compare_scores(x, y, sampling)
    return Trait(
        name,
        base=highest * float(to_weighted(x, sampling).mean()),
        tuned=highest * float(to_weighted(y, sampling).mean()),
        low=highest * change.low,
        high=highest * change.high,
    )


def _compare_bits(pair: Pair) -> Trait:
    """Compare the bits per byte of all texts together, as the harness's `bits_per_byte` does.

    The interval is that of the ratio of both models' bits, resampled by texts, times the base's
    bits per byte.
    """
    n_bytes = np.array([len(sample.prompt.encode()) for sample in pair.base.samples], dtype=float)
    text_bits = [n_bytes * _read_bits(pair.base), n_bytes * _read_bits(pair.tuned)]
    (sizes, base, tuned), weights = pair.sampling.to_observations([n_bytes, *text_bits])
    before = float(weights @ base / (weights @ sizes))
    after = float(weights @ tuned / (weights @ sizes))
    low, high = find_ratio_interval(tuned, base)
    # low and high bound the ratio tuned / base, so the change is `before` times the ratio minus 1.
    return Trait(BITS, before, after, before * (low - 1), before * (high - 1))


def _read_bits(evaluation: BenchmarkEvaluation) -> Floats:
    """Return the bits per byte of each text; infinite where it is impossible for the model."""
    shares = [sample.scores[BYTE_PROBABILITY] for sample in evaluation.samples]
    return np.array([-log2(share) if share else inf for share in shares])


def _find_script(text: str) -> str:
    """Return the script of most letters, such as LATIN; empty without letters."""
    scripts = Counter(unicode_name(char, "").partition(" ")[0] for char in text if char.isalpha())
    return scripts.most_common(1)[0][0] if scripts else ""
