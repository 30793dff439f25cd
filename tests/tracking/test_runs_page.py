"""What MLflow's page of an experiment opens with: columns, order, groups and charts."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from mlflow import MlflowClient

from slimdown.tracking.runs_page import share_view

CHANGES = {"math": -4.0, "cs": -9.5, "common": 1.0}
Values = Mapping[str, Any]


def make_run(
    store: MlflowClient, experiment: str, name: str, params: Values, metrics: Values, *, sweep: str
) -> None:
    tags = {"slimdown.kind": "tuned", "slimdown.sweep": sweep, "slimdown.verdict": "math ↓ cs ?"}
    run_id = store.create_run(experiment, run_name=name, tags=tags).info.run_id
    for key, value in metrics.items():
        store.log_metric(run_id, key, value)
    for key, value in params.items():
        store.log_param(run_id, key, value)
    store.set_terminated(run_id)


def read_view(store: MlflowClient, experiment: str) -> Any:
    share_view(store, experiment)
    return json.loads(store.get_experiment(experiment).tags["mlflow.sharedViewState.slimdown"])


@pytest.fixture
def ranks(store: MlflowClient) -> str:
    """Two ranks with two seeds each, and an older run of one more setting."""
    experiment = store.create_experiment("ranks")
    older = {"lora.r": 2, "train.learning_rate": 1, "seed": 0}
    make_run(store, experiment, "pocket", older, {"change/old": 3.0}, sweep="before")
    for r in (4, 8):
        for seed in (0, 1):
            params = {"lora.r": r, "lora.lora_alpha": 2 * r, "seed": seed}
            metrics = {f"change/{name}": value * r for name, value in CHANGES.items()}
            metrics |= {"kept": -2.0, "kept_low": -4.0, "kept_high": 0.5, "learned_loss": 0.5}
            metrics["change/odd"] = float("nan")
            name = f"pocket lora.r={r} seed={seed}"
            make_run(store, experiment, name, params, metrics, sweep="ranks")
    return experiment


def test_columns_are_what_was_varied_what_was_kept_then_changes_the_largest_loss_first(
    store: MlflowClient, ranks: str
) -> None:
    view = read_view(store, ranks)
    changes = [f"metrics.`change/{name}`" for name in ("cs", "math", "old", "common")]
    shown = ["params.`lora.r`", "params.`seed`", "metrics.`kept`", "metrics.`kept_low`"]
    shown += ["metrics.`kept_high`", "metrics.`learned_loss`", "tags.`slimdown.verdict`", *changes]
    assert view["selectedColumns"] == shown  # so Source, Models and Dataset are not
    order = [name for name in view["columnOrder"] if name in shown]
    assert order == shown
    assert view["columnOrder"][0] == "attributes.`Run Name`"
    assert set(view["columnOrder"]) == set(view["columnWidths"])
    # Each seed is a row: MLflow would average the ends of the seeds' intervals.
    assert (view["groupBy"], view["useGroupedValuesInCharts"]) == (None, False)


def test_learned_stands_where_any_run_has_it(store: MlflowClient, ranks: str) -> None:
    metrics = {"learned": 12.0, "learned_loss": 0.4}
    make_run(store, ranks, "pocket", {"seed": 0}, metrics, sweep="new")
    columns = read_view(store, ranks)["selectedColumns"]
    assert "metrics.`learned`" in columns
    assert "metrics.`learned_loss`" not in columns


def test_charts_lead_from_settings_to_changes_and_outcome(store: MlflowClient, ranks: str) -> None:
    view = read_view(store, ranks)
    first, *bars = view["compareRunCharts"]
    assert first["type"] == "PARALLEL"
    assert first["selectedParams"] == ["lora.r"]
    assert first["selectedMetrics"] == ["learned_loss", "kept"]
    assert [bar["metricKey"] for bar in bars] == [
        f"change/{name}" for name in ("cs", "math", "old", "common")
    ]
    sections = {section["uuid"] for section in view["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in view["compareRunCharts"]} == sections
    assert len({chart["uuid"] for chart in view["compareRunCharts"]}) == 5


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "custom_model_development"),
        ("genai_development_inferred", "custom_model_development"),
        ("genai_development", "genai_development"),  # chosen by somebody
    ],
)
def test_a_page_opens_for_training(store: MlflowClient, before: str | None, after: str) -> None:
    experiment = store.create_experiment("before")
    if before:
        store.set_experiment_tag(experiment, "mlflow.experimentKind", before)
    assert read_view(store, experiment)["selectedColumns"]  # without a run, too
    assert store.get_experiment(experiment).tags["mlflow.experimentKind"] == after
