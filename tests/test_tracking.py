"""What is in the store afterwards, read back with MLflow's own client."""

import json
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_up import evaluation, written
from mlflow import MlflowClient

from slimdown.config.schema import TrackingConfig
from slimdown.stats.findings import judge
from slimdown.tracking.connection import open_store
from slimdown.tracking.write import TrackedRun
from slimdown.training.fine_tune import StepRecord
from slimdown.utils.errors import SlimdownError
from slimdown.utils.redaction import public_uri, redact


def local(experiment: str = "slimdown") -> TrackingConfig:
    return TrackingConfig(uri=f"sqlite:///{Path.cwd()}/mlruns/mlflow.db", experiment=experiment)


def tracked() -> TrackedRun:
    return TrackedRun(local(), "a run", kind="tuned", tags={})


def test_a_run_ends_finished_with_its_kind_and_name(store: MlflowClient) -> None:
    with tracked() as run:
        pass
    found = store.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name == "a run"
    assert found.data.tags["slimdown.kind"] == "tuned"


def test_a_run_that_raises_is_failed_and_says_why(store: MlflowClient) -> None:
    run = tracked()
    with pytest.raises(RuntimeError), run:
        raise RuntimeError("the disk is full")
    assert store.get_run(run.run_id).info.status == "FAILED"
    assert store.get_run(run.run_id).data.tags["slimdown.error"] == "RuntimeError: the disk is full"


def test_an_interrupted_run_is_killed_and_keeps_its_steps(store: MlflowClient) -> None:
    run = tracked()
    with pytest.raises(KeyboardInterrupt), run:
        run.log_step(StepRecord(1, {"loss": 2.5}))
        run.log_step(StepRecord(2, {"loss": 2.25}))
        raise KeyboardInterrupt
    assert store.get_run(run.run_id).info.status == "KILLED"
    history = store.get_metric_history(run.run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(1, 2.5), (2, 2.25)]


def test_a_forgetting_rate_without_an_end_is_no_metric(store: MlflowClient) -> None:
    # .27 right where guessing scores .25, then .05: more is gone than all that the base had, and no more can be said
    base, tuned = (written([1.0] * right + [0.0] * (100 - right), chance=0.25) for right in (27, 5))
    with tracked() as run:
        run.keep(judge(evaluation(a=base), evaluation(a=tuned)), {"report.md": "# what was lost"})
    kept = store.get_run(run.run_id).data.metrics
    assert {key for key in kept if "above_chance" in key} == {
        "forgetting/a/forgetting_rate_above_chance_low"
    }
    assert kept["forgetting/a/forgetting_rate_above_chance_low"] > 1
    assert kept["forgetting/a/forgetting_rate_high"] < 1


def test_artifacts_lie_beside_the_database(store: MlflowClient, tmp_path: Path) -> None:
    with tracked() as run:
        files = {
            "report.md": "# what was lost",
            "plots/changes.svg": "<svg/>",
            "plots/changes.png": b"png",
        }
        run.keep(judge(evaluation(a=written([1.0])), evaluation(a=written([0.0]))), files)
    assert (
        tmp_path / "mlruns" / "artifacts" / run.run_id / "artifacts" / "report.md"
    ).read_text() == "# what was lost"
    assert store.get_run(run.run_id).data.tags["mlflow.note.content"] == "# what was lost"


def test_settings_are_params_by_the_keys_that_override_them(store: MlflowClient) -> None:
    flat = {f"section.key{i}": i for i in range(150)} | {
        "lora.target_modules": ["q_proj", "v_proj"],
        "long": "x" * 9000,
    }
    with tracked() as run:
        run.log_settings(flat, {"config.yaml": "lora:\n  r: 8\n", "overrides.txt": "lora.r=8\n"})
    params = store.get_run(run.run_id).data.params
    assert len(params) == 152
    assert params["lora.target_modules"] == "q_proj,v_proj"
    assert len(params["long"]) == 6000
    assert {a.path for a in store.list_artifacts(run.run_id)} == {"config.yaml", "overrides.txt"}


