"""Record what was judged of logs that other tools wrote, as if a run had measured it."""

from collections.abc import Callable

from slimdown.config.schema import EvaluationConfig, ModelConfig, RunConfig
from slimdown.config.tracking_config import TrackingConfig
from slimdown.judging.findings import Findings
from slimdown.tracking.metrics_and_tags import Tag
from slimdown.tracking.provenance import RunInfo
from slimdown.tracking.run_writer import TrackedRun, open_run


def record_judged_logs(
    tracking: TrackingConfig,
    findings: Findings,
    base: str,
    tuned: str,
    render_files: Callable[[str], dict[str, str]],
) -> TrackedRun:
    """Record the findings from other tools' logs as a run.

    The run's settings are made up from the logs, as far as slimdown's pages and commands need them:
    nothing was held out, and the benchmarks are those of the findings.

    Args:
        tracking: The store.
        findings: The findings, with the answers of both models.
        base: The place of the base's logs; the record shows it as the base's id.
        tuned: The place of the tuned model's logs.
        render_files: Takes the run's id, and returns the pages of the run by path.

    Returns:
        The run, which is finished.

    Raises:
        TrackingError: The store takes no record.
    """
    assert findings.tuned is not None  # only findings that were read from a record lack it
    # Both models have the same benchmarks here: `judge` compares no others.
    evaluations = findings.tuned.benchmarks
    config = RunConfig(
        ModelConfig(id=base),
        benchmark={name: evaluations[name].benchmark for name in evaluations},
        evaluation=EvaluationConfig(holdout=0.0),
        tracking=tracking,
        tuned=tuned,
    )
    with open_run(config, RunInfo(f"verdict {tuned}", tags={Tag.origin: tuned})) as run:
        run.save(findings, render_files(run.run_id))
    return run
