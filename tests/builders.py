"""Made-up answers and runs, for tests of what is said about them."""

import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slimdown.comparison.run_records import RunRecord
from slimdown.config.benchmark_config import CHOICE_PROBABILITY, ResolvedBenchmark, Role
from slimdown.config.schema import RunConfig
from slimdown.evaluation.results import BenchmarkEvaluation, Evaluation, Sample
from slimdown.evaluation.right_choice import score_right_choice
from slimdown.judging.findings import Findings, judge
from slimdown.stats.sequential import block_ends
from slimdown.training.result import StepLog, TrainingResult

Compose = Callable[..., RunConfig]
Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch
Logs = pytest.LogCaptureFixture
COLOURS = ("red", "green", "blue", "grey")
TRAINING = TrainingResult(
    output_dir=Path("adapter"),
    steps=2,
    tokens=1000,
    train_loss=1.5,
    validation_loss_before=2.5,
    validation_loss_after=1.25,
    n_trainable=12_345,
    trainable_percent=0.5,
    runtime_seconds=130.0,
    tokens_per_second=7.7,
    history=(StepLog(1, {"loss": 2.0}), StepLog(2, {"loss": 1.0})),
    n_truncated=50,
    n_untrained=2,
    peak_bytes=2.0**31,
)


def slow(*cases: Any) -> list[Any]:
    """Cases of a test that `-m slow` alone tries; one of several values is a tuple."""
    values = (case if isinstance(case, tuple) else (case,) for case in cases)
    return [pytest.param(*case, marks=pytest.mark.slow) for case in values]


