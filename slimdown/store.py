"""The MLflow store: opening it, and reading what runs left in it.

With `tracking.py` the only module that knows MLflow.
"""

import logging
import re
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from omegaconf import OmegaConf

from slimdown.config import BenchmarkConfig, TrackingConfig, UserError, nearest
from slimdown.samples import EvalReport, read_samples

_SECRET = re.compile(r"(?i)(token|password|passwd|secret|api_?key|credential)[^=:]*[=:]\s*\S+")


@dataclass(frozen=True)
class RecordedRun:
    """What the store knows of a run without opening its artifacts."""

    run_id: str
    name: str
    experiment: str
    status: str  # FINISHED, FAILED, KILLED, RUNNING, SCHEDULED
    started: datetime
    params: dict[str, str]  # every setting, by its dotted key
    tags: dict[str, str]
    metrics: dict[str, float]

    @property
    def benchmarks(self) -> list[str]:
        """The benchmarks it was measured on, in the order of the settings."""
        found = (key.split(".")[1] for key in self.params if key.startswith("benchmark."))
        return list(dict.fromkeys(found))


def find_runs(
    config: TrackingConfig, experiments: Sequence[str] = (), filter_string: str = "", max_results: int = 50_000
) -> list[RecordedRun]:
    """The fine-tuning runs in the store, newest first.

    Args:
        config: which store.
        experiments: names; empty for all.
        filter_string: MLflow's filter language, e.g. "params.`lora.r` = '8' and tags.`slimdown.sweep` = 'ranks'".
        max_results: the most to return.

    Raises:
        UserError: no store, no such experiment, or a filter that MLflow does not understand.
    """
    client = _open_existing(config)
    known = {e.name: e.experiment_id for e in client.search_experiments()}
    if unknown := [name for name in experiments if name not in known]:
        raise UserError(
            f"there is no experiment {unknown[0]} in {public_uri(config.uri)}{nearest(unknown[0], sorted(known))}"
        )
    ids = [known[name] for name in experiments] or list(known.values())
    names = {experiment_id: name for name, experiment_id in known.items()}
    wanted = " and ".join(filter(None, ["tags.`slimdown.kind` = 'tuned'", filter_string]))
    found: list[RecordedRun] = []
    token: str | None = None
    while len(found) < max_results:
        try:
            page = client.search_runs(ids, wanted, max_results=min(1000, max_results - len(found)), page_token=token)
        except MlflowException as error:
            raise UserError(
                f"the filter {filter_string!r} is not understood: {first_line(error)}; "
                "write e.g. \"params.`lora.r` = '8' and tags.`slimdown.model` LIKE '%SmolLM2%'\""
            ) from None
        found += [_recorded(run, names) for run in page]
        token = page.token
        if not token:
            break
    return found


def read_run(config: TrackingConfig, run_id: str) -> RecordedRun:
    """One fine-tuning run, by its id, the beginning of its id, or its name.

    Raises:
        UserError: no store, no such run, several such runs, or one that is no fine-tuning run.
    """
    client = _open_existing(config)
    names = {e.experiment_id: e.name for e in client.search_experiments()}
    try:
        found = [client.get_run(run_id)]
    except MlflowException:
        quoted = run_id.replace("'", "")
        kind = "tags.`slimdown.kind` = 'tuned' and "
        found = list(client.search_runs(list(names), f"{kind}attributes.run_name = '{quoted}'", max_results=50))
        if not found:
            every = client.search_runs(list(names), "tags.`slimdown.kind` = 'tuned'", max_results=1000)
            found = [run for run in every if run.info.run_id.startswith(run_id)]
    if not found:
        raise UserError(
            f"there is no run {run_id} in {public_uri(config.uri)}; python -m slimdown.compare lists the runs that are"
        )
    if len(found) > 1:
        several = ", ".join(run.info.run_id for run in found[:3])
        raise UserError(f"{len(found)} runs are called {run_id}; give the id of one: {several}")
    run = _recorded(found[0], names)
    if (kind := run.tags.get("slimdown.kind", "")) != "tuned":
        what = "the measurement of a base" if kind == "baseline" else "not a run of slimdown"
        raise UserError(f"run {run_id} is {what}; only a fine-tuning run has a change to look at")
    return run


def read_evaluation(config: TrackingConfig, run: RecordedRun, model: str) -> EvalReport:
    """Every question and answer of a finished run; `model` is base or tuned.

    Raises:
        UserError: a run that is not finished, or whose samples are gone.
    """
    if run.status != "FINISHED":
        said = run.tags.get("slimdown.error", "")
        state = {"RUNNING": "is still going", "FAILED": "failed", "KILLED": "was stopped"}.get(run.status, run.status)
        raise UserError(
            f"run {run.run_id} ({run.name}) {state}{': ' + said if said else ''}; "
            "it left no complete measurement to read"
        )
    client = _open_existing(config)
    reports = {}
    for name in run.benchmarks:
        with tempfile.TemporaryDirectory() as folder:
            try:
                file = client.download_artifacts(run.run_id, f"samples/{model}-{name}.parquet", folder)
            except (MlflowException, OSError) as error:
                raise UserError(f"run {run.run_id} has lost its samples of {name}: {first_line(error)}") from None
            reports[name] = read_samples(Path(file), _benchmark_config(run, name))
    return EvalReport(
        benchmarks=reports,
        harness_version=run.tags.get("slimdown.harness_version", ""),
        scoring_path=run.tags.get("slimdown.scoring_path", ""),
        seconds=run.metrics.get(f"cost/{model}_evaluation_seconds", 0.0),
    )


