"""Runs of made-up answers, recorded by the real writer into a real store."""

from collections.abc import Sequence
from dataclasses import replace

from builders import make_benchmark, make_evaluation, make_scores
from omegaconf import OmegaConf

from slimdown.config.schema import RunConfig
from slimdown.evaluation.results import Evaluation
from slimdown.stats.findings import judge
from slimdown.stats.holdout import open_half
from slimdown.tracking.provenance import RunInfo
from slimdown.tracking.run_writer import open_run

LOST = make_scores(100, 90, 2, 8)  # -44 points: forgotten
KEPT = make_scores(1500, 3, 3, 494)  # no change: retained


def make_answers(
    config: RunConfig, scores: Sequence[Sequence[float]]
) -> tuple[Evaluation, Evaluation]:
    """Base and tuned evaluation with the same scores on each benchmark of the config."""
    evaluations = []
    for values in scores:
        benchmarks = {
            name: replace(make_benchmark(values), benchmark=replace(benchmark, metric="acc"))
            for name, benchmark in config.benchmark.items()
        }
        evaluations.append(make_evaluation(**benchmarks))
    return evaluations[0], evaluations[1]


def record_run(
    config: RunConfig,
    name: str,
    scores: Sequence[Sequence[float]] = LOST,
    key: str = "",
    **info: str,
) -> str:
    """Record a finished run and return its id."""
    config = replace(
        config, benchmark={k: replace(b, metric="acc") for k, b in config.benchmark.items()}
    )
    base, tuned = make_answers(config, scores)
    yaml = OmegaConf.to_yaml(OmegaConf.structured(config))
    with open_run(
        config, RunInfo(name, yaml, ["lora.r=8"], run_key=key, environment={}, **info)
    ) as run:
        for cache, evaluation in ((run.base_cache, base), (run.tuned_cache, tuned)):
            for benchmark, one in evaluation.benchmarks.items():
                cache.save(f"{benchmark}{name}".encode().hex(), benchmark, one)
        share = config.evaluation.holdout
        findings = judge(open_half(base, share), open_half(tuned, share))
        run.save(findings, {"report.md": "# report", "report.html": "<p>page</p>"})
    return run.run_id
