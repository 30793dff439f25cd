"""Many runs of one command: what is finished is skipped, and what fails or dies stops no other."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest
from commands_and_runs import QuietHandler, call_verb, find_runs, serve
from joblib.externals.loky import get_reusable_executor
from mlflow import MlflowClient
from mlflow.entities import Run
from quick_jobs import DEADLY, run_quick_job
from record_builders import KEPT, LOST, Capture, Patch, compose_config, save_answers, set_metric

from slimdown import run
from slimdown.config.schema import RunConfig
from slimdown.judging.findings import Findings
from slimdown.runs.experiment import measure_base
from slimdown.tracking.provenance import RunInfo
from slimdown.tracking.run_reader import find_run
from slimdown.tracking.run_writer import open_run
from slimdown.utils.errors import ModelError

FEW = [
    "dataset.pocket_instructions.max_examples=64",
    "dataset.pocket_instructions.validation_examples=6",
    "train.max_steps=2",
    "benchmark=[pocket_cs]",
    "benchmark.pocket_cs.limit=8",
]
LONG = [*FEW[:2], "train.max_steps=2000", *FEW[3:]]
LAYERS = "lora.target_modules=[q_proj],[nothing]"
JOBLIB = ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]


def list_runs(folder: Path, kind: str = "tuned") -> list[Run]:
    return find_runs(MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db"), kind)


@contextmanager
def ended_at_work(folder: Path, number: signal.Signals) -> Iterator[None]:
    """Inside, this process gets a signal once a run trains.

    Before its first step, `datasets` swallows what a signal raises while it hashes a function:
    https://github.com/huggingface/datasets/blob/main/src/datasets/fingerprint.py
    """
    over = Event()

    def send() -> None:
        while not over.wait(0.3):
            running = [run for run in list_runs(folder) if run.info.status == "RUNNING"]
            if any("train/loss" in run.data.metrics for run in running):
                return os.kill(os.getpid(), number)

    handlers = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    for n in handlers:  # as `slimdown run` has them
        signal.signal(n, signal.default_int_handler)
    thread = Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        for n, handler in handlers.items():
            signal.signal(n, handler)


def list_rows(out: str) -> list[list[str]]:
    """The rows of the table at the end: number, settings, state, run, what became of it."""
    rows = [re.split(r"\s{2,}", line.strip()) for line in out.splitlines()]
    return [row for row in rows if row[0].isdigit() and len(row) > 2]


@pytest.fixture(scope="module")
def swept(recorded: Path) -> tuple[int, str, str]:
    """A good job and an impossible one: exit code, stdout and stderr.

    Their base is measured before, as it is before jobs that start together.
    """
    with chdir(recorded):
        measure_base(compose_config(*FEW))
    done = call_verb(recorded, "run", "-m", "seed=0", LAYERS, *FEW)
    return done.returncode, done.stdout, done.stderr


def test_a_failed_job_stops_no_other(recorded: Path, swept: tuple[int, str, str]) -> None:
    code, out, err = swept
    assert code == 1
    good, bad = list_rows(out)
    assert good[:3] == ["1", "lora.target_modules=[q_proj]", "finished"]
    assert bad[:3] == ["2", "lora.target_modules=[nothing]", "failed"]
    assert re.fullmatch("[0-9a-f]{8}", good[3])
    assert "1 finished, 1 failed" in out
    assert "job 2 of 2 failed:" in err
    assert "Traceback" not in err
    assert "\x1b" not in out + err
    [sweep] = list_runs(recorded, "sweep")
    assert sweep.info.run_name == "sweep of lora.target_modules"
    assert sweep.info.status == "FAILED"


def test_a_sweeps_run_has_the_tag_of_its_runs_and_its_table(recorded: Path, swept: object) -> None:
    [sweep] = list_runs(recorded, "sweep")
    name = sweep.data.tags["slimdown.sweep"]
    runs = [run for run in list_runs(recorded) if run.data.tags.get("slimdown.sweep") == name]
    assert {run.info.status for run in runs} == {"FINISHED"}  # a wrong setting opens none
    assert not any("mlflow.parentRunId" in run.data.tags for run in runs)  # MLflow folds children
    assert len(list_runs(recorded, "baseline")) == 1
    table = next((recorded / "mlruns").rglob(f"{sweep.info.run_id}/**/sweep.md")).read_text()
    assert "| finished" in table


def test_a_job_whose_process_always_dies_fails_and_the_others_are_finished(
    store: MlflowClient, tmp_path: Path, monkeypatch: Patch
) -> None:
    """The processes are joblib's own; only what a run does in them is made up."""
    monkeypatch.setattr("slimdown.sweep.sweeper.run_sweep_job", run_quick_job)
    settings = [*JOBLIB, f"seed={DEADLY},2", "baseline.reuse=false", *FEW]
    try:
        done = call_verb(tmp_path, "run", *settings)
    finally:
        get_reusable_executor().shutdown(kill_workers=True)
    assert done.returncode == 1, done.stderr
    assert [row[2] for row in list_rows(done.stdout)] == ["failed", "finished"]
    assert "its process died" in " ".join(done.stdout.split())


