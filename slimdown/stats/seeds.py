"""Split the noise of a mean over several seeds of one configuration.

Other questions would give other scores (question noise). Another seed would give another model
(training noise). More questions reduce only the first, more seeds only the second. The larger one
says what to buy.
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
    """The mean change of one or several seeds, and where its uncertainty comes from."""

    sd_over_seeds: float = nan  # standard deviation; nan where there is one seed
    # standard errors of the mean: for other questions, and for other seeds
    question_error: float = nan
    training_error: float = nan
    # standard deviation of the change from seed to seed, without question noise
    training_spread: float = nan


def split_noise(*parts: Floats, steps: Sequence[float] = ()) -> SeedMean:
    """Estimate the mean change of several seeds, and split its noise: questions and training.

    Seeds and questions are crossed random effects, with the variances of a two-way analysis of
    variance. The interval adds their half-widths, each with its own Student quantile, in quadrature
    (the idea: Howe 1974; Zou and Donner 2008). It is never narrower than the standard error beside
    it says. It assumes that changes of other seeds are normal; those of a training that rarely
    collapses are not. The spread from seed to seed is median-unbiased: with two seeds the plain
    root is too small by a quarter on average.

    Args:
        parts: [seeds, questions] each, tuned - base; at least two seeds. The change is the sum of
            the parts' means, such as each benchmark's share of the overall mean.
        steps: For each part, how much one 0/1 answer counts in it. One lost and one gained question
            are then added. 0: its scores are graded; empty: all scores are graded.
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
        # The means vary from seed to seed by the seed effect and the residual, and from question to
        # question by the question effect and the residual. The residual is counted once.
        rest = part - part.mean(axis=1)[:, None] - by_question + part.mean()
        residual += float((rest**2).sum()) / ((n_seeds - 1) * (n - 1) * n)
    of_training = max(0.0, deviation**2 - residual) / n_seeds
    error = sqrt(of_training + of_questions)
    if not error > 1e-12:  # without spread it is unknown how others would differ
        return unknown
    shares = np.array([deviation**2, max(0.0, n_seeds * of_questions - residual)]) / n_seeds
    quantiles = scipy.special.stdtrit([n_seeds - 1, fewest - 1], 1 - ALPHA / 2)  # Student's
    half = max(float(quantiles[1]) * error, sqrt(float(quantiles**2 @ shares)))
    median = float(scipy.special.chdtri(n_seeds - 1, 0.5)) / (n_seeds - 1)
    spread = sqrt(max(0.0, deviation**2 / median - residual))
    low, high = max(-1.0, overall - half), min(1.0, overall + half)
    errors = sqrt(of_questions), sqrt(of_training)
    return SeedMean(overall, error, low, high, deviation, *errors, spread)
