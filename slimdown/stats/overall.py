"""One answer for several benchmarks: did they change together, each benchmark weighing alike?

The one test answers, with all questions as those of one benchmark. A document that several
benchmarks ask about counts as one question, with the mean of its changes.
"""

from collections.abc import Sequence

import numpy as np

from slimdown.stats.estimates import (
    Difference,
    Estimate,
    Sampling,
    compare_scores,
    mean_of_estimates,
    to_weighted,
)
from slimdown.stats.pairing import Pair


def average_changes(measured: Sequence[tuple[Pair, Difference]]) -> Estimate:
    """Estimate the mean change of benchmarks, each with the same weight; nan for none.

    Where one may have stopped early, the interval of each is held to its part of the error, see
    `mean_of_estimates`.

    Args:
        measured: Both models' answers to each benchmark, and the difference of its primary metric.
    """
    differences = [d for _, d in measured]
    if len(measured) < 2 or any(d.sampling.looks for d in differences):
        return mean_of_estimates(differences)
    asked = [sample.doc_hash for pair, _ in measured for sample in pair.base.samples]
    documents, document_of = np.unique(asked, return_inverse=True)
    shares = [
        to_weighted(np.full(d.n, len(documents) / len(measured) / d.n), d.sampling)
        for d in differences
    ]
    weights = np.bincount(document_of, np.concatenate(shares)).astype(float)
    parts = [share * d.changes for share, d in zip(shares, differences, strict=True)]
    change = np.clip(np.bincount(document_of, np.concatenate(parts)) / weights, -1, 1)
    before, after = np.maximum(-change, 0), np.maximum(change, 0)
    mean = compare_scores(before, after, Sampling(weights))
    return Estimate(mean.value, mean.standard_error, mean.low, mean.high)
