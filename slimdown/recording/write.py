"""Writing a run into MLflow, as it goes.

`TrackedRun` opens a run, takes each step's result, and closes it FINISHED, FAILED or KILLED. It talks to the store
through one client of its own, never through MLflow's global state. With `store.py` the only module that knows MLflow.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import wraps
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from slimdown.guarding.disk import disk_full
from slimdown.guarding.errors import UserError
from slimdown.guarding.interruption import interrupted, undisturbed
from slimdown.guarding.redaction import public_uri, redact
from slimdown.judging.findings import Findings
from slimdown.judging.runs import recorded_changes
from slimdown.measuring.answers import BenchmarkEvaluation, DamagedSamples, Evaluation, read_samples, write_samples
from slimdown.recording import names
from slimdown.recording.connection import experiment_id, first_line, lock, open_store, sqlite_file
from slimdown.recording.names import Tag
from slimdown.recording.outage import PatientClient, StoreGone, advice
from slimdown.settings.naming import base_settings, flatten
from slimdown.settings.schema import BenchmarkConfig, RunConfig, TrackingConfig

if TYPE_CHECKING:  # they would bring torch along, which who records the harness's logs does without
    from slimdown.preparing.data import SftData
    from slimdown.preparing.model import LoadedModel
    from slimdown.recording.provenance import About
    from slimdown.training.fine_tune import StepRecord, Tuned

_FLUSH_SECONDS = 5.0  # step metrics go out together: 200 single calls cost 4.2 s, one batch 0.03 s
_MOST_PARAM = 6000  # characters; MLflow cuts longer ones, the whole config is an artifact
_P = ParamSpec("_P")
_T = TypeVar("_T")


def _kept(write: "Callable[Concatenate[TrackedRun, _P], _T]") -> "Callable[Concatenate[TrackedRun, _P], _T]":
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
    ) -> None:
        """Create the run.

        Args:
            config: the store.
            name: of the run.
            kind: tuned or baseline.
            tags: of the run from its beginning.
            client: of the store, where it is open already.

        Raises:
            UserError: the tracking store does not answer or refuses; nothing has been computed by then.
        """
        self._client = client or (open_store(config) if sqlite_file(config.uri) else PatientClient.open(config))
        file = sqlite_file(config.uri)
        self._folder = file.absolute().parent if file else Path.cwd()
        experiment = experiment_id(self._client, config)
        try:
            run = self._client.create_run(experiment, run_name=redact(name), tags={**tags, Tag.kind: kind})
        except MlflowException as error:
            raise disk_full(error, self._folder) or UserError(
                f"tracking.uri={public_uri(config.uri)} refuses a run: {first_line(error)}"
            ) from None
        self.run_id: str = run.info.run_id
        self.artifact_uri: str = run.info.artifact_uri
        self.name = name
        self._config, self._kind, self._tags = config, kind, tags
        self._written: list[Callable[[TrackedRun], Any]] = []  # what a folder would be told from the beginning
        self._on_disk: TrackedRun | None = None
        if isinstance(self._client, PatientClient):
            self._client.begin()
        self._experiment_id = experiment
        self._logged_model: str | None = None
        self._pending: list[Metric] = []
        self._flushed = time.monotonic()

    @property
    def store_uri(self) -> str:
        """Where it is kept by now."""
        return (self._on_disk or self)._config.uri

    @property
    def undelivered(self) -> str:
        """What is to be done where it lies on disk instead of in its store; empty where it does not."""
        return f"It lies on disk; {advice(self._on_disk._config)}" if self._on_disk else ""

    def __enter__(self) -> "TrackedRun":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the run FINISHED, FAILED with the error in a tag, or KILLED; the error says so in a note.

        Raises:
            KeyboardInterrupt: a signal came, whatever became of it on its way here.
            UserError: the disk is full.
        """
        with undisturbed():
            end = error
            if interrupted() and not isinstance(error, KeyboardInterrupt):
                end = KeyboardInterrupt()
            elif isinstance(error, Exception):
                end = disk_full(error, self._folder) or error
            refused = self._close(end)
            if refused is not None and end is None:
                raise disk_full(refused, self._folder) or refused
            if end is not None:
                end.add_note(self._ending(end, refused))
                raise end from (error if error is not end else end.__cause__)

    def sibling(self, name: str, kind: str) -> "TrackedRun":
        """Another run beside this one, wherever that is by now."""
        if self._on_disk:
            return self._on_disk.sibling(name, kind)
        try:
            return TrackedRun(self._config, name, kind, {}, self._client)
        except UserError as error:
            if not isinstance(self._client, PatientClient):
                raise
            return TrackedRun(self._client.give_up(error), name, kind, {})

    def _keep(self, write: "Callable[[TrackedRun], _T]") -> "_T":
        if self._on_disk:
            return write(self._on_disk)
        if not isinstance(self._client, PatientClient):
            return write(self)
        try:
            result = write(self)
        except Exception as error:  # silent, or a refusal: what was computed is worth a folder
            # Artifacts go past the server, and are refused in the words of their own library: the system's, botocore's.
            if not isinstance(error, StoreGone | MlflowException) and (not self._written or disk_full(error)):
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
        if status == "FAILED":
            reason = redact(f"{type(end).__name__}: {end}")[:5000]
            steps.append(lambda: self._client.set_tag(self.run_id, Tag.error, reason))
        steps.append(lambda: self._client.set_terminated(self.run_id, status))
        refused = None
        for step in steps:  # each for itself: a run that keeps no more metrics can still be marked
            try:
                step()
            except StoreGone:
                raise
            except Exception as error:
                refused = error
        return refused

    def _ending(self, end: BaseException, refused: Exception | None) -> str:
        if self._on_disk:
            return f"Run {self.run_id} is marked {_status(end)} on disk; {advice(self._on_disk._config)}"
        if refused is None:
            return f"Run {self.run_id} is marked {_status(end)} and keeps what was recorded so far."
        why = "its disk is full" if disk_full(refused) else f"the store refuses ({first_line(refused)})"
        return (
            f"Run {self.run_id} could not be marked {_status(end)} and may stay RUNNING: {why}. What was recorded so "
            "far is kept."
        )

    # --- what a run is told ---------------------------------------------------------------------

    @_kept
    def log_settings(self, flat: dict[str, Any], config_yaml: str, overrides: Sequence[str], environment: Any) -> None:
        """Keep every setting as a param, and the whole config, overrides and environment as artifacts."""
        self._params(flat)
        self._client.log_text(self.run_id, redact(config_yaml), "config.yaml")
        self._client.log_text(self.run_id, redact("\n".join(overrides)) + "\n", "overrides.txt")
        self._client.log_text(self.run_id, json.dumps(environment, indent=2) + "\n", "environment.json")

    @_kept
    def log_params(self, flat: dict[str, Any]) -> None:
        """Keep settings by their dotted keys."""
        self._params(flat)

    @_kept
    def log_model(self, loaded: "LoadedModel") -> None:
        """Keep which weights were loaded, and what that cost."""
        self._tag(
            {
                Tag.model: loaded.id,
                Tag.model_revision: loaded.revision,
                Tag.quantization: loaded.quantization,
                Tag.dtype: loaded.dtype,
                Tag.dtype_reason: loaded.dtype_reason,
                Tag.device: loaded.device,
            }
        )
        self._metrics(names.loaded_metrics(loaded))

    @_kept
    def log_data(self, data: "SftData | None") -> None:
        """Name the datasets in MLflow's own column, and the fingerprint of the text that was used."""
        if data is None:
            return
        inputs = [
            DatasetInput(
                Dataset(
                    name=source.name,
                    digest=data.fingerprint,
                    source_type="slimdown",
                    source=redact(json.dumps({"path": source.path, "revision": source.revision})),
                    profile=json.dumps({"n_train": source.n_train, "n_validation": source.n_validation}),
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
    def log_samples(self, model: str, name: str, report: BenchmarkEvaluation) -> None:
        """Keep every question and answer of one benchmark; `model` is base or tuned."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{model}-{name}.parquet"
            write_samples(file, model, name, report)
            self._client.log_artifact(self.run_id, str(file), "samples")

    @_kept
    def log_scores(self, model: str, reports: Mapping[str, BenchmarkEvaluation]) -> None:
        """Keep the scores of benchmarks; `model` is base or tuned."""
        self._metrics(names.score_metrics(model, reports))

    @_kept
    def log_base(self, before: Evaluation, sources: Mapping[str, str]) -> None:
        """Keep the base's scores, how they came about, and which runs hold its evaluations."""
        self._metrics(names.score_metrics("base", before.benchmarks))
        self._tag({f"{Tag.baseline}{name}": run_id for name, run_id in sources.items()})
        self._tag({Tag.scoring_path: before.scoring_path, Tag.harness_version: before.harness_version})

    @_kept
    def log_evaluation(self, key: str, file: str) -> None:
        """Keep by which key an evaluation of this run is found, whose samples lie in `file`."""
        self._client.set_tag(self.run_id, f"{Tag.evaluation}{key}", file)

    @_kept
    def log_base_loss(self, key: str, loss: float) -> None:
        """Keep a base's validation loss, to the last digit, by the key that it is found by."""
        self._client.set_tag(self.run_id, f"{Tag.validation_loss}{key}", repr(loss))

    @_kept
    def log_step(self, record: "StepRecord") -> None:
        """Keep one training step; steps are sent together every few seconds."""
        now = int(time.time() * 1000)
        values = names.step_metrics(record.values)
        self._pending += [Metric(key, value, now, record.step) for key, value in values.items() if isfinite(value)]
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._flush()

    @_kept
    def log_tuned(self, tuned: "Tuned") -> None:
        """Keep what training learned and cost, and the adapter, also as a logged model that names its base.

        Of a model that was not tuned here, where it came from.
        """
        if (training := tuned.training) is None:
            self._tag({Tag.origin: f"{tuned.model.id}@{tuned.model.revision}"})
            return
        self._metrics(names.training_metrics(training))
        self._client.log_artifacts(self.run_id, str(training.adapter_dir), "adapter")
        logged = self._client.create_logged_model(
            self._experiment_id,
            name="tuned",
            source_run_id=self.run_id,
            params={
                "base": redact(tuned.model.id),
                "base_revision": tuned.model.revision,
                "quantization": tuned.model.quantization,
            },
            model_type="peft",
        )
        self._client.log_model_artifacts(logged.model_id, str(training.adapter_dir))
        self._client.finalize_logged_model(logged.model_id, "READY")
        self._client.log_outputs(self.run_id, [LoggedModelOutput(logged.model_id, step=training.steps)])
        self._logged_model = logged.model_id

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
            now, model = int(time.time() * 1000), {"model_id": self._logged_model, "run_id": self.run_id}
            self._client.log_batch(
                self.run_id,
                metrics=[Metric(key, value, now, 0, **model) for key, value in scores.items() if isfinite(value)],
            )

    # --- how it gets there ------------------------------------------------------------------------

    def _params(self, flat: dict[str, Any]) -> None:
        params = [Param(key, _plain(value)[:_MOST_PARAM]) for key, value in flat.items()]
        for i in range(0, len(params), 100):  # the most that a batch takes
            self._client.log_batch(self.run_id, params=params[i : i + 100])

    def _metrics(self, values: dict[str, float]) -> None:
        now = int(time.time() * 1000)
        # A standard error that is not defined (one question) is left out rather than shown as a number.
        kept = [Metric(key, float(value), now, 0) for key, value in values.items() if isfinite(value)]
        self._client.log_batch(self.run_id, metrics=kept)

    def _tag(self, tags: dict[str, str]) -> None:
        self._client.log_batch(self.run_id, tags=[RunTag(key, redact(value)[:8000]) for key, value in tags.items()])

    def _flush(self) -> None:
        for i in range(0, len(self._pending), 1000):  # the most that a batch takes
            self._client.log_batch(self.run_id, metrics=self._pending[i : i + 1000])
        self._pending.clear()
        self._flushed = time.monotonic()


@contextmanager
def opened_run(config: RunConfig, about: "About", opening: AbstractContextManager[Any]) -> Iterator[TrackedRun]:
    """The run, its settings recorded; closed on leaving, whatever comes in between.

    Raises:
        UserError: see `TrackedRun`.
    """
    commit = about.environment["git_commit"] or "none"
    tags: dict[str, str] = {
        Tag.seed: str(config.seed),
        Tag.git_commit: commit,
        "mlflow.source.name": "slimdown.run",  # the columns that MLflow's pages have for them
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": commit,
        **({Tag.sweep: about.sweep} if about.sweep else {}),
    }
    with ExitStack() as until_closed:
        with undisturbed():  # a run that is opened is closed
            with opening:
                tracked = TrackedRun(config.tracking, about.name, kind="tuned", tags=tags)
            until_closed.enter_context(tracked)
        tracked.log_settings(flatten(config), about.config_yaml, about.overrides, about.environment)
        yield tracked


class EvaluationRecord:
    """Finished evaluations in MLflow, found by key across runs, processes and machines that share the store.

    Whatever is found or made is written into the run at hand; what is made is also written into `holder`, the run that
    it is found in from then on: the run at hand for a tuned model, a run of kind `baseline` for a base. `tell` is told
    in a line of what is there and is not used.
    """

    def __init__(
        self,
        config: TrackingConfig,
        model: str,
        at_hand: TrackedRun,
        reuse: bool,
        holder: Callable[[], TrackedRun],
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._client, self._config = at_hand._client, config
        self._model, self._at_hand, self._reuse, self._holder = model, at_hand, reuse, holder
        self._tell = tell
        self.sources: dict[str, str] = {}  # by benchmark: the run that holds the evaluation

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Held while an evaluation is looked up or made; the system frees it when its owner dies."""
        with ExitStack() as stack:
            # The lock saves work and no more: where there is none to be had, an evaluation may be made twice.
            with suppress(Exception):
                stack.enter_context(lock(self._config, key))
            yield

    def find(self, name: str, key: str, benchmark: BenchmarkConfig) -> BenchmarkEvaluation | None:
        """The evaluation of this key, read as `benchmark` says, or None where there is none."""
        if not self._reuse:
            return None
        try:
            return self._found(name, key, benchmark)
        except StoreGone:
            return None  # made again; a run that cannot ask goes on

    def _found(self, name: str, key: str, benchmark: BenchmarkConfig) -> BenchmarkEvaluation | None:
        damaged = ""
        for run in self._search(f"tags.`{Tag.evaluation}{key}` LIKE '%'"):
            with tempfile.TemporaryDirectory() as folder:
                path = f"samples/{run.data.tags[Tag.evaluation + key]}.parquet"
                try:
                    report = read_samples(
                        Path(self._client.download_artifacts(run.info.run_id, path, folder)), benchmark
                    )
                except DamagedSamples as error:
                    damaged = f"{name} is measured again: its samples in run {run.info.run_id} are damaged ({error})"
                    continue
                except (MlflowException, OSError):
                    continue  # the run is there, its artifact was deleted
            self.sources[name] = run.info.run_id
            self._at_hand.log_samples(self._model, name, report)
            return report
        if told := damaged or self._outdated(name):
            self._tell(told)
        return None

    def _outdated(self, name: str) -> str:
        """Say that there are evaluations of an earlier kind of key and none of today's; empty where that is not so."""
        from slimdown.measuring.measure import KEY_VERSION

        model = self._client.get_run(self._at_hand.run_id).data.tags.get(Tag.model)
        kinds = {
            key.startswith(Tag.evaluation + KEY_VERSION)
            for run in self._search("tags.`slimdown.kind` = 'baseline'")
            if run.data.tags.get(Tag.model) == model
            for key, value in run.data.tags.items()
            if key.startswith(Tag.evaluation) and value == f"{self._model}-{name}"
        }
        if kinds != {False}:
            return ""
        return (
            f"{name} is measured anew, once: its evaluations in the record are of an earlier kind, found by keys that "
            "left out the tokenizer and details of the quantization"
        )

    def _search(self, condition: str) -> list[Run]:
        """Runs of the store, whatever their experiment, the newest first."""
        experiments = [e.experiment_id for e in self._client.search_experiments()]
        return list(self._client.search_runs(experiments, condition))

    def keep(self, name: str, key: str, report: BenchmarkEvaluation) -> None:
        """Keep a finished evaluation, so that it can be found from now on."""
        holder = self._holder()
        self._at_hand.log_samples(self._model, name, report)
        if holder is not self._at_hand:
            holder.log_samples(self._model, name, report)
            holder.log_scores(self._model, {name: report})
        # Last: what has the tag has everything.
        holder.log_evaluation(key, f"{self._model}-{name}")
        self.sources[name] = holder.run_id

    def find_loss(self, key: str) -> float | None:
        """The validation loss of this key, or None where there is none."""
        if not self._reuse:
            return None
        try:
            runs = self._search(f"tags.`{Tag.validation_loss}{key}` LIKE '%'")
        except StoreGone:
            return None
        return next((float(run.data.tags[f"{Tag.validation_loss}{key}"]) for run in runs), None)

    def keep_loss(self, key: str, loss: float) -> None:
        """Keep a validation loss, so that it can be found from now on."""
        self._holder().log_base_loss(key, loss)


@contextmanager
def base_record(
    config: RunConfig, base: "LoadedModel", at_hand: TrackedRun, tell: Callable[[str], None] = lambda line: None
) -> Iterator[EvaluationRecord]:
    """The record of a base's evaluations; a run of kind `baseline` is opened when the first one has to be made."""
    with ExitStack() as stack:
        opened: list[TrackedRun] = []

        def holder() -> TrackedRun:
            if not opened:
                name = f"base {base.id} {base.quantization}"
                with undisturbed():  # no signal between opening the run and seeing to its end
                    opened.append(stack.enter_context(at_hand.sibling(name, kind="baseline")))
                opened[0].log_params(base_settings(config))
                opened[0].log_model(base)
            return opened[0]

        yield EvaluationRecord(config.tracking, "base", at_hand, config.baseline.reuse, holder, tell)


def tuned_record(
    config: RunConfig, at_hand: TrackedRun, tell: Callable[[str], None] = lambda line: None
) -> EvaluationRecord:
    """The record of a tuned model's evaluations, which its own run holds."""
    return EvaluationRecord(config.tracking, "tuned", at_hand, config.baseline.reuse, lambda: at_hand, tell)


def _plain(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return redact(text)


def _status(end: BaseException | None) -> str:
    """How a run that ends so is marked."""
    if end is None:
        return "FINISHED"
    return "FAILED" if isinstance(end, Exception) else "KILLED"
