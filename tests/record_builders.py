"""Runs of made-up answers, recorded by the real writer into a real store."""

import os
import pickle
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from socket import socket
from typing import Any

import mlflow.db
from builders import (
    Capture as Capture,
    Compose as Compose,
    Logs as Logs,
    Patch as Patch,
    make_benchmark,
    make_evaluation,
    make_scores,
)
from click.testing import CliRunner
from hydra import compose
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from mlflow import MlflowClient
from mlflow.entities import LoggedModel
from omegaconf import DictConfig, open_dict

from slimdown.config.benchmark_config import ResolvedBenchmark
from slimdown.config.loader import load_config, open_hydra
from slimdown.config.schema import RunConfig
from slimdown.evaluation.results import Evaluation
from slimdown.judging.findings import Findings, judge
from slimdown.judging.holdout import open_part
from slimdown.sweep.command_line import CommandLine
from slimdown.tracking.provenance import RunInfo
from slimdown.tracking.run_writer import TrackedRun, open_run

Scores = Sequence[Sequence[float]]
GOLDEN = Path(__file__).with_name("golden")
LOST = make_scores(100, 90, 2, 8)  # -44 points: forgotten
KEPT = make_scores(600, 1, 1, 198)  # no change: retained


@lru_cache(None)
def _compose_once(choices: tuple[str, ...]) -> bytes:
    return pickle.dumps(compose("config", list(choices), return_hydra_config=True))


def compose_files(
    name: str, overrides: Sequence[str] = (), return_hydra_config: bool = False
) -> DictConfig:
    """What Hydra's `compose` does, once in a process for each choice of our own files."""
    if any(text.startswith("hydra.searchpath=") for text in overrides):  # a test's own files
        return compose(name, list(overrides), return_hydra_config=return_hydra_config)
    composed: DictConfig = pickle.loads(_compose_once(tuple(overrides)))
    if not return_hydra_config:
        with open_dict(composed):
            del composed["hydra"]
    return composed


def compose_config(*overrides: str) -> RunConfig:
    """Compose the checked config that overrides give: files once, values laid over them."""
    with open_hydra():
        values = OverridesParser.create().parse_overrides(list(overrides))
        is_choice = CommandLine([]).is_choice
        choices = [str(o.input_line) for o in values if is_choice(o.key_or_group)]
        composed = compose_files("config", choices)
        values = [o for o in values if not is_choice(o.key_or_group)]
        ConfigLoaderImpl._apply_overrides_to_config(values, composed)
        return load_config(composed)


def make_answers(config: RunConfig, scores: Scores = LOST) -> tuple[Evaluation, Evaluation]:
    """Base and tuned evaluation with the same scores on each benchmark of the config."""
    evaluations = []
    for values in scores:
        benchmarks = {
            name: replace(
                make_benchmark(values), benchmark=ResolvedBenchmark.of(benchmark, metric="acc")
            )
            for name, benchmark in config.benchmark.items()
        }
        evaluations.append(make_evaluation(**benchmarks))
    return evaluations[0], evaluations[1]


_JUDGED: dict[str, tuple[Evaluation, Evaluation, Findings]] = {}


def _judge_once(config: RunConfig, scores: Scores) -> tuple[Evaluation, Evaluation, Findings]:
    """Answers as `make_answers` makes them, and their findings: half of the time of a record."""
    share = config.evaluation.holdout
    key = repr((config.benchmark, share, [list(answers) for answers in scores]))
    if key not in _JUDGED:
        base, tuned = make_answers(config, scores)
        _JUDGED[key] = base, tuned, judge(open_part(base, share), open_part(tuned, share))
    return _JUDGED[key]


def make_info(config: RunConfig, name: str, **fields: Any) -> RunInfo:
    """What a run is called."""
    return RunInfo(name, ["lora.r=8"], environment={}, **fields)


def set_metric(config: RunConfig) -> RunConfig:
    """The config whose benchmarks all have the metric of made-up answers."""
    benchmarks = {k: replace(b, metric="acc") for k, b in config.benchmark.items()}
    return replace(config, benchmark=benchmarks)


def save_answers(run: TrackedRun, config: RunConfig, scores: Scores = LOST, key: str = "k") -> None:
    """Do what an experiment does once both models have answered."""
    base, tuned, findings = _judge_once(config, scores)
    for cache, evaluation in ((run.base_cache, base), (run.tuned_cache, tuned)):
        for number, (name, benchmark) in enumerate(evaluation.benchmarks.items()):
            cache.save(f"{key}{number}", name, benchmark)
    pages = {"report.md": "# report", "report.html": "<p>page</p>"}
    run.save(findings, pages, {"adapter_config.json": "{}"})


