"""A run in the record: what it holds, how it ends, and what a silent store costs."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import ENDPOINT_NOT_FOUND
from record_builders import (
    KEPT,
    Compose,
    Logs,
    Patch,
    list_models,
    make_answers,
    make_info,
    record_run,
    save_answers,
    serve_mlflow,
    set_metric,
)

from slimdown.config.schema import RunConfig
from slimdown.tracking.resume import find_equal_run_and_lock
from slimdown.tracking.run_reader import find_run, find_runs, read_config, read_evaluations
from slimdown.tracking.run_writer import open_run
from slimdown.tracking.store import create_run, find_experiment
from slimdown.tracking.sweep_run import open_sweep_run
from slimdown.training.result import StepLog
from slimdown.utils.errors import DataError, ModelError, SlimdownError, TrackingError


def test_a_run_stays_within_the_limits(store: MlflowClient, composed: Compose) -> None:
    run = store.get_run(record_run(composed(), "one", run_key="a" * 32, sweep="ranks"))
    assert run.info.status == "FINISHED"
    assert len([name for name in run.data.metrics if not name.startswith("system/")]) <= 30
    assert len(run.data.params) <= 15
    assert len(run.data.tags) <= 13
    experiment = store.get_experiment(run.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    view = json.loads(experiment.tags["mlflow.sharedViewState.slimdown"])
    names = [f"metrics.`{name}`" for name in run.data.metrics]
    names += [f"params.`{name}`" for name in run.data.params]
    names += [f"tags.`{name}`" for name in run.data.tags]
    assert 0 < len(view["selectedColumns"]) == len(set(view["selectedColumns"]) & set(names))
    assert not list(Path("mlruns/runs").glob("*"))  # everything is in the store


def test_what_is_written_is_read(store: MlflowClient, composed: Compose) -> None:
    config = set_metric(composed("lora.r=4", "evaluation.holdout=0.5"))
    run_id = record_run(config, "one", KEPT)
    run = find_run(config.tracking, run_id[:8])
    assert run.params["lora.r"] == "4"
    assert run.params["benchmark.pocket_cs.task"] == "pocket_cs"
    assert run.holdout == 0.5
    answers = make_answers(config, KEPT)
    for stored, made in zip(read_evaluations(config.tracking, run), answers, strict=True):
        assert stored.benchmarks == made.benchmarks
    assert len(KEPT[0]) > run.findings.benchmarks["pocket_cs"].n
    assert read_config(config.tracking, run).lora == config.lora


@pytest.mark.parametrize(
    ("error", "status", "tag"),
    [
        (ValueError("no such layer"), "FAILED", "slimdown.error"),
        (KeyboardInterrupt(), "KILLED", ""),
    ],
)
def test_a_run_that_ends_early_says_how_and_keeps_its_steps(
    error: BaseException, status: str, tag: str, store: MlflowClient, config: RunConfig
) -> None:
    with pytest.raises(type(error)), open_run(config, make_info(config, "one")) as run:
        run.log_step(StepLog(1, {"loss": 2.0, "epoch": 0.1}))
        raise error
    recorded = store.get_run(run.run_id)
    assert recorded.info.status == status
    assert recorded.data.metrics["train/loss"] == 2.0
    assert not tag or str(error) in recorded.data.tags[tag]
    assert run.folder.is_dir()  # for the same command


def test_a_run_goes_on_and_keeps_each_step_once(store: MlflowClient, config: RunConfig) -> None:
    with pytest.raises(KeyboardInterrupt), open_run(config, make_info(config, "one")) as run:
        run.log_step(StepLog(1, {"loss": 2.0}))
        base, _ = make_answers(config)
        run.base_cache.save("key", "pocket_cs", base.benchmarks["pocket_cs"])
        raise KeyboardInterrupt
    again = make_info(config, "one", resume_run_id=run.run_id)
    with open_run(config, again) as resumed:
        assert resumed.run_id == run.run_id
        benchmark = base.benchmarks["pocket_cs"].benchmark
        assert resumed.tuned_cache.find("key", "pocket_cs", benchmark) is None
        found = resumed.base_cache.find("key", "pocket_cs", benchmark)
        assert found == base.benchmarks["pocket_cs"]
        for step in (1, 2):
            resumed.log_step(StepLog(step, {"loss": 2.0 / step}))
        save_answers(resumed, config)
    steps = [metric.step for metric in store.get_metric_history(run.run_id, "train/loss")]
    assert steps == [1, 2]
    assert store.get_run(run.run_id).info.status == "FINISHED"


def make_error_of(cause: BaseException) -> ModelError:
    """Make the error that a command shows where another library raised one."""
    error = ModelError("it cannot be had")
    error.__context__ = cause  # as `raise ... from None` does
    return error


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (ModelError("made on another base"), "fails again until that is mended"),
        (DataError("rows hold what is asked"), "fails again until that is mended"),
        (make_error_of(ValueError("no JSON")), "fails again until that is mended"),
        (make_error_of(ConnectionError("silent")), "goes on in it"),
        (make_error_of(MemoryError()), "goes on in it"),
        (TrackingError("no store answers"), "goes on in it"),
        (KeyboardInterrupt(), "goes on in it"),
    ],
)
def test_the_same_command_is_advised_where_it_can_succeed(
    error: BaseException, advice: str, store: MlflowClient, config: RunConfig
) -> None:
    with pytest.raises(type(error)), open_run(config, make_info(config, "one")) as run:
        raise error
    status = store.get_run(run.run_id).info.status
    assert error.__notes__ == [f"Run {run.run_id} is marked {status}; the same command {advice}."]


@pytest.mark.slow
def test_a_server_that_goes_away_costs_no_result(
    composed: Compose, tmp_path: Path, monkeypatch: Patch, caplog: Logs
) -> None:
    monkeypatch.chdir(tmp_path)
    config, key = set_metric(composed()), "b" * 32
    with serve_mlflow(tmp_path) as (uri, kill_server):
        config = replace(config, tracking=replace(config.tracking, uri=uri))
        with (
            pytest.raises(TrackingError, match=r"are in .*mlruns/runs/"),
            open_run(config, make_info(config, "one", run_key=key)) as run,
        ):
            kill_server()
            run._next_flush, began = 0.0, time.monotonic()
            run.log_step(StepLog(1, {"loss": 2.0}))
            save_answers(run, config)
    assert time.monotonic() - began < 60  # MLflow's own retries take four minutes
    assert "they are in" in caplog.text or "see " in caplog.text
    with serve_mlflow(tmp_path, int(uri.rpartition(":")[2])):
        with find_equal_run_and_lock(config, key) as (finished, resume_run_id):
            assert finished is None
            assert resume_run_id == run.run_id
            info = make_info(config, "one", run_key=key, resume_run_id=resume_run_id)
            with open_run(config, info) as resumed:
                assert resumed.base_cache.find("k0", *next(iter(config.benchmark.items())))
                save_answers(resumed, config)
        (recorded,) = find_runs(config.tracking, with_findings=True)
    assert (recorded.status, recorded.run_id) == ("FINISHED", run.run_id)
    assert recorded.findings  # read from the server
    assert not run.folder.exists()


def test_no_id_is_a_path(config: RunConfig, tmp_path: Path, monkeypatch: Patch) -> None:
    create = MlflowClient.create_run

    def create_elsewhere(client: MlflowClient, experiment_id: str, **settings: Any) -> Any:
        run = create(client, experiment_id, **settings)
        run.info._run_id = "../../victim"
        return run

    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "thesis").write_text("years")
    monkeypatch.setattr(MlflowClient, "create_run", create_elsewhere)
    run = open_run(config, make_info(config, "one"))
    for opened in (run, open_sweep_run(config.tracking, "s", "t")):
        with pytest.raises(TrackingError, match=r"'\.\./\.\./victim'"), opened:
            pass
    assert (tmp_path / "victim" / "thesis").read_text() == "years"
    assert not list(tmp_path.rglob("*victim.lock"))


def test_stores_get_no_secret(store: MlflowClient, composed: Compose, monkeypatch: Patch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 30)
    config = composed("model.id=pocket:model")
    info = make_info(config, "token=hunter2 hf_" + "y" * 30, tags={"note": "hf_" + "x" * 30})
    with pytest.raises(ValueError, match="hunter2"), open_run(config, info) as run:
        raise ValueError("postgresql://me:hunter2@db/x")
    recorded = store.get_run(run.run_id)
    written = json.dumps([recorded.data.tags, recorded.info.run_name])
    folder = Path(recorded.info.artifact_uri.removeprefix("file://"))
    written += "".join(file.read_text() for file in folder.iterdir() if file.is_file())
    assert (folder / "traceback.txt").is_file()
    assert not any(secret in written for secret in ("hunter2", "x" * 30, "y" * 30))


def test_a_full_disk_is_one_line(config: RunConfig) -> None:
    with (
        pytest.raises(SlimdownError, match="disk is full"),
        open_run(config, make_info(config, "one")),
        Path("/dev/full").open("w") as full,
    ):
        full.write("x")


def test_a_run_killed_before_its_settings_gets_them(store: MlflowClient, composed: Compose) -> None:
    config = composed("seed=3")
    killed = create_run(store, find_experiment(store, config.tracking), "one", {}).info.run_id
    assert record_run(config, "one", resume_run_id=killed) == killed
    assert store.get_run(killed).data.params["seed"] == "3"


def test_a_server_that_keeps_no_models_is_refused_before_anything_is_computed(
    store: MlflowClient, config: RunConfig, monkeypatch: Patch
) -> None:
    def answer(*_: object, **__: object) -> None:  # as MLflow 2.22 does
        raise MlflowException("failed with error code 404", ENDPOINT_NOT_FOUND)

    monkeypatch.setattr(MlflowClient, "search_logged_models", answer)
    with pytest.raises(TrackingError, match="since version 3"):
        record_run(config, "one")
    assert not find_runs(config.tracking)


def test_more_settings_than_mlflow_takes_are_shown(store: MlflowClient, config: RunConfig) -> None:
    shown = {f"benchmark.task_{n}.limit": "5" for n in range(250)}
    params = store.get_run(record_run(config, "one", shown=shown)).data.params
    assert shown.items() <= params.items()
    [model] = list_models(store, "tuned")
    assert shown.items() <= model.params.items()
