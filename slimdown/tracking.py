"""Writing a run into MLflow, as it goes.

`TrackedRun` opens a run, takes each step's result, and closes it FINISHED, FAILED or KILLED. It talks to the store
through one client of its own, never through MLflow's global state. With `store.py` the only module that knows MLflow.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from slimdown.anatomy import Anatomy
from slimdown.baseline import KEY_VERSION
from slimdown.config import BenchmarkConfig, PaperMetric, TrackingConfig, UserError
from slimdown.connection import experiment_id, first_line, lock, open_store, sqlite_file
from slimdown.data import SftData
from slimdown.disk import disk_full
from slimdown.forgetting import BenchmarkChange, ForgettingReport
from slimdown.interruption import interrupted, undisturbed
from slimdown.model import LoadedModel
from slimdown.paired import Estimate
from slimdown.redaction import public_uri, redact
from slimdown.samples import BenchmarkReport, DamagedSamples, EvalReport, read_samples, write_samples
from slimdown.train import StepRecord, TrainResult

_FLUSH_SECONDS = 5.0  # step metrics go out together: 200 single calls cost 4.2 s, one batch 0.03 s
_MOST_PARAM = 6000  # characters; MLflow cuts longer ones, the whole config is an artifact
_EVALUATION = "slimdown.evaluation."  # and a key: the tag of a run that holds an evaluation


class TrackedRun:
    """One MLflow run, from the moment that settings are known to its end."""

    def __init__(self, config: TrackingConfig, name: str, kind: str, tags: dict[str, str]) -> None:
        """Create the run.

        Raises:
            UserError: the tracking store does not answer or refuses; nothing has been computed by then.
        """
        self._client = open_store(config)
        file = sqlite_file(config.uri)
        self._folder = file.absolute().parent if file else Path.cwd()
        experiment = experiment_id(self._client, config)
        try:
            run = self._client.create_run(experiment, run_name=redact(name), tags={**tags, "slimdown.kind": kind})
        except MlflowException as error:
            raise disk_full(error, self._folder) or UserError(
                f"tracking.uri={public_uri(config.uri)} refuses a run: {first_line(error)}"
            ) from None
        self.run_id: str = run.info.run_id
        self.artifact_uri: str = run.info.artifact_uri
        self.name = name
        self._experiment_id = experiment
        self._pending: list[Metric] = []
        self._flushed = time.monotonic()

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

    def _close(self, end: BaseException | None) -> Exception | None:
        """Mark how the run ended; returns why the store refuses, None where it does not."""
        status = _status(end)
        steps: list[Callable[[], object]] = [self._flush]
        if status == "FAILED":
            reason = redact(f"{type(end).__name__}: {end}")[:5000]
            steps.append(lambda: self._client.set_tag(self.run_id, "slimdown.error", reason))
        steps.append(lambda: self._client.set_terminated(self.run_id, status))
        refused = None
        for step in steps:  # each for itself: a run that keeps no more metrics can still be marked
            try:
                step()
            except Exception as error:
                refused = error
        return refused

    def _ending(self, end: BaseException, refused: Exception | None) -> str:
        if refused is None:
            return f"Run {self.run_id} is marked {_status(end)} and keeps what was recorded so far."
        return (
            f"Run {self.run_id} could not be marked {_status(end)} and may stay RUNNING: the store refuses "
            f"({first_line(refused)}). What was recorded so far is kept."
        )

    # --- what a run is told ---------------------------------------------------------------------

    def log_settings(self, flat: dict[str, Any], config_yaml: str, overrides: Sequence[str], environment: Any) -> None:
        """Keep every setting as a param, and the whole config, overrides and environment as artifacts."""
        self.log_params(flat)
        self._client.log_text(self.run_id, redact(config_yaml), "config.yaml")
        self._client.log_text(self.run_id, redact("\n".join(overrides)) + "\n", "overrides.txt")
        self._client.log_text(self.run_id, json.dumps(environment, indent=2) + "\n", "environment.json")

    def log_params(self, flat: dict[str, Any]) -> None:
        """Keep settings by their dotted keys."""
        params = [Param(key, _plain(value)[:_MOST_PARAM]) for key, value in flat.items()]
        for i in range(0, len(params), 100):  # the most that a batch takes
            self._client.log_batch(self.run_id, params=params[i : i + 100])

    def log_model(self, loaded: LoadedModel) -> None:
        """Keep which weights were loaded, and what that cost."""
        self._tag(
            {
                "slimdown.model": loaded.id,
                "slimdown.model_revision": loaded.revision,
                "slimdown.quantization": loaded.quantization,
                "slimdown.dtype": loaded.dtype,
                "slimdown.dtype_reason": loaded.dtype_reason,
                "slimdown.device": loaded.device,
            }
        )
        self._metrics(
            {
                "cost/load_seconds": loaded.load_seconds,
                "cost/model_memory_bytes": loaded.memory_bytes,
                "cost/n_parameters": loaded.n_parameters,
            }
        )

    def log_data(self, data: SftData) -> None:
        """Name the datasets in MLflow's own column, and the fingerprint of the text that was used."""
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
                "slimdown.dataset": ",".join(source.name for source in data.sources),
                "slimdown.data_fingerprint": data.fingerprint,
            }
        )
        self._metrics({"train/n_train": len(data.train), "train/n_validation": len(data.validation)})

    def log_samples(self, model: str, name: str, report: BenchmarkReport) -> None:
        """Keep every question and answer of one benchmark; `model` is base or tuned."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{model}-{name}.parquet"
            write_samples(file, model, name, report)
            self._client.log_artifact(self.run_id, str(file), "samples")

    def log_scores(self, model: str, reports: Mapping[str, BenchmarkReport]) -> None:
        """Keep the scores of benchmarks; `model` is base or tuned."""
        values: dict[str, float] = {}
        for name, report in reports.items():
            for metric, score in report.scores.items():
                values[f"{model}/{name}/{metric}"] = score.value
                values[f"{model}/{name}/{metric}_stderr"] = score.standard_error
        self._metrics(values)

    def log_baselines(self, sources: dict[str, str]) -> None:
        """Name the runs that hold the base's evaluations."""
        self._tag({f"slimdown.baseline.{name}": run_id for name, run_id in sources.items()})

    def log_step(self, record: StepRecord) -> None:
        """Keep one training step; steps are sent together every few seconds."""
        now = int(time.time() * 1000)
        finite = {name: value for name, value in record.values.items() if isfinite(value)}
        self._pending += [Metric(f"train/{name}", value, now, record.step) for name, value in finite.items()]
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._flush()

    def log_training(self, result: TrainResult) -> None:
        """Keep what training learned and cost, and the adapter."""
        self._metrics(
            {
                "train/final_loss": result.train_loss,
                "train/validation_loss_before": result.validation_loss_before,
                "train/validation_loss_after": result.validation_loss_after,
                "train/n_truncated": result.cut.n_cut,
                "train/n_trainable": result.n_trainable,
                "train/trainable_percent": result.trainable_percent,
                "cost/train_seconds": result.runtime_seconds,
                "cost/train_tokens": result.tokens,
                "cost/tokens_per_second": result.tokens_per_second,
            }
        )
        self._client.log_artifacts(self.run_id, str(result.adapter_dir), "adapter")

    def log_measuring(self, report: EvalReport) -> None:
        """Keep how the numbers came about, the same for base and tuned model."""
        self._tag({"slimdown.scoring_path": report.scoring_path, "slimdown.harness_version": report.harness_version})

    def log_forgetting(self, report: ForgettingReport, anatomies: dict[str, Anatomy]) -> None:
        """Keep the changes with their intervals, the paper's metrics, verdicts, and what became of lost answers."""
        values: dict[str, float] = {}
        for name, benchmark in report.benchmarks.items():
            values |= {f"forgetting/{name}/{key}": value for key, value in _quantities(benchmark).items()}
            values[f"forgetting/{name}/lost_any_metric"] = anatomies[name].n_lost
            causes = anatomies[name].causes
            values |= {f"forgetting/{name}/lost_{cause.name}": cause.share.value for cause in causes if cause.share}
        for key in ("mean_retained_change", "mean_target_change"):
            values |= _named(f"forgetting/{key}", getattr(report, key))
        self._metrics(values)
        self._tag({f"slimdown.verdict.{name}": b.verdict.value for name, b in report.benchmarks.items()})

    def log_costs(self, costs: dict[str, float]) -> None:
        """Keep seconds and bytes, by name."""
        self._metrics({f"cost/{name}": value for name, value in costs.items()})

    def log_report(self, markdown: str, files: dict[str, str | bytes]) -> None:
        """Keep the report: as the text that the run's page opens with, and as artifacts by their paths."""
        self._tag({"mlflow.note.content": markdown})
        with tempfile.TemporaryDirectory() as folder:
            for path, content in {"report.md": markdown, **files}.items():
                file = Path(folder) / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content.encode() if isinstance(content, str) else content)
            self._client.log_artifacts(self.run_id, folder)

    def log_adapter_model(self, loaded: LoadedModel, result: TrainResult, report: ForgettingReport) -> None:
        """Register the adapter as a logged model that carries its base and its scores."""
        base = {
            "base": redact(loaded.id),
            "base_revision": loaded.revision,
            "quantization": loaded.quantization,
        }
        logged = self._client.create_logged_model(
            self._experiment_id,
            name="tuned",
            source_run_id=self.run_id,
            params=base,
            model_type="peft",
        )
        self._client.log_model_artifacts(logged.model_id, str(result.adapter_dir))
        self._client.finalize_logged_model(logged.model_id, "READY")
        self._client.log_outputs(self.run_id, [LoggedModelOutput(logged.model_id, step=result.steps)])
        now = int(time.time() * 1000)
        scores = [
            Metric(
                f"tuned/{name}/{metric}",
                change.tuned.value,
                now,
                0,
                model_id=logged.model_id,
                run_id=self.run_id,
            )
            for name, benchmark in report.benchmarks.items()
            for metric, change in benchmark.changes.items()
        ]
        self._client.log_batch(self.run_id, metrics=scores)

    # --- how it gets there ------------------------------------------------------------------------

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
        self._client = MlflowClient(config.uri)
        self._config = config
        self._model, self._at_hand, self._reuse, self._holder = model, at_hand, reuse, holder
        self._tell = tell
        self.sources: dict[str, str] = {}  # by benchmark: the run that holds the evaluation

    def lock(self, key: str) -> AbstractContextManager[None]:
        """Held while an evaluation is looked up or made; the system frees it when its owner dies."""
        return lock(self._config, key)

    def find(self, name: str, key: str, benchmark: BenchmarkConfig) -> BenchmarkReport | None:
        """The evaluation of this key, read as `benchmark` says, or None where there is none."""
        if not self._reuse:
            return None
        damaged = ""
        for run in self._search(f"tags.`{_EVALUATION}{key}` LIKE '%'"):
            with tempfile.TemporaryDirectory() as folder:
                path = f"samples/{run.data.tags[_EVALUATION + key]}.parquet"
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
        model = self._client.get_run(self._at_hand.run_id).data.tags.get("slimdown.model")
        kinds = {
            key.startswith(_EVALUATION + KEY_VERSION)
            for run in self._search("tags.`slimdown.kind` = 'baseline'")
            if run.data.tags.get("slimdown.model") == model
            for key, value in run.data.tags.items()
            if key.startswith(_EVALUATION) and value == f"{self._model}-{name}"
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

    def keep(self, name: str, key: str, report: BenchmarkReport) -> None:
        """Keep a finished evaluation, so that it can be found from now on."""
        holder = self._holder()
        self._at_hand.log_samples(self._model, name, report)
        if holder is not self._at_hand:
            holder.log_samples(self._model, name, report)
            holder.log_scores(self._model, {name: report})
        # Last: what has the tag has everything.
        self._client.set_tag(holder.run_id, f"{_EVALUATION}{key}", f"{self._model}-{name}")
        self.sources[name] = holder.run_id


@contextmanager
def base_record(
    config: TrackingConfig,
    base: LoadedModel,
    at_hand: TrackedRun,
    reuse: bool,
    settings: dict[str, Any],
    tell: Callable[[str], None] = lambda line: None,
) -> Iterator[EvaluationRecord]:
    """The record of a base's evaluations; a run of kind `baseline` is opened when the first one has to be made."""
    with ExitStack() as stack:
        opened: list[TrackedRun] = []

        def holder() -> TrackedRun:
            if not opened:
                name = f"base {base.id} {base.quantization}"
                with undisturbed():  # no signal between opening the run and seeing to its end
                    opened.append(stack.enter_context(TrackedRun(config, name, kind="baseline", tags={})))
                opened[0].log_params(settings)
                opened[0].log_model(base)
            return opened[0]

        yield EvaluationRecord(config, "base", at_hand, reuse, holder, tell)


def _quantities(benchmark: BenchmarkChange) -> dict[str, float]:
    """What is kept of a benchmark's change, by name; shares, not percent."""
    primary, d = benchmark.primary, benchmark.primary.difference
    values = _named("change", Estimate(d.value, d.standard_error, d.low, d.high))
    values |= {
        "n": benchmark.n,
        "p_value": benchmark.p_value,
        "equivalence_p_value": benchmark.equivalence_p_value,
        "p_value_raw": d.p_value,  # for tables of many runs, which correct for all of them
        "equivalence_p_value_raw": d.equivalence_p_value(benchmark.margin),
        "minimum_detectable_change": benchmark.minimum_detectable_change,
    }
    for key in ("forgetting_rate", "forgetting_rate_above_chance"):
        if (estimate := getattr(benchmark, key)) is not None:
            values |= _named(key, estimate)
    if counts := primary.counts:
        values |= {"kept": counts.kept, "lost": counts.lost, "gained": counts.gained, "missed": counts.missed}
    if benchmark.n_to_decide is not None:
        values["n_to_decide"] = benchmark.n_to_decide
    if benchmark.paper_metric and benchmark.paper_value and benchmark.paper_metric != PaperMetric.forgetting_rate:
        values[benchmark.paper_metric] = benchmark.paper_value.value
        values[f"{benchmark.paper_metric}_stderr"] = benchmark.paper_value.standard_error
    return values


def _named(key: str, estimate: Estimate) -> dict[str, float]:
    return {
        key: estimate.value,
        f"{key}_stderr": estimate.standard_error,
        f"{key}_low": estimate.low,
        f"{key}_high": estimate.high,
    }


def _plain(value: Any) -> str:
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return redact(text)


def _status(end: BaseException | None) -> str:
    """How a run that ends so is marked."""
    if end is None:
        return "FINISHED"
    return "FAILED" if isinstance(end, Exception) else "KILLED"
