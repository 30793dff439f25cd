"""Split the noise of a mean over several seeds of one configuration.

Another set of questions would have given other scores (question noise), another seed another model
(training noise). More questions cure only the one, more seeds only the other; which is larger says
what to buy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan, sqrt

import numpy as np
import scipy

from slimdown.stats.estimates import Estimate
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


def split_noise(*parts: Floats, steps: Sequence[float] = ()) -> SeedMean:
    """Estimate the mean change of several seeds, and split its noise: questions and training.

    Seeds and questions are crossed random effects, their variances those of the two-way analysis of
    variance. The interval joins theirs, each by its own Student quantile, as the sides of a right
    angle (Graybill and Wang 1980), and is never narrower than the standard error beside it says.
    It takes the changes of other seeds to be normal: a training that rarely collapses is not.
    The spread from seed to seed is median-unbiased: with two seeds the plain root is too small by a
    quarter on average.

    Args:
        parts: [seeds, questions] each, tuned - base; at least two seeds. The change is the sum of
            the parts' means, such as the share of each benchmark in the mean of all.
        steps: Of each part, what an answer of 0 or 1 counts in it: one question more then counts as
            lost and one as gained. 0 where scores are graded; empty: all are.
    """
    n_seeds, fewest = len(parts[0]), min(part.shape[1] for part in parts)
    by_seed = np.sum([part.mean(axis=1) for part in parts], axis=0)
    overall, deviation = float(by_seed.mean()), float(by_seed.std(ddof=1))
    unknown = SeedMean(overall, nan, nan, nan, deviation)
    if fewest == 1:
        return unknown
    of_questions = residual = 0.0  # variances of the mean, and of one seed's mean
    for part, step in zip(parts, steps or [0.0] * len(parts), strict=True):
        n, by_question = part.shape[1], part.mean(axis=0)
        variance = float(by_question.var(ddof=1)) / n
        if step:
            one_more = np.append(by_question, (-step, step))
            variance = max(variance, float(one_more.var()) / (n + 2))
        of_questions += variance
        # The mean over seeds scatters from seed to seed by what is the seed's and by what is left
        # over, and from question to question by what is the question's and by what is left over,
        # which is counted once.
        rest = part - part.mean(axis=1)[:, None] - by_question + part.mean()
        residual += float((rest**2).sum()) / ((n_seeds - 1) * (n - 1) * n)
    of_training = max(0.0, deviation**2 - residual) / n_seeds
    error = sqrt(of_training + of_questions)
    if not error > 1e-12:  # no spread: nothing is known of how others would differ
        return unknown
    shares = np.array([deviation**2, max(0.0, n_seeds * of_questions - residual)]) / n_seeds
    quantiles = scipy.special.stdtrit([n_seeds - 1, fewest - 1], 1 - ALPHA / 2)  # Student's
    half = max(float(quantiles[1]) * error, sqrt(float(quantiles**2 @ shares)))
    median = float(scipy.special.chdtri(n_seeds - 1, 0.5)) / (n_seeds - 1)
    spread = sqrt(max(0.0, deviation**2 / median - residual))
    low, high = max(-1.0, overall - half), min(1.0, overall + half)
    errors = sqrt(of_questions), sqrt(of_training)
    return SeedMean(overall, error, low, high, deviation, *errors, spread)
