from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from record_builders import KEPT, make_answers, record_run

from slimdown.config.schema import RunConfig
from slimdown.tracking.run_reader import find_run, read_config, read_evaluations

Compose = Callable[..., RunConfig]


def test_a_run_of_four_benchmarks_fits_the_limits(store: MlflowClient, composed: Compose) -> None:
    run = store.get_run(record_run(composed(), "one"))
    assert run.info.status == "FINISHED"
    assert len(run.data.metrics) <= 30
    assert len(run.data.params) <= 40
    assert len(run.data.tags) <= 12
    experiment = store.get_experiment(run.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    assert not list(Path("mlruns/runs").glob("*"))


def test_what_is_written_is_read(store: MlflowClient, composed: Compose) -> None:
    config = composed("lora.r=4", "evaluation.holdout=0.5")
    run_id = record_run(config, "one", KEPT)
    run = find_run(config.tracking, run_id[:8])
    assert run.params["lora.r"] == "4"
    assert run.params["benchmark.pocket_cs.task"] == "pocket_cs"
    assert run.holdout == 0.5
    base, tuned = make_answers(config, KEPT)
    stored_base, stored_tuned = read_evaluations(config.tracking, run)
    assert stored_base.benchmarks == base.benchmarks
    assert stored_tuned.benchmarks == tuned.benchmarks
    assert len(base.benchmarks["pocket_cs"].samples) > run.findings.benchmarks["pocket_cs"].n
    assert read_config(config.tracking, run).lora == config.lora
