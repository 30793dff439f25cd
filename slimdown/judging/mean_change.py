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

    If an evaluation may have stopped early, the ends of the benchmarks' intervals are averaged, and
    each interval gets an equal part of the error (Bonferroni). The looks of several benchmarks
    cannot be tested as one.

    Args:
        measured: Both models' answers to each benchmark, and the difference of its primary metric.
    """
    differences = [difference for _, difference in measured]
    if not differences:
        return Estimate(nan, nan, nan, nan)
    if any(d.sampling.looks for d in differences):
        low, high = np.mean([d.interval(ALPHA / len(measured)) for d in differences], axis=0)
        mean = float(np.mean([d.value for d in differences]))
        return Estimate(mean, standard_error=nan, low=float(low), high=float(high))
    if len(differences) == 1:
        return differences[0].estimate
    # A unit is what counts as one question: a cluster, a document, or a question. If one benchmark
    # has a document in a cluster, it is in that cluster in all benchmarks.
    samples = [sample for pair, _ in measured for sample in pair.base.samples]
    clusters = {sample.doc_hash: sample.unit for sample in samples if sample.cluster}
    unit_names = [clusters.get(sample.doc_hash, sample.unit) for sample in samples]
    units, unit_numbers = np.unique(unit_names, return_inverse=True)
    # Each benchmark gets an equal part of the total weight, which is the number of units.
    benchmark_weight = len(units) / len(measured)
    weights = [to_weighted(np.full(d.n, benchmark_weight / d.n), d.sampling) for d in differences]
    weighted = [w * d.changes for w, d in zip(weights, differences, strict=True)]
    unit_weights = np.bincount(unit_numbers, np.concatenate(weights)).astype(float)
    sums = np.bincount(unit_numbers, np.concatenate(weighted))
    change = np.clip(sums / unit_weights, -1, 1)
    # The test takes scores from 0 to 1, so each unit gets two whose difference is its change.
    before, after = np.maximum(-change, 0), np.maximum(change, 0)
    return compare_scores(before, after, Sampling(unit_weights, n_subjects=len(measured))).estimate
