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
    """Record findings that logs gave.

    Args:
        tracking: Where the record goes.
        findings: What was found, with the answers of both models.
        base: The logs of the base, which the record shows as its id.
        tuned: The logs of the tuned model.
        render_files: Makes what people read, by path, from the record's id.

    Raises:
        TrackingError: The store takes no record.
    """
    assert findings.tuned is not None
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
