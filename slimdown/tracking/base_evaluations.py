"""Keep each evaluation for reuse: in a run's own folder, and a base's also in the MLflow store."""

import logging
import shutil
import tempfile
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from slimdown.config.naming import base_settings
from slimdown.config.schema import ResolvedBenchmark, RunConfig
from slimdown.evaluation.evaluation_cache import EvaluationCache
from slimdown.evaluation.results import BenchmarkEvaluation
from slimdown.evaluation.samples import DamagedSamples, read_samples, write_samples
from slimdown.tracking import provenance, store
from slimdown.tracking.metric_names import Tag
from slimdown.utils.errors import DataError

_log = logging.getLogger(__name__)


class RecordedEvaluations(EvaluationCache):
    """The evaluations of one model, found by key; implements `EvaluationCache`.

    Each is written to a folder first. Those of a base also go to a run of kind `baseline`, where
    every later run finds them.
    """

    def __init__(
        self,
        config: RunConfig,
        model: str,
        folder: Path,
        keeps_files: bool = True,
        is_shared: bool = False,
    ):
        """Open nothing yet.

        Args:
            config: The settings of the run.
            model: `base`, or `tuned`, whose evaluations stay in the folder.
            folder: A folder of this run, or of this machine.
            keeps_files: Whether files stay in the folder once the store has them.
            is_shared: Whether the folder holds evaluations of many models.
        """
        self.model = model
        self.files: dict[str, Path] = {}  # by benchmark: samples that were found or saved
        self._config, self._folder, self._keeps_files = config, folder, keeps_files
        self._is_shared = is_shared
        self._holder = ""  # the run of kind baseline that takes what is measured here
        self._names: list[str] = []  # of its benchmarks

    def lock(self, key: str) -> AbstractContextManager[Any]:
        """Return a lock, so that one process of this machine at a time finds or measures a base."""
        return store.lock(self._config.tracking, key) if self.model == "base" else nullcontext()

    def answers_file(self, key: str) -> Path | None:
        """Return the file that holds single answers while a benchmark is measured."""
        return self._folder / f"answers-{key}.jsonl"

    def find(
        self, key: str, name: str, benchmark: ResolvedBenchmark, *older: str
    ) -> BenchmarkEvaluation | None:
        """Return the evaluation of a key, or None; a damaged one is skipped with a warning."""
        keys = (key, *older)
        for file in (self._locate(each, name) for each in keys):
            if file.is_file() and (evaluation := self._read(file, name, benchmark, str(file))):
                return evaluation
        asks_store = self.model == "base" and self._config.baseline.reuse
        if asks_store and (evaluation := self._find_in_store(keys, name, benchmark)):
            self._write(key, name, evaluation)
            return evaluation
        files = self._locate(key, name).parent.glob(f"*.{self.model}-{name}.parquet")
        if not self._is_shared and any(files):
            reason = "the answers that are here are of another device or another model"
            _log.warning("%s is measured again: %s", name, reason)
        return None

    def _find_in_store(
        self, keys: tuple[str, ...], name: str, benchmark: ResolvedBenchmark
    ) -> BenchmarkEvaluation | None:
        where = f"tags.`{Tag.evaluation}{{}}` LIKE '%'"
        try:
            client = store.open_store(self._config.tracking)
            experiments = store.search_all(client.search_experiments)
            numbers = [one.experiment_id for one in experiments]
            runs = [(r, k) for k in keys for r in client.search_runs(numbers, where.format(k))]
        except Exception:  # the store is silent: measuring again needs it only at the end
            return None
        for run, each in runs:
            user, run_id = run.data.tags.get("mlflow.user", "unknown"), run.info.run_id
            evaluation = None
            with tempfile.TemporaryDirectory() as folder, suppress(Exception):  # gone, or silent
                path = Path(client.download_artifacts(run_id, f"samples/{each}.parquet", folder))
                date = datetime.fromtimestamp(run.info.start_time / 1000, UTC)
                origin = f"run {run_id[:8]} by {user}, {date:%Y-%m-%d}"
                evaluation = self._read(path, name, benchmark, f"run {run_id}")
            if evaluation:
                return replace(evaluation, origin=origin)
        return None

    def save(self, key: str, name: str, evaluation: BenchmarkEvaluation) -> None:
        """Keep a finished evaluation in the folder, and a base's also in the store.

        A store that does not answer is no error here: the run delivers its own copy at its end.
        """
        file = self._write(key, name, evaluation)
        if self.model != "base":
            return
        config = self._config
        try:
            client = store.open_store(config.tracking)
            self._names.append(name)
            model = f"{config.model.id.rpartition('/')[2]} {config.quantization.name}"
            title = f"base {model}: {', '.join(self._names)}"
            if not self._holder:
                tags = {Tag.kind: "baseline", "mlflow.user": provenance.read_user()}
                run = store.create_run(client, config.tracking, title, tags)
                self._holder = run.info.run_id
                client.set_terminated(self._holder, "FINISHED")  # it takes what comes later, too
                store.log_settings(client, self._holder, base_settings(config))
            client.update_run(self._holder, name=title)
            with tempfile.TemporaryDirectory() as folder:
                copy = shutil.copy(file, f"{folder}/{key}.parquet")
                client.log_artifact(self._holder, copy, "samples")
            client.log_metric(self._holder, f"base/{name}", evaluation.score.value)
            # last: whoever finds the tag finds everything
            client.set_tag(self._holder, f"{Tag.evaluation}{key}", name)
            if not self._keeps_files:
                file.unlink()
        except Exception as error:  # MLflow's, a driver's, an artifact store's own
            problem = f"the store takes no answers of the base ({store.first_line(error)})"
            _log.warning("%s; they are in %s", problem, file)

    def _write(self, key: str, name: str, evaluation: BenchmarkEvaluation) -> Path:
        file = self._locate(key, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_samples(file, self.model, name, evaluation)
        self.files[name] = file
        return file

    def _read(
        self, file: Path, name: str, benchmark: ResolvedBenchmark, place: str
    ) -> BenchmarkEvaluation | None:
        try:
            evaluation = read_samples(file, benchmark)
        except (DamagedSamples, DataError) as error:
            _log.warning("%s is measured again: its samples in %s: %s", name, place, error)
            return None
        self.files[name] = file
        return evaluation

    def _locate(self, key: str, name: str) -> Path:
        return self._folder / "evaluations" / f"{key}.{self.model}-{name}.parquet"


def open_base_cache(config: RunConfig) -> RecordedEvaluations:
    """Return the evaluations of bases in the store, for measuring a base without a run.

    Args:
        config: The settings of any run on this base.
    """
    folder = store.local_dir(config.tracking) / "bases"
    return RecordedEvaluations(config, "base", folder, keeps_files=False, is_shared=True)
