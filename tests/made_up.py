"""Made-up answers, for tests of what is said about them."""

from collections.abc import Sequence
from dataclasses import replace

from slimdown.config.schema import BenchmarkConfig, PaperMetric, Role
from slimdown.evaluation.answers import BenchmarkEvaluation, Evaluation, Sample, Score
from slimdown.evaluation.order import stages_of
from slimdown.stats.changes import Changes, changes_between

CHOICES = ("red", "green", "blue", "grey")


def written(
    scores: Sequence[float],
    responses: Sequence[str] | None = None,
    prompt: str = "How many?",
    chance: float = 0.0,
    role: Role = Role.retained,
    paper_metric: PaperMetric | None = None,
) -> BenchmarkEvaluation:
    """A benchmark of generated answers, one score a question; also read by a stricter filter that nothing passes."""
    said = responses or ["it is four" if score == 1 else "five" for score in scores]
    samples = [
        Sample(
            "written",
            i,
            f"d{i}",
            f"p{i}",
            prompt,
            "4",
            said[i],
            (),
            (),
            {"match.flexible": said[i][-4:], "match.strict": "[invalid]"},
            {"match.flexible": score, "match.strict": 0.0},
        )
        for i, score in enumerate(scores)
    ]
    config = BenchmarkConfig("written", "match.flexible", 0, chance, role, paper_metric)
    return _report(config, samples)


def chosen(taken: Sequence[int], paper_metric: PaperMetric | None = None) -> BenchmarkEvaluation:
    """A benchmark of four choices, the position taken of each question; question i's right one is i modulo four."""
    samples = [
        Sample(
            "chosen",
            i,
            f"d{i}",
            f"p{i}",
            "Which colour?",
            CHOICES[i % 4],
            "",
            CHOICES,
            tuple(-1.0 if choice == position else -3.0 for choice in range(4)),
            {"acc": CHOICES[position]},
            {"acc": float(position == i % 4)},
        )
        for i, position in enumerate(taken)
    ]
    return _report(BenchmarkConfig("chosen", "acc", 0, 0.25, Role.retained, paper_metric), samples)


def evaluation(**benchmarks: BenchmarkEvaluation) -> Evaluation:
    """What every benchmark says of one model."""
    return Evaluation(benchmarks, "0.4.13", "shared", 1.0)


def stopped(report: BenchmarkEvaluation, n: int) -> BenchmarkEvaluation:
    """The same benchmark, of which n questions were asked, in stages as a run has them."""
    stages = (*(stage for stage in stages_of(len(report.samples)) if stage < n), n)
    return replace(
        report, samples=report.samples[:n], stages=stages, n_available=len(report.samples)
    )


def changed(**scores: tuple[Sequence[float], Sequence[float]]) -> Changes:
    """What base and tuned scores say, by benchmark."""
    return changes_between(
        evaluation(**{name: written(base) for name, (base, _) in scores.items()}),
        evaluation(**{name: written(tuned) for name, (_, tuned) in scores.items()}),
    )


def _report(config: BenchmarkConfig, samples: list[Sample]) -> BenchmarkEvaluation:
    means = {
        m: Score(sum(s.scores[m] for s in samples) / len(samples), 0.0) for m in samples[0].scores
    }
    return BenchmarkEvaluation(config, "1.0", "hash", means, tuple(samples), 1.0)
