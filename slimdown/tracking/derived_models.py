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
    """Record a scaled model with its files and its findings, in a new run of kind `scaled`.

    If the store fails meanwhile, the new run stays RUNNING, because the store would not take
    another status either. No command reads runs of this kind: they are for MLflow's pages.

    Args:
        tracking: The store.
        run: The run whose model was scaled.
        scale: The factor by which the trained change was scaled, from 0 to 1.
        folder: The files of the scaled model.
        findings: Its changes against the base, on the questions that did not choose the scale.

    Raises:
        TrackingError: The store does not take it.
    """
    client = store.open_store(tracking, must_exist=True)
    params = {"scale": f"{scale:g}", "run": run.run_id}
    with store.explain_store_errors(tracking):
        training_run = client.get_run(run.run_id)
        experiment_id = training_run.info.experiment_id
        base_id = _find_base_id(training_run)
        title = f"{run.name} × {scale:g}"
        run_id = store.create_run(client, experiment_id, title, ModelKind.scaled).info.run_id
        # The name of a model has an x, because MLflow takes no × there.
        record = describe_made(ModelKind.scaled, run_id, f"{run.name} x {scale:g}", params)
        model_id = log_model(client, experiment_id, record, run_id, folder)
        link_models(client, run_id, base_id, model_id)
        questions = describe_all_questions(findings.tuned)
        client.log_inputs(run_id, list(questions.values()))
        values = collect_finding_metrics(findings)
        now = int(time.time() * 1000)
        metrics = assign_metrics(values, questions, base_id, made_id=model_id, timestamp=now)
        client.log_batch(run_id, metrics)
        store.log_settings(client, run_id, params)
        client.set_tag(run_id, Tag.verdict, describe_verdicts(findings))
        client.set_terminated(run_id, "FINISHED")


def record_merged(
    tracking: TrackingConfig, run: RunRecord, out: Path, params: Mapping[str, str]
) -> None:
    """Record a merged model and the folder where its files stay; they are not copied.

    A second merge into the same folder finds the entry of the first one.

    Args:
        tracking: The store.
        run: The run whose adapter was merged.
        out: The folder of the merged model.
        params: How it was merged, for MLflow's page of the model.

    Raises:
        TrackingError: The store does not take it.
    """
    client = store.open_store(tracking, must_exist=True)
    title = f"{run.name} merged"
    shown = {"folder": str(out), "run": run.run_id, **params}
    # `detail` is part of the key: each folder of a run's model has an entry of its own.
    record = describe_made(ModelKind.merged, run.run_id, title, shown, detail=str(out))
    with store.explain_store_errors(tracking):
        experiment_id = client.get_run(run.run_id).info.experiment_id
        model_id = log_model(client, experiment_id, record, run.run_id)
        link_models(client, run.run_id, made_id=model_id)


def _find_base_id(run: Any) -> str:
    """Return the logged model of the base that a run began with; "" where it has none."""
    if not run.inputs or not run.inputs.model_inputs:
        return ""
    return str(run.inputs.model_inputs[0].model_id)
