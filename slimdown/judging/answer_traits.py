"""Traits of answers: what changed in them, whether right or wrong (CapTrack, arXiv 2603.06610).

A score is a metric. Every other statistic on all answers is a trait, and stands in this module;
those on lost ones are in `losses.py`.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import inf, log2, nan
from unicodedata import name as unicode_name

import numpy as np

from slimdown.config.benchmark_config import BYTE_PROBABILITY
from slimdown.evaluation.results import BenchmarkEvaluation, Sample
from slimdown.judging.pairing import Pair
from slimdown.scoring.refusal import read_refusal
from slimdown.stats.bootstrap import find_ratio_interval
from slimdown.stats.estimates import compare_scores, to_array, to_weighted
from slimdown.stats.sequential import Floats

LENGTHS = ("words", "words thought")
NEVER_ENDED, THINKS, RAN_OUT = "thinking never ended", "thinks", "ran out of tokens"
BITS = "bits a byte"


@dataclass(frozen=True)
class Trait:
    """One trait of answers, before and after."""

    name: str  # a mean (words, bits a byte), or the share of answers that are empty, refusals, ...
    base: float
    tuned: float
    low: float  # of the 95 % interval of the change, paired; nan where none can be given
    high: float

    @property
    def is_mean(self) -> bool:
        """Whether it is a mean number of words or bits, and not a share."""
        return self.name in (*LENGTHS, BITS)


def compare_behaviour(pair: Pair) -> tuple[Trait, ...]:
    """Compare the traits of both models' answers; empty where these are choices.

    Args:
        pair: Both models' answers to one benchmark.

    Returns:
        Of texts that are read, the bits a byte. Of answers, the mean number of words without
        thinking, then those traits that are not 0 for both models: the words thought; the shares of
        answers that think, never end thinking, ran out of tokens, are empty, are unreadable,
        refuse, or are in another script than the base's.
    """
    if pair.base.benchmark.metric == BYTE_PROBABILITY:
        return (_compare_bits(pair),)
    sides = pair.base.samples, pair.tuned.samples
    if not sides[0] or sides[0][0].choices or sides[0][0].log_likelihoods:
        return ()
    if not any(sample.response for side in sides for sample in side):  # a table may hold no answers
        return ()
    metric, phrases = pair.base.benchmark.metric, pair.base.benchmark.refusal_phrases or ()
    read: dict[str, Callable[[Sample], float]] = {
        "words": lambda sample: len(sample.response.split()),
        "words thought": lambda sample: len(sample.thinking.split()),
        THINKS: lambda sample: bool(sample.thinking.split()),
        NEVER_ENDED: lambda sample: sample.never_ended,
        RAN_OUT: lambda sample: sample.ran_out,
        "empty": lambda sample: not sample.response.strip(),
        "unreadable": lambda s: s.answers.get(metric, "").strip() in ("", "[invalid]"),
        "refusal": lambda sample: read_refusal(sample.response, phrases) == "refuse",
    }
    measured: dict[str, tuple[list[float], ...]] = {}
    for name, measure in read.items():
        measured[name] = tuple([float(measure(sample)) for sample in side] for side in sides)
    scripts = zip(*([_find_script(s.response) for s in side] for side in sides), strict=True)
    differs = [float(a != b and "" not in (a, b)) for a, b in scripts]
    measured["other script"] = [0.0] * len(differs), differs
    # A word takes at least one token, so an answer has no more words than the token limit.
    limit = pair.base.max_new_tokens or pair.tuned.max_new_tokens or 0
    longest = max(1, limit, *(max(side) for name in LENGTHS for side in measured[name]))
    traits = []
    for name, (before, after) in measured.items():
        if name == "words" or any(before) or any(after):
            unit = longest if name in LENGTHS else 1  # a score lies between 0 and 1
            x, y = ([one / unit for one in side] for side in (before, after))
            d = compare_scores(x, y, pair.sampling)
            base, tuned = (to_weighted(to_array(s), pair.sampling).mean() for s in (x, y))
            ends = (nan, nan) if name in LENGTHS and not limit else (d.low, d.high)
            traits.append(Trait(name, *(unit * float(x) for x in (base, tuned, *ends))))
    return tuple(traits)


def _compare_bits(pair: Pair) -> Trait:
    """Compare the bits a byte of all texts together, as the harness's `bits_per_byte` has them.

    The interval is that of the ratio of both models' bits, by texts, in bits a byte of the base.
    """
    n_bytes = np.array([len(sample.prompt.encode()) for sample in pair.base.samples], dtype=float)
    bits = [n_bytes * _read_bits(one) for one in (pair.base, pair.tuned)]
    (bytes_of, base, tuned), weights = pair.sampling.to_observations([n_bytes, *bits])
    before, after = (float(weights @ one / (weights @ bytes_of)) for one in (base, tuned))
    low, high = (before * (end - 1) for end in find_ratio_interval(tuned, base))
    return Trait(BITS, before, after, low, high)


def _read_bits(evaluation: BenchmarkEvaluation) -> Floats:
    """Return the bits a byte of each text; infinite where it is impossible for the model."""
    shares = [sample.scores[BYTE_PROBABILITY] for sample in evaluation.samples]
    return np.array([-log2(share) if share else inf for share in shares])


def _find_script(text: str) -> str:
    """Return the script of most letters, such as LATIN; empty without letters."""
    scripts = Counter(unicode_name(char, "").partition(" ")[0] for char in text if char.isalpha())
    return scripts.most_common(1)[0][0] if scripts else ""
