"""Split each benchmark's questions: an open half to choose runs by, and a held-out half.

Whoever picks the best of many runs picks luck along with it, and the luck is in the questions that
were looked at. With `evaluation.holdout` a run asks all questions and shows what the open half
says. `slimdown check` and `slimdown compare --confirm` read the held-out half.

A hash of each question decides its half: no seed, so that all runs hold out the same; no other
question, so that a `limit` moves none, and a larger share holds out all that a smaller one does.
"""

import hashlib
from collections import Counter
from dataclasses import replace
from math import nan

import numpy as np

from slimdown.evaluation.results import Evaluation, Sample, Score
from slimdown.utils.errors import DataError

_FEWEST = 2  # questions in a half: one alone says nothing


def is_held_out(sample: Sample, share: float) -> bool:
    """Return whether a question is in the held-out half, which has a `share` of all questions."""
    digest = hashlib.sha256(f"{sample.task}\n{sample.doc_hash}".encode()).digest()
    return int.from_bytes(digest[:8]) < share * 2**64


def open_half(evaluation: Evaluation, holdout: float) -> Evaluation:
    """Return the answers by which you may choose runs; all of them where nothing is held out.

    Raises:
        DataError: a benchmark has too few questions to split, or stopped early.
    """
    if not holdout:
        return evaluation
    part = f"the open half of each benchmark's questions (evaluation.holdout={holdout:g})"
    return _split(evaluation, holdout, False, part)


def held_half(evaluation: Evaluation, holdout: float) -> Evaluation:
    """Return the answers that no run was chosen by.

    Raises:
        DataError: as for `open_half`.
    """
    part = f"the held-out half of each benchmark's questions (evaluation.holdout={holdout:g})"
    return _split(evaluation, holdout, True, part)


def _split(evaluation: Evaluation, share: float, is_held: bool, part: str) -> Evaluation:
    halves = {}
    for name, benchmark in evaluation.benchmarks.items():
        if benchmark.looks:
            raise DataError(
                f"{name} may have stopped early, and then evaluation.holdout={share:g} holds no "
                "question out; choose a run with evaluation.until=all"
            )
        samples = tuple(s for s in benchmark.samples if is_held_out(s, share) is is_held)
        n = len(benchmark.samples)
        if not _FEWEST <= len(samples) <= n - _FEWEST:
            raise DataError(
                f"evaluation.holdout={share:g} would split the {n} questions of {name} into "
                f"{len(samples)} and {n - len(samples)}, and both halves need {_FEWEST} or more; "
                "ask more questions, or choose a share nearer 0.5"
            )
        sizes = Counter(sample.task for sample in samples)
        task_weights = benchmark.task_weights or sizes
        weights = [task_weights[sample.task] / sizes[sample.task] for sample in samples]
        scores = {}
        for metric in benchmark.scores:
            values = [sample.scores.get(metric, nan) for sample in samples]
            scores[metric] = Score(float(np.average(values, weights=weights)), nan)
        halves[name] = replace(benchmark, samples=samples, scores=scores)
    return replace(evaluation, benchmarks=halves, part=part)
