"""How generated answers changed, whether right or wrong (after CapTrack, arXiv 2603.06610)."""

from collections import Counter
from dataclasses import dataclass
from unicodedata import name as unicode_name

from slimdown.evaluation.results import Sample
from slimdown.stats.estimates import compare_scores, to_array, to_weighted
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
    sides, metric = (pair.base.samples, pair.tuned.samples), pair.base.benchmark.metric
    if not sides[0] or sides[0][0].choices or sides[0][0].log_likelihoods:
        return ()
    lengths = [[len(sample.response.split()) for sample in side] for side in sides]
    longest = max(1, *lengths[0], *lengths[1])
    scripts = [_has_other_script(*samples) for samples in zip(*sides, strict=True)]
    scores: dict[str, list[list[float]]] = {
        "words": [[n / longest for n in side] for side in lengths],
        "empty": [[float(not sample.response.strip()) for sample in side] for side in sides],
        "unreadable": [[_is_unreadable(sample, metric) for sample in side] for side in sides],
        "refusal": [[_refuses(sample.response) for sample in side] for side in sides],
        "other script": [[0.0] * len(scripts), scripts],
    }
    traits = []
    for name, (before, after) in scores.items():
        if name == "words" or any(before) or any(after):
            d, unit = (
                compare_scores(before, after, pair.sampling),
                longest if name == "words" else 1,
            )
            base, tuned = (
                float(to_weighted(to_array(s), pair.sampling).mean()) for s in (before, after)
            )
            traits.append(Trait(name, unit * base, unit * tuned, unit * d.low, unit * d.high))
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
