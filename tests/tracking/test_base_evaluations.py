"""A base is measured once, and nobody's answers are believed blindly."""

import getpass
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from threading import Event, Thread

import pyarrow.parquet as pq
import pytest
from builders import slow
from commands_and_runs import find_runs as find_recorded
from mlflow import MlflowClient
from record_builders import Compose, Logs, make_answers, make_info, set_metric

from slimdown.config.schema import RunConfig
from slimdown.tracking.base_evaluations import RecordedEvaluations, open_base_cache
from slimdown.tracking.run_reader import find_runs
from slimdown.tracking.run_writer import open_run
from slimdown.tracking.store import open_store
from slimdown.utils.errors import TrackingError

NAME, KEY = "pocket_cs", "c" * 32


def measure(config: RunConfig) -> object:
    """Record the base's answers without a run, as before a sweep."""
    evaluation = make_answers(config)[0].benchmarks[NAME]
    open_base_cache(config).save(KEY, NAME, evaluation)
    return evaluation


def find(config: RunConfig, folder: Path) -> object:
    return RecordedEvaluations(config, "base", folder).find(KEY, NAME, config.benchmark[NAME])


def find_baseline(store: MlflowClient) -> tuple[str, Path]:
    """Return the id of the run of kind baseline, and its file of samples."""
    [run] = find_recorded(store, "baseline")
    folder = Path(run.info.artifact_uri.removeprefix("file://"))
    return run.info.run_id, folder / "samples" / f"{KEY}.parquet"


def test_a_base_is_found_by_another_run_and_named(store: MlflowClient, config: RunConfig) -> None:
    evaluation = measure(config)
    run_id, _ = find_baseline(store)
    assert store.get_run(run_id).info.status == "FINISHED"
    with pytest.raises(KeyboardInterrupt), open_run(config, make_info(config, "x")) as run:
        found = run.base_cache.find(KEY, NAME, config.benchmark[NAME])
        assert found.samples == evaluation.samples
        assert f"run {run_id[:8]} by {getpass.getuser()}, 20" in found.origin
        assert run.tuned_cache.find(KEY, NAME, config.benchmark[NAME]) is None
        raise KeyboardInterrupt


KILLED = """
import os, signal, sys
from mlflow import MlflowClient
from record_builders import compose_config, make_answers, set_metric
from slimdown.tracking.base_evaluations import open_base_cache

stage = sys.argv[1]
config = set_metric(compose_config())
setattr(MlflowClient, stage, lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
cache = open_base_cache(config)
cache.save("c" * 32, "pocket_cs", make_answers(config)[0].benchmarks["pocket_cs"])
"""


@pytest.mark.parametrize("stage", ["log_artifact", *slow("log_batch", "set_tag", "set_terminated")])
def test_a_kill_while_a_base_is_recorded_leaves_one_base_that_is_found(
    stage: str, store: MlflowClient, config: RunConfig, tmp_path: Path
) -> None:
    tests = str(Path(__file__).parents[1])
    paths = os.pathsep.join([tests, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths}
    command = [sys.executable, "-c", KILLED, stage]
    assert subprocess.run(command, env=environment).returncode == -signal.SIGKILL
    is_found = find(config, tmp_path / "x") is not None
    assert is_found is (stage == "set_terminated")
    measure(config)
    bases = find_runs(config.tracking, kind="baseline")
    assert [run.status for run in bases] == ["FINISHED"] * (1 + is_found)
    assert find(config, tmp_path / "y")


def test_what_is_not_wanted_is_not_found(
    store: MlflowClient, config: RunConfig, composed: Compose, tmp_path: Path
) -> None:
    measure(config)
    run_id, _ = find_baseline(store)
    assert find(set_metric(composed("baseline.reuse=false")), tmp_path / "a") is None
    store.set_tag(run_id, "mlflow.user", "mallory")
    assert "by mallory" in find(config, tmp_path / "d").origin


@pytest.mark.parametrize("is_shared", [False, True])
def test_answers_of_another_model_are_odd_in_a_run_and_not_where_many_models_lie(
    is_shared: bool, config: RunConfig, tmp_path: Path, caplog: Logs
) -> None:
    cache = RecordedEvaluations(config, "tuned", tmp_path / "folder", is_shared=is_shared)
    cache.save("d" * 32, NAME, make_answers(config)[1].benchmarks[NAME])
    assert cache.find(KEY, NAME, config.benchmark[NAME]) is None
    assert (f"{NAME} is measured again" in caplog.text) is not is_shared


def test_a_base_that_the_store_has_is_not_said_to_be_measured_again(
    config: RunConfig, tmp_path: Path, caplog: Logs
) -> None:
    """A killed run of another machine leaves its own answers in the folder."""
    evaluation = measure(config)
    cache = RecordedEvaluations(config, "base", tmp_path / "folder")
    cache.save("d" * 32, NAME, evaluation)
    assert cache.find(KEY, NAME, config.benchmark[NAME]).samples == evaluation.samples
    assert "measured again" not in caplog.text


def test_damaged_or_contradicting_answers_are_measured_again_with_a_line(
    store: MlflowClient, config: RunConfig, tmp_path: Path, caplog: Logs
) -> None:
    measure(config)
    run_id, file = find_baseline(store)
    table = pq.read_table(file)
    zeros = table.set_column(table.schema.get_field_index("score"), "score", [[0.0] * len(table)])
    for content in ("zeroed", "torn"):
        pq.write_table(zeros, file) if content == "zeroed" else file.write_bytes(b"x")
        assert find(config, tmp_path / content) is None
        assert NAME in caplog.text
        assert run_id in caplog.text
        caplog.clear()
    file.unlink()
    assert find(config, tmp_path / "gone") is None


def test_an_odd_baseline_is_no_error(config: RunConfig, tmp_path: Path) -> None:
    measure(config)
    with sqlite3.connect("mlruns/mlflow.db") as database:
        database.execute("UPDATE runs SET start_time = 1000000000000000000")
    assert find(config, tmp_path / "a") is None


def test_a_store_that_falls_silent_is_no_error(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers the search, and does not answer any more when the samples are to be read."""
    measure(config)
    answering = iter([open_store(config.tracking)])

    def open_once(*_: object) -> MlflowClient:
        if client := next(answering, None):
            return client
        raise TrackingError("the store does not answer")

    monkeypatch.setattr("slimdown.tracking.store.open_store", open_once)
    assert find(config, tmp_path / "a") is None


def test_one_process_measures_a_base_at_a_time(config: RunConfig) -> None:
    entered = Event()

    def enter() -> None:
        with open_base_cache(config).lock(KEY):
            entered.set()

    with open_base_cache(config).lock(KEY):
        thread = Thread(target=enter)
        thread.start()
        assert not entered.wait(0.3)
    thread.join()
    assert entered.is_set()