def test_a_launcher_that_cannot_start_is_one_line(recorded: Path, swept: object) -> None:
    settings = [*JOBLIB, "+hydra.launcher.return_as=nope", "seed=5,6", *FEW]
    done = call_verb(recorded, "run", *settings)
    assert done.returncode == 1
    assert re.search(r"hydra/launcher=joblib .*nope", done.stderr)
    assert "Traceback" not in done.stderr


def test_a_launcher_that_begins_no_job_and_raises_nothing_is_called_once(
    store: MlflowClient, tmp_path: Path, monkeypatch: Patch
) -> None:
    """Hydra's launchers keep the error of a job for themselves, such as that of a full disk."""
    launches = []

    def begin_nothing(*_: object) -> None:
        launches.append("launch")
        if len(launches) > 1:
            raise RuntimeError("launched again")

    monkeypatch.setattr("slimdown.sweep.sweeper.launch", begin_nothing)
    done = call_verb(tmp_path, "run", "-m", "seed=5,6", "baseline.reuse=false", *FEW)
    assert launches == ["launch"]
    assert done.returncode == 1
    assert (
        "hydra/launcher=basic cannot start jobs: it began no job, without an error" in done.stderr
    )
    assert "Traceback" not in done.stderr


def test_a_signal_ends_a_sweep_and_its_run_is_killed(recorded: Path, swept: object) -> None:
    with ended_at_work(recorded, signal.SIGTERM):
        done = call_verb(recorded, "run", "-m", "seed=7,8", *LONG)
    assert done.returncode == 130, done.stderr
    assert [row[2] for row in list_rows(done.stdout)] == ["killed", "to do"]
    assert "Interrupted." in done.stderr
    assert list_runs(recorded)[-1].info.status == "KILLED"
    assert list_runs(recorded, "sweep")[-1].info.status == "KILLED"


def test_sigterm_ends_a_command_as_ctrl_c_does(tmp_path: Path) -> None:
    """It comes while the command asks the hub, which answers nothing."""
    commands: list[subprocess.Popen] = []
    over = Event()

    class Hub(QuietHandler):
        def do_HEAD(self) -> None:
            commands[0].send_signal(signal.SIGTERM)
            over.wait(60)

        do_GET = do_HEAD

    command = [sys.executable, "-m", "slimdown.run", "-m", "seed=7,8", "model.id=me/it"]
    with serve(Hub) as here:
        environment = {
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "MPLBACKEND": "none",  # a name at which matplotlib raises does not matter
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path),
            "HF_ENDPOINT": here,
        }
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        variables = os.environ | environment
        commands.append(subprocess.Popen(command, cwd=tmp_path, env=variables, **pipes))
        _, err = commands[0].communicate(timeout=600)
        over.set()
    assert commands[0].returncode == 130, err
    assert "Interrupted." in err
    assert not (tmp_path / "mlruns").exists()


class Panic(BaseException):
    """Stands for an error of a library in Rust, which `except Exception` does not catch."""


ENDS = [SystemExit(3), MemoryError("no room"), Panic("at byte 3"), ModelError("no such layer")]


def test_a_job_ends_no_sweep(store: MlflowClient, monkeypatch: Patch, capsys: Capture) -> None:
    ends = iter(ENDS)

    def end(*settings: object) -> None:
        raise next(ends)

    monkeypatch.setattr("slimdown.runs.experiment.run_experiment", end)
    monkeypatch.setattr(sys, "argv", ["slimdown.run"])
    assert run.main(["-m", "seed=0,1,2,3", "benchmark=[pocket_cs]"]) == 1
    out, err = capsys.readouterr()
    assert [row[2] for row in list_rows(out)] == ["failed"] * 4
    reasons = ["SystemExit: 3", "MemoryError: no room", "Panic: at byte 3", "no such layer"]
    assert [row[-1] for row in list_rows(out)] == reasons
    assert err.count("Traceback") == 3  # a mistake that the user can mend has none
    outcomes = [json.loads(file.read_text()) for file in Path().glob("mlruns/sweeps/*/[0-9].json")]
    assert [outcome["state"] for outcome in outcomes] == ["failed"] * 4


def test_a_sweep_shows_the_plan_once_and_ends_with_what_each_value_did(
    store: MlflowClient, monkeypatch: Patch, capsys: Capture
) -> None:
    def record(config: RunConfig, info: RunInfo, _: object) -> Findings | None:
        config = set_metric(config)
        with open_run(config, info) as made:
            save_answers(made, config, KEPT if config.lora.r == 2 else LOST)
        return find_run(config.tracking, made.run_id).findings

    monkeypatch.setattr("slimdown.runs.experiment.run_experiment", record)
    monkeypatch.setattr(sys, "argv", ["slimdown.run"])
    assert run.main(["-m", "lora.r=2,4", "benchmark=[pocket_cs]"]) == 0
    out = capsys.readouterr().out
    assert out.index(" held out") < out.index("job 1 of 2")
    assert len(re.findall(r"^method ", out, re.M)) == 1
    assert len(re.findall(r"^run  .*lora.r=", out, re.M)) == 2
    end = out[out.index("sweep of lora.r: 2 runs") :].splitlines()
    rows = [line.split() for line in end]
    heading = rows.index(["run", "lora.r", "pocket_cs"])
    changes = [row[1:] for row in rows[heading:] if len(row) == 4]
    assert changes == [["2", "0.0", "="], ["4", "−44.0", "↓"]]
