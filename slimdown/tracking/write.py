"""Writing a run into MLflow, as it goes.

`TrackedRun` opens a run, takes each step's result, and closes it FINISHED, FAILED or KILLED. It talks to the store
through one client of its own, never through MLflow's global state.
"""

import json
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import wraps
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from slimdown.config.schema import TrackingConfig
from slimdown.evaluation.answers import BenchmarkEvaluation, Evaluation, write_samples
from slimdown.stats.findings import Findings
from slimdown.stats.runs import Making, recorded_changes
from slimdown.tracking import names
from slimdown.tracking.connection import (
    experiment_id,
    first_line,
    log_entries,
    open_store,
    sqlite_file,
)
from slimdown.tracking.outage import PatientClient, StoreGone, advice
from slimdown.tracking.owner import Heartbeat, owner_tags
from slimdown.tracking.pyfunc import describe, log_model
from slimdown.tracking.tags import Tag
from slimdown.tracking.unfinished import folder_of, reopened, steps_in
from slimdown.utils.disk import Interim, disk_full
from slimdown.utils.errors import SlimdownError, TrialPruned
from slimdown.utils.interruption import interrupted, undisturbed
from slimdown.utils.redaction import public_uri, redact

if TYPE_CHECKING:  # they would bring torch along, which who records the harness's logs does without
    from slimdown.data.contamination import Contamination
    from slimdown.data.loading import SftData
    from slimdown.models.model import LoadedModel
    from slimdown.training.fine_tune import StepRecord, Tuned

_FLUSH_SECONDS = 5.0  # step metrics go out together: 200 single calls cost 4.2 s, one batch 0.03 s
_MOST_PARAM = 6000  # characters; MLflow cuts longer ones, the whole config is an artifact
_P = ParamSpec("_P")
_T = TypeVar("_T")


