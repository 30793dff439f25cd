"""What two evaluations were both asked, where either may have stopped before it had asked all questions."""

from dataclasses import replace
from math import fsum, nan

from slimdown.evaluation.answers import BenchmarkEvaluation, Evaluation, Sample, Score
from slimdown.utils.digests import digest


def common_part(before: Evaluation, after: Evaluation) -> tuple[Evaluation, Evaluation]:
    """Both, each benchmark as far as both were asked; as they are where neither was asked in stages.

    Each stopped because of its own answers, so that the first of the two ends is one of the looks, known when it came:
    what `sequential.py` says holds there. Where one has questions that the other has not, nothing is cut, and
    `changes_between` names the difference.
    """
    pairs = {
        name: _common(one, after.benchmarks.get(name, one))
        for name, one in before.benchmarks.items()
    }
    both = [
        {name: pair[side] for name, pair in pairs.items() if name in after.benchmarks}
        for side in (0, 1)
    ]
    return tuple(
        replace(report, benchmarks=report.benchmarks | cut)
        for report, cut in zip((before, after), both, strict=True)
    )  # type: ignore[return-value]


def _common(
    one: BenchmarkEvaluation, other: BenchmarkEvaluation
) -> tuple[BenchmarkEvaluation, BenchmarkEvaluation]:
    staged = [report for report in (one, other) if report.stages]
    if not staged:
        return one, other
    shorter = min(staged, key=lambda report: len(report.samples))
    asked = [_place(sample) for sample in shorter.samples]
    answers = [{_place(sample): sample for sample in report.samples} for report in (one, other)]
    if any(place not in found for place in asked for found in answers):
        return one, other
    first, second = (
        _cut(report, tuple(found[place] for place in asked), shorter)
        for report, found in zip((one, other), answers, strict=True)
    )
    return first, second


def _place(sample: Sample) -> tuple[str, int]:
    return sample.task, sample.doc_id


def _cut(
    report: BenchmarkEvaluation, samples: tuple[Sample, ...], shorter: BenchmarkEvaluation
) -> BenchmarkEvaluation:
    """The report on these samples, looked at as the shorter one was; where its own looks were others, at those."""
    n = len(samples)
    own = tuple(stage for stage in report.stages if stage <= n)
    metrics = [
        metric for metric in report.scores if all(metric in sample.scores for sample in samples)
    ]
    return replace(
        report,
        samples=samples,
        scores={
            metric: Score(fsum(s.scores[metric] for s in samples) / n, nan) for metric in metrics
        },
        task_hash=digest([[*_place(s), s.doc_hash, s.prompt_hash, s.target] for s in samples]),
        stages=own or shorter.stages,
        n_available=report.n_available or len(report.samples),
    )
