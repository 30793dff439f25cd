"""Write a run: into its own folder first, and from there into MLflow."""

import json
import logging
import shutil
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from math import inf, isfinite, nan
from typing import TYPE_CHECKING, Any

from filelock import Timeout
from mlflow.entities import DatasetInput, Metric, RunTag

from slimdown.config.naming import describe_identity
from slimdown.config.schema import RunConfig
from slimdown.evaluation.samples import write_samples
from slimdown.judging.findings import Findings
from slimdown.tracking import recorded_settings, runs_page, store
from slimdown.tracking.base_evaluations import RecordedEvaluations
from slimdown.tracking.datasets import describe_all_questions, describe_rows
from slimdown.tracking.logged_models import (
    ModelKind,
    ModelRecord,
    assign_metrics,
    describe_base,
    describe_made,
    describe_named,
    find_or_create_model,
    link_models,
    log_base,
    log_model,
)
from slimdown.tracking.metrics_and_tags import (
    DESCRIPTION,
    Tag,
    collect_finding_metrics,
    describe_headline,
    describe_verdicts,
)
from slimdown.tracking.provenance import RunInfo, name_machine
from slimdown.tracking.system_metrics import record_system_metrics
from slimdown.utils.errors import SlimdownError, TrackingError, list_causes
from slimdown.utils.files import raise_if_disk_full, write_atomically
from slimdown.utils.secrets import redact, redact_leaf, redact_leaves, redact_uri

if TYPE_CHECKING:  # they import torch
    from slimdown.data.contamination import Contamination
    from slimdown.data.training_data import TrainingData
    from slimdown.models.base_model import LoadedModel
    from slimdown.training.result import StepLog, TrainingResult

_FLUSH_SECONDS = 5.0  # 200 single calls take 4.2 s, one batch of them 0.03 s
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Results:
    """What a finished run sends: its metrics, and the questions that they are of."""

    metrics: Mapping[str, float]
    questions: "Mapping[str, DatasetInput]"  # by benchmark