def open_store(config: TrackingConfig) -> MlflowClient:
    """A client of the tracking store, which is created where it is a SQLite file that does not exist.

    Raises:
        UserError: the store cannot be reached or written.
    """
    # "Creating initial MLflow database tables": a fresh store is no news.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    if config.uri.startswith("sqlite:///"):
        file = Path(config.uri.removeprefix("sqlite:///")).absolute()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            # Processes that open a fresh store together break it for good (mlflow 3.17): one makes it, under a lock.
            with FileLock(file.with_suffix(".lock"), timeout=120):
                client = MlflowClient(config.uri)
                client.search_experiments(max_results=1)
        except (OSError, MlflowException) as error:
            raise UserError(
                f"tracking.uri={config.uri} cannot be used: {first_line(error)}; choose a file that you can write, "
                "e.g. tracking.uri=sqlite:///mlruns/mlflow.db"
            ) from None
        return client
    if config.uri.startswith("http"):
        _check_server(config.uri)
    try:
        client = MlflowClient(config.uri)
        client.search_experiments(max_results=1)
    except Exception as error:  # each database has errors of its own
        raise UserError(f"tracking.uri={public_uri(config.uri)} cannot be used: {first_line(error)}") from None
    return client


def public_uri(uri: str) -> str:
    """The URI without the user name and password that it may carry."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return parts._replace(netloc="***@" + parts.netloc.rsplit("@", 1)[1]).geturl()


def redact(text: str) -> str:
    """The text without passwords in addresses and without values named token, password, secret or key."""
    text = re.sub(r"(\w+://)[^/\s@]+@", r"\1***@", text)
    return _SECRET.sub(lambda found: re.split(r"[=:]", found.group(0), maxsplit=1)[0] + "=***", text)


def experiment_id(client: MlflowClient, config: TrackingConfig) -> str:
    """The id of the experiment that runs go into, which is made where it is not there."""
    location = None
    if config.uri.startswith("sqlite:///"):  # a server decides for itself
        location = (Path(config.uri.removeprefix("sqlite:///")).absolute().parent / "artifacts").as_uri()
    for _ in range(2):
        if found := client.get_experiment_by_name(config.experiment):
            if found.lifecycle_stage == "deleted":
                raise UserError(
                    f"tracking.experiment={config.experiment} was deleted in MLflow; restore it with "
                    f"`mlflow experiments restore -x {found.experiment_id}`, or choose another name"
                )
            return str(found.experiment_id)
        try:
            return str(client.create_experiment(config.experiment, artifact_location=location))
        except MlflowException:
            continue  # another process made it just now
    raise UserError(f"tracking.experiment={config.experiment} can neither be found nor made")


def lock_folder(config: TrackingConfig) -> Path:
    """Where processes that share the store lock out each other."""
    if config.uri.startswith("sqlite:///"):
        return Path(config.uri.removeprefix("sqlite:///")).absolute().parent / "locks"
    return Path.home() / ".cache" / "slimdown" / "locks"  # serves the jobs of one machine


def _check_server(uri: str) -> None:
    """Ask once, for five seconds: MLflow's own client retries for minutes before it says that nobody answers."""
    try:
        urllib.request.urlopen(f"{public_uri(uri).replace('***@', '').rstrip('/')}/health", timeout=5)
    except urllib.error.HTTPError:
        return  # somebody answers; whether we may write is for the client to find out
    except (OSError, ValueError) as error:
        raise UserError(
            f"tracking.uri={public_uri(uri)} does not answer ({first_line(error)}); start the server, e.g. "
            "`mlflow server --backend-store-uri sqlite:///mlruns/mlflow.db`, or leave tracking.uri out to record "
            "in the local folder mlruns/"
        ) from None


def first_line(error: BaseException) -> str:
    """What an error says first, at most 200 characters."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _open_existing(config: TrackingConfig) -> MlflowClient:
    """A client of a store that is there: reading must not make an empty one."""
    if config.uri.startswith("sqlite:///"):
        file = Path(config.uri.removeprefix("sqlite:///"))
        if not file.is_file():
            raise UserError(
                f"there is no record {file} yet; python -m slimdown.run makes one, or name another with "
                "--tracking-uri or MLFLOW_TRACKING_URI"
            )
    return open_store(config)


def _recorded(run: Run, experiments: dict[str, str]) -> RecordedRun:
    return RecordedRun(
        run_id=run.info.run_id,
        name=run.info.run_name or run.info.run_id,
        experiment=experiments.get(run.info.experiment_id, run.info.experiment_id),
        status=run.info.status,
        started=datetime.fromtimestamp(run.info.start_time / 1000, UTC),
        params=run.data.params,
        tags=run.data.tags,
        metrics=run.data.metrics,
    )


def _benchmark_config(run: RecordedRun, name: str) -> BenchmarkConfig:
    prefix = f"benchmark.{name}."
    values: dict[str, Any] = {
        key.removeprefix(prefix): None if value == "None" else value
        for key, value in run.params.items()
        if key.startswith(prefix)
    }
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(BenchmarkConfig), values))
    assert isinstance(config, BenchmarkConfig)
    return config
