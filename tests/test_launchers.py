"""Jobs in processes of their own, whatever starts them: interrupted, killed, started again, and told of at the end."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from conftest import SMALL
from mlflow import MlflowClient
from mlflow.entities import Run
from omegaconf import OmegaConf

from slimdown.config.files import CONF_DIR
from slimdown.config.launchers import inherited, launcher_problems, n_cores, n_gpus
from slimdown.config.schema import TrackingConfig
from slimdown.tracking.read import find_runs
from slimdown.tracking.tags import Tag

FEW = [*SMALL[:2], "train.max_steps=2", "benchmark=[pocket_cs]", "benchmark.pocket_cs.limit=8"]
SEEDS = [
    "-m",
    "hydra/launcher=joblib",
    f"hydra.launcher.n_jobs={min(2, n_cores())}",
    "seed=0,1",
    *FEW,
]


@pytest.fixture(scope="module")
def folder(migrated_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands of this file are typed."""
    folder = tmp_path_factory.mktemp("launched")
    (folder / "mlruns").mkdir()
    (folder / "mlruns" / "mlflow.db").write_bytes(migrated_store.read_bytes())
    return folder


def begin(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    environment = {
        name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")
    }
    return subprocess.Popen(
        [sys.executable, "-m", "slimdown.run", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def at_work(folder: Path, process: "subprocess.Popen[str]") -> Iterator[list[dict[str, Any]]]:
    """Every moment, as long as the newest command runs, its jobs that have begun."""
    while process.poll() is None:
        jobs = []
        for file in sorted(
            max(folder.glob("outputs/*")).glob(".jobs/*.json")
            if list(folder.glob("outputs/*"))
            else []
        ):
            with suppress(OSError, ValueError):
                jobs.append({"number": int(file.stem), **json.loads(file.read_text())})
        yield [job for job in jobs if job["state"] == "at work"]
        time.sleep(0.1)


def worker_of(job: dict[str, Any], command: int) -> psutil.Process:
    """The process that prints into the log of a job."""
    for process in psutil.Process(command).children(recursive=True):
        with suppress(psutil.Error):
            if any(file.path == job["log"] for file in process.open_files()):
                return process
    raise AssertionError(f"nobody works on {job}")


def runs_in(folder: Path, kind: str) -> list[Run]:
    client = MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    found = client.search_runs(
        ["0", *(e.experiment_id for e in client.search_experiments())],
        f"tags.`{Tag.kind}` = '{kind}'",
    )
    return sorted(found, key=lambda run: run.data.tags.get(Tag.seed, ""))


@pytest.fixture(scope="module")
def interrupted(folder: Path) -> tuple[int, str, str, list[Run], list[Run]]:
    """A job or both at work, and a signal to the command alone: exit code, stdout, stderr, runs, runs of sweeps."""
    process = begin(folder, *SEEDS)
    for jobs in at_work(folder, process):
        if any(job["run_id"] for job in jobs):
            workers = [worker_of(job, process.pid) for job in jobs]
            process.send_signal(signal.SIGINT)
            break
    out, err = process.communicate(timeout=120)
    psutil.wait_procs(workers, timeout=20)
    assert not [worker for worker in workers if worker.is_running()]
    return process.returncode, out, err, runs_in(folder, "tuned"), runs_in(folder, "sweep")


@pytest.fixture(scope="module")
def killed(folder: Path, interrupted: object) -> tuple[int, str, str]:
    """The same command, in which the first job's process is killed twice early and once late: exit code and output."""
    process = begin(folder, *SEEDS)
    ended: set[float] = set()
    for jobs in at_work(folder, process):
        for job in jobs:
            if (
                job["number"] == 0
                and job["began"] not in ended
                and (len(ended) < 2 or job["run_id"])
            ):
                with suppress(AssertionError, psutil.Error):
                    worker_of(job, process.pid).kill()
                    ended.add(job["began"])
    out, err = process.communicate(timeout=120)
    assert len(ended) == 3
    return process.returncode, out, err


def test_a_signal_to_the_command_ends_the_runs_of_its_workers(
    interrupted: tuple[int, str, str, list[Run], list[Run]],
) -> None:
    code, out, err, runs, sweeps = interrupted
    assert code == 130, err
    assert {run.info.status for run in runs} == {"KILLED"}
    assert [run.info.status for run in sweeps] == ["KILLED"]
    assert re.search(
        r"2 jobs: (2|1) interrupted(, 1 still to do)?; the same command makes what is not finished",
        out,
    )
    assert err.endswith(
        "Interrupted. Runs that were at work are marked KILLED and keep what was recorded so far.\n"
    )
    assert "Traceback" not in err


def test_a_job_whose_process_always_dies_is_failed_and_the_others_are_finished(
    folder: Path,
    killed: tuple[int, str, str],
    interrupted: tuple[int, str, str, list[Run], list[Run]],
) -> None:
    code, out, err = killed
    assert code == 1
    bad, good = runs_in(folder, "tuned")
    assert {run.info.run_id for run in interrupted[3]} <= {
        bad.info.run_id,
        good.info.run_id,
    }  # gone on in
    assert (bad.info.status, good.info.status) == ("FAILED", "FINISHED")
    assert bad.data.tags[Tag.error].startswith(
        "its process died 3 times, the last time with no other beside it; Term"
    )
    assert re.search(rf"1  seed=0 +failed +{bad.info.run_id[:8]} +its process died 3 times", out)
    assert f"job 2 of 2, seed=1, finished, run {good.info.run_id}: pocket_cs " in out
    assert "2 jobs: 1 finished, 1 failed; the same command makes what is not finished." in out
    assert "Error executing job" not in out + err
    assert "\x1b" not in out + err


def test_a_sweeps_run_holds_its_runs_its_table_and_their_comparison(
    folder: Path, killed: object
) -> None:
    [sweep] = runs_in(folder, "sweep")
    assert (sweep.info.run_name, sweep.info.status) == ("sweep of seed", "FAILED")
    runs = runs_in(folder, "tuned")
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {sweep.info.run_id}
    files = folder / "mlruns" / "artifacts" / sweep.info.run_id / "artifacts"
    assert "| 1 | seed=0 | failed |" in (files / "sweep.md").read_text()
    assert "1 finished" in (files / "comparison.html").read_text()
    assert {
        run.run_id
        for run in find_runs(TrackingConfig(f"sqlite:///{folder}/mlruns/mlflow.db", "slimdown"))
    } == {run.info.run_id for run in runs}


def test_the_cores_are_shared_among_jobs(folder: Path, killed: object) -> None:
    good = runs_in(folder, "tuned")[1].info.run_id
    made = json.loads(
        (folder / "mlruns" / "artifacts" / good / "artifacts" / "environment.json").read_text()
    )
    assert made["torch_threads"] == n_cores() // min(2, n_cores())


def test_submitit_starts_a_job_and_brings_back_what_became_of_it(
    folder: Path, killed: object
) -> None:
    process = begin(folder, "-m", "hydra/launcher=submitit_local", "seed=1,2", *FEW)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert re.search(r"1  seed=1 +skipped", out)
    assert re.search(r"2  seed=2 +finished", out)
    assert sorted(run.info.status for run in runs_in(folder, "sweep")) == ["FAILED", "FINISHED"]


@pytest.mark.skipif(
    find_spec("ray") is None, reason="ray is not installed: pip install 'slimdown[ray]'"
)
@pytest.mark.slow
def test_a_job_whose_ray_worker_is_killed_is_run_again(folder: Path) -> None:
    process = begin(
        folder, "-m", "hydra/launcher=ray", "hydra.launcher.ray.init.num_cpus=2", "seed=3,4", *FEW
    )
    ended = False
    for jobs in at_work(folder, process):
        if jobs and jobs[0]["run_id"] and not ended:
            owner = (
                MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
                .get_run(jobs[0]["run_id"])
                .data.tags[Tag.owner]
            )
            os.kill(json.loads(owner)["pid"], signal.SIGKILL)
            ended = True
    out, err = process.communicate(timeout=300)
    assert (process.returncode, ended) == (0, True), err
    assert "2 jobs: 2 finished" in out
    assert {
        run.data.tags[Tag.seed] for run in runs_in(folder, "tuned") if run.info.status == "FINISHED"
    } >= {"3", "4"}


def test_a_launcher_that_is_not_installed_is_told_with_the_way_to_have_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("slimdown.config.launchers.find_spec", lambda name: None)
    of_ray = OmegaConf.create({"ray": {"init": {"num_cpus": 2}}})
    assert list(launcher_problems("ray", of_ray, is_sweep=True)) == [
        "hydra/launcher=ray needs a plugin of Hydra; pip install 'slimdown[ray]'"
    ]
    assert not list(launcher_problems("basic", OmegaConf.create(), is_sweep=False))


@pytest.mark.parametrize(
    ("launcher", "key"), [("submitit_local", "gpus_per_node"), ("ray", "ray.remote.num_gpus")]
)
def test_a_job_asks_for_the_gpu_that_there_is_and_for_none_that_is_hidden(
    launcher: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset = OmegaConf.load(CONF_DIR / "hydra" / "launcher" / f"{launcher}.yaml")
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: iter([folder / "one"]))
    for visible, n in ((None, 1), ("0,1", 1), ("GPU-8a2f", 1), ("", 0), ("-1", 0)):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert OmegaConf.select(preset, key) == n_gpus() == n
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(Path, "glob", lambda folder, pattern: iter([]))
    assert OmegaConf.select(preset, key) == 0


def test_passwords_are_handed_to_a_rays_jobs_past_what_is_logged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "sesame")
    launcher = SimpleNamespace(ray_cfg=OmegaConf.create({"init": {"address": "auto"}}))
    assert inherited(launcher)["MLFLOW_TRACKING_PASSWORD"] == "sesame"
    assert "sesame" not in str(launcher.ray_cfg)
    launcher.ray_cfg.init.address = None
    assert inherited(launcher) == {}


def test_what_a_launcher_raises_before_any_job_began_is_one_line(folder: Path) -> None:
    process = begin(
        folder, "-m", "hydra/launcher=joblib", "+hydra.launcher.return_as=nope", "seed=0,1", *FEW
    )
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (1, "")
    assert re.fullmatch(
        r"This run cannot start:\n  hydra/launcher=joblib cannot start jobs: .*nope.*; its settings are "
        r"hydra\.launcher\.\*, and --cfg hydra shows them\n",
        err,
    )