class TrackedRun:
    """One run, from its settings to its end; `open_run` makes it.

    A store that stops answering during the run is no error: the rest is delivered at the end. If it
    does not answer then either, everything is in `folder`, and the same command takes it from
    there.

    Attributes:
        run_id: MLflow's id.
        folder: The run's files until they are in the store.
        checkpoint_dir: Where training keeps its checkpoints.
        base_cache, tuned_cache: The evaluations of both models.
        served_cache: Those of the tuned model as it is served.
        store_uri, artifact_uri: Where the run is shown, without password.
        model_uri: The folder that what was trained goes to, without password; empty where nothing
            was trained or the store is silent.
    """

    def __init__(self, config: RunConfig, info: RunInfo) -> None:
        """Create the run in the store, or resume the unfinished one that `info` names.

        The settings and the origin of the run are written to its folder, and the first metrics and
        tags are sent.

        Args:
            config: The checked settings.
            info: The run's name and how it came about.

        Raises:
            TrackingError: The store does not answer or refuses; nothing has been computed yet.
        """
        # `_open` reads these three attributes, and sets `client` and `_experiment_id`. Everything
        # else comes later, because the run's id names its folder.
        self._config = config
        self._tracking = config.tracking
        self._lock = ExitStack()  # `_open` puts the run's lock here, held until the run has ended
        settings_text = recorded_settings.write_settings(config)
        run = self._open(info, settings_text)
        self.run_id: str = run.info.run_id
        self.artifact_uri: str = redact_uri(run.info.artifact_uri)
        self.store_uri = redact_uri(config.tracking.uri)
        self.model_uri = ""
        self.folder = store.local_dir(config.tracking) / "runs" / self.run_id
        self.checkpoint_dir = self.folder / "checkpoints"
        self.base_cache = RecordedEvaluations(config, "base", self.folder)
        self.tuned_cache = RecordedEvaluations(config, "tuned", self.folder)
        self.served_cache = RecordedEvaluations(config, "served", self.folder)
        self._artifacts = self.folder / "artifacts"
        self._model_files = self.folder / "model"  # what was trained
        # Metrics that belong to no training step are recorded with this time, in milliseconds. If
        # a resumed run delivers them again, MLflow takes them for the same ones.
        self._started: int = run.info.start_time
        self._recorded_steps: set[int] = set()  # the training steps that the store has already
        self._metrics: list[Metric] = []  # not sent yet, like `_tags` and `_datasets` below
        if info.resume_run_id:
            history = self.client.get_metric_history(self.run_id, "train/loss")
            self._recorded_steps = {metric.step for metric in history}
        else:
            # MLflow's page Compare shows first what was recorded first. That shall be the changes,
            # not the loss, so they are recorded now without values.
            names = ["kept", *(f"{Tag.change}{name}" for name in config.benchmark)]
            self._metrics = [Metric(name, nan, self._started, step=0) for name in names]
        self._tags: list[RunTag] = []
        self._datasets: list[DatasetInput] = []
        self._base: ModelRecord | None = None  # until the base is loaded
        self._base_id = ""  # MLflow's id of the base, once the store has it
        settings = self._list_shown_settings(info)
        self._tuned = describe_made(ModelKind.tuned, self.run_id, info.name, settings)
        self._results: Results | None = None  # until `save`
        # When to send again, by the monotonic clock; inf: the store fell silent.
        self._next_flush = time.monotonic() + _FLUSH_SECONDS
        self._is_delivered = False  # whether the store has everything, and the run is FINISHED
        self._write_origin(info, settings_text)
        # Sending reads all of the attributes above. The first metrics are sent now, so that MLflow
        # shows system metrics after them.
        self._try_to_send()

    def _open(self, info: RunInfo, settings_text: str) -> Any:
        """Open the store, create or resume the run in it, lock it, and return MLflow's entry.

        This also sets `client` and `_experiment_id`.

        Args:
            info: The run's name and how it came about.
            settings_text: The content of settings.json. Its digest becomes a tag of the run.

        Raises:
            TrackingError: The store does not answer or refuses.
        """
        self.client = store.open_store(self._tracking)
        tags = {
            Tag.run_key: info.run_key,
            Tag.sweep: info.sweep or "",
            Tag.settings: recorded_settings.digest_settings(settings_text),
            **info.tags,
        }
        with store.explain_store_errors(self._tracking):
            self._experiment_id = store.find_experiment(self.client, self._tracking)
            # This raises before anything is computed if an old server keeps no models.
            self.client.search_logged_models([self._experiment_id], max_results=1)
            run = self._resume(info, tags) if info.resume_run_id else self._create(info, tags)
            if not run.data.params:  # the run is new, or was killed before it had them
                store.log_settings(self.client, run.info.run_id, self._list_shown_settings(info))
        return run

    def _list_shown_settings(self, info: RunInfo) -> dict[str, str]:
        """Return the settings that MLflow shows: first those that every run has."""
        identity = describe_identity(self._config)
        return identity | dict(info.shown) | identity

    def _write_origin(self, info: RunInfo, settings_text: str) -> None:
        """Write what is known of a run before it begins: its settings and where it runs."""
        self._artifacts.mkdir(parents=True, exist_ok=True)
        for draft in self._artifacts.rglob(".*.draft"):  # left by a process that was killed
            draft.unlink()
        environment, _ = redact_leaves(dict(info.environment))
        texts = {
            recorded_settings.FILE: settings_text,
            "overrides.txt": "\n".join(map(redact_leaf, info.overrides)),
            "environment.json": json.dumps(environment, indent=2),
        }
        for name, text in texts.items():
            write_atomically(self._artifacts / name, text)

    def _create(self, info: RunInfo, tags: Mapping[str, str]) -> Any:
        """Create the run and its folder, and hold it."""
        run = store.create_run(self.client, self._experiment_id, info.name, "tuned", tags)
        (store.local_dir(self._tracking) / "runs" / run.info.run_id).mkdir(parents=True)
        self._lock.enter_context(store.lock_run(self._tracking, run.info.run_id))
        return run

    def _resume(self, info: RunInfo, tags: Mapping[str, str]) -> Any:
        """Lock an unfinished run, mark in the store that it goes on, and return its entry.

        Args:
            info: The run's name, and the id of the unfinished run.
            tags: The tags of a new run. Of these, only those are set that another command with the
                same key may have changed.

        Raises:
            TrackingError: Another process continues the run.
        """
        run = self.client.get_run(store.check_run_id(info.resume_run_id))
        run_id = run.info.run_id
        try:
            self._lock.enter_context(store.lock_run(self._tracking, run_id))
        except Timeout:
            problem = f"another process continues run {run_id}"
            raise TrackingError(f"{problem}; repeat the command when it has ended") from None
        self.client.update_run(run_id, "RUNNING", redact_leaf(info.name))
        self.client.set_tag(run_id, Tag.host, redact_leaf(name_machine()))
        for tag in (Tag.settings, Tag.name, Tag.note):
            if text := tags.get(tag, ""):
                self.client.set_tag(run_id, tag, redact_leaf(text))
        if Tag.error in run.data.tags:
            self.client.delete_tag(run_id, Tag.error)
        return run

    def log_model(self, base: "LoadedModel") -> None:
        """Record which weights the base has."""
        self._add_tag(Tag.model, f"{base.id}@{base.revision} {base.quantization} {base.dtype}")
        self._base = self.base_cache.base = describe_base(base)
        self._try_to_send()

    def log_data(self, train_data: "TrainingData", contamination: "Contamination") -> None:
        """Record the datasets, and the questions that stand in their rows."""
        self._datasets += describe_rows(train_data, self._config.dataset, contamination)
        names = ",".join(part.name for part in train_data.parts)
        self._add_tag(Tag.dataset, f"{names} {train_data.fingerprint}")
        if contamination.overlaps:
            write_atomically(self._artifacts / "contamination.csv", contamination.to_csv())

    def log_written(self, rows: str) -> None:
        """Keep the rows that the base wrote, JSON lines; empty: it wrote none."""
        if rows:
            write_atomically(self._artifacts / "written_rows.jsonl", rows)

    def log_step(self, step: "StepLog") -> None:
        """Record one training step; one that was recorded before is left out.

        A store that does not take it is not asked again until the end.
        """
        if step.step not in self._recorded_steps:
            values = {f"train/{name}": v for name, v in step.values.items() if name != "num_tokens"}
            self._add_metrics(values, step.step)
        if time.monotonic() > self._next_flush:
            self._try_to_send()

    def log_tuned(self, tuned: "LoadedModel", training: "TrainingResult | None") -> None:
        """Record what was trained, or the origin of a model that was tuned elsewhere."""
        if training is None:
            self._add_tag(Tag.origin, f"{tuned.id}@{tuned.revision}")
            return
        names = ("validation_loss_before", "validation_loss_after", "base_divergence")
        metrics = {f"train/{name}": getattr(training, name) for name in names}
        self._add_metrics(metrics | {"cost/train_seconds": training.runtime_seconds})
        shutil.copytree(training.output_dir, self._model_files, dirs_exist_ok=True)
        self._reserve_model()

    def _reserve_model(self) -> None:
        """Make the entry of the trained model, so that the run's pages can name its folder."""
        if self._next_flush == inf:
            return
        # If the store does not answer, the next delivery warns of it.
        with suppress(TrackingError), store.explain_store_errors(self._tracking):
            store.check_store(self._tracking)  # MLflow would retry for minutes
            model = find_or_create_model(self.client, self._experiment_id, self._tuned, self.run_id)
            self.model_uri = redact_uri(model.artifact_location)
            self._add_tag(Tag.model_files, self.model_uri)

    def save(
        self,
        findings: Findings,
        files: Mapping[str, str | bytes],
        model_files: Mapping[str, str] | None = None,
    ) -> None:
        """Take the findings and the pages that show them, to be recorded when the run ends.

        They are written to the run's folder now. `finish` sends them to the store.

        Args:
            findings: The findings that `judge` returns.
            files: Contents by path among the artifacts. MLflow shows `report.md` as the run's
                description.
            model_files: Texts by path among the files of the trained model, such as its card.
        """
        for path, content in files.items():
            write_atomically(self._artifacts / path, content)
        for path, text in (model_files or {}).items():
            write_atomically(self._model_files / path, text)
        write_atomically(self._artifacts / "findings.json", json.dumps(findings.to_dict()))
        self._save_samples(findings)
        questions = describe_all_questions(findings.tuned)
        self._datasets += questions.values()
        self._results = Results(collect_finding_metrics(findings), questions)
        self._base = self._base or describe_named(self._config.model.id)
        self._add_tag(Tag.headline, describe_headline(findings))
        self._add_tag(Tag.verdict, describe_verdicts(findings))
        self._add_tag(DESCRIPTION, str(files.get("report.md", "")))

    def _save_samples(self, findings: Findings) -> None:
        """Save every question and answer, also of the questions that are held out."""
        samples = self._artifacts / "samples"
        samples.mkdir(exist_ok=True)
        caches = (self.base_cache, findings.base), (self.tuned_cache, findings.tuned)
        for cache, evaluation in caches:
            for name, benchmark in evaluation.benchmarks.items() if evaluation else ():
                file = samples / f"{cache.model}-{name}.parquet"
                if name in cache.files:  # it also has the held-out questions, which findings lack
                    shutil.copyfile(cache.files[name], file)
                else:
                    write_samples(file, cache.model, name, benchmark)
        for name, source in self.served_cache.files.items():
            shutil.copyfile(source, samples / f"served-{name}.parquet")

    def finish(self) -> None:
        """Deliver everything, mark the run FINISHED and delete its folder.

        Raises:
            TrackingError: The store does not take it; the message says where the folder is.
        """
        try:
            self._deliver("FINISHED")
        except TrackingError as error:
            advice = f"The results are in {self.folder}: repeat the command when the store answers"
            raise TrackingError(
                f"{error}. {advice}, and it takes every answer from there"
            ) from None
        self._is_delivered = True
        with suppress(Exception):  # the run is complete without; `slimdown ui` shares it again
            runs_page.share_view(self.client, self._experiment_id)
        self._lock.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def fail(self, error: BaseException) -> None:
        """Mark the run FAILED or KILLED, and add a note to the error that says how to go on.

        Args:
            error: What ended the run. An interrupt or an exit means KILLED, anything else FAILED.
        """
        if self._is_delivered:  # it stays FINISHED, whatever failed later
            self._lock.close()
            return
        status = "KILLED" if isinstance(error, (KeyboardInterrupt, SystemExit)) else "FAILED"
        if status == "FAILED":
            self._add_tag(Tag.error, redact(f"{type(error).__name__}: {error}"))
            with suppress(OSError):
                text = redact("".join(traceback.format_exception(error)))
                write_atomically(self._artifacts / "traceback.txt", text)
        try:
            self._deliver(status)
            # A wrong setting, for example, fails in the same way again.
            advice = "goes on in it" if _may_succeed(error) else "fails again until that is mended"
            error.add_note(f"Run {self.run_id} is marked {status}; the same command {advice}.")
        except TrackingError as problem:  # the store does not answer; the folder has everything
            error.add_note(f"{problem}. The same command goes on from {self.folder}.")
        self._lock.close()

    def _deliver(self, status: str) -> None:
        """Send everything, and mark the run with its status."""
        with store.explain_store_errors(self._tracking):
            self._send_pending()
            self.client.log_artifacts(self.run_id, str(self._artifacts))
            if self._results and status == "FINISHED":
                self._send_results(self._results)
            self.client.set_terminated(self.run_id, status)

    def _send_results(self, results: "Results") -> None:
        """Send the tuned model, and the metrics of both models on the questions."""
        folder = self._model_files if self._model_files.is_dir() else None
        tuned_id = log_model(self.client, self._experiment_id, self._tuned, self.run_id, folder)
        link_models(self.client, self.run_id, self._base_id, tuned_id)
        metrics = assign_metrics(
            results.metrics, results.questions, self._base_id, tuned_id, self._started + 1
        )
        self._send_metrics(metrics)

    def _try_to_send(self) -> None:
        """Send what is there; a store that does not take it is not asked again until the end."""
        if self._next_flush == inf:
            return
        try:
            with store.explain_store_errors(self._tracking):
                self._send_pending()
            self._next_flush = time.monotonic() + _FLUSH_SECONDS
        except TrackingError as error:
            self._next_flush = inf
            _log.warning("%s. The run goes on, keeps its results in %s", error, self.folder)

    def _send_pending(self) -> None:
        """Send the datasets, the base, metrics and tags that were added since the last time."""
        store.check_store(self._tracking)  # MLflow would retry for minutes
        if self._datasets:
            self.client.log_inputs(self.run_id, self._datasets)
            self._datasets = []
        if self._base and not self._base_id:
            self._base_id = log_base(self.client, self._tracking, self._experiment_id, self._base)
            link_models(self.client, self.run_id, self._base_id)
        self._send_metrics(self._metrics)
        self.client.log_batch(self.run_id, tags=self._tags)
        self._metrics, self._tags = [], []

    def _send_metrics(self, metrics: Sequence[Metric]) -> None:
        for i in range(0, len(metrics), 1000):  # MLflow's limit for one batch
            self.client.log_batch(self.run_id, metrics[i : i + 1000])

    def _add_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Add the finite values, to be sent; those of step 0 are recorded once."""
        timestamp = int(time.time() * 1000) if step else self._started + 1
        for key, value in values.items():
            if isfinite(value):
                self._metrics.append(Metric(key, float(value), timestamp, step))

    def _add_tag(self, name: str, text: str) -> None:
        self._tags.append(RunTag(name, redact_leaf(text)[: store.MAX_TAG]))


def _may_succeed(error: BaseException) -> bool:
    """Whether the same command can succeed: after a stop, or an error of store, hub or memory."""
    from slimdown.models.device_memory import is_out_of_memory

    if isinstance(error, TrackingError) or not isinstance(error, SlimdownError):
        return True
    causes = list_causes(error)
    return any(isinstance(cause, OSError) or is_out_of_memory(cause) for cause in causes)


@contextmanager
def open_run(config: RunConfig, info: RunInfo) -> Iterator[TrackedRun]:
    """Open a run, record its settings, and set how it ended: FINISHED, FAILED or KILLED.

    Args:
        config: The checked settings.
        info: The run's name and how it came about.

    Yields:
        The run, which takes what is computed.

    Raises:
        TrackingError: The store does not answer, before anything is computed or at the end.
        SlimdownError: The disk is full.
    """
    run = TrackedRun(config, info)
    try:
        if info.on_open:
            info.on_open(run.run_id)
        with record_system_metrics(config.tracking, run.run_id):
            yield run
        run.finish()
    except BaseException as error:
        run.fail(error)  # KILLED if the user interrupted it, otherwise FAILED
        raise_if_disk_full(error)
        raise
