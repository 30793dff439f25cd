"""Made-up answers and findings, for tests of how they are shown."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from builders import TRAINING, make_benchmark, make_choice, make_evaluation, make_sample

from slimdown.config.benchmark_config import PaperMetric, Role
from slimdown.evaluation.results import BenchmarkEvaluation
from slimdown.judging.findings import Findings, judge
from slimdown.training.result import TrainingResult

Pair = tuple[BenchmarkEvaluation, BenchmarkEvaluation]


def written(
    scores: Sequence[float],
    responses: Sequence[str] | None = None,
    prompt: str = "How many?",
    **settings: Any,
) -> BenchmarkEvaluation:
    """Generated answers, one score each; a stricter filter passes none of them."""
    texts = responses or ["it is four" if score == 1 else "five" for score in scores]
    samples = []
    for i, (score, response) in enumerate(zip(scores, texts, strict=True)):
        answers = {"match.flexible": response[-4:], "match.strict": "[invalid]"}
        fields = {"prompt": prompt, "response": response, "answers": answers}
        samples.append(make_sample({"match.flexible": score, "match.strict": 0.0}, i, **fields))
    return make_benchmark(samples, **({"task": "written", "chance": 0.0} | settings))


def chosen(positions: Sequence[int], n_subjects: int = 1) -> BenchmarkEvaluation:
    """Four choices, the position taken of each question; question i's right one is i modulo 4."""
    samples = [
        replace(make_choice(position, i), task=f"subject{i % n_subjects}")
        for i, position in enumerate(positions)
    ]
    return make_benchmark(samples, task="chosen", paper_metric=PaperMetric.knowledge_loss)


def judge_pairs(pairs: dict[str, Pair], training: TrainingResult | None = TRAINING) -> Findings:
    """The findings of base and tuned answers by benchmark."""
    base = make_evaluation(**{name: pair[0] for name, pair in pairs.items()})
    tuned = make_evaluation(**{name: pair[1] for name, pair in pairs.items()})
    return judge(base, tuned, training)


def make_usual() -> dict[str, Pair]:
    """One benchmark for each verdict, generated and chosen answers."""
    lost = ["", "no", "it is surely five", "it is surely five"] * 10
    right = ["it is surely four"] * 80
    rate = PaperMetric.forgetting_rate
    target: dict[str, Any] = {"role": Role.target}
    fell = written([0.0] * 40 + [1.0] * 40, lost + right[40:], paper_metric=rate)
    return {
        "maths": (written([1.0] * 80, right, paper_metric=rate), fell),
        "skill": (written([0.0] * 40, **target), written([1.0] * 30 + [0.0] * 10, **target)),
        "colors": (
            chosen([i % 4 for i in range(60)]),
            chosen([i % 4 if i < 40 else 0 for i in range(60)]),
        ),
        "calm": (written([1.0, 0.0] * 10), written([1.0, 0.0] * 10)),
        "steady": (written([1.0, 0.0] * 500), written([1.0, 0.0] * 500)),
    }
