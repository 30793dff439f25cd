"""One answer for several benchmarks: did their mean change, if each has the same weight?

The one test treats all questions as those of one benchmark. A document that several benchmarks ask
about counts as one question, with the mean of its changes; so does a cluster.
"""

from collections.abc import Sequence
from math import nan

import numpy as np

from slimdown.judging.pairing import Pair
from slimdown.stats.estimates import Difference, Estimate, Sampling, compare_scores, to_weighted
from slimdown.stats.likelihood import ALPHA


def average_changes(measured: Sequence[tuple[Pair, Difference]]) -> Estimate:
    """Estimate the mean change of benchmarks, each with the same weight; nan for none.

    If one may have stopped early, each interval gets its part of the error (Bonferroni), and their
    ends are averaged.

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
    units, unit_of = np.unique(names, return_inverse=True)
    of_all = len(units) / len(measured)
    shares = [to_weighted(np.full(d.n, of_all / d.n), d.sampling) for d in differences]
    weights = np.bincount(unit_of, np.concatenate(shares)).astype(float)
    parts = [share * d.changes for share, d in zip(shares, differences, strict=True)]
    change = np.clip(np.bincount(unit_of, np.concatenate(parts)) / weights, -1, 1)
    before, after = np.maximum(-change, 0), np.maximum(change, 0)
    return compare_scores(before, after, Sampling(weights, n_subjects=len(measured))).estimate
