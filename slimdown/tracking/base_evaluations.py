"""Keep each evaluation for reuse: in a run's own folder, and a base's also in the MLflow store.

The store has them in runs of kind `baseline`. Such a run holds the samples of each benchmark, and a
tag for each key, which is set last: whoever finds the tag finds the samples.

Three words recur in the arguments. `key` is a digest of everything that the answers depend on, see
`evaluation_key`. `name` is the benchmark as the run's settings call it. `samples` are its questions
with their answers, as a Parquet file.
"""

import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimdown.config.benchmark_config import ResolvedBenchmark
from slimdown.config.naming import describe_identity
from slimdown.config.schema import RunConfig
from slimdown.evaluation.evaluation_cache import EvaluationCache
from slimdown.evaluation.results import BenchmarkEvaluation
from slimdown.evaluation.samples import DamagedSamples, read_samples, write_samples
from slimdown.tracking import store
from slimdown.tracking.datasets import describe_questions
from slimdown.tracking.logged_models import (
    ModelRecord,
    assign_metrics,
    describe_base,
    link_models,
    log_base,
)
from slimdown.tracking.metrics_and_tags import USER, Tag
from slimdown.tracking.resume import find_abandoned
from slimdown.utils.errors import DataError
from slimdown.utils.secrets import redact_leaf

if TYPE_CHECKING:  # it imports torch
    from slimdown.models.base_model import LoadedModel

_log = logging.getLogger(__name__)


