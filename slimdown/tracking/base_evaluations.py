"""Evaluations that are measured once: in a run's own folder, and of a base in the MLflow store."""

import logging
import re
import shutil
import tempfile
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from slimdown.config.naming import base_settings
from slimdown.config.schema import BenchmarkConfig, RunConfig, Trust
from slimdown.evaluation.results import BenchmarkEvaluation
from slimdown.evaluation.samples import DamagedSamples, read_samples, write_samples
from slimdown.tracking import store
from slimdown.tracking.metric_names import Tag
from slimdown.tracking.provenance import read_user

_log = logging.getLogger(__name__)


class RecordedEvaluations:
    """The evaluations of one model, found by key; implements `EvaluationCache`.

    Each is written to a folder first. Those of a base also go to a run of kind `baseline`, where
    every later run finds them.
    """

    def __init__(self, config: RunConfig, model: str, folder: Path, client: Any = None) -> None:
        """Open nothing yet.

        Args:
            config: The settings of the run.
            model: `base`, or `tuned`, whose evaluations stay in the folder.
            folder: Of this run, or of this machine.
            client: Of the store, where it is open.
        """
        self._config, self._model, self._folder, self._client = config, model, folder, client
        self._is_silent = False  # the store did not take an evaluation
        self._holder = ""  # the run of kind baseline that takes what is measured here
        self.files: dict[str, Path] = {}  # by benchmark: samples that were found or saved

    def lock(self, key: str) -> AbstractContextManager[Any]:
        """Held while a base is looked up or measured, by one process of this machine at a time."""
        return store.lock(self._config.tracking, key) if self._model == "base" else nullcontext()

    def answers_file(self, key: str) -> Path | None:
        """The file in which lm-eval keeps single answers while a benchmark is measured."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / f"answers-{key}.sqlite"

    def find(self, key: str, name: str, benchmark: BenchmarkConfig) -> BenchmarkEvaluation | None:
        """Return the evaluation of this key, or None; one that is odd is left out with a line."""
        file = self._locate(key, name)
        if file.is_file() and (evaluation := self._read(file, name, benchmark, str(file))):
            return evaluation
        if self._model != "base" or not self._config.baseline.reuse:
            return None
        tag = f"{Tag.evaluation}{key}"
        try:
            client = self._client or store.open_store(self._config.tracking)
            experiments = [one.experiment_id for one in client.search_experiments()]
            runs = store.search_runs(client, experiments, f"tags.`{tag}` LIKE '%'")
        except Exception:  # the store is silent: measuring again needs it only at the end
            return None
        for run in runs:
            user = run.data.tags.get("mlflow.user", "unknown")
            if self._config.baseline.trust is Trust.own and user != read_user():
                continue
            run_id, stored = run.info.run_id, re.sub(r"[^\w-]", "", run.data.tags[tag])
            evaluation = None
            with tempfile.TemporaryDirectory() as folder, suppress(Exception):  # gone, or silent
                path = client.download_artifacts(run_id, f"samples/{stored}.parquet", folder)
                date = datetime.fromtimestamp(run.info.start_time / 1000, UTC)
                evaluation = self._read(Path(path), name, benchmark, f"run {run_id}")
            if evaluation:
                origin = f"run {run_id[:8]} by {user}, {date:%Y-%m-%d}"
                evaluation = replace(evaluation, origin=origin)
                self._write(key, name, evaluation)
                return evaluation
        return None

    def save(self, key: str, name: str, evaluation: BenchmarkEvaluation) -> None:
        """Keep a finished evaluation in the folder, and of a base in the store, too.

        A store that is silent is no error here: the run delivers its own copy at its end.
        """
        file = self._write(key, name, evaluation)
        if self._model != "base" or self._is_silent:
            return
        config = self._config
        try:
            client = self._client or store.open_store(config.tracking)
            if not self._holder:
                title = f"base {config.model.id.rpartition('/')[2]} {config.quantization.name}"
                tags = {Tag.kind: "baseline", "mlflow.user": read_user()}
                experiment = store.find_experiment(client, config.tracking)
                self._holder = client.create_run(experiment, None, tags, title).info.run_id
                client.set_terminated(self._holder, "FINISHED")  # it takes what comes later, too
                store.log_settings(client, self._holder, base_settings(config))
            with tempfile.TemporaryDirectory() as folder:
                copy = shutil.copy(file, f"{folder}/base-{name}.parquet")
                client.log_artifact(self._holder, copy, "samples")
            client.log_metric(self._holder, f"{name}/base", evaluation.score.value)
            # last: whoever finds the tag finds everything
            client.set_tag(self._holder, f"{Tag.evaluation}{key}", f"base-{name}")
        except Exception as error:  # MLflow's, a driver's, an artifact store's own
            self._is_silent = True
            reason = store.first_line(error)
            _log.warning(
                "the store takes no answers of the base (%s); they are in %s", reason, file
            )
        else:
            if self._client is None:  # measured without a run: the store has it now
                file.unlink()

    def _write(self, key: str, name: str, evaluation: BenchmarkEvaluation) -> Path:
        file = self._locate(key, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        draft = file.with_suffix(".draft")
        write_samples(draft, self._model, name, evaluation)
        self.files[name] = draft.replace(file)
        return file

    def _read(
        self, file: Path, name: str, benchmark: BenchmarkConfig, place: str
    ) -> BenchmarkEvaluation | None:
        try:
            evaluation = read_samples(file, benchmark)
        except DamagedSamples as error:
            _log.warning("%s is measured again: its samples in %s: %s", name, place, error)
            return None
        self.files[name] = file
        return evaluation

    def _locate(self, key: str, name: str) -> Path:
        return self._folder / "evaluations" / f"{key}.{self._model}-{name}.parquet"


def open_base_cache(config: RunConfig) -> RecordedEvaluations:
    """Return the evaluations of bases in the store, for measuring a base without a run.

    Args:
        config: The settings of any run on this base.
    """
    return RecordedEvaluations(config, "base", store.local_dir(config.tracking) / "bases")
