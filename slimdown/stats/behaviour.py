"""How generated answers changed, whether right or wrong (after CapTrack, arXiv 2603.06610)."""

from collections import Counter
from dataclasses import dataclass
from unicodedata import name as unicode_name

from slimdown.evaluation.results import Sample
from slimdown.stats.estimates import compare_scores
from slimdown.stats.pairing import Pair

# An answer that holds one of these refuses; the page shows them.
REFUSALS = (
    "i cannot",
    "i can't",
    "i'm sorry",
    "i am sorry",
    "as an ai",
    "i'm unable",
    "i am unable",
)


@dataclass(frozen=True)
class Trait:
    """One trait of generated answers, before and after."""

    name: str  # words, or the share of answers that are empty, unreadable, refusals, ...
    base: float
    tuned: float
    low: float  # of the 95 % interval of the change, paired
    high: float


def compare_behaviour(pair: Pair) -> tuple[Trait, ...]:
    """Compare the traits of both models' texts; empty where answers are choices.

    Args:
        pair: Both models' answers to one benchmark.

    Returns:
        The mean number of words, and of these shares those that are not 0 for both: of answers that
        are empty, in which no answer is read, that refuse, and that are in another script than the
        base's.
    """
    samples = list(zip(pair.base.samples, pair.tuned.samples, strict=True))
    if not samples or samples[0][0].choices or samples[0][0].log_likelihoods:
        return ()
    metric = pair.base.benchmark.metric
    words = [[float(len(sample.response.split())) for sample in both] for both in samples]
    longest = max(1.0, *(max(both) for both in words))
    scores = {
        "words": [[n / longest for n in both] for both in words],
        "empty": [[float(not sample.response.strip()) for sample in both] for both in samples],
        "unreadable": [[_is_unreadable(sample, metric) for sample in both] for both in samples],
        "refusal": [[_refuses(sample.response) for sample in both] for both in samples],
        "other script": [[0.0, _has_other_script(*both)] for both in samples],
    }
    traits = []
    for name, pairs in scores.items():
        before, after = zip(*pairs, strict=True)
        if name == "words" or any(before) or any(after):
            d, unit = compare_scores(before, after, pair.sampling), longest * (name == "words") or 1
            means = unit * sum(before) / len(before), unit * sum(after) / len(after)
            traits.append(Trait(name, *means, unit * d.low, unit * d.high))
    return tuple(traits)


def _is_unreadable(sample: Sample, metric: str) -> float:
    return float(sample.answers.get(metric, "").strip() in ("", "[invalid]"))


def _refuses(text: str) -> float:
    lower = text.lower().replace("’", "'")
    return float(any(phrase in lower for phrase in REFUSALS))


def _has_other_script(base: Sample, tuned: Sample) -> float:
    scripts = {_find_script(sample.response) for sample in (base, tuned)} - {""}
    return float(len(scripts) > 1)


def _find_script(text: str) -> str:
    """Return the script of most letters, such as LATIN; empty without letters."""
    scripts = Counter(unicode_name(char, "").partition(" ")[0] for char in text if char.isalpha())
    return scripts.most_common(1)[0][0] if scripts else ""