def test_no_secret_reaches_the_store(
    store: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slimdown.tracking.provenance import environment

    monkeypatch.setenv("HF_TOKEN", "hf_veryverysecret")
    uri = "postgresql://me:hunter2@db/mlflow"
    run = tracked()
    with pytest.raises(RuntimeError), run:
        files = {
            "config.yaml": f"uri: {uri}\n",
            "overrides.txt": f"tracking.uri={uri}",
            "x": json.dumps(environment()),
        }
        run.log_settings({"tracking.uri": uri}, files)
        raise RuntimeError(f"cannot reach {uri} with password=hunter2")
    everything = str(store.get_run(run.run_id).to_dictionary())
    everything += "".join(
        f.read_text() for f in (tmp_path / "mlruns" / "artifacts").rglob("*") if f.is_file()
    )
    assert "postgresql://***@db/mlflow" in everything
    assert "hunter2" not in everything
    assert "hf_veryverysecret" not in everything


def test_redacting_leaves_plain_text_alone() -> None:
    assert redact("lora.r=8 benchmark.gsm8k.limit=200") == "lora.r=8 benchmark.gsm8k.limit=200"
    assert redact("HF_TOKEN=abc") == "HF_TOKEN=***"
    assert public_uri("https://user:word@host:5000/x") == "https://***@host:5000/x"
    assert public_uri("sqlite:///mlruns/mlflow.db") == "sqlite:///mlruns/mlflow.db"


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        (
            "http://me:pw@127.0.0.1:9",
            r"http://\*\*\*@127\.0\.0\.1:9 does not answer: .*refused.*; start the server",
        ),
        (
            "http://no.such.host.invalid:5000",
            r"http://no\.such\.host\.invalid:5000 does not answer: .*; start",
        ),
        (
            "postgresql://me:pw@127.0.0.1:9/x",
            r"postgresql://\*\*\*@127\.0\.0\.1:9/x cannot be used: .*refused.*; check",
        ),
        ("mssql://127.0.0.1/x", r"mssql://127\.0\.0\.1/x needs the driver pyodbc; install it"),
        (
            "sqlite:///{folder}",
            r"sqlite:///.* cannot be used: .*unable to open database file; choose a file",
        ),
        (
            "sqlite:///{folder}/file/mlflow.db",
            r"cannot be used: .*file.*; choose a file that you can write",
        ),
        (
            "sqlite:////proc/nowhere/mlflow.db",
            r"cannot be used: .*/proc/nowhere.*; choose a file that you can write",
        ),
    ],
)
def test_a_store_that_cannot_be_used_is_named_within_seconds(
    uri: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    started = time.monotonic()
    with pytest.raises(SlimdownError, match=said) as refused:
        open_store(TrackingConfig(uri=uri.format(folder=tmp_path), experiment="x"))
    assert time.monotonic() - started < 10
    assert "pw@" not in str(refused.value)


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_a_server_that_accepts_and_says_nothing_is_known_in_time(
    scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("slimdown.tracking.connection._MOST_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}/x"
        with pytest.raises(
            SlimdownError,
            match=rf"{scheme}://127.* does not answer: (no answer within 1 s|.*timed out)",
        ):
            open_store(TrackingConfig(uri=uri, experiment="x"))


def test_a_missing_driver_is_one_line_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(SlimdownError) as refused:
        open_store(TrackingConfig(uri="postgresql://me:pw@127.0.0.1:9/x", experiment="x"))
    assert str(refused.value) == (
        "tracking.uri=postgresql://***@127.0.0.1:9/x needs the driver psycopg; pip install 'slimdown[postgres]'"
    )


@pytest.mark.parametrize(
    "uri",
    ["sqlite://", "sqlite:///", "sqlite:////", "sqlite:///:memory:", "sqlite:///mlruns/", "sqlite://mlruns/mlflow.db",
     "sqlite+pysqlite:///:memory:", "sqlite:///file::memory:?uri=true", "", "mlruns", "file:///mlruns", "http://",
     "postgresql://", "postgresqlx://h/d"],
)  # fmt: skip
def test_an_address_that_keeps_nothing_is_refused_with_what_would_be_right(uri: str) -> None:
    config = TrackingConfig(uri=uri, experiment="x")
    [problem] = config.problems()
    assert "sqlite:///mlruns/mlflow.db" in problem
    with pytest.raises(SlimdownError, match=r"tracking\.uri"):
        open_store(config)


def test_a_store_whose_making_is_cut_short_is_not_there(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # bytes: some of its tables, not all
    try:
        with pytest.raises(SlimdownError, match="cannot be used"):
            open_store(TrackingConfig(uri=f"sqlite:///{tmp_path}/mlruns/mlflow.db", experiment="x"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not any(
        file.stat().st_size for file in tmp_path.rglob("*.db*")
    )  # half a store is refused for good


def test_a_deleted_experiment_is_named(store: MlflowClient) -> None:
    store.delete_experiment(store.create_experiment("gone"))
    with pytest.raises(
        SlimdownError, match=r"tracking\.experiment=gone was deleted in MLflow; restore it"
    ):
        TrackedRun(local("gone"), "run", kind="tuned", tags={})


@pytest.mark.slow
def test_processes_that_open_a_fresh_store_together_all_succeed(tmp_path: Path) -> None:
    script = (
        "from slimdown.config.schema import TrackingConfig\n"
        "from slimdown.tracking.write import TrackedRun\n"
        "with TrackedRun(TrackingConfig(uri='sqlite:///mlruns/mlflow.db', experiment='new'), 'r', 'tuned', {}): pass\n"
    )
    jobs = [subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path) for _ in range(4)]
    assert [job.wait(timeout=240) for job in jobs] == [0, 0, 0, 0]
    client = MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("new")
    assert len(client.search_runs([experiment.experiment_id])) == 4


def test_the_attack_loses_signals_in_steps_that_a_run_has() -> None:
    from bench.faults import STEPS

    assert [step for step in STEPS if not callable(getattr(TrackedRun, step, None))] == []
