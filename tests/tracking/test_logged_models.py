"""What MLflow's pages show of a run: datasets, models, and metrics that are tied to them."""

import json
from pathlib import Path

import pytest
from commands_and_runs import call_verb
from mlflow import MlflowClient
from record_builders import (
    KEPT,
    LOST,
    Compose,
    check_after_kill,
    list_models,
    record_run,
    set_metric,
)

from slimdown.config.schema import RunConfig

NAMES = ["pocket_instructions", "pocket_math", "pocket_commonsense", "pocket_cs"]


def test_a_runs_metrics_belong_to_its_models_and_questions(
    store: MlflowClient, config: RunConfig
) -> None:
    first, second = record_run(config, "one"), record_run(config, "two", KEPT)
    run = store.get_run(first)
    asked = {one.dataset.name: one for one in run.inputs.dataset_inputs}
    assert list(asked) == NAMES
    for one in asked.values():
        assert {tag.key: tag.value for tag in one.tags} == {"mlflow.data.context": "eval"}
        assert json.loads(one.dataset.profile) == {"num_rows": 200}
    [base] = list_models(store, "base")
    for run_id in (first, second):  # one base for both
        linked = store.get_run(run_id).inputs.model_inputs
        assert [one.model_id for one in linked] == [base.model_id]
    tuned = store.get_logged_model(run.outputs.model_outputs[0].model_id)
    assert (tuned.status, tuned.source_run_id) == ("READY", first)
    assert tuned.params["lora.r"] == run.data.params["lora.r"]
    measured = {metric.key: metric for metric in tuned.metrics}
    assert {"kept", "tuned/pocket_cs", "change/pocket_cs"} <= set(measured)
    assert not [key for key in measured if key.startswith(("base/", "cost/"))]
    assert measured["change/pocket_cs"].value == run.data.metrics["change/pocket_cs"] == -44.0
    for name, one in asked.items():
        about = measured[f"change/{name}"]
        assert (about.dataset_name, about.dataset_digest) == (name, one.dataset.digest)
    of_base = {(metric.key, metric.run_id) for metric in base.metrics}
    assert of_base == {(f"base/{name}", run_id) for name in NAMES for run_id in (first, second)}


def test_what_people_read_is_in_points_and_losses_come_first(
    store: MlflowClient, config: RunConfig
) -> None:
    data = store.get_run(record_run(config, "one")).data
    assert data.tags["slimdown.verdict"] == "instructions ↓ math ↓ commonsense ↓ cs ↓"
    assert data.metrics["kept"] == data.metrics["learned"] == -44.0
    assert data.params["benchmark"] == ",".join(NAMES)
    assert not [text for text in data.params.values() if text.startswith(("{", "["))]


@pytest.mark.parametrize(
    ("stage", "count"),
    [
        ("create_logged_model", 2),
        pytest.param("log_model_artifacts", 1, marks=pytest.mark.slow),
        pytest.param("finalize_logged_model", 1, marks=pytest.mark.slow),
        pytest.param("finalize_logged_model", 2, marks=pytest.mark.slow),
        pytest.param("log_outputs", 1, marks=pytest.mark.slow),
        pytest.param("log_inputs", 1, marks=pytest.mark.slow),
        pytest.param("set_terminated", 1, marks=pytest.mark.slow),
    ],
)
def test_a_kill_leaves_no_second_model_and_no_metric_twice(
    stage: str, count: int, store: MlflowClient, config: RunConfig
) -> None:
    check_after_kill(store, config, stage, count)


def test_a_plain_client_finds_the_model_that_kept_most(
    store: MlflowClient, composed: Compose
) -> None:
    for name, scores in (("a", LOST), ("b", KEPT), ("c", LOST)):
        config = set_metric(composed(f"seed={ord(name)}"))
        kept_most = record_run(config, name, scores) if name == "b" else ""
        kept_most = kept_most or record_run(config, name, scores)
    experiments = [one.experiment_id for one in store.search_experiments()]
    order = [{"field_name": "metrics.change/pocket_cs", "ascending": False}]
    found = store.search_logged_models(experiments, order_by=order, max_results=1)
    assert [one.name for one in found] == ["b"]


