"""Runs in a store as a run leaves them, without a model: `TrackedRun` writes reports made of given scores."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

from made_up import stopped

from slimdown.config.schema import BaselineConfig, BenchmarkConfig, Role, RunConfig, TrackingConfig
from slimdown.evaluation.answers import BenchmarkEvaluation, Evaluation, Sample, Score
from slimdown.stats.findings import judge
from slimdown.stats.holdout import open_part
from slimdown.tracking.write import TrackedRun


def here(experiment: str = "slimdown") -> TrackingConfig:
    """The store of the folder at hand; MLflow keeps one store a URI, so it is absolute."""
    return TrackingConfig(uri=f"sqlite:///{Path.cwd()}/mlruns/mlflow.db", experiment=experiment)


def evaluation(
    scores: Mapping[str, Sequence[float]], target: str = "", num_fewshot: int = 0
) -> Evaluation:
    """One report a benchmark; questions are the same wherever name, number and shots are."""
    reports = {}
    for name, values in scores.items():
        samples = tuple(
            Sample(
                "task",
                i,
                f"doc{i}",
                f"prompt{i}-{num_fewshot}",
                "q",
                "t",
                "one two",
                (),
                (),
                {"acc": "a"},
                {"acc": score},
            )
            for i, score in enumerate(values)
        )
        role = Role.target if name == target else Role.retained
        config = BenchmarkConfig(
            task="task", metric="acc", num_fewshot=num_fewshot, chance=0.0, role=role
        )
        mean = sum(values) / len(values)
        reports[name] = BenchmarkEvaluation(
            config, "1.0", "hash", {"acc": Score(mean, 0.05)}, samples, 1.0
        )
    return Evaluation(reports, "0.4.13", "shared", 1.0)


def right(n: int, of: int = 100) -> list[float]:
    """So many right answers, the first ones."""
    return [1.0] * n + [0.0] * (of - n)


def benchmark_settings(evaluation: Evaluation) -> dict[str, object]:
    """How its benchmarks were asked, by the keys of a run's settings."""
    kept = [field.name for field in fields(BenchmarkConfig)]
    return {
        f"benchmark.{name}.{field}": getattr(report.benchmark, field)
        for name, report in evaluation.benchmarks.items()
        for field in kept
    }


def record(
    name: str,
    params: Mapping[str, object],
    base: Mapping[str, Sequence[float]],
    tuned: Mapping[str, Sequence[float]],
    *,
    config: TrackingConfig | None = None,
    dataset: str = "alpaca",
    target: str = "",
    num_fewshot: int = 0,
    holdout: float = 0.0,
    asked: Mapping[str, int] | None = None,
    tags: Mapping[str, str] | None = None,
) -> str:
    """The id of a finished run that went from `base` to `tuned`; of benchmarks in `asked` so many were asked."""
    before, after = (
        _cut(evaluation(scores, target, num_fewshot), asked or {}) for scores in (base, tuned)
    )
    settings: dict[str, object] = {"tracking.uri": name}
    settings |= (
        {} if "tuned" in params else {"lora.r": 8, "seed": 0, f"dataset.{dataset}.path": dataset}
    )
    settings |= (
        {"evaluation.holdout": holdout} if holdout else {}
    )  # as old records, which have no such setting
    settings |= {"evaluation.until": "decided"} if asked else {}
    settings |= benchmark_settings(before)
    with TrackedRun(config or here(), name, kind="tuned", tags=dict(tags or {})) as run:
        run.log_settings({**settings, **params})
        for model, measured in (("base", before), ("tuned", after)):
            for benchmark, report in measured.benchmarks.items():
                run.log_evaluation(model, benchmark, report)
        before, after = open_part(before, holdout), open_part(after, holdout)
        run.log_base(before)
        run.keep(judge(before, after), {"report.md": ""})
    return run.run_id


def _cut(report: Evaluation, asked: Mapping[str, int]) -> Evaluation:
    cut = {name: stopped(report.benchmarks[name], n) for name, n in asked.items()}
    return replace(report, benchmarks=report.benchmarks | cut)


def settings_of(tracking: TrackingConfig, reuse: bool = True) -> RunConfig:
    """A run's settings as far as its record reads them."""
    return RunConfig(tracking=tracking, baseline=BaselineConfig(reuse=reuse))
