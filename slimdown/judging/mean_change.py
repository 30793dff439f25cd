"""The mean change of several benchmarks, each with the same weight.

It is tested as if all questions were those of one benchmark. A document that several benchmarks ask
about counts as one question, with the mean of its changes. So does a cluster.
"""

from collections.abc import Sequence
from math import nan

import numpy as np

from slimdown.judging.pairing import Pair
from slimdown.stats.estimates import Difference, Estimate, Sampling, compare_scores
from slimdown.stats.likelihood import ALPHA


def average_changes(measured: Sequence[tuple[Pair, Difference]]) -> Estimate:
    """Estimate the mean change of benchmarks, each with the same weight.

    If an evaluation may have stopped early, the looks of several benchmarks cannot be tested as
    one. Then the ends of the benchmarks' intervals are averaged. Each interval gets an equal part
    of the error (Bonferroni), so that all of them hold at once.

    Args:
        measured: For each benchmark, both models' answers and the difference of its primary metric.

    Returns:
        The mean change, a share, with its 95 % interval; all nan if there is no benchmark.
    """
    differences = [difference for _, difference in measured]
    if not differences:
        return Estimate(nan, nan, nan, nan)
    if any(d.sampling.looks for d in differences):  # an evaluation may have stopped early
        low, high = np.mean([d.interval(ALPHA / len(measured)) for d in differences], axis=0)
        mean = float(np.mean([d.value for d in differences]))
        return Estimate(mean, standard_error=nan, low=float(low), high=float(high))
    if len(differences) == 1:
        return differences[0].estimate
    # What counts as one question is called a unit: a cluster, or a document without a cluster. If
    # one benchmark has a document in a cluster, the document is in this cluster in all benchmarks.
    samples = [sample for pair, _ in measured for sample in pair.base.samples]
    clusters = {sample.doc_hash: sample.cluster for sample in samples if sample.cluster}
    unit_names = [clusters.get(sample.doc_hash, sample.doc_hash) for sample in samples]
    units, unit_numbers = np.unique(unit_names, return_inverse=True)
    # Each benchmark gets an equal part of the total weight. This is the number of units, so a unit
    # weighs 1 on average. `weights` and `changes` are of all questions, in the order of `samples`.
    benchmark_weight = len(units) / len(measured)
    by_benchmark = [benchmark_weight / d.n * d.sampling.weigh_questions(d.n) for d in differences]
    weights = np.concatenate(by_benchmark)
    changes = np.concatenate([d.changes for d in differences])
    # A unit weighs as much as its questions together, and its change is their weighted mean.
    unit_weights = np.bincount(unit_numbers, weights).astype(float)
    unit_sums = np.bincount(unit_numbers, weights * changes)
    unit_changes = np.clip(unit_sums / unit_weights, -1, 1)  # rounding may lead beyond these bounds
    # The test takes scores from 0 to 1, so each unit gets two whose difference is its change.
    # Each benchmark counts as a subject: its questions are of another kind than the others'.
    before, after = np.maximum(-unit_changes, 0), np.maximum(unit_changes, 0)
    sampling = Sampling(unit_weights, n_subjects=len(measured))
    return compare_scores(before, after, sampling).estimate
