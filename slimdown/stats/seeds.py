"""Average several seeds of one configuration, and split the noise of their mean.

Another set of questions would have given other scores (question noise), another seed another model
(training noise). More questions cure only the one, more seeds only the other; which is larger says
what to buy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, nan, sqrt

import numpy as np
import scipy

from slimdown.stats.estimates import Estimate, to_weighted
from slimdown.stats.findings import BenchmarkChange
from slimdown.stats.likelihood import ALPHA
from slimdown.stats.run_records import RunRecord
from slimdown.stats.sequential import Floats
from slimdown.utils.errors import DataError


@dataclass(frozen=True)
class SeedMean(Estimate):
    """A mean over seeds; of one seed its estimate."""

    sd_over_seeds: float = nan  # standard deviation; nan where there is one seed


@dataclass(frozen=True)
class SeedNoise:
    """The mean change of several seeds, and where its uncertainty comes from."""

    mean: Estimate  # of the change, over seeds and questions
    question_standard_error: float  # of the mean: other questions would be another test
    training_standard_error: float  # of the mean: other seeds would be other models; nan of one
    # standard deviation of the change from seed to seed, question noise taken out
    training_spread: float
    n_seeds: int
    n: int  # questions


def split_noise(runs: Sequence[RunRecord]) -> dict[str, SeedNoise]:
    """Estimate the mean change on each benchmark, and split the noise of questions and training.

    Args:
        runs: Finished runs of one configuration, one for each seed.

    Returns:
        The noise of each benchmark's primary metric, by benchmark.

    Raises:
        DataError: The seeds did not answer the same questions, or stopped early.
    """
    noises = {}
    for name in runs[0].changes:
        changes = [run.changes[name] for run in runs if name in run.changes]
        is_whole = not any(change.n_available for change in changes)
        hashes = {change.question_hash for change in changes}
        if not is_whole or len(changes) < len(runs) or len(hashes) > 1:
            raise DataError(
                f"{name}: the seeds did not all answer the same questions; take runs with "
                "evaluation.until=all"
            )
        noises[name] = _seed_noise_of(changes)
    return noises


def average_seeds(changes: Sequence[BenchmarkChange]) -> SeedMean:
    """Average the changes of several runs; no interval where their questions differ."""
    differences = [change.primary.difference for change in changes]
    values = np.array([d.value for d in differences])
    if len(changes) == 1:
        d = differences[0]
        return SeedMean(d.value, d.standard_error, d.low, d.high)
    spread = float(values.std(ddof=1))
    if len({change.question_hash for change in changes}) > 1 or changes[0].n_available:
        return SeedMean(float(values.mean()), nan, nan, nan, spread)
    return SeedMean(**vars(_seed_noise_of(changes).mean), sd_over_seeds=spread)


def seed_noise(changes: Floats, is_binary: bool = False) -> SeedNoise:
    """Estimate the mean change of several seeds, and split its noise: questions and training.

    Seeds and questions are crossed random effects, their variances those of the two-way analysis of
    variance. The interval joins theirs, each by its own Student quantile, as the sides of a right
    angle (Graybill and Wang 1980), and is never narrower than the standard error beside it says.
    The spread from seed to seed is median-unbiased: with two seeds the plain root is too small by a
    quarter on average.

    Args:
        changes: [seeds, questions], tuned - base.
        is_binary: whether all scores are 0 or 1; one question more then counts as lost and one as
            gained.
    """
    n_seeds, n = changes.shape
    overall = float(changes.mean())
    by_seed, by_question = changes.mean(axis=1), changes.mean(axis=0)
    of_questions = float(by_question.var(ddof=1)) / n if n > 1 else nan
    if is_binary:
        pseudo = float(np.append(by_question, (-1.0, 1.0)).var()) / (n + 2)
        of_questions = pseudo if isnan(of_questions) else max(of_questions, pseudo)
    quantile = _t_quantile(n - 1)
    training = spread = nan
    half = quantile * sqrt(of_questions)
    error = sqrt(of_questions)
    if n_seeds > 1 and n > 1:
        # The mean over seeds scatters from seed to seed by what is the seed's and by what is left
        # over, and from question to question by what is the question's and by what is left over,
        # which is counted once.
        rest = changes - by_seed[:, None] - by_question + overall
        residual = float((rest**2).sum()) / ((n_seeds - 1) * (n - 1))
        seeds = n * float(by_seed.var(ddof=1))
        parts = np.array([seeds, max(0.0, n * n_seeds * of_questions - residual)]) / (n * n_seeds)
        quantiles = np.array([_t_quantile(n_seeds - 1), quantile])
        training = max(0.0, (seeds - residual) / n)
        error = sqrt(training / n_seeds + of_questions)
        half = max(quantile * error, sqrt(float(quantiles**2 @ parts)))
        median = float(scipy.special.chdtri(n_seeds - 1, 0.5)) / (n_seeds - 1)
        spread = sqrt(max(0.0, (seeds / median - residual) / n))
        training = sqrt(training / n_seeds)
    if not error > 1e-12:  # no spread: nothing is known of how others would differ
        return SeedNoise(Estimate(overall, nan, nan, nan), nan, nan, nan, n_seeds, n)
    mean = Estimate(overall, error, max(-1.0, overall - half), min(1.0, overall + half))
    return SeedNoise(mean, sqrt(of_questions), training, spread, n_seeds, n)


def _seed_noise_of(changes: Sequence[BenchmarkChange]) -> SeedNoise:
    differences = [change.primary.difference for change in changes]
    rows = [to_weighted(d.changes, d.sampling) for d in differences]
    return seed_noise(np.array(rows), all(d.is_binary for d in differences))


def _t_quantile(freedom: float) -> float:
    """Return how many standard errors Student's 95 % interval reaches to each side."""
    return float(scipy.special.stdtrit(freedom, 1 - ALPHA / 2)) if freedom > 0 else nan
