"""Record what was made of a run's model: a scaled one with its measures, a merged one."""

import time
from collections.abc import Mapping
from pathlib import Path

from slimdown.comparison.run_records import RunRecord
from slimdown.config.tracking_config import TrackingConfig
from slimdown.judging.findings import Findings
from slimdown.tracking import store
from slimdown.tracking.datasets import describe_questions
from slimdown.tracking.logged_models import (
    ModelKind,
    assign_metrics,
    describe_made,
    link_models,
    log_model,
)
from slimdown.tracking.metrics_and_tags import Tag, collect_finding_metrics, describe_verdicts


def record_scaled(
    tracking: TrackingConfig, run: RunRecord, scale: float, folder: Path, findings: Findings
) -> None:
    """Record a scaled model with its files, and what it changed, in a run of kind `scaled`.

    Args:
        tracking: The store.
        run: The run whose model was scaled.
        scale: How much of what was trained the model has.
        folder: Its files.
        findings: What changed on the questions that did not choose the scale.

    Raises:
        TrackingError: The store does not take it.
    """
    client = store.open_store(tracking, must_exist=True)
    title, params = f"{run.name} × {scale:g}", {"scale": f"{scale:g}", "run": run.run_id}
    with store.explain_store_errors(tracking):
        source = client.get_run(run.run_id)
        experiment_id, base_id = source.info.experiment_id, _find_base_id(source)
        made = store.create_run(client, experiment_id, title, ModelKind.scaled).info.run_id
        record = describe_made(ModelKind.scaled, made, f"{run.name} x {scale:g}", params)
        model_id = log_model(client, experiment_id, record, made, folder)
        link_models(client, made, base_id, model_id)
        evaluations = findings.tuned.benchmarks if findings.tuned else {}
        questions = {name: describe_questions(name, one) for name, one in evaluations.items()}
        client.log_inputs(made, list(questions.values()))
        values, now = collect_finding_metrics(findings), int(time.time() * 1000)
        client.log_batch(made, assign_metrics(values, questions, base_id, model_id, now))
        store.log_settings(client, made, params)
        client.set_tag(made, Tag.verdict, describe_verdicts(findings))
        client.set_terminated(made, "FINISHED")


def record_merged(
    tracking: TrackingConfig, run: RunRecord, out: Path, params: Mapping[str, str]
) -> None:
    """Record a merged model by its place: its weights stay where the user wanted them.

    Args:
        tracking: The store.
        run: The run whose adapter was merged.
        out: The folder of the merged model.
        params: How it was merged.

    Raises:
        TrackingError: The store does not take it.
    """
    client = store.open_store(tracking, must_exist=True)
    name, about = f"{run.name} merged", {"folder": str(out), "run": run.run_id, **params}
    with store.explain_store_errors(tracking):
        experiment_id = client.get_run(run.run_id).info.experiment_id
        record = describe_made(ModelKind.merged, run.run_id, name, about, str(out))
        link_models(
            client, run.run_id, made_id=log_model(client, experiment_id, record, run.run_id)
        )


def _find_base_id(run: object) -> str:
    """Return the logged model of the base that a run began with; "" where it has none."""
    inputs = getattr(run, "inputs", None)
    return next((one.model_id for one in inputs.model_inputs), "") if inputs else ""