def record_run(config: RunConfig, name: str, scores: Scores = LOST, **fields: Any) -> str:
    """Record a finished run and return its id."""
    config = set_metric(config)
    with open_run(config, make_info(config, name, **fields)) as run:
        save_answers(run, config, scores)
    return run.run_id


def copy_store(migrated_store: Path, folder: Path) -> Path:
    """A folder with an empty store, for tests that share the runs in it."""
    (folder / "mlruns").mkdir()
    shutil.copy(migrated_store, folder / "mlruns" / "mlflow.db")
    return folder


def unpack_record(folder: Path) -> None:
    """Unpack the stored record, as `golden/make_record.py` made it, into a folder."""
    with tarfile.open(GOLDEN / "record.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    with closing(sqlite3.connect(folder / "mlruns" / "mlflow.db")) as store:
        places = ("artifact_location", "experiments logged_models"), ("artifact_uri", "runs")
        for column, table in ((c, table) for c, tables in places for table in tables.split()):
            change = f"UPDATE {table} SET {column} = replace({column}, 'file:///records', ?)"
            store.execute(change, (folder.as_uri(),))
        store.commit()
    # Another MLflow may have another schema.
    upgrade = ["upgrade", f"sqlite:///{folder}/mlruns/mlflow.db"]
    upgraded = CliRunner().invoke(mlflow.db.commands, upgrade)
    assert upgraded.exit_code == 0, upgraded.output


@contextmanager
def serve_mlflow(folder: Path, port: int = 0) -> Iterator[tuple[str, Callable[[], None]]]:
    """MLflow's own server on a store of a folder: its address, and what kills it."""
    if not port:
        with closing(socket()) as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination", str(folder / "files"),
    ]  # fmt: skip
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    server = subprocess.Popen(command, start_new_session=True, **quiet)

    def kill() -> None:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)  # its workers, too
        server.wait()

    try:
        uri = f"http://127.0.0.1:{port}"
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{uri}/health").close()
                break
            except OSError:
                time.sleep(0.1)
        yield uri, kill
    finally:
        kill()


OPEN = """
import sys
from slimdown.config.schema import TrackingConfig
from slimdown.tracking.store import find_experiment, open_store
config = TrackingConfig(sys.argv[1], "x")
print(find_experiment(open_store(config), config))
"""


def open_by_four_processes(folder: Path, uri: str) -> None:
    """Let four processes create one store together: all must find the same experiment."""
    command = [sys.executable, "-c", OPEN, uri]
    processes = [subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE) for _ in range(4)]
    answers = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4
    assert len(set(answers)) == 1


def list_models(store: MlflowClient, kind: str) -> list[LoggedModel]:
    """MLflow's models of one kind, see `ModelKind`."""
    experiments = [experiment.experiment_id for experiment in store.search_experiments()]
    where = f"tags.`slimdown.kind` = '{kind}'"
    return list(store.search_logged_models(experiments, where))


KILLED = """
import os, signal, sys
from mlflow import MlflowClient
from record_builders import compose_config, make_info, save_answers, set_metric
from slimdown.tracking.run_writer import open_run

stage, count = sys.argv[1], int(sys.argv[2])
config = set_metric(compose_config())
call = getattr(MlflowClient, stage)
def kill(*arguments, **options):
    global count
    count -= 1
    if not count:
        os.kill(os.getpid(), signal.SIGKILL)
    return call(*arguments, **options)
setattr(MlflowClient, stage, kill)
with open_run(config, make_info(config, "one")) as run:
    print(run.run_id, flush=True)
    save_answers(run, config)
"""


def check_after_kill(store: MlflowClient, config: RunConfig, stage: str, count: int) -> None:
    """Kill a run at a call of MLflow's client, go on with it, and look for anything twice."""
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, stage, str(count)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL
    run_id = killed.stdout.strip()
    with open_run(config, make_info(config, "one", resume_run_id=run_id)) as run:
        save_answers(run, config)
    assert run.run_id == run_id
    [base], [tuned] = list_models(store, "base"), list_models(store, "tuned")
    assert [base.status, tuned.status] == ["READY", "READY"]
    assert store.list_logged_model_artifacts(tuned.model_id)[0].path == "adapter_config.json"
    keys = [metric.key for metric in tuned.metrics]
    assert len(keys) == len(set(keys))
    assert len(store.get_metric_history(run_id, "tuned/pocket_cs")) == 1
    recorded = store.get_run(run_id)
    assert len(recorded.inputs.dataset_inputs) == len(config.benchmark)
    assert len(recorded.inputs.model_inputs) == len(recorded.outputs.model_outputs) == 1
