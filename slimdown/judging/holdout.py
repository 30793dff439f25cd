"""Split each benchmark's questions: an open part to choose runs by, and a held-out part.

The best of many runs is partly lucky, and the luck is in the questions by which it was chosen. With
`evaluation.holdout` a run asks all questions but shows only the results of the open part. `slimdown
check` and `slimdown compare --confirm` read the held-out part.

A hash of each document, or of its cluster, decides its part. So copies of a question are in the
same part. The hash has no seed, so all runs hold out the same questions. It does not depend on
other questions, so a `limit` moves none, and a larger share holds out all that a smaller one does.
"""

from dataclasses import replace
from hashlib import sha256

from slimdown.evaluation.results import Evaluation, Sample
from slimdown.utils.errors import DataError

_FEWEST = 2  # questions in a part: one alone says nothing


def open_part(evaluation: Evaluation, holdout: float) -> Evaluation:
    """Return the answers by which you may choose runs; all of them where nothing is held out.

    Raises:
        DataError: a benchmark has too few questions to split, or stopped early.
    """
    return _take_part(evaluation, holdout, takes_held_out=False) if holdout else evaluation


def held_part(evaluation: Evaluation, holdout: float) -> Evaluation:
    """Return the answers that no run was chosen by.

    Raises:
        DataError: as for `open_part`.
    """
    return _take_part(evaluation, holdout, takes_held_out=True)


def _take_part(evaluation: Evaluation, share: float, takes_held_out: bool) -> Evaluation:
    """Cut an evaluation to one part of its questions.

    Args:
        evaluation: The answers to all questions.
        share: The share of the questions that are held out.
        takes_held_out: Whether these are taken, or else the questions that may choose a run.

    Raises:
        DataError: a benchmark has too few questions to split, or stopped early.
    """
    benchmarks = {}
    for name, benchmark in evaluation.benchmarks.items():
        if benchmark.looks:
            raise DataError(
                f"{name} may have stopped early, so no questions can be held out "
                f"(evaluation.holdout={share:g}); choose a run with evaluation.until=all"
            )
        samples = [s for s in benchmark.samples if _is_held_out(s, share) is takes_held_out]
        n, n_taken = len(benchmark.samples), len(samples)
        if min(n_taken, n - n_taken) < _FEWEST:
            raise DataError(
                f"evaluation.holdout={share:g} would split the {n} questions of {name} into "
                f"{n_taken} and {n - n_taken}, and both parts need {_FEWEST} or more; "
                "ask more questions, or choose a share nearer 0.5"
            )
        benchmarks[name] = replace(benchmark, samples=tuple(samples))
    questions = "held-out questions" if takes_held_out else "questions that are not held out"
    described = f"the {questions} of each benchmark (evaluation.holdout={share:g})"
    return replace(evaluation, benchmarks=benchmarks, part=described)


def _is_held_out(sample: Sample, share: float) -> bool:
    """Whether a question is held out: its hash lies in the lowest `share` of all hashes."""
    digest = sha256(sample.unit.encode()).digest()
    return int.from_bytes(digest[:8]) < share * 2**64
