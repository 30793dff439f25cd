"""Record what was made of a run's model: a scaled one with its measures, a merged one."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slimdown.comparison.run_records import RunRecord
from slimdown.config.tracking_config import TrackingConfig
from slimdown.judging.findings import Findings
from slimdown.tracking import store
from slimdown.tracking.datasets import describe_all_questions
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
        trained = client.get_run(run.run_id)
        experiment_id, base_id = trained.info.experiment_id, _find_base_id(trained)
        run_id = store.create_run(client, experiment_id, title, ModelKind.scaled).info.run_id
        record = describe_made(ModelKind.scaled, run_id, f"{run.name} x {scale:g}", params)
        model_id = log_model(client, experiment_id, record, run_id, folder)
        link_models(client, run_id, base_id, model_id)
        questions = describe_all_questions(findings.tuned)
        client.log_inputs(run_id, list(questions.values()))
        values, now = collect_finding_metrics(findings), int(time.time() * 1000)
        client.log_batch(run_id, assign_metrics(values, questions, base_id, model_id, now))
        store.log_settings(client, run_id, params)
        client.set_tag(run_id, Tag.verdict, describe_verdicts(findings))
        client.set_terminated(run_id, "FINISHED")


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
    record = describe_made(
        ModelKind.merged,
        run.run_id,
        name=f"{run.name} merged",
        params={"folder": str(out), "run": run.run_id, **params},
        detail=str(out),
    )
    with store.explain_store_errors(tracking):
        experiment_id = client.get_run(run.run_id).info.experiment_id
        model_id = log_model(client, experiment_id, record, run.run_id)
        link_models(client, run.run_id, made_id=model_id)


def _find_base_id(run: Any) -> str:
    """Return the logged model of the base that a run began with; "" where it has none."""
    if not run.inputs or not run.inputs.model_inputs:
        return ""
    return str(run.inputs.model_inputs[0].model_id)