def check(*arguments: str) -> tuple[int, str]:
    done = call_verb(Path.cwd(), "check", *arguments)
    return done.returncode, done.stdout + done.stderr


def list_versions(store: MlflowClient) -> list[str]:
    return [str(one.version) for one in store.search_model_versions("name = 'support'")]


def test_only_what_passes_is_registered_and_once(store: MlflowClient, config: RunConfig) -> None:
    lost, kept = record_run(config, "lost"), record_run(config, "kept", KEPT)
    register = ["--register", "support", "--alias", "champion"]
    assert check(lost, *register)[0] == 1
    assert check(kept, "--max-loss", "0.0001", *register)[0] == 2
    assert not store.search_registered_models()
    for _ in range(2):
        code, said = check(kept, "--max-loss", "0.05", *register)
        assert (code, "registered: models:/support/1, champion" in said) == (0, True)
    assert list_versions(store) == ["1"]
    version = store.get_model_version_by_alias("support", "champion")
    assert version.run_id == kept
    assert version.tags["slimdown.outcome"].startswith("PASSED")
    [model] = [one for one in list_models(store, "tuned") if one.source_run_id == kept]
    assert version.source == model.artifact_location
    shown = json.loads(model.tags["mlflow.modelVersions"])
    assert [str(one["version"]) for one in shown] == ["1"]


def test_a_challenger_is_judged_against_the_champions_answers(
    store: MlflowClient, composed: Compose
) -> None:
    config = set_metric(composed("evaluation.holdout=0.5"))
    champion = record_run(config, "champion", KEPT)
    challenger = record_run(set_metric(composed("seed=1", "evaluation.holdout=0.5")), "c", KEPT)
    worse = record_run(set_metric(composed("seed=2", "evaluation.holdout=0.5")), "w", LOST)
    against = ["--against", "models:/support@champion", "--max-loss", "0.05"]
    code, said = check(challenger, *against)
    assert (code, "check RUN --register support --alias champion" in said) == (3, True)
    assert check(champion, "--max-loss", "0.05", "--register", "support", "--alias", "champion")[
        0
    ] == (0)
    code, said = check(challenger, *against)
    assert code == 0
    assert f"base is support version 1: run {champion[:8]}." in said
    assert "200 questions" not in said  # the held-out half of them
    assert store.get_run(challenger).data.tags["slimdown.checked"] == "1"
    assert check(worse, *against)[0] == 3  # it was asked other questions
    assert "slimdown.checked" not in store.get_run(worse).data.tags
    code, said = check(champion, *against)
    assert (code, "this run's own model" in said) == (3, True)
    code, said = check(challenger, "--against", "models:/support@champio")
    assert (code, "support has champion, versions up to 1" in said) == (3, True)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--register", "a/b"], "has no / : @"),
        (["--register", "a", "--alias", "7"], "such as champion"),
        (["--alias", "x"], "--register NAME"),
        (["--against", "support@champion"], "give models:/NAME@ALIAS"),
    ],
)
def test_a_wrong_name_is_one_line(
    arguments: list[str], problem: str, store: MlflowClient, config: RunConfig
) -> None:
    run_id = record_run(config, "one", KEPT)
    try:
        code, said = check(run_id, *arguments)
    except SystemExit as stop:  # argparse's
        code, said = int(stop.code or 0), problem
    assert code == 3
    assert problem in said


def test_a_model_that_the_record_lacks_is_refused_before(
    store: MlflowClient, config: RunConfig
) -> None:
    run_id = record_run(config, "one", KEPT, tags={"slimdown.origin": "you/yours@1"})
    code, said = check(run_id, "--register", "support", "--max-loss", "0.05")
    assert (code, "you/yours@1" in said) == (3, True)
    assert not store.search_registered_models()
