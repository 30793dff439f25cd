"""Questions that no run is chosen by: every benchmark's, split into an open and a held-out half.

Whoever picks the best of many runs picks luck along with it, and the luck is in the questions that
were looked at. With `evaluation.holdout` a run asks all questions and shows what the open half
says. `slimdown check` and `slimdown compare --confirm` read the held-out half.

A hash of each question decides its half: no seed, so that all runs hold out the same; no other
question, so that a `limit` moves none, and a larger share holds out all that a smaller one does.
"""

import hashlib
from collections import Counter
from dataclasses import replace
from math import fsum

from slimdown.evaluation.results import BenchmarkEvaluation, Evaluation, Sample, Score
from slimdown.utils.errors import DataError

_FEWEST = 2  # questions in a half: one alone says nothing


def is_held_out(sample: Sample, share: float) -> bool:
    """Whether a question is in the held-out half, which holds a `share` of all questions."""
    digest = hashlib.sha256(f"{sample.task}\n{sample.doc_hash}".encode()).digest()
    return int.from_bytes(digest[:8]) < share * 2**64


def open_half(evaluation: Evaluation, holdout: float) -> Evaluation:
    """The answers by which runs may be chosen; all where nothing is held out.

    Raises:
        DataError: a benchmark has too few questions to split, or stopped early.
    """
    if not holdout:
        return evaluation
    rest = (
        f"evaluation.holdout={holdout:g} keeps the others for slimdown check and compare --confirm"
    )
    return _split(
        evaluation, holdout, False, f"the open half of each benchmark's questions; {rest}"
    )


def held_half(evaluation: Evaluation, holdout: float) -> Evaluation:
    """The answers that no run was chosen by.

    Raises:
        DataError: as for `open_half`.
    """
    part = f"the held-out half of each benchmark's questions (evaluation.holdout={holdout:g})"
    return _split(evaluation, holdout, True, part)


def _split(evaluation: Evaluation, share: float, is_held: bool, part: str) -> Evaluation:
    halves = {
        name: _split_benchmark(name, benchmark, share, is_held)
        for name, benchmark in evaluation.benchmarks.items()
    }
    return replace(evaluation, benchmarks=halves, part=part)


def _split_benchmark(
    name: str, evaluation: BenchmarkEvaluation, share: float, is_held: bool
) -> BenchmarkEvaluation:
    if evaluation.looks:
        raise DataError(
            f"{name} was evaluated until enough was known (evaluation.until), by all of its questions: no half of them "
            f"is held out by evaluation.holdout={share:g}; choose a run with evaluation.until=all"
        )
    samples = tuple(s for s in evaluation.samples if is_held_out(s, share) is is_held)
    n = len(evaluation.samples)
    if not _FEWEST <= len(samples) <= n - _FEWEST:
        n_held_out = len(samples) if is_held else n - len(samples)
        raise DataError(
            f"evaluation.holdout={share:g} would hold out {n_held_out} of the {n} questions of {name}, and both halves "
            f"need {_FEWEST} or more; ask more questions, or choose a share nearer 0.5"
        )
    sizes, weights = Counter(sample.task for sample in samples), evaluation.task_weights
    total = sum(weights[task] for task in sizes) if weights else 0.0
    scores = {}
    for metric in evaluation.scores:
        if all(metric in sample.scores for sample in samples):
            each = [
                s.scores[metric]
                * (weights[s.task] / total / sizes[s.task] if weights else 1 / len(samples))
                for s in samples
            ]
            scores[metric] = Score(fsum(each), float("nan"))
    return replace(evaluation, samples=samples, scores=scores)
