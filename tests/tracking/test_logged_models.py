"""What MLflow's pages show of a run: datasets, models, and metrics that are tied to them."""

import json
from pathlib import Path

import pytest
from builders import slow
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


def test_metrics_belong_to_models_and_questions(store: MlflowClient, config: RunConfig) -> None:
    first, second = record_run(config, "one"), record_run(config, "two", KEPT)
    run = store.get_run(first)
    inputs = [questions.dataset for questions in run.inputs.dataset_inputs]
    datasets = {dataset.name: dataset for dataset in inputs}
    assert list(datasets) == NAMES
    for questions in run.inputs.dataset_inputs:
        assert {tag.key: tag.value for tag in questions.tags} == {"mlflow.data.context": "eval"}
        assert json.loads(questions.dataset.profile) == {"num_rows": 200}
    [base] = list_models(store, "base")
    for run_id in (first, second):  # both have the same base
        [linked] = store.get_run(run_id).inputs.model_inputs
        assert linked.model_id == base.model_id
    tuned = store.get_logged_model(run.outputs.model_outputs[0].model_id)
    assert (tuned.name, tuned.status, tuned.source_run_id) == ("one", "READY", first)
    assert tuned.params["lora.r"] == run.data.params["lora.r"]
    measured = {metric.key: metric for metric in tuned.metrics}
    assert {"kept", "tuned/pocket_cs", "change/pocket_cs"} <= set(measured)
    assert not [key for key in measured if key.startswith(("base/", "cost/"))]
    assert measured["change/pocket_cs"].value == run.data.metrics["change/pocket_cs"] == -44.0
    for name, dataset in datasets.items():
        change = measured[f"change/{name}"]
        assert (change.dataset_name, change.dataset_digest) == (name, dataset.digest)
    scores = {(metric.key, metric.run_id) for metric in base.metrics}
    assert scores == {(f"base/{name}", run_id) for name in NAMES for run_id in (first, second)}


def test_people_read_points_and_losses_first(store: MlflowClient, config: RunConfig) -> None:
    data = store.get_run(record_run(config, "one")).data
    assert data.tags["slimdown.verdict"].count("↓") == len(NAMES)
    assert data.metrics["kept"] == data.metrics["learned"] == -44.0
    assert data.params["benchmark"] == ",".join(NAMES)
    assert not [text for text in data.params.values() if text.startswith(("{", "["))]


STAGES = [("log_model_artifacts", 1), ("finalize_logged_model", 1), ("finalize_logged_model", 2)]
STAGES += [("log_outputs", 1), ("log_inputs", 1), ("set_terminated", 1)]


@pytest.mark.parametrize(("stage", "count"), [("create_logged_model", 2), *slow(*STAGES)])
def test_a_kill_leaves_no_second_model_and_no_metric_twice(
    stage: str, count: int, store: MlflowClient, config: RunConfig
) -> None:
    check_after_kill(store, config, stage, count)


def check(*arguments: str) -> tuple[int, str]:
    """Return the exit code of `slimdown check`, and what it prints."""
    done = call_verb(Path.cwd(), "check", *arguments)
    return done.returncode, done.stdout + done.stderr


def test_only_what_passes_is_registered_and_once(store: MlflowClient, config: RunConfig) -> None:
    lost, kept = record_run(config, "lost"), record_run(config, "kept", KEPT)
    register = ["--register", "support", "--alias", "champion"]
    assert check(lost, *register)[0] == 1
    assert check(kept, "--max-loss", "0.0001", *register)[0] == 2
    assert not store.search_registered_models()
    for _ in range(2):
        code, output = check(kept, "--max-loss", "0.05", *register)
        assert (code, "models:/support/1, champion" in output) == (0, True)
    [version] = store.search_model_versions("name = 'support'")
    assert str(version.version) == "1"
    version = store.get_model_version_by_alias("support", "champion")
    assert version.run_id == kept
    assert version.tags["slimdown.outcome"].startswith("PASSED")
    [model] = [model for model in list_models(store, "tuned") if model.source_run_id == kept]
    assert version.source == model.artifact_location
    [shown] = json.loads(model.tags["mlflow.modelVersions"])
    assert str(shown["version"]) == "1"


def test_a_challenger_is_judged_against_a_champion(store: MlflowClient, composed: Compose) -> None:
    champion, challenger, worse = (
        record_run(set_metric(composed(f"seed={seed}", "evaluation.holdout=0.5")), name, scores)
        for seed, (name, scores) in enumerate([("champion", KEPT), ("c", KEPT), ("w", LOST)])
    )
    against = ["--against", "models:/support@champion", "--max-loss", "0.05"]
    code, output = check(challenger, *against)  # there is no champion yet
    assert (code, "--alias champion" in output) == (3, True)
    register = ["--register", "support", "--alias", "champion"]
    assert check(champion, "--max-loss", "0.05", *register)[0] == 0
    code, output = check(challenger, *against)
    assert code == 0
    assert champion[:8] in output
    assert "200 questions" not in output  # the held-out half of them
    assert store.get_run(challenger).data.tags["slimdown.checked"] == "1"
    assert check(worse, *against)[0] == 3  # it was asked other questions
    assert "slimdown.checked" not in store.get_run(worse).data.tags
    code, output = check(champion, *against)
    assert (code, "own model" in output) == (3, True)
    code, output = check(challenger, "--against", "models:/support@champio")
    assert (code, "versions up to 1" in output) == (3, True)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--register", "a/b"], "has no / : @"),
        (["--register", "a", "--alias", "7"], "such as champion"),
        (["--alias", "x"], "--register NAME"),
        (["--against", "support@champion"], "give models:/NAME@ALIAS"),
    ],
)
def test_a_wrong_name_is_told(
    arguments: list[str], problem: str, store: MlflowClient, config: RunConfig
) -> None:
    code, output = check(record_run(config, "one", KEPT), *arguments)
    assert (code, problem in output) == (3, True)


def test_a_model_out_of_the_record_is_refused(store: MlflowClient, config: RunConfig) -> None:
    run_id = record_run(config, "one", KEPT, tags={"slimdown.origin": "you/yours@1"})
    code, output = check(run_id, "--register", "support", "--max-loss", "0.05")
    assert (code, "you/yours@1" in output) == (3, True)
    assert not store.search_registered_models()
