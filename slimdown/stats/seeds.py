"""Average several seeds of one configuration, and split the noise of their mean.

Another set of questions would have given other scores (question noise), another seed another model
(training noise). More questions cure only the one, more seeds only the other; which is larger says
what to buy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan, sqrt

import numpy as np
import scipy

from slimdown.stats.estimates import Estimate, to_weighted
from slimdown.stats.findings import BenchmarkChange
from slimdown.stats.likelihood import ALPHA
from slimdown.stats.sequential import Floats


@dataclass(frozen=True)
class SeedMean(Estimate):
    """The mean change of several seeds, and where its uncertainty comes from; or that of one."""

    sd_over_seeds: float = nan  # standard deviation; nan where there is one seed
    # of the mean: other questions would be another test, other seeds other models
    question_error: float = nan
    training_error: float = nan
    # standard deviation of the change from seed to seed, question noise taken out
    training_spread: float = nan


def average_seeds(changes: Sequence[BenchmarkChange]) -> SeedMean:
    """Average the changes of several runs; no interval where their questions differ."""
    differences = [change.primary.difference for change in changes]
    if len(changes) == 1:
        d = differences[0]
        return SeedMean(d.value, d.standard_error, d.low, d.high)
    if len({change.question_hash for change in changes}) > 1 or changes[0].n_available:
        values = np.array([d.value for d in differences])
        return SeedMean(float(values.mean()), nan, nan, nan, float(values.std(ddof=1)))
    rows = [to_weighted(d.changes, d.sampling) for d in differences]
    return split_noise(np.array(rows), all(d.is_binary for d in differences))


def split_noise(changes: Floats, is_binary: bool = False) -> SeedMean:
    """Estimate the mean change of several seeds, and split its noise: questions and training.

    Seeds and questions are crossed random effects, their variances those of the two-way analysis of
    variance. The interval joins theirs, each by its own Student quantile, as the sides of a right
    angle (Graybill and Wang 1980), and is never narrower than the standard error beside it says.
    The spread from seed to seed is median-unbiased: with two seeds the plain root is too small by a
    quarter on average.

    Args:
        changes: [seeds, questions], tuned - base; at least two seeds.
        is_binary: whether all scores are 0 or 1; one question more then counts as lost and one as
            gained.
    """
    n_seeds, n = changes.shape
    by_seed, by_question = changes.mean(axis=1), changes.mean(axis=0)
    overall, deviation = float(changes.mean()), float(by_seed.std(ddof=1))
    unknown = SeedMean(overall, nan, nan, nan, deviation)
    if n == 1:
        return unknown
    of_questions = float(by_question.var(ddof=1)) / n
    if is_binary:
        of_questions = max(of_questions, float(np.append(by_question, (-1, 1)).var()) / (n + 2))
    # The mean over seeds scatters from seed to seed by what is the seed's and by what is left over,
    # and from question to question by what is the question's and by what is left over, which is
    # counted once.
    rest = changes - by_seed[:, None] - by_question + overall
    residual = float((rest**2).sum()) / ((n_seeds - 1) * (n - 1))
    seeds = n * deviation**2
    of_training = max(0.0, (seeds - residual) / n) / n_seeds
    error = sqrt(of_training + of_questions)
    if not error > 1e-12:  # no spread: nothing is known of how others would differ
        return unknown
    parts = np.array([seeds, max(0.0, n * n_seeds * of_questions - residual)]) / (n * n_seeds)
    quantiles = scipy.special.stdtrit([n_seeds - 1, n - 1], 1 - ALPHA / 2)  # Student's
    half = max(float(quantiles[1]) * error, sqrt(float(quantiles**2 @ parts)))
    median = float(scipy.special.chdtri(n_seeds - 1, 0.5)) / (n_seeds - 1)
    spread = sqrt(max(0.0, (seeds / median - residual) / n))
    low, high = max(-1.0, overall - half), min(1.0, overall + half)
    errors = sqrt(of_questions), sqrt(of_training)
    return SeedMean(overall, error, low, high, deviation, *errors, spread)
