"""Writing a run: into its own folder first, and from there into MLflow."""

import json
import logging
import shutil
import socket
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from math import isfinite
from typing import TYPE_CHECKING, Any

from mlflow.entities import Metric, RunTag

from slimdown.config.naming import flatten
from slimdown.config.schema import RunConfig, TrackingConfig
from slimdown.evaluation.samples import write_samples
from slimdown.stats.findings import Findings
from slimdown.tracking import metric_names
from slimdown.tracking.base_evaluations import RecordedEvaluations
from slimdown.tracking.metric_names import Tag
from slimdown.tracking.provenance import RunInfo, read_user
from slimdown.tracking.resume import NOT_IN_KEY, mark_orphans_killed
from slimdown.tracking.store import (
    call_within,
    explain_store_errors,
    find_experiment,
    lock,
    log_settings,
    open_store,
    run_dir,
)
from slimdown.utils.errors import TrackingError, TrialPruned
from slimdown.utils.files import raise_if_disk_full, write_atomically
from slimdown.utils.secrets import redact, redact_uri

if TYPE_CHECKING:  # they import torch
    from slimdown.data.contamination import Contamination
    from slimdown.data.training_data import TrainingData
    from slimdown.models.base_model import LoadedModel
    from slimdown.training.result import StepLog, TrainingResult

_FLUSH_SECONDS = 5.0  # 200 single calls take 4.2 s, one batch of them 0.03 s
_END_SECONDS = 60.0  # for marking a run that failed or was stopped
_MAX_TAG = 5000  # characters
_BASE_FIELDS = (
    "id", "revision", "quantization", "dtype", "dtype_reason", "device", "n_parameters",
    "memory_bytes", "load_seconds", "license",
)  # fmt: skip
_log = logging.getLogger(__name__)


