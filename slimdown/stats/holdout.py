"""Questions that no run is chosen by: every benchmark's, split into an open and a held-out part.

Whoever picks the best of many runs picks luck along with it, and the luck is in the questions that were looked at. With
`evaluation.holdout` a run asks all questions and shows what the open part says; the held-out part is read by
`slimdown.check` and `slimdown.compare --confirm` alone, from the samples. The base's and the tuned answers are the same
with and without it.

Each question's side is decided by its own content: by no seed, so that all runs hold out the same; by no other
question, so that a `limit` moves none, and a larger share holds out all that a smaller one does. Strata would need the
others; the parts are as large as chance makes them, 150 of 300 give or take 9.
"""

import hashlib
from dataclasses import replace
from math import isclose

from slimdown.evaluation.answers import BenchmarkEvaluation, Evaluation, Sample, Score
from slimdown.stats.paired import mean
from slimdown.utils.errors import SlimdownError

FEWEST = 2  # questions in a part: of one alone nothing can be said


def is_held_out(sample: Sample, share: float) -> bool:
    """Whether a question is in the held-out part, of which a `share` of all questions is."""
    digest = hashlib.sha256(f"{sample.task}\n{sample.doc_hash}".encode()).digest()
    return int.from_bytes(digest[:8]) < share * 2**64


def open_part(report: Evaluation, share: float) -> Evaluation:
    """What the questions say by which runs may be chosen.

    Raises:
        SlimdownError: a benchmark with too few questions to split.
    """
    if not share:
        return report
    kept = f"evaluation.holdout={share:g} keeps the others for slimdown.check and slimdown.compare --confirm"
    return _part(report, share, False, f"the open part of each benchmark's questions; {kept}")


def held_out_part(report: Evaluation, share: float) -> Evaluation:
    """What the questions say that no run was chosen by.

    Raises:
        SlimdownError: as for `open_part`.
    """
    return _part(
        report,
        share,
        True,
        f"the held-out part of each benchmark's questions (evaluation.holdout={share:g})",
    )


def _is_mean(report: BenchmarkEvaluation, metric: str) -> bool:
    """Whether a metric is the mean of its questions' scores; a perplexity of a part cannot be had from them."""
    if not all(metric in sample.scores for sample in report.samples):
        return False
    return isclose(
        mean(report.scores_of(metric)).value,
        report.scores[metric].value,
        rel_tol=1e-6,
        abs_tol=1e-9,
    )


def _part(report: Evaluation, share: float, held_out: bool, name: str) -> Evaluation:
    parts = {
        benchmark: _split(benchmark, one, share, held_out)
        for benchmark, one in report.benchmarks.items()
    }
    return replace(report, benchmarks=parts, part=name)


def _split(
    name: str, report: BenchmarkEvaluation, share: float, held_out: bool
) -> BenchmarkEvaluation:
    if report.stages:
        raise SlimdownError(
            f"{name} was asked until enough was known (evaluation.until), by all of its questions: it has no part that "
            f"evaluation.holdout={share:g} would keep out of that; choose a run with evaluation.until=all"
        )
    samples = tuple(sample for sample in report.samples if is_held_out(sample, share) is held_out)
    n = len(report.samples)
    if not FEWEST <= len(samples) <= n - FEWEST:
        n_held_out = len(samples) if held_out else n - len(samples)
        raise SlimdownError(
            f"evaluation.holdout={share:g} would keep {n_held_out} of the {n} questions of {name}, and both parts need "
            f"{FEWEST} or more; ask more questions, or choose a share nearer 0.5"
        )
    metrics = [
        metric
        for metric in report.scores
        if metric == report.benchmark.metric or _is_mean(report, metric)
    ]
    means = {metric: mean([sample.scores[metric] for sample in samples]) for metric in metrics}
    scores = {
        metric: Score(estimate.value, estimate.standard_error) for metric, estimate in means.items()
    }
    return replace(report, samples=samples, scores=scores)
