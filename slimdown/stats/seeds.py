"""Several seeds of one configuration -> how sure their mean change is, and where the doubt comes from.

Another set of questions would have given other scores (question noise), another seed another model (training noise).
More questions cure only the one, more seeds only the other; which is larger says what to buy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan, sqrt

import numpy as np
import scipy

from slimdown.evaluation.answers import Evaluation
from slimdown.stats.clusters import Drawn, population
from slimdown.stats.paired import DUST, Estimate, numbers, student, t_quantile, within
from slimdown.utils.errors import SlimdownError


@dataclass(frozen=True)
class Noise:
    """What several seeds of one configuration say together, and where the doubt comes from."""

    mean: Estimate  # of the change, over seeds and questions
    question_standard_error: float  # of the mean: other questions would have been another test
    training_standard_error: float  # of the mean: other seeds would have been other models
    training_spread: (
        float  # standard deviation of the change from seed to seed, question noise taken out
    )
    n_seeds: int
    n_groups: int  # subjects that the questions come from; 0 where they are of one kind

    @property
    def population(self) -> str:
        """What is said here holds for: other seeds, and questions or subjects like these, or these subjects only."""
        return population(self.n_groups)


@dataclass(frozen=True)
class SeedsChange:
    """What all seeds of a configuration say of one benchmark's primary metric."""

    benchmark: str
    metric: str
    n: int  # questions
    noise: Noise
    part: str = ""  # which of the questions, where not all


def seeds_changes(pairs: Sequence[tuple[Evaluation, Evaluation]]) -> list[SeedsChange]:
    """The mean change on each benchmark with the noise of questions and of training apart.

    Args:
        pairs: base and tuned evaluation, one pair a seed.

    Raises:
        ValueError: seeds that were not asked the same questions; names the benchmark.
        SlimdownError: seeds that were asked only until something was known.
    """
    first = pairs[0][0].benchmarks
    for name in first:
        if any(
            name in report.benchmarks and report.benchmarks[name].stages
            for pair in pairs
            for report in pair
        ):
            raise SlimdownError(
                f"{name} was asked until enough was known (evaluation.until): how many questions that took depends on "
                "each seed's answers, so that their noise cannot be told; runs with evaluation.until=all tell it"
            )
    changes = []
    for name, evaluation in first.items():
        metric = evaluation.benchmark.metric
        questions = [sample.prompt_hash for sample in evaluation.samples]
        rows = []
        for base, tuned in pairs:
            for report in (base, tuned):
                same = report.benchmarks.get(name)
                if same is None or [sample.prompt_hash for sample in same.samples] != questions:
                    raise ValueError(f"{name}: the seeds were not asked the same questions")
            before, after = (report.benchmarks[name].scores_of(metric) for report in (base, tuned))
            rows.append([y - x for x, y in zip(before, after, strict=True)])
        noise = seed_noise(rows, evaluation.clusters)
        changes.append(SeedsChange(name, metric, len(questions), noise, pairs[0][0].part))
    return changes


def seed_noise(changes: Sequence[Sequence[float]], clusters: Sequence[str] | None = None) -> Noise:
    """The mean change of several seeds and, apart, the noise of the questions asked and of the training.

    Args:
        changes: one row a seed, one column a question: after - before, in shares.
        clusters: the group that each question belongs to; None where they are of one kind.

    Seeds and questions are crossed random effects, their variances those of the two-way analysis of variance; with
    clusters, the questions' part is that of `Drawn`. The interval's quantile is the mean of the seeds' and the
    questions' Student quantiles, weighted by their variances (Cochran and Cox 1957): Satterthwaite's degrees of freedom
    are too many where two or three seeds say most. The spread from seed to seed is median-unbiased, as likely too large
    as too small: with two seeds the square root of the variance is too small by a quarter on average. As in
    `difference`, changes of 0/1 scores count a question more lost and one more gained. With one seed the training's
    part is not known: nan.

    Raises:
        ValueError: rows of unequal length, no number.
    """
    if len(lengths := sorted({len(row) for row in changes})) != 1:
        raise ValueError(f"seeds were asked {lengths} questions; all must be asked the same")
    d = np.asarray(changes, dtype=float)
    n_seeds, n = d.shape
    numbers(d.ravel())
    drawn = Drawn.of(n, clusters)
    overall, by_seed, by_question = float(d.mean()), d.mean(axis=1), d.mean(axis=0)
    of_questions = drawn.variance(by_question)
    if np.isin(d, (-1.0, 0.0, 1.0)).all():
        of_questions = max(of_questions, float(np.append(by_question, (-1.0, 1.0)).var()) / (n + 2))
    if n_seeds == 1 or n == 1:
        one = within(student(overall, sqrt(of_questions), drawn.degrees_of_freedom), -1.0, 1.0)
        return Noise(one, one.standard_error, nan, nan, n_seeds, drawn.n_groups)
    seeds = n * float(by_seed.var(ddof=1))
    rest = d - by_seed[:, None] - by_question[None, :] + overall
    residual = float((rest**2).sum()) / ((n_seeds - 1) * (n - 1))
    # The mean over seeds scatters from seed to seed by what is the seed's and by what is left over, and from question
    # to question by what is the question's and by what is left over, which is counted once.
    parts = np.array([seeds / (n * n_seeds), max(0.0, of_questions - residual / (n * n_seeds))])
    if sqrt(parts.sum()) <= DUST:  # no spread: nothing is known of how others would differ
        return Noise(student(overall, nan, nan), nan, nan, nan, n_seeds, drawn.n_groups)
    quantiles = np.array([t_quantile(n_seeds - 1), t_quantile(drawn.degrees_of_freedom)])
    half = float(quantiles @ parts) / sqrt(parts.sum())
    training = max(0.0, (seeds - residual) / n)
    error = sqrt(training / n_seeds + of_questions)
    median = float(scipy.special.chdtri(n_seeds - 1, 0.5)) / (n_seeds - 1)
    return Noise(
        mean=within(Estimate(overall, error, overall - half, overall + half), -1.0, 1.0),
        question_standard_error=sqrt(of_questions),
        training_standard_error=sqrt(training / n_seeds),
        training_spread=sqrt(max(0.0, (seeds / median - residual) / n)),
        n_seeds=n_seeds,
        n_groups=drawn.n_groups,
    )
