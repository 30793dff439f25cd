"""What a command hands to the workers of its sweep, on this machine or another."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from record_builders import Compose, Patch

from slimdown.sweep import jobs, sweeper
from slimdown.sweep.command_line import ComposedRun, compose_runs, read_command_line
from slimdown.sweep.jobs import JobOutcome, JobState, SweepInfo
from slimdown.utils.errors import TrackingError


@pytest.fixture
def sweep(tmp_path: Path) -> SweepInfo:
    return SweepInfo(tmp_path, "ranks", ("lora.r",), n_jobs=1, numbers=(1,))


def test_a_worker_in_another_folder_writes_into_the_same_record(
    sweep: SweepInfo, composed: Compose, tmp_path: Path, monkeypatch: Patch
) -> None:
    (tmp_path / "driver").mkdir()
    monkeypatch.chdir(tmp_path / "driver")
    sweep.write_settings(1, ComposedRun([], composed("tracking.uri=sqlite:///mlruns/mlflow.db")))
    monkeypatch.chdir("/")
    uri = sweep.read_settings(1).config.tracking.uri
    assert uri == f"sqlite:///{tmp_path}/driver/mlruns/mlflow.db"


def test_a_worker_without_the_address_makes_no_record_of_its_own(
    sweep: SweepInfo, composed: Compose, monkeypatch: Patch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # so that it is restored
    config = composed("tracking.uri=http://me:secret@server:5000")
    sweep.write_settings(1, ComposedRun([], config))
    assert sweep.read_settings(1).config.tracking.uri == config.tracking.uri
    assert "secret" not in (sweep.folder / "1.settings.json").read_text()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    with pytest.raises(TrackingError, match="set MLFLOW_TRACKING_URI"):
        sweep.read_settings(1)


@pytest.mark.parametrize("reuse", ["true", "false"])
def test_nothing_is_launched_where_no_base_is_shared_and_nothing_twice(
    reuse: str, composed: Compose, tmp_path: Path, monkeypatch: Patch
) -> None:
    """A launcher that lost job 1 raises while job 2 goes on; submitit launches no empty list."""
    plan = compose_runs(read_command_line(["-m", "seed=0,1", f"baseline.reuse={reuse}"]))
    sweep = sweeper.Sweep(read_command_line(["-m", "seed=0,1"]), plan)
    sweep.info = SweepInfo(tmp_path, "seeds", ("seed",), in_worker=True)
    launched = []

    def launch(hydra: object, task: Any, overrides: list[list[str]]) -> None:
        launched.append((task.func.__name__, task.args[0].numbers))
        if launched[-1] == ("run_sweep_job", (1, 2)):
            sweep.info.write_outcome(1, JobOutcome(JobState.running))  # and then it dies
            sweep.info.write_outcome(2, JobOutcome(JobState.running))
            raise RuntimeError("job 1 died")
        sweep.info.write_outcome(1, JobOutcome(JobState.finished))
        sweep.info.write_outcome(2, JobOutcome(JobState.finished))  # meanwhile

    monkeypatch.setattr(sweeper, "launch", launch)
    monkeypatch.setattr(sweeper, "find_finished", lambda *_: None)
    states = [outcome.state for outcome in sweep._run(plan.runs)]
    assert states == [JobState.finished, JobState.finished]
    base = [("measure_base_job", (2,))] if reuse == "true" else []
    assert launched == [*base, ("run_sweep_job", (1, 2)), ("run_sweep_job", (1,))]


@pytest.mark.parametrize("state", JobState)
def test_a_job_is_made_once(state: JobState, sweep: SweepInfo, monkeypatch: Patch) -> None:
    """Slurm queues a killed job again, and a launcher that lost one job queues all others."""
    config = type("Config", (), {"job": type("Job", (), {"num": 0})})
    monkeypatch.setattr(jobs.HydraConfig, "get", lambda: config)
    make = Mock(return_value=JobOutcome(JobState.finished, "a" * 32))
    monkeypatch.setattr(jobs, "run_job", make)
    monkeypatch.setattr(SweepInfo, "read_settings", lambda *_: None)
    if state is not JobState.waiting:  # then there is no file
        sweep.write_outcome(1, JobOutcome(state))
    jobs.run_sweep_job(sweep, None)
    assert make.called is (state in (JobState.waiting, JobState.running, JobState.killed))