class TrackedRun:
    """One run, from its settings to its end, as a context.

    A store that falls silent in the middle is no error: what it did not take is delivered at the
    end. If it is still silent then, everything is in `folder`, and the same command takes it from
    there.

    Attributes:
        run_id: MLflow's id.
        folder: The run's files until they are in the store.
        checkpoint_dir: Where training keeps what it can go on from.
        base_cache, tuned_cache: The evaluations of both models, where they are measured.
        store_uri, artifact_uri: Where the run is shown, without password.
    """

    def __init__(
        self, tracking: TrackingConfig, name: str, tags: Mapping[str, str], resume_run_id: str = ""
    ) -> None:
        """Create the run in the store, or go on in an unfinished one.

        Args:
            tracking: The store.
            name: Of the run.
            tags: Of the run from its beginning.
            resume_run_id: The id of an unfinished run.

        Raises:
            TrackingError: The store does not answer or refuses; nothing has been computed yet.
        """
        self._tracking, self.client = tracking, open_store(tracking)
        with explain_store_errors(tracking):
            experiment = find_experiment(self.client, tracking)
            mark_orphans_killed(self.client, tracking, experiment, keep=resume_run_id)
            own: dict[str, str] = {Tag.kind: "tuned", Tag.host: socket.gethostname()}
            texts = {key: redact(value)[:_MAX_TAG] for key, value in tags.items()}
            if resume_run_id:
                run = self.client.get_run(resume_run_id)
                self.client.update_run(resume_run_id, "RUNNING")
                for tag in {Tag.error, Tag.pruned} & run.data.tags.keys():
                    self.client.delete_tag(resume_run_id, tag)
            else:
                own["mlflow.user"] = read_user()
                run = self.client.create_run(experiment, None, own | texts, redact(name))
        self.run_id: str = run.info.run_id
        self.artifact_uri: str = redact_uri(run.info.artifact_uri)
        self.store_uri = redact_uri(tracking.uri)
        self._lock = lock(tracking, f"run-{self.run_id}")
        self._lock.acquire(timeout=0)
        self.folder = run_dir(tracking, self.run_id)
        self.checkpoint_dir = self.folder / "checkpoints"
        self._artifacts = self.folder / "artifacts"
        self._artifacts.mkdir(parents=True, exist_ok=True)
        self._steps = self.folder / "steps.jsonl"
        self._known_steps = self._steps.read_text().splitlines() if self._steps.exists() else []
        self.base_cache: RecordedEvaluations | None = None
        self.tuned_cache: RecordedEvaluations | None = None
        self._settings: Mapping[str, object] = {}
        self._metrics: list[Metric] = []
        self._tags: list[RunTag] = []
        self._is_silent, self._flushed = False, time.monotonic()

    def __enter__(self) -> "TrackedRun":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        try:
            if error is None:
                self._finish()
            else:
                self._fail(error)
                raise_if_disk_full(error, self.folder)
        finally:
            self._lock.release()

    def log_settings(self, settings: Mapping[str, object], files: Mapping[str, str]) -> None:
        """Record every setting, and texts by their paths among the artifacts."""
        self._settings = settings
        for path, text in files.items():
            write_atomically(self._artifacts / path, redact(text))
        self._flush()

    def log_model(self, base: "LoadedModel") -> None:
        """Record which weights the base has."""
        details = {name: getattr(base, name) for name in _BASE_FIELDS}
        write_atomically(self._artifacts / "model.json", redact(json.dumps(details, default=str)))
        self._add_tag(Tag.model, f"{base.id}@{base.revision} {base.quantization} {base.dtype}")

    def log_data(self, train_data: "TrainingData", contamination: "Contamination") -> None:
        """Record the datasets, and the questions that stand in their rows."""
        names = ",".join(part.name for part in train_data.parts)
        self._add_tag(Tag.dataset, f"{names} {train_data.fingerprint}")
        if contamination.overlaps:
            write_atomically(self._artifacts / "contamination.csv", redact(contamination.to_csv()))

    def log_step(self, step: "StepLog") -> None:
        """Record one training step; one that was recorded before is left out."""
        values = metric_names.collect_step_metrics(step.values)
        line = json.dumps({"step": step.step, **values})
        if line not in self._known_steps:
            with self._steps.open("a") as file:
                file.write(line + "\n")
            self._add_metrics(values, step.step)
            if time.monotonic() - self._flushed > _FLUSH_SECONDS:
                self._flush()

    def log_tuned(self, tuned: "LoadedModel", training: "TrainingResult | None") -> None:
        """Record what was trained, or where a model comes from that was tuned elsewhere."""
        if training is None:
            self._add_tag(Tag.origin, f"{tuned.id}@{tuned.revision}")
            return
        self._add_metrics(metric_names.collect_training_metrics(training))
        is_adapter = (training.output_dir / "adapter_config.json").is_file()
        target = self._artifacts / ("adapter" if is_adapter else "model")
        shutil.copytree(training.output_dir, target, dirs_exist_ok=True)

    def save(self, findings: Findings, files: Mapping[str, str | bytes]) -> None:
        """Record the findings and the pages that show them.

        Args:
            findings: As `judge` returns them.
            files: By path among the artifacts; `report.md` is shown as the run's description.
        """
        for path, content in files.items():
            if not (self._artifacts / "adapter").is_dir():  # a whole model was trained
                path = path.replace("adapter/", "model/")
            write_atomically(self._artifacts / path, content)
        write_atomically(self._artifacts / "findings.json", json.dumps(findings.to_dict()))
        samples = self._artifacts / "samples"
        samples.mkdir(exist_ok=True)
        scoring: dict[str, Any] = {}
        caches = {"base": self.base_cache, "tuned": self.tuned_cache}
        for model, evaluation in (("base", findings.base), ("tuned", findings.tuned)):
            assert evaluation is not None, "findings that are saved hold their evaluations"
            cache = caches[model]
            for name, one in evaluation.benchmarks.items():
                file = samples / f"{model}-{name}.parquet"
                if cache and name in cache.files:  # with the questions that are held out
                    shutil.copyfile(cache.files[name], file)
                else:
                    write_samples(file, model, name, one)
            fields = ("harness_version", "backend", "seconds", "conditions")
            scoring[model] = {field: getattr(evaluation, field) for field in fields}
            scoring[model]["benchmarks"] = list(evaluation.benchmarks)
        write_atomically(samples / "scoring.json", json.dumps(scoring, default=dict))
        self._add_metrics(metric_names.collect_finding_metrics(findings))
        self._add_tag(Tag.headline, metric_names.describe_headline(findings))
        self._add_tag("mlflow.note.content", str(files.get("report.md", "")))

    def _finish(self) -> None:
        try:
            self._deliver("FINISHED")
        except TrackingError as error:
            raise TrackingError(
                f"{error}. The results are in {self.folder}: repeat the command when the store "
                "answers, and it takes every answer from there"
            ) from None
        shutil.rmtree(self.folder, ignore_errors=True)

    def _fail(self, error: BaseException) -> None:
        stops = (KeyboardInterrupt, SystemExit, TrialPruned)
        status = "KILLED" if isinstance(error, stops) else "FAILED"
        if isinstance(error, TrialPruned):
            self._add_tag(Tag.pruned, str(error))
        elif status == "FAILED":
            self._add_tag(Tag.error, f"{type(error).__name__}: {error}")
            text = "".join(traceback.format_exception(error))
            with suppress(OSError):
                write_atomically(self._artifacts / "traceback.txt", redact(text))
        try:
            call_within(_END_SECONDS, lambda: self._deliver(status))
            error.add_note(f"Run {self.run_id} is marked {status}; the same command goes on in it.")
        except (TrackingError, TimeoutError) as problem:
            error.add_note(
                f"Run {self.run_id} could not be marked {status} ({problem}); the same command "
                f"goes on from {self.folder}."
            )

    def _deliver(self, status: str) -> None:
        with explain_store_errors(self._tracking):
            self._send_pending()
            self.client.log_artifacts(self.run_id, str(self._artifacts))
            self.client.set_terminated(self.run_id, status)

    def _flush(self) -> None:
        """Send what is pending; a store that does not take it is not asked again until the end."""
        self._flushed = time.monotonic()
        try:
            if not self._is_silent:
                with explain_store_errors(self._tracking):
                    self._send_pending()
        except TrackingError as error:
            self._is_silent = True
            _log.warning("%s. The run goes on, keeps its results in %s", error, self.folder)

    def _send_pending(self) -> None:
        if self._settings:
            log_settings(self.client, self.run_id, self._settings)
            self._settings = {}
        for i in range(0, len(self._metrics), 1000):  # MLflow's limit for one batch
            self.client.log_batch(self.run_id, self._metrics[i : i + 1000])
        self.client.log_batch(self.run_id, tags=self._tags)
        self._metrics, self._tags = [], []

    def _add_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        now = int(time.time() * 1000)
        finite = {key: float(value) for key, value in values.items() if isfinite(value)}
        self._metrics += [Metric(key, value, now, step) for key, value in finite.items()]

    def _add_tag(self, name: str, text: str) -> None:
        self._tags.append(RunTag(name, redact(text)[:_MAX_TAG]))


@contextmanager
def open_run(config: RunConfig, info: RunInfo) -> Iterator[TrackedRun]:
    """Open a run, record its settings, and end it FINISHED, FAILED or KILLED.

    Args:
        config: The checked settings.
        info: The run's name and how it came about.

    Yields:
        The run, which takes what is computed.

    Raises:
        TrackingError: The store does not answer, before anything is computed or at the end.
    """
    tags = {Tag.run_key: info.run_key, Tag.sweep: info.sweep or "", **info.tags}
    tags = {name: text for name, text in tags.items() if text}
    with TrackedRun(config.tracking, info.name, tags, info.resume_run_id) as run:
        if info.on_open:
            info.on_open(run.run_id)
        run.base_cache = RecordedEvaluations(config, "base", run.folder, run.client)
        run.tuned_cache = RecordedEvaluations(config, "tuned", run.folder, run.client)
        settings = {k: v for k, v in flatten(config).items() if not k.startswith(NOT_IN_KEY)}
        files = {
            "config.yaml": info.config_yaml,
            "overrides.txt": "\n".join(info.overrides) + "\n",
            "environment.json": json.dumps(dict(info.environment), indent=2) + "\n",
        }
        run.log_settings(settings, files)
        yield run