class RecordedEvaluations(EvaluationCache):
    """The evaluations of one model, found by key; implements `EvaluationCache`.

    Each is written to a folder first. Those of a base also go to a run of kind `baseline`, where
    every later run finds them.

    Attributes:
        files: By benchmark, the file of the samples that were found or saved.
        base: What MLflow shows the base as. The caller sets it as soon as the base is loaded;
            without it, a recorded score belongs to no model on MLflow's pages.
    """

    def __init__(
        self,
        config: RunConfig,
        model: str,
        folder: Path,
        keeps_files: bool = True,
        is_shared: bool = False,
    ):
        """Say where the evaluations are kept. Nothing is opened yet.

        Args:
            config: The settings of the run.
            model: `base`, `tuned`, or `served`, which is the tuned model when it is asked in the
                way in which it is served. Only evaluations of `base` also go to the store.
            folder: The folder of this run, or a folder that all runs of this machine share.
            keeps_files: Whether a base's files stay in the folder once the store has them.
            is_shared: Whether the folder holds evaluations of many models. In a folder of one
                run, evaluations under other keys are odd, and `find` warns of them.
        """
        self.model = model
        self.files: dict[str, Path] = {}
        self.base: ModelRecord | None = None
        self._config = config
        self._folder = folder
        self._keeps_files = keeps_files
        self._is_shared = is_shared
        self._baseline_id = ""  # the run of kind baseline that takes what is measured here
        self._experiment_id = ""  # the experiment of that run
        self._recorded: list[str] = []  # the names of the benchmarks in that run, for its title

    def lock(self, key: str) -> AbstractContextManager[Any]:
        """Return a lock, so that one process of this machine at a time finds or measures a base."""
        return store.lock(self._config.tracking, key) if self.model == "base" else nullcontext()

    def answers_file(self, key: str) -> Path | None:
        """Return the file that holds single answers while a benchmark is measured."""
        return self._folder / f"answers-{key}.jsonl"

    def find(self, key: str, name: str, benchmark: ResolvedBenchmark) -> BenchmarkEvaluation | None:
        """Return the evaluation of a key, or None; a damaged one is skipped with a warning."""
        file = self._locate(key, name)
        if file.is_file() and (evaluation := self._read(file, name, benchmark, str(file))):
            return evaluation
        asks_store = self.model == "base" and self._config.baseline.reuse
        if asks_store and (evaluation := self._find_in_store(key, name, benchmark)):
            self._write(key, name, evaluation)
            return evaluation
        files = file.parent.glob(f"*.{self.model}-{name}.parquet")
        if not self._is_shared and any(files):
            reason = "the answers that are here are of another device or another model"
            _log.warning("%s is measured again: %s", name, reason)
        return None

    def is_recorded(self, key: str, name: str) -> bool:
        """Return whether the evaluation of a key is here or in the store; nothing is read."""
        if self._locate(key, name).is_file():
            return True
        return self._config.baseline.reuse and bool(self._find_baselines(key))

    def _find_baselines(self, key: str) -> list[Any]:
        """Return the runs that hold the evaluation of a key; none where the store is silent."""
        with suppress(Exception):  # the base can be measured again without the store
            client = store.open_store(self._config.tracking)
            experiments = store.search_all(client.search_experiments)
            ids = [experiment.experiment_id for experiment in experiments]
            return list(client.search_runs(ids, f"tags.`{Tag.evaluation}{key}` LIKE '%'"))
        return []

    def _find_in_store(
        self, key: str, name: str, benchmark: ResolvedBenchmark
    ) -> BenchmarkEvaluation | None:
        """Return the first evaluation of a key in the store that can be read, or None.

        Several baseline runs have the same key if two machines measured the base independently.
        The `origin` of the result says which run it is from, for the user.
        """
        for run in self._find_baselines(key):
            run_id = run.info.run_id
            user = run.data.tags.get(USER, "unknown")
            evaluation = None
            # The file may be gone, or the store may not answer. Then the next run is tried.
            with tempfile.TemporaryDirectory() as folder, suppress(Exception):
                client = store.open_store(self._config.tracking)
                file = Path(client.download_artifacts(run_id, f"samples/{key}.parquet", folder))
                date = datetime.fromtimestamp(run.info.start_time / 1000, UTC)  # milliseconds
                origin = f"run {run_id[:8]} by {user}, {date:%Y-%m-%d}"
                evaluation = self._read(file, name, benchmark, place=f"run {run_id}")
            if evaluation:
                return replace(evaluation, origin=origin)
        return None

    def save(self, key: str, name: str, evaluation: BenchmarkEvaluation) -> None:
        """Keep a finished evaluation: in the folder, and that of a base also in the store.

        The first evaluation of a base creates the baseline run in the store; later ones are added
        to it. If the store does not answer, a warning says so, and the file stays in the folder.

        Args:
            key: The key under which later runs find the evaluation.
            name: The name of the benchmark.
            evaluation: The evaluation.
        """
        file = self._write(key, name, evaluation)
        if self.model != "base":
            return
        try:
            client = store.open_store(self._config.tracking)
            if self._baseline_id:
                self._send(client, key, name, evaluation, file)
            else:
                with self._open_baseline(client):  # it sets `_baseline_id`, which `_send` needs
                    self._send(client, key, name, evaluation, file)
            if not self._keeps_files:
                file.unlink()
        except Exception as error:  # of MLflow, a database driver or an artifact store
            # What the run holds by now is not certain, so later evaluations go to another run.
            self._baseline_id = ""
            self._recorded = []
            problem = f"the store takes no answers of the base ({store.first_line(error)})"
            _log.warning("%s; they are in %s", problem, file)

    def _send(
        self, client: Any, key: str, name: str, evaluation: BenchmarkEvaluation, file: Path
    ) -> None:
        """Send a base's evaluation to the run of kind baseline, whose id is `_baseline_id`.

        The run gets the samples, the questions as a dataset, the base as a model, the score as a
        metric, and at last the tag by which the evaluation is found. Its title names all benchmarks
        that it has, this one among them.

        Args:
            client: A client of the store.
            key: The key of the evaluation.
            name: The name of the benchmark.
            evaluation: The evaluation.
            file: The file of its samples in the folder.
        """
        run_id = self._baseline_id
        self._recorded.append(name)
        model = self._config.model.id.rpartition("/")[2]
        title = f"base {model} {self._config.quantization.name}: {', '.join(self._recorded)}"
        client.update_run(run_id, name=redact_leaf(title))
        with tempfile.TemporaryDirectory() as folder:
            # MLflow keeps the name of the file, and `_find_in_store` looks for the key alone.
            copy = shutil.copy(file, f"{folder}/{key}.parquet")
            client.log_artifact(run_id, copy, "samples")
        dataset_input = describe_questions(name, evaluation)
        client.log_inputs(run_id, [dataset_input])
        model_id = ""  # MLflow's id of the base; it stays empty if nobody described the base
        if self.base:
            model_id = log_base(client, self._config.tracking, self._experiment_id, self.base)
            link_models(client, run_id, model_id)
        scores = {f"base/{name}": round(100 * evaluation.score.value, 2)}
        now = int(time.time() * 1000)
        metrics = assign_metrics(
            scores, {name: dataset_input}, base_id=model_id, made_id="", timestamp=now
        )
        client.log_batch(run_id, metrics)
        # This tag comes last: a run that has it also has the samples.
        client.set_tag(run_id, f"{Tag.evaluation}{key}", name)

    @contextmanager
    def _open_baseline(self, client: Any) -> Iterator[None]:
        """Create a baseline run in the store, whose id is then in `_baseline_id`.

        Inside the context, the run is RUNNING and locked, and its first evaluation is sent. At the
        end it is marked FINISHED; later evaluations are added to it all the same.

        If the block fails, the run stays RUNNING and its lock is freed, as after a kill: the store
        that just failed would not take another status either. Therefore, whoever creates the next
        baseline run first ends those that were left in this way.
        """
        tracking = self._config.tracking
        with ExitStack() as run_lock:
            # Another process must not see the new run without its lock: it would delete the run.
            with store.lock(tracking, "baselines"):
                self._experiment_id = store.find_experiment(client, tracking)
                created = store.create_run(client, self._experiment_id, "base", kind="baseline")
                run_id = created.info.run_id
                # The new run has no lock of its own yet, so it looks abandoned, too.
                self._end_abandoned(client, own_run_id=run_id)
                run_lock.enter_context(store.lock_run(tracking, run_id))
            self._baseline_id = run_id
            identity = describe_identity(self._config)
            settings = {key: identity[key] for key in ("model.id", "quantization")}
            store.log_settings(client, run_id, settings)
            yield
            client.set_terminated(run_id, "FINISHED")

    def _end_abandoned(self, client: Any, own_run_id: str) -> None:
        """Mark baseline runs that a kill left as ended; delete those without any evaluation."""
        tracking = self._config.tracking
        for run in find_abandoned(tracking, "baseline", [tracking.experiment]):
            if run.run_id == own_run_id:
                continue
            if any(tag.startswith(Tag.evaluation) for tag in run.tags):
                client.set_terminated(run.run_id)
            else:
                client.delete_run(run.run_id)

    def _write(self, key: str, name: str, evaluation: BenchmarkEvaluation) -> Path:
        """Write an evaluation into the folder and return its file."""
        file = self._locate(key, name)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_samples(file, self.model, name, evaluation)
        self.files[name] = file
        return file

    def _read(
        self, file: Path, name: str, benchmark: ResolvedBenchmark, place: str
    ) -> BenchmarkEvaluation | None:
        """Read an evaluation; a damaged one is None, after a warning that names its place."""
        try:
            evaluation = read_samples(file, benchmark)
        except (DamagedSamples, DataError) as error:
            _log.warning("%s is measured again: its samples in %s: %s", name, place, error)
            return None
        self.files[name] = file
        return evaluation

    def _locate(self, key: str, name: str) -> Path:
        return self._folder / "evaluations" / f"{key}.{self.model}-{name}.parquet"


def open_base_cache(config: RunConfig, base: "LoadedModel | None" = None) -> RecordedEvaluations:
    """Return the evaluations of bases in the store, for measuring a base without a run.

    Args:
        config: The settings of any run on this base.
        base: The base, as MLflow shall show it.
    """
    folder = store.local_dir(config.tracking) / "bases"
    cache = RecordedEvaluations(config, "base", folder, keeps_files=False, is_shared=True)
    cache.base = describe_base(base) if base else None
    return cache
