"""A store that falls silent in the middle of a run: waited for, then done without, its part delivered later.

`PatientClient` asks a server again for as long as `tracking.wait` says. After that `TrackedRun` writes the whole run,
by the same methods, into a local store in a folder, and `send` carries it over from there.
"""

import os
import re
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from requests.exceptions import ConnectionError as NoConnection, HTTPError, Timeout
from sqlalchemy.exc import InterfaceError, OperationalError

from slimdown.config.schema import TrackingConfig
from slimdown.tracking.connection import (
    experiment_id,
    first_line,
    log_entries,
    open_store,
    search,
    within,
)
from slimdown.tracking.owner import Owner, is_gone, owner_of
from slimdown.tracking.tags import Tag
from slimdown.utils.errors import SlimdownError
from slimdown.utils.interruption import interrupted
from slimdown.utils.redaction import public_uri, redact

_SENT_FOR_BEFORE = (
    "slimdown.origin"  # tag of a run in a folder of before, what `Tag.sent_for` is today
)
_CALL_SECONDS = 60.0  # for one call; a file more, by its size
_SLOWEST = 1e6  # bytes a second of an upload that is still waited for
_SILENCE = {"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED"}  # MLflow's codes
_BUSY = {408, 429, 500, 502, 503, 504}  # HTTP's, of a server or a proxy before it
# MLflow alone would ask each question eight times, four minutes long, with a warning of urllib3 each.
_MLFLOW_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


class StoreGone(SlimdownError):
    """The store was waited for in vain."""


