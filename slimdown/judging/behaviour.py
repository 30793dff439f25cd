"""Traits of answers: what changed in them, whether right or wrong (CapTrack, arXiv 2603.06610).

A score is a metric. Every other statistic on answers is a trait, and stands in this module.
"""

from collections import Counter
from dataclasses import dataclass
from math import fsum, inf, log2, nan
from unicodedata import name as unicode_name

from slimdown.config.benchmark_config import BYTE_PROBABILITY
from slimdown.evaluation.results import BenchmarkEvaluation
from slimdown.judging.pairing import Pair
from slimdown.stats.estimates import compare_scores, to_array, to_weighted
from slimdown.utils.scoring import read_refusal

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
        return (Trait(BITS, _measure_bits(pair.base), _measure_bits(pair.tuned), nan, nan),)
    sides, metric = (pair.base.samples, pair.tuned.samples), pair.base.benchmark.metric
    if not sides[0] or sides[0][0].choices or sides[0][0].log_likelihoods:
        return ()
    phrases = pair.base.benchmark.refusal_phrases or ()
    texts = [[sample.response for sample in side] for side in sides]
    if not any(map(any, texts)):  # a table may hold no answers
        return ()
    lengths = [[len(text.split()) for text in side] for side in texts]
    thoughts = [[len(sample.thinking.split()) for sample in side] for side in sides]
    # A word takes at least one token, so an answer has no more words than the token limit.
    limit = pair.base.max_new_tokens or pair.tuned.max_new_tokens or 0
    longest = max(1, limit, *lengths[0], *lengths[1], *thoughts[0], *thoughts[1])
    read = [[sample.answers.get(metric, "").strip() for sample in side] for side in sides]
    scripts = [list(map(_find_script, side)) for side in texts]
    differs = [float(a != b and "" not in (a, b)) for a, b in zip(*scripts, strict=True)]
    scores: dict[str, list[list[float]]] = {
        "words": [[n / longest for n in side] for side in lengths],
        "words thought": [[n / longest for n in side] for side in thoughts],
        THINKS: [[float(n > 0) for n in side] for side in thoughts],
        NEVER_ENDED: [[float(sample.never_ended) for sample in side] for side in sides],
        RAN_OUT: [[float(sample.ran_out) for sample in side] for side in sides],
        "empty": [[float(not text.strip()) for text in side] for side in texts],
        "unreadable": [[float(answer in ("", "[invalid]")) for answer in side] for side in read],
        "refusal": [[float(read_refusal(text, phrases) == "refuse") for text in s] for s in texts],
        "other script": [[0.0] * len(differs), differs],
    }
    traits = []
    for name, (before, after) in scores.items():
        if name == "words" or any(before) or any(after):
            d = compare_scores(before, after, pair.sampling)
            base, tuned = (to_weighted(to_array(s), pair.sampling).mean() for s in (before, after))
            unit = longest if name in LENGTHS else 1
            ends = (nan, nan) if name in LENGTHS and not limit else (d.low, d.high)
            traits.append(Trait(name, *(unit * float(x) for x in (base, tuned, *ends))))
    return tuple(traits)


def _measure_bits(evaluation: BenchmarkEvaluation) -> float:
    """Return the bits a byte of all texts together, as the harness's `bits_per_byte` has it."""
    texts = [(len(one.prompt.encode()), one.scores[BYTE_PROBABILITY]) for one in evaluation.samples]
    bits = fsum(n * -log2(share) if share else inf for n, share in texts)
    return bits / sum(n for n, _ in texts)


def _find_script(text: str) -> str:
    """Return the script of most letters, such as LATIN; empty without letters."""
    scripts = Counter(unicode_name(char, "").partition(" ")[0] for char in text if char.isalpha())
    return scripts.most_common(1)[0][0] if scripts else ""
