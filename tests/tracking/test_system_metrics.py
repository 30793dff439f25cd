"""How busy the machine was while a run worked, as MLflow's page of it shows."""

from pathlib import Path
from threading import Event

import pytest
from commands_and_runs import QuietHandler, serve
from mlflow import MlflowClient
from record_builders import Compose, Logs, Patch, make_info, record_run

from slimdown.config.schema import RunConfig
from slimdown.config.tracking_config import TrackingConfig
from slimdown.tracking import system_metrics
from slimdown.tracking.run_writer import open_run
from slimdown.tracking.system_metrics import record_system_metrics

CPU = "system/cpu_utilization_percentage"
# Commands let these two say nothing, see `set_up_process`.
SILENCED = {"mlflow.store.db.utils", "mlflow.system_metrics.system_metrics_monitor"}


def read_steps(store: MlflowClient, run_id: str) -> list[int]:
    return [point.step for point in store.get_metric_history(run_id, CPU)]


def test_a_run_of_a_moment_has_a_point_and_a_longer_one_more(
    store: MlflowClient, config: RunConfig, monkeypatch: Patch
) -> None:
    run_id = record_run(config, "one")
    recorded = store.get_run(run_id)
    assert recorded.info.status == "FINISHED"
    assert read_steps(store, run_id) == [0]
    names = {name for name in recorded.data.metrics if name.startswith("system/")}
    assert names > {CPU, "system/system_memory_usage_megabytes", "system/disk_usage_percentage"}
    monkeypatch.setattr(system_metrics, "_FIRST_SECONDS", 0.01)
    with record_system_metrics(config.tracking, run_id):
        while len(read_steps(store, run_id)) < 4:
            pass
    steps = read_steps(store, run_id)
    assert steps == list(range(len(steps)))  # the run goes on at its next step


def test_the_setting_turns_them_off(store: MlflowClient, composed: Compose) -> None:
    run_id = record_run(composed("tracking.system_metrics=false"), "one")
    assert not [name for name in store.get_run(run_id).data.metrics if name.startswith("system/")]


def test_a_run_that_fails_or_is_stopped_keeps_them(store: MlflowClient, config: RunConfig) -> None:
    with pytest.raises(KeyboardInterrupt), open_run(config, make_info(config, "one")) as run:
        raise KeyboardInterrupt
    with (
        pytest.raises(ValueError, match="wrong"),
        open_run(config, make_info(config, "one", resume_run_id=run.run_id)),
    ):
        raise ValueError("wrong")
    assert store.get_run(run.run_id).info.status == "FAILED"
    assert read_steps(store, run.run_id) == [0, 1]


def test_a_store_that_vanishes_takes_them_along_and_nothing_else(
    store: MlflowClient, config: RunConfig, caplog: Logs, monkeypatch: Patch
) -> None:
    run_id = record_run(config, "one")
    file = Path("mlruns/mlflow.db")
    monkeypatch.setattr(system_metrics, "_FIRST_SECONDS", 0.01)
    with record_system_metrics(config.tracking, run_id):
        while len(read_steps(store, run_id)) < 2:
            pass
        file.rename("kept.db")
    assert {record.name for record in caplog.records} <= SILENCED
    Path("kept.db").replace(file)
    assert store.get_run(run_id).info.status == "FINISHED"


def test_the_end_does_not_wait_for_a_server_that_has_fallen_silent(monkeypatch: Patch) -> None:
    was_asked, is_over = Event(), Event()

    class Silent(QuietHandler):
        def do_GET(self) -> None:
            if "experiments/search" not in self.path:  # what tells whether a server is there
                was_asked.set()
                is_over.wait(600)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        do_POST = do_GET

    monkeypatch.setattr(system_metrics, "_END_SECONDS", 0.1)
    with serve(Silent) as address:
        with record_system_metrics(TrackingConfig(address, "x", True), "a" * 32):
            assert was_asked.wait(600)
        assert not is_over.is_set()  # here although nothing was answered
        is_over.set()