def _kept(
    write: "Callable[Concatenate[TrackedRun, _P], _T]",
) -> "Callable[Concatenate[TrackedRun, _P], _T]":
    """A method that writes: where the store takes no more, it and all that was written before go to disk."""

    @wraps(write)
    def kept(self: "TrackedRun", /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return self._keep(lambda run: write(run, *args, **kwargs))

    return kept


class TrackedRun:
    """One MLflow run, from the moment that settings are known to its end.

    Where a server falls silent for longer than `tracking.wait`, the run is written anew into a folder, by the same
    methods, and goes on there.
    """

    def __init__(
        self,
        config: TrackingConfig,
        name: str,
        kind: str,
        tags: dict[str, str],
        client: MlflowClient | PatientClient | None = None,
        goes_on: str = "",
    ) -> None:
        """Create the run, or go on in one.

        Args:
            config: the store.
            name: of the run.
            kind: see `Tag.kind`.
            tags: of the run from its beginning.
            client: of the store, where it is open already.
            goes_on: the id of a run that was not finished and nobody works on.

        Raises:
            SlimdownError: the tracking store does not answer or refuses; nothing has been computed by then.
        """
        self._client = client or (
            open_store(config) if sqlite_file(config.uri) else PatientClient.open(config)
        )
        file = sqlite_file(config.uri)
        self._folder = file.absolute().parent if file else Path.cwd()
        experiment = experiment_id(self._client, config)
        try:
            now = {**tags, **owner_tags(), Tag.kind: kind}
            self._before = (
                reopened(self._client, goes_on, now, folder_of(config, goes_on))
                if goes_on
                else None
            )
            run = self._before or self._client.create_run(
                experiment, run_name=redact(name), tags=now
            )
        except MlflowException as error:
            raise disk_full(error, self._folder) or SlimdownError(
                f"tracking.uri={public_uri(config.uri)} refuses a run: {first_line(error)}"
            ) from None
        self.run_id: str = run.info.run_id
        self.artifact_uri: str = run.info.artifact_uri
        self.name = name
        self._config, self._kind, self._tags = config, kind, tags
        self._written: list[
            Callable[[TrackedRun], Any]
        ] = []  # what a folder would be told from the beginning
        self._on_disk: TrackedRun | None = None
        if isinstance(self._client, PatientClient):
            self._client.begin()
        self.experiment_id = experiment
        self._steps_before = steps_in(self._client, self._before) if self._before else set()
        self._known = (
            dict(self._before.data.metrics) if self._before else {}
        )  # what each says by now
        self._logged_model: str | None = None
        self._settings: Mapping[str, Any] = {}
        self._pending: list[Metric] = []
        self._flushed = time.monotonic()
        self.interim: Interim | None = None  # of a run that may be gone on in
        self.heartbeat = Heartbeat(self._client, self.run_id)

    @property
    def store_uri(self) -> str:
        """Where it is kept by now, without user and password."""
        return public_uri((self._on_disk or self)._config.uri)

    @property
    def undelivered(self) -> str:
        """What is to be done where it lies on disk instead of in its store; empty where it does not."""
        return f"It lies on disk; {advice(self._on_disk._config)}" if self._on_disk else ""

    def __enter__(self) -> "TrackedRun":
        self.heartbeat.begin()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the run, unless it is another's by now: FINISHED, FAILED with a tag that says why, or KILLED.

        Raises:
            KeyboardInterrupt: a signal came, whatever became of it on its way here.
            SlimdownError: the disk is full, or the run another's.
        """
        self.heartbeat.end()
        with undisturbed():
            end = error
            if interrupted() and not isinstance(error, KeyboardInterrupt):
                end = KeyboardInterrupt()
            elif isinstance(error, Exception):
                end = disk_full(error, self._folder) or error
            if self._on_disk is None:
                self.heartbeat.look()
            taken = self.heartbeat.taken
            end = end or taken
            refused = None if taken else self._close(end)
            if refused is not None and end is None:
                raise disk_full(refused, self._folder) or refused
            if end is not None:
                if end is not taken:
                    end.add_note(str(taken or self._ending(end, refused)))
                raise end from (error if error is not end else end.__cause__)

    def sibling(self, name: str, kind: str) -> "TrackedRun":
        """Another run beside this one, wherever that is by now."""
        if self._on_disk:
            return self._on_disk.sibling(name, kind)
        try:
            return TrackedRun(self._config, name, kind, {}, self._client)
        except SlimdownError as error:
            if not isinstance(self._client, PatientClient):
                raise
            return TrackedRun(self._client.give_up(error), name, kind, {})

    def _keep(self, write: "Callable[[TrackedRun], _T]") -> "_T":
        self.heartbeat.stop_if_taken()
        if self._on_disk:
            return write(self._on_disk)
        if not isinstance(self._client, PatientClient):
            return write(self)
        try:
            result = write(self)
        except Exception as error:  # silent, or a refusal: what was computed is worth a folder
            # Artifacts go past the server, and are refused in the words of their own library: the system's, botocore's.
            if not isinstance(error, StoreGone | MlflowException) and (
                not self._written or disk_full(error)
            ):
                raise
            tags = {**self._tags, Tag.sent_for: self.run_id}
            self._on_disk = TrackedRun(self._client.give_up(error), self.name, self._kind, tags)
            self.artifact_uri = self._on_disk.artifact_uri
            for earlier in self._written:
                earlier(self._on_disk)
            self._written.clear()
            return write(self._on_disk)
        self._written.append(write)
        return result

    @_kept
    def _close(self, end: BaseException | None) -> Exception | None:
        """Mark how the run ended; returns why the store refuses, None where it does not."""
        status = _status(end)
        steps: list[Callable[[], object]] = [self._flush]
        if status == "FAILED" and end is not None:
            reason = redact(f"{type(end).__name__}: {end}")[:5000]
            steps.append(lambda: self._client.set_tag(self.run_id, Tag.error, reason))
        if isinstance(end, TrialPruned):
            steps.append(lambda: self._client.set_tag(self.run_id, Tag.pruned, str(end)))
        steps.append(lambda: self._client.set_terminated(self.run_id, status))
        refused = None
        for step in steps:  # each for itself: a run that keeps no more metrics can still be marked
            try:
                step()
            except StoreGone:
                raise
            except Exception as error:
                refused = error
        if status == "FAILED" and refused is None:
            with suppress(Exception):  # the reason is in the tag
                told = "".join(traceback.format_exception(end))
                self._client.log_text(self.run_id, redact(told), "traceback.txt")
        return refused

    def _ending(self, end: BaseException, refused: Exception | None) -> str:
        if self._on_disk:
            return f"Run {self.run_id} is marked {_status(end)} on disk; {advice(self._on_disk._config)}"
        if refused is None:
            return f"Run {self.run_id} is marked {_status(end)} and keeps what was recorded so far."
        why = (
            "its disk is full"
            if disk_full(refused)
            else f"the store refuses ({first_line(refused)})"
        )
        return (
            f"Run {self.run_id} could not be marked {_status(end)} and may stay RUNNING: {why}. What was recorded so "
            "far is kept."
        )

    # --- what a run is told ---------------------------------------------------------------------

    @_kept
    def log_settings(self, flat: Mapping[str, Any], files: Mapping[str, str] | None = None) -> None:
        """Keep every setting as a param by its dotted key, and texts as artifacts by their paths."""
        self._settings = flat
        known = (
            self._before.data.params if self._before else {}
        )  # of which MLflow lets none be changed
        params = [
            Param(key, _plain(value)[:_MOST_PARAM])
            for key, value in flat.items()
            if key not in known
        ]
        log_entries(self._client, self.run_id, params=params)
        for path, text in (files or {}).items():
            self._client.log_text(self.run_id, redact(text), path)

    @_kept
    def log_model(self, loaded: "LoadedModel") -> None:
        """Keep which weights were loaded, and what that cost."""
        self._tag(names.loaded_tags(loaded))
        self._metrics(names.loaded_metrics(loaded))

    @_kept
    def log_data(self, data: "SftData | None", estimates: Mapping[str, float]) -> None:
        """Name the datasets in MLflow's own column, and the fingerprint of the text; keep estimates of costs."""
        self._metrics(names.cost_metrics(estimates))
        if data is None:
            return
        inputs = [
            DatasetInput(
                Dataset(
                    name=source.name,
                    digest=data.fingerprint,
                    source_type="slimdown",
                    source=redact(json.dumps({"path": source.path, "revision": source.revision})),
                    profile=json.dumps(
                        {"n_train": source.n_train, "n_validation": source.n_validation}
                    ),
                ),
                tags=[InputTag("mlflow.data.context", "training")],
            )
            for source in data.sources
        ]
        self._client.log_inputs(self.run_id, inputs)
        self._tag(
            {
                Tag.dataset: ",".join(source.name for source in data.sources),
                Tag.data_fingerprint: data.fingerprint,
            }
        )
        self._metrics(names.data_metrics(data))

    @_kept
    def log_contamination(self, found: "Contamination") -> None:
        """Keep how many of the questions asked stand in the rows, and each of these with a row that it stands in."""
        self._metrics(names.contamination_metrics(found))
        if found.overlaps:
            self._client.log_text(self.run_id, redact(found.csv()), "contamination.csv")

    @_kept
    def log_evaluation(
        self, model: str, name: str, report: BenchmarkEvaluation, key: str = "", end: str = ""
    ) -> None:
        """Keep what was asked of base or tuned, found by `key` from then on; `end` is of the file of a stage."""
        self._samples(model, name, report, end)
        if self._kind == "baseline" and not end:
            self._metrics(names.score_metrics(model, {name: report}))
        if key:  # last: what has the tag has everything
            self._tag({f"{Tag.evaluation}{key}": f"{model}-{name}{end}"})

    @_kept
    def log_link(self, name: str, run_id: str, key: str, report: BenchmarkEvaluation) -> None:
        """Name the run that holds the base's answers to one benchmark, and the key of its evaluation.

        A run on disk keeps the answers as well: the store that holds them may not come back.
        """
        if Tag.sent_for in self._tags:
            self._samples("base", name, report)
        self._tag({f"{Tag.baseline}{name}": run_id, f"{Tag.base_key}{name}": key})

    @_kept
    def log_base(self, before: Evaluation) -> None:
        """Keep the base's scores, and how they came about."""
        self._metrics(names.score_metrics("base", before.benchmarks))
        self._tag(
            {Tag.scoring_path: before.scoring_path, Tag.harness_version: before.harness_version}
        )

    @_kept
    def log_base_loss(self, key: str, loss: float) -> None:
        """Keep a base's validation loss, to the last digit, by the key that it is found by."""
        self._client.set_tag(self.run_id, f"{Tag.validation_loss}{key}", repr(loss))

    @_kept
    def log_step(self, record: "StepRecord") -> None:
        """Keep one training step, unless the run has it from before; steps are sent together every few seconds."""
        now = int(time.time() * 1000)
        values = names.step_metrics(record.values)
        new = {
            k: v
            for k, v in values.items()
            if isfinite(v) and (k, record.step) not in self._steps_before
        }
        self._pending += [Metric(key, value, now, record.step) for key, value in new.items()]
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._flush()

    @_kept
    def log_tuned(self, tuned: "Tuned") -> None:
        """Keep what training learned and cost, and the adapter or whole model: a logged model that names its base.

        MLflow finds its files under `runs:/RUN_ID/adapter`, or `.../model`, as if they were the run's own. Of a model
        that was not tuned here, where it came from.
        """
        if (training := tuned.training) is None:
            self._tag({Tag.origin: f"{tuned.model.id}@{tuned.model.revision}"})
            return
        self._metrics(names.training_metrics(training))
        describe(training.adapter_dir, tuned.model, self._settings)
        self._logged_model = log_model(
            self._client, self.run_id, training.adapter_dir, tuned.model, training.steps
        )

    @_kept
    def keep(self, findings: Findings, files: Mapping[str, str | bytes]) -> None:
        """Keep what the run found, and the files that show it; `report.md` is what the run's page opens with."""
        changes = recorded_changes(findings)
        scores = names.score_metrics("tuned", findings.after.benchmarks)
        self._metrics(scores | names.to_metrics(changes) | names.cost_metrics(findings.costs))
        self._tag({**names.to_tags(changes), "mlflow.note.content": str(files["report.md"])})
        with tempfile.TemporaryDirectory() as folder:
            for path, content in files.items():
                file = Path(folder) / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content.encode() if isinstance(content, str) else content)
            self._client.log_artifacts(self.run_id, folder)
        if self._logged_model:
            self._metrics(scores, model_id=self._logged_model, run_id=self.run_id)

    @_kept
    def log_card(self, card: Callable[[Making], str]) -> None:
        """Put a card beside what was tuned here, made of what the run holds by now."""
        if self._logged_model:
            made = names.making(names.recorded_run(self._client.get_run(self.run_id), {}))
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / "README.md").write_text(redact(card(made)), encoding="utf-8")
                self._client.log_model_artifacts(self._logged_model, folder)

    # --- how it gets there ------------------------------------------------------------------------

    def _samples(self, model: str, name: str, report: BenchmarkEvaluation, end: str = "") -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{model}-{name}{end}.parquet"
            write_samples(file, model, name, report)
            self._client.log_artifact(self.run_id, str(file), "samples")

    def _metrics(self, values: Mapping[str, float], **of: Any) -> None:
        now = int(time.time() * 1000)
        known = {} if of else self._known  # which need not be there twice
        # A standard error that is not defined (one question) is left out rather than shown as a number.
        new = {
            key: float(value)
            for key, value in values.items()
            if isfinite(value) and known.get(key) != value
        }
        log_entries(
            self._client, self.run_id, metrics=[Metric(key, new[key], now, 0, **of) for key in new]
        )
        known |= new

    def _tag(self, tags: Mapping[str, str]) -> None:
        log_entries(
            self._client,
            self.run_id,
            tags=[RunTag(key, redact(value)[:8000]) for key, value in tags.items()],
        )

    def _flush(self) -> None:
        log_entries(self._client, self.run_id, metrics=self._pending)
        self._pending.clear()
        self._flushed = time.monotonic()


def _plain(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return redact(text)


def _status(end: BaseException | None) -> str:
    """How a run that ends so is marked."""
    if end is None:
        return "FINISHED"
    return "KILLED" if isinstance(end, KeyboardInterrupt | TrialPruned) else "FAILED"
