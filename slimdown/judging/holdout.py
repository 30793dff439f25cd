"""Split each benchmark's questions: an open part to choose runs by, and a held-out part.

The best of many runs is partly lucky, and the luck is in the questions that were looked at. With
`evaluation.holdout` a run asks all questions but shows only what the open part says. `slimdown
check` and `slimdown compare --confirm` read the held-out part.

A hash of each document, or of its cluster, decides its part, so no copy of a question lies in the
other one. It has no seed, so all runs hold out the same questions. It ignores other questions, so a
`limit` moves none, and a larger share holds out all that a smaller one does.
"""

from dataclasses import replace
from hashlib import sha256

from slimdown.evaluation.results import Evaluation
from slimdown.utils.errors import DataError

_FEWEST = 2  # questions in a part: one alone says nothing


def open_part(evaluation: Evaluation, holdout: float) -> Evaluation:
    """Return the answers by which you may choose runs; all of them where nothing is held out.

    Raises:
        DataError: a benchmark has too few questions to split, or stopped early.
    """
    return _take_part(evaluation, holdout, "open") if holdout else evaluation


def held_part(evaluation: Evaluation, holdout: float) -> Evaluation:
    """Return the answers that no run was chosen by.

    Raises:
        DataError: as for `open_part`.
    """
    return _take_part(evaluation, holdout, "held-out")


def _take_part(evaluation: Evaluation, share: float, which: str) -> Evaluation:
    parts = {}
    for name, benchmark in evaluation.benchmarks.items():
        if benchmark.looks:
            raise DataError(
                f"{name} may have stopped early, so no questions can be held out "
                f"(evaluation.holdout={share:g}); choose a run with evaluation.until=all"
            )
        samples = []
        for sample in benchmark.samples:
            digest = sha256(sample.unit.encode()).digest()
            is_held = int.from_bytes(digest[:8]) < share * 2**64
            samples += [sample] if is_held == (which == "held-out") else []
        n = len(benchmark.samples)
        if not _FEWEST <= len(samples) <= n - _FEWEST:
            raise DataError(
                f"evaluation.holdout={share:g} would split the {n} questions of {name} into "
                f"{len(samples)} and {n - len(samples)}, and both parts need {_FEWEST} or more; "
                "ask more questions, or choose a share nearer 0.5"
            )
        parts[name] = replace(benchmark, samples=tuple(samples))
    questions = "held-out questions" if which == "held-out" else "questions that are not held out"
    part = f"the {questions} of each benchmark (evaluation.holdout={share:g})"
    return replace(evaluation, benchmarks=parts, part=part)
