"""What is in the store afterwards, read back with MLflow's own client."""

import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from slimdown.config import TrackingConfig, UserError
from slimdown.store import open_store, public_uri, redact
from slimdown.tracking import TrackedRun
from slimdown.train import StepRecord


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


def test_artifacts_lie_beside_the_database(store: MlflowClient, tmp_path: Path) -> None:
    with tracked() as run:
        run.log_report("# what was lost", {"plots/changes.svg": "<svg/>", "plots/changes.png": b"png"})
    assert (tmp_path / "mlruns" / "artifacts" / run.run_id / "artifacts" / "report.md").read_text() == "# what was lost"
    assert store.get_run(run.run_id).data.tags["mlflow.note.content"] == "# what was lost"


def test_settings_are_params_by_the_keys_that_override_them(store: MlflowClient) -> None:
    flat = {f"section.key{i}": i for i in range(150)} | {
        "lora.target_modules": ["q_proj", "v_proj"],
        "long": "x" * 9000,
    }
    with tracked() as run:
        run.log_settings(flat, "lora:\n  r: 8\n", ["lora.r=8"], {"python": "3.11"})
    params = store.get_run(run.run_id).data.params
    assert len(params) == 152
    assert params["lora.target_modules"] == "q_proj,v_proj"
    assert len(params["long"]) == 6000
    assert {a.path for a in store.list_artifacts(run.run_id)} == {"config.yaml", "overrides.txt", "environment.json"}


def test_no_secret_reaches_the_store(store: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from slimdown.provenance import environment

    monkeypatch.setenv("HF_TOKEN", "hf_veryverysecret")
    uri = "postgresql://me:hunter2@db/mlflow"
    run = tracked()
    with pytest.raises(RuntimeError), run:
        run.log_settings({"tracking.uri": uri}, f"uri: {uri}\n", [f"tracking.uri={uri}"], environment())
        raise RuntimeError(f"cannot reach {uri} with password=hunter2")
    everything = str(store.get_run(run.run_id).to_dictionary())
    everything += "".join(f.read_text() for f in (tmp_path / "mlruns" / "artifacts").rglob("*") if f.is_file())
    assert "postgresql://***@db/mlflow" in everything
    assert "hunter2" not in everything
    assert "hf_veryverysecret" not in everything


def test_redacting_leaves_plain_text_alone() -> None:
    assert redact("lora.r=8 benchmark.gsm8k.limit=200") == "lora.r=8 benchmark.gsm8k.limit=200"
    assert redact("HF_TOKEN=abc") == "HF_TOKEN=***"
    assert public_uri("https://user:word@host:5000/x") == "https://***@host:5000/x"
    assert public_uri("sqlite:///mlruns/mlflow.db") == "sqlite:///mlruns/mlflow.db"


def test_a_server_that_does_not_answer_is_named_within_seconds() -> None:
    with pytest.raises(UserError, match=r"tracking.uri=http://127.0.0.1:9 does not answer .* start the server"):
        open_store(TrackingConfig(uri="http://127.0.0.1:9", experiment="x"))


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be used"):
        open_store(TrackingConfig(uri=f"sqlite:///{tmp_path}/file/mlflow.db", experiment="x"))


def test_a_deleted_experiment_is_named(store: MlflowClient) -> None:
    store.delete_experiment(store.create_experiment("gone"))
    with pytest.raises(UserError, match=r"tracking\.experiment=gone was deleted in MLflow; restore it"):
        TrackedRun(local("gone"), "run", kind="tuned", tags={})


@pytest.mark.slow
def test_processes_that_open_a_fresh_store_together_all_succeed(tmp_path: Path) -> None:
    script = (
        "from slimdown.config import TrackingConfig\n"
        "from slimdown.tracking import TrackedRun\n"
        "with TrackedRun(TrackingConfig(uri='sqlite:///mlruns/mlflow.db', experiment='new'), 'r', 'tuned', {}): pass\n"
    )
    jobs = [subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path) for _ in range(4)]
    assert [job.wait(timeout=240) for job in jobs] == [0, 0, 0, 0]
    client = MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("new")
    assert len(client.search_runs([experiment.experiment_id])) == 4