class PatientClient:
    """MLflow's client for a store that may fall silent: each call returns, or raises what the store says.

    Raises:
        StoreGone: it has been silent for `config.wait` seconds; from then on without asking.
    """

    def __init__(self, client: MlflowClient, config: TrackingConfig) -> None:
        self.inner, self._config = client, config
        self._silent_since: float | None = None
        self._wait, self._call_seconds = (
            0.0,
            10.0,
        )  # until the run is open: its start is not waited for
        self.instead: TrackingConfig | None = None  # where records go once the store is gone

    @classmethod
    def open(cls, config: TrackingConfig) -> "PatientClient":
        """A client of a store that answers; raises SlimdownError where it does not."""
        _set_mlflow_limits()
        return cls(open_store(config), config)

    def begin(self) -> None:
        """From now on there is something to lose, and the store is waited for."""
        self._wait, self._call_seconds = self._config.wait, _CALL_SECONDS

    def give_up(self, error: Exception) -> TrackingConfig:
        """Make the folder that takes what the store does not, and say so; returns the store in it."""
        if self.instead is None:
            folder = _new_folder()
            self.instead = replace(self._config, uri=f"sqlite:///{folder}/mlflow.db")
            _say(
                f"{self._where} takes nothing more ({_reason(error)}). The run goes on, and all that it "
                f"records lies in {folder}; {advice(self.instead)}"
            )
        return self.instead

    def create_run(self, experiment: str, run_name: str, tags: dict[str, str]) -> Run:
        """A new run; asked again, one that was made while its answer got lost is found and not made twice."""
        attempt = uuid4().hex
        asked = False

        def create() -> Run:
            nonlocal asked
            if asked and (
                made := self.inner.search_runs([experiment], f"tags.`{Tag.attempt}` = '{attempt}'")
            ):
                return made[0]
            asked = True
            return self.inner.create_run(
                experiment, run_name=run_name, tags={**tags, Tag.attempt: attempt}
            )

        return cast("Run", self.ask(create))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return partial(self.ask, getattr(self.inner, name))

    def ask(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What a call of the store returns, made again while the store is silent."""
        limit = self._call_seconds + _bytes_of(args) / _SLOWEST
        while self.instead is None:
            began = time.monotonic()
            try:
                answer = within(limit, partial(call, *args, **kwargs))
            except Exception as error:
                if not _is_silence(error):
                    raise
                self._wait_on(error, began)
            else:
                if self._silent_since is not None:
                    _say(
                        f"{self._where} answers again after {time.monotonic() - self._silent_since:.0f} s."
                    )
                    self._silent_since = None
                return answer
        raise StoreGone(f"{self._where} has fallen silent")

    def _wait_on(self, error: Exception, began: float) -> None:
        if self._silent_since is None:
            self._silent_since = began
            if self._wait:
                _say(
                    f"{self._where} does not answer ({_reason(error)}); it is waited for, at most {self._wait:.0f} s."
                )
        left = self._silent_since + self._wait - time.monotonic()
        if left <= 0 or interrupted():
            raise StoreGone(f"{self._where} does not answer ({_reason(error)})") from error
        time.sleep(min(1.0, left))

    @property
    def _where(self) -> str:
        return f"tracking.uri={public_uri(self._config.uri)}"


def advice(config: TrackingConfig) -> str:
    """How what lies in the folder of a silent store is delivered."""
    folder = str(Path(config.uri.removeprefix("sqlite:///")).parent)
    return f"when the store answers again: python -m slimdown.send {shlex.quote(folder)}"


def send(folder: Path, uri: str | None = None) -> tuple[str, list[str], list[str]]:
    """Carry the runs in a folder over into a store; its address, the runs' ids there, and which had not ended.

    Sent twice, a run is completed and not doubled: a run that the store had is filled, one that it had not is made
    once and known by a tag.

    Args:
        folder: as `PatientClient` named it.
        uri: the store; without one that which the runs were meant for.

    Raises:
        SlimdownError: no such folder, no address, or a store that does not take everything.
    """
    _set_mlflow_limits()
    if not (folder / "mlflow.db").is_file():
        raise SlimdownError(
            f"{folder} holds no runs to send (no mlflow.db); give the folder that the run named"
        )
    local = TrackingConfig(uri=f"sqlite:///{folder.absolute()}/mlflow.db", experiment="")
    source = open_store(local, reading=True)
    names = {e.experiment_id: e.name for e in source.search_experiments()}
    runs = sorted(source.search_runs(list(names)), key=lambda run: run.info.start_time)
    if not (
        uri := uri or next((run.data.params["tracking.uri"] for run in runs if _meant(run)), "")
    ):
        raise SlimdownError(
            "the address that the runs were meant for held a secret and is not kept; give --tracking-uri"
        )
    target = open_store(TrackingConfig(uri=uri, experiment=""))
    with FileLock(folder / "send.lock"):
        try:
            ids: dict[str, str] = {}
            for run in runs:
                config = TrackingConfig(uri=uri, experiment=names[run.info.experiment_id])
                ids[run.info.run_id] = _destination(target, run, experiment_id(target, config))
            # A base's evaluations first: what links to them need not bring its copy.
            for run in sorted(runs, key=lambda run: run.data.tags.get(Tag.kind) != "baseline"):
                _carry_over(source, target, folder / "artifacts", run, ids)
        except (MlflowException, OSError) as error:
            raise SlimdownError(
                f"{public_uri(uri)} did not take everything ({_reason(error)}); nothing is lost, and sent "
                "again nothing is doubled"
            ) from None
    # As they were when they were read: what has ended since may have written more.
    return uri, list(ids.values()), [ids[run.info.run_id] for run in runs if not _ended(run)]


def _set_mlflow_limits() -> None:
    for name, value in _MLFLOW_SETTINGS.items():
        os.environ.setdefault(name, value)


def _ended(run: Run) -> bool:
    return run.info.status in ("FINISHED", "FAILED", "KILLED")


def _meant(run: Run) -> bool:
    return "***" not in run.data.params.get("tracking.uri", "***")


def _sent_for(tags: dict[str, str]) -> str:
    before = tags.get(_SENT_FOR_BEFORE, "")
    return tags.get(Tag.sent_for, before if re.fullmatch("[0-9a-f]{32}", before) else "")


def _destination(target: MlflowClient, run: Run, experiment: str) -> str:
    """The run that is filled: the one that the store had, else one made by an earlier sending, else a new one."""
    try:
        begun = target.get_run(_sent_for(run.data.tags))
        if begun.info.lifecycle_stage == "active":
            _check_left(begun, owner_of(run.data.tags))
            return str(begun.info.run_id)
    except MlflowException as error:
        if error.error_code in _SILENCE:
            raise
    made = target.search_runs([experiment], f"tags.`{Tag.sent}` = '{run.info.run_id}'")
    if not made:
        tags = {Tag.sent: run.info.run_id}
        made = [target.create_run(experiment, run.info.start_time, tags, run.info.run_name)]
    return str(made[0].info.run_id)


def _check_left(run: Run, ours: Owner | None) -> None:
    """Refuse a run that another process than `ours` has gone on in."""
    owner, status = owner_of(run.data.tags), run.info.status
    if owner is None or owner == ours:
        return
    who = f"run {run.info.run_id} {{}} by {owner.host} (process {owner.pid}), which went on in it meanwhile"
    if status == "FINISHED":
        raise SlimdownError(f"{who.format('was finished')}; what lies here is no longer needed")
    if status == "RUNNING" and not is_gone(run.data.tags):
        raise SlimdownError(
            f"{who.format('is worked on')}; send again if it does not come to its end there"
        )


def _carry_over(
    source: MlflowClient, target: MlflowClient, artifacts: Path, run: Run, ids: dict[str, str]
) -> None:
    here = run.info.run_id
    there = ids[here]
    log_entries(target, there, params=[Param(key, value) for key, value in run.data.params.items()])
    arrived = {
        (m.key, m.step, repr(m.value))
        for key in target.get_run(there).data.metrics
        for m in target.get_metric_history(there, key)
    }
    metrics = [
        Metric(m.key, m.value, m.timestamp, m.step)
        for key in run.data.metrics
        for m in source.get_metric_history(here, key)
        if (m.key, m.step, repr(m.value)) not in arrived
    ]
    log_entries(target, there, metrics=metrics)
    if run.inputs.dataset_inputs:
        target.log_inputs(there, run.inputs.dataset_inputs)
    held = {
        f"base-{key.removeprefix(Tag.base_key)}.parquet"
        for key, value in run.data.tags.items()
        if key.startswith(Tag.base_key) and _holds(target, value)
    }
    files = artifacts / here / "artifacts"
    for file in sorted(
        file for file in files.rglob("*") if file.is_file() and file.name not in held
    ):
        folder = file.parent.relative_to(files)
        target.log_artifact(there, str(file), None if folder == Path() else folder.as_posix())
    for output in run.outputs.model_outputs if run.outputs else []:
        model = source.get_logged_model(output.model_id)
        _carry_model(
            target, model, artifacts / "models" / model.model_id / "artifacts", there, output.step
        )
    # Last, and of these the status: what has an evaluation's tag has the evaluation, what is finished has everything.
    own = {(key, _sent_for(run.data.tags)) for key in (Tag.sent_for, _SENT_FOR_BEFORE)}
    tags = {
        key: ids.get(value, value)
        for key, value in run.data.tags.items()
        if (key, value) not in own
    }
    log_entries(target, there, tags=[RunTag(key, value) for key, value in tags.items()])
    if _ended(run):
        target.set_terminated(there, run.info.status, run.info.end_time)


def _holds(store: MlflowClient, key: str) -> bool:
    """Whether the answers of this evaluation lie in the store."""
    tag = f"{Tag.evaluation}{key}"
    return any(
        file.path == f"samples/{run.data.tags[tag]}.parquet"
        for run in search(store, f"tags.`{tag}` LIKE '%'")
        for file in store.list_artifacts(run.info.run_id, "samples")
    )


def _carry_model(
    target: MlflowClient, model: LoggedModel, files: Path, run_id: str, step: int
) -> None:
    experiment = target.get_run(run_id).info.experiment_id
    known = target.search_logged_models([experiment], f"source_run_id = '{run_id}'")
    made = next(
        (one for one in known if one.name == model.name), None
    ) or target.create_logged_model(
        experiment, model.name, run_id, params=model.params, model_type=model.model_type
    )
    if made.status != "READY":
        target.log_model_artifacts(made.model_id, str(files))
        target.finalize_logged_model(made.model_id, "READY")
        target.log_outputs(run_id, [LoggedModelOutput(made.model_id, step)])
    arrived = {m.key for m in made.metrics or []}
    scores = [
        Metric(m.key, m.value, m.timestamp, m.step, model_id=made.model_id, run_id=run_id)
        for m in model.metrics or []
        if m.key not in arrived
    ]
    target.log_batch(run_id, metrics=scores)


def _is_silence(error: Exception) -> bool:
    """Whether nobody answered, or somebody who says that it is not the moment; a refusal is an answer."""
    if isinstance(error, MlflowException):
        return error.error_code in _SILENCE or isinstance(
            error.__cause__, OperationalError | InterfaceError
        )
    if isinstance(error, HTTPError):
        return error.response is not None and error.response.status_code in _BUSY
    return isinstance(
        error,
        TimeoutError | ConnectionError | NoConnection | Timeout | OperationalError | InterfaceError,
    )


def _reason(error: BaseException) -> str:
    """What began it: MLflow, requests and urllib3 each wrap a page of words around "Connection refused"."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return redact(first_line(error))


def _bytes_of(args: tuple[Any, ...]) -> int:
    """The size of what is uploaded: files and folders are named by strings that begin with a slash."""
    roots = [Path(text) for text in args if isinstance(text, str) and text.startswith(os.sep)]
    files = [file for root in roots for file in ([root] if root.is_file() else root.rglob("*"))]
    return sum(file.stat().st_size for file in files if file.is_file())


def _new_folder() -> Path:
    name = f"{datetime.now():%Y-%m-%d_%H-%M-%S}-{os.getpid()}"
    folder = Path.cwd() / "mlruns" / "unsent" / name
    try:
        folder.mkdir(parents=True)
    except OSError:  # where nobody may write; what was computed must lie somewhere
        folder = Path(tempfile.mkdtemp(prefix=f"slimdown-unsent-{name}-"))
    return folder


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
