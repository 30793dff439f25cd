"""The mean change of several benchmarks, each with the same weight.

It is tested as if all questions were those of one benchmark. A document that several benchmarks ask
about counts as one question, with the mean of its changes. So does a cluster.
"""

from collections.abc import Sequence
from math import nan

import numpy as np

from slimdown.judging.pairing import Pair
from slimdown.stats.estimates import Difference, Estimate, Sampling, compare_scores, to_weighted
from slimdown.stats.likelihood import ALPHA


def average_changes(measured: Sequence[tuple[Pair, Difference]]) -> Estimate:
    """Estimate the mean change of benchmarks, each with the same weight; nan for none.

    If an evaluation may have stopped early, the ends of the intervals are averaged. Each interval
    then gets an equal part of the error (Bonferroni).

    Args:
        measured: Both models' answers to each benchmark, and the difference of its primary metric.
    """
    differences = [d for _, d in measured]
    if not differences:
        return Estimate(nan, nan, nan, nan)
    if any(d.sampling.looks for d in differences):
        low, high = np.mean([d.interval(ALPHA / len(measured)) for d in differences], axis=0)
        mean = float(np.mean([d.value for d in differences]))
        return Estimate(mean, nan, float(low), float(high))
    if len(differences) == 1:
        return differences[0].estimate
    samples = [sample for pair, _ in measured for sample in pair.base.samples]
    clusters = {sample.doc_hash: sample.unit for sample in samples if sample.cluster}
    names = [clusters.get(sample.doc_hash, sample.unit) for sample in samples]
    units, units_of_questions = np.unique(names, return_inverse=True)
    # Each benchmark gets an equal part of the total weight, which is the number of units.
    part = len(units) / len(measured)
    weights = [to_weighted(np.full(d.n, part / d.n), d.sampling) for d in differences]
    weighted = [w * d.changes for w, d in zip(weights, differences, strict=True)]
    unit_weights = np.bincount(units_of_questions, np.concatenate(weights)).astype(float)
    sums = np.bincount(units_of_questions, np.concatenate(weighted))
    change = np.clip(sums / unit_weights, -1, 1)
    before, after = np.maximum(-change, 0), np.maximum(change, 0)
    return compare_scores(before, after, Sampling(unit_weights, n_subjects=len(measured))).estimate