def unpack_logs(folder: Path) -> tuple[str, str]:
    """Two folders with the harness's own logs of a base and a tuned model."""
    with tarfile.open(Path(__file__).parent / "golden" / "lm_eval.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return str(folder / "base"), str(folder / "tuned")


def make_sample(
    scores: dict[str, float], number: int = 0, task: str = "task", **fields: Any
) -> Sample:
    """One question; by default a generated answer, "it is four" where the first score is 1."""
    answer = "it is four" if next(iter(scores.values())) == 1 else "five"
    sample = Sample(
        task, number, f"doc{number}", f"prompt{number}", "How many?", "4", answer, (), (),
        dict.fromkeys(scores, answer), scores,
    )  # fmt: skip
    return replace(sample, **fields)


def make_choice(taken: int, number: int = 0) -> Sample:
    """One question of four colours; the right one is the number modulo four."""
    likely = tuple(-1.0 if position == taken else -3.0 for position in range(4))
    return make_sample(
        {"acc": float(taken == number % 4)}, number, target=COLOURS[number % 4], response="",
        choices=COLOURS, log_likelihoods=likely, answers={"acc": COLOURS[taken]},
    )  # fmt: skip


def add_p_right(sample: Sample) -> Sample:
    """Score a choice by the probability of the right one, too."""
    score = score_right_choice(sample.choices, sample.log_likelihoods, sample.target, sample.scores)
    assert score is not None
    answers = {**sample.answers, CHOICE_PROBABILITY: sample.answers["acc"]}
    return replace(sample, scores={**sample.scores, CHOICE_PROBABILITY: score}, answers=answers)


def make_benchmark(
    scores: Sequence[float] | Sequence[Sample] | np.ndarray,
    subjects: Sequence[str] | None = None,
    task_weights: dict[str, float] | None = None,
    **settings: Any,
) -> BenchmarkEvaluation:
    """A benchmark of a score per question, or of samples; `settings` are ResolvedBenchmark's."""
    tasks = subjects or ["task"] * len(scores)
    samples = [
        answer if isinstance(answer, Sample) else make_sample({"acc": float(answer)}, i, tasks[i])
        for i, answer in enumerate(scores)
    ]
    metrics = list(samples[0].scores) if samples else ["acc"]
    defaults: dict[str, Any] = {"task": "task", "metric": metrics[0], "num_fewshot": 0}
    config = ResolvedBenchmark(**(defaults | {"chance": 0.25} | settings))
    return BenchmarkEvaluation(config, "1.0", tuple(samples), 1.0, task_weights=task_weights)


def make_texts(scores: Sequence[float] | np.ndarray) -> BenchmarkEvaluation:
    """Documents of 10 bytes and more, one byte probability each."""
    nothing: dict[str, Any] = {"response": "", "target": "", "answers": {"byte_probability": ""}}
    samples = [
        make_sample({"byte_probability": float(score)}, i, prompt="x" * (10 + i), **nothing)
        for i, score in enumerate(scores)
    ]
    return make_benchmark(samples, role=Role.watched, chance=0.0)


def complete_benchmark(
    answers: BenchmarkEvaluation | Sequence[float], **settings: Any
) -> BenchmarkEvaluation:
    """The same benchmark, or one of these scores."""
    if isinstance(answers, BenchmarkEvaluation):
        return answers
    return make_benchmark(answers, **settings)


def make_evaluation(**benchmarks: BenchmarkEvaluation | Sequence[float]) -> Evaluation:
    """An evaluation of benchmarks, or of benchmarks with these scores."""
    made = {name: complete_benchmark(answers) for name, answers in benchmarks.items()}
    return Evaluation(made, "0.4.13", "prefix", 1.0)


def make_scores(kept: int, lost: int, gained: int, missed: int) -> tuple[list[float], list[float]]:
    """Scores before and after with these counts."""
    before = [1.0] * (kept + lost) + [0.0] * (gained + missed)
    return before, [1.0] * kept + [0.0] * lost + [1.0] * gained + [0.0] * missed


def draw_scores(
    n: int, base: float, lost: float, gained: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Scores before and after; `lost` and `gained` are the chances of a question to change so."""
    draw = np.random.default_rng(seed)
    right, u = draw.random(n) < base, draw.random(n)
    return right * 1.0, np.where(right, u >= lost / base, u < gained / (1 - base)) * 1.0


def stop_early(benchmark: BenchmarkEvaluation, n: int) -> BenchmarkEvaluation:
    """The first n answers of a benchmark, looked at after each block."""
    n_available = len(benchmark.samples)
    looks = tuple(sorted({n, *(end for end in block_ends(n_available) if end <= n)}))
    return replace(benchmark, samples=benchmark.samples[:n], looks=looks, n_available=n_available)


def judge_scores(
    before: BenchmarkEvaluation | Sequence[float],
    after: BenchmarkEvaluation | Sequence[float],
    **settings: Any,
) -> Findings:
    """The findings of one benchmark, "a", of its answers or of a score per question."""
    base = complete_benchmark(before, **settings)
    tuned = complete_benchmark(after, **settings)
    return judge(make_evaluation(a=base), make_evaluation(a=tuned))


def judge_pairs(**pairs: Sequence[BenchmarkEvaluation | Sequence[float]]) -> Findings:
    """The findings of benchmarks, each given as the base's and the tuned model's answers."""
    base, tuned = (
        make_evaluation(**{name: pair[side] for name, pair in pairs.items()}) for side in (0, 1)
    )
    return judge(base, tuned)


def change_samples(benchmark: BenchmarkEvaluation, **fields: Any) -> BenchmarkEvaluation:
    """The same answers with other fields; a list has a value for each sample."""
    samples = []
    for i, sample in enumerate(benchmark.samples):
        own = {name: x[i] if isinstance(x, list) else x for name, x in fields.items()}
        samples.append(replace(sample, **own))
    return replace(benchmark, samples=tuple(samples))


def make_run(findings: Findings, number: int = 0, **params: str) -> RunRecord:
    """A finished run; later numbers are newer. Settings of its benchmarks are params, too."""
    settings = {"model.id": "base", "seed": "0", "dataset.alpaca.path": "x"}
    for name, change in findings.benchmarks.items():
        fields = {"task": "task", "metric": change.metric, "role": change.role.value}
        settings |= {f"benchmark.{name}.{key}": value for key, value in fields.items()}
    settings |= {key.replace("__", "."): value for key, value in params.items()}
    started = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=number)
    run_id = f"{number:032x}"
    name = f"run {number} seed={settings['seed']}"
    held_out = float(settings.get("evaluation.holdout", 0))
    made = RunRecord(run_id, name, "test", "FINISHED", started, settings, findings=findings)
    return replace(made, held_out=held_out)


def make_ranks(by_rank: dict[int, Sequence[Findings]]) -> list[RunRecord]:
    """Finished runs of values of lora.r, and of each a seed for each of its findings."""
    runs = list[RunRecord]()
    for rank, by_seed in by_rank.items():
        for seed, findings in enumerate(by_seed):
            runs.append(make_run(findings, len(runs), lora__r=str(rank), seed=str(seed)))
    return runs
