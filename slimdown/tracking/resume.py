"""Find equal runs by their key: a finished one is taken, and an unfinished one is resumed.

A run that goes on takes what is there. RUN is `mlruns/runs/ID`, which is deleted once the store has
everything; an evaluation's KEY is that of `evaluation_key`.

| what                                  | written by                     | read by             |
|---------------------------------------|--------------------------------|---------------------|
| the run in the store, tag `run_key`   | run_writer.py, at the begin    | `_find_equal_runs`  |
| RUN/artifacts/, findings among them   | run_writer.py                  | run_writer.py       |
| RUN/answers-KEY.jsonl: chunks         | evaluation/answers_file.py     | the same            |
| RUN/evaluations/KEY.*.parquet         | base_evaluations.py            | the same            |
| samples/KEY.parquet in the store      | base_evaluations.py            | the same, any run   |
| RUN/checkpoints/forwards.json         | training/step_splits.py        | the same            |
| RUN/checkpoints/checkpoint-STEP/      | the Trainer                    | the Trainer         |
| RUN/checkpoints/trained.pt: weights   | training/fine_tuning.py        | the same            |
| CACHE/replay/HASH.json: written rows  | training/written_rows.py       | the same, any run   |

- The run: while its key is equal, nobody holds its lock, and `is_abandoned` says so.
- Answers and evaluations: while their key is equal, so also after another command.
- Checkpoints: in this run alone, whose key holds rows, settings and versions. The newest one
  counts that has its state, which the Trainer writes last.
- Written rows: while the base and the settings of writing are equal.
"""

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import Timeout

from slimdown.comparison.run_records import RunRecord
from slimdown.config.engines import BACKENDS, ENGINES
from slimdown.config.naming import NOT_IN_KEY, flatten
from slimdown.config.schema import ModelConfig, RunConfig
from slimdown.config.tracking_config import TrackingConfig
from slimdown.evaluation.evaluation_cache import MEASUREMENT_VERSION
from slimdown.evaluation.results import Evaluation
from slimdown.scoring.question_files import find_question_file, list_used_scores, read_questions
from slimdown.tracking import store
from slimdown.tracking.metrics_and_tags import USER, Tag
from slimdown.tracking.provenance import PACKAGES, name_machine, read_user
from slimdown.tracking.run_reader import find_runs
from slimdown.training.result import TRAINING_VERSION
from slimdown.utils.distributed import process_count
from slimdown.utils.errors import TrackingError
from slimdown.utils.extensions import find_packages
from slimdown.utils.hashing import hash_file, hash_json
from slimdown.utils.hub import resolve_commit
from slimdown.utils.versions import find_version


def run_key(config: RunConfig) -> str:
    """Return a digest of everything that a run's result depends on.

    Models and rows are in it by their content or by their commit on the hub, not by their place.
    The processor is not in it, so that people with other machines can share finished runs.

    Returns:
        32 hex digits; empty if a file or a commit cannot be read. Such a run is never skipped.
    """
    try:
        settings = _identify_settings(config)
    except OSError:
        return ""
    parts = {
        "settings": settings,
        "order of datasets": list(config.dataset),
        "packages": _find_versions(config),
        # slimdown raises these if its own code trains or measures otherwise than before.
        "versions": [TRAINING_VERSION, MEASUREMENT_VERSION],
        "processes": 1 if config.tuned else process_count(),  # they change only the training
    }
    if extensions := _find_extensions(config):  # most runs use none
        parts["extensions"] = extensions
    return hash_json(parts)


def _identify_settings(config: RunConfig) -> dict[str, object]:
    """Return the settings by dotted key, with models, rows and files replaced by their digests.

    Settings that no result depends on, and those that have their default value, are left out. What
    lies on the hub is identified by its commit instead of a digest.

    Raises:
        OSError: A file or a commit cannot be read.
    """
    settings = flatten(config, without_defaults=True)
    settings = {key: value for key, value in settings.items() if not key.startswith(NOT_IN_KEY)}
    # Without conversations, `auto` comes to False. So both give the same key. The schema has no
    # default for these two, so `auto` was not left out above.
    for name in ("evaluation.apply_chat_template", "train.assistant_only_loss"):
        if not config.may_hold_conversations and settings.get(name) == "auto":
            settings[name] = False
    settings |= _identify_model("model.", config.model)
    # `tuned` is the address of a server, or names a model or an adapter, or is not set.
    if config.address:
        settings["tuned"] = config.address
    if config.tuned_model:
        settings["tuned"] = ""  # `tuned.id`, set below, identifies the model by its content
        settings |= _identify_model("tuned.", config.tuned_model)
    for name, dataset in config.dataset.items():
        if rows_file := dataset.file:  # its suffix says how the rows are read
            settings[f"dataset.{name}.path"] = rows_file.suffix.lower() + hash_file(rows_file)
        else:
            commit = resolve_commit(dataset.path, dataset.revision, "dataset")
            settings[f"dataset.{name}.revision"] = commit
    for key, file in config.keep.list_files().items():  # files that the mitigation reads
        settings[key] = hash_file(file.expanduser())
    for name, benchmark in config.benchmark.items():
        if benchmark.path:
            settings[f"benchmark.{name}.path"] = hash_file(find_question_file(benchmark.path))
    if folder := config.evaluation.include_path:
        # A task may include files such as _default_template_yaml, whose name has no ending.
        files = filter(Path.is_file, sorted(Path(folder).rglob("*")))
        hashes = [hash_file(file) for file in files if re.search(r"ya?ml$|\.py$", file.name)]
        settings["evaluation.include_path"] = hashes
    return settings


def _identify_model(prefix: str, model: ModelConfig) -> dict[str, object]:
    """Return the settings that identify a model: its files' digest, or its id and commit.

    Raises:
        OSError: A file or the commit cannot be read.
    """
    if model.folder:
        return {f"{prefix}id": model.hash_files()}
    return {f"{prefix}id": model.id, f"{prefix}revision": resolve_commit(model.id, model.revision)}


def _find_versions(config: RunConfig) -> dict[str, str]:
    """Return the versions of the packages that a run computes with, without build tags."""
    names = [*PACKAGES, *BACKENDS[config.evaluation.backend].packages]
    if not config.tuned:
        names += ENGINES[config.train.engine].packages
    return {name: (find_version(name) or "").partition("+")[0] for name in names}


def _find_extensions(config: RunConfig) -> list[str]:
    """Return the other packages that add the method, the mitigation or a score of this run."""
    own_questions = [read_questions(b.path, b.score) for b in config.benchmark.values() if b.path]
    scores = [score for rows in own_questions for score in list_used_scores(rows)]
    return [
        *find_packages("method", [config.method.name]),
        *find_packages("keep", [config.keep.name]),
        *find_packages("score", scores),
    ]


def find_finished(config: RunConfig, key: str) -> RunRecord | None:
    """Return the newest finished run of this key in the experiment, or None where none counts.

    If a kill at its very end left its own folder, that is deleted: the store has everything.
    """
    return _take_finished(config, _find_equal_runs(config, key))


@contextmanager
def find_equal_run_and_lock(
    config: RunConfig, key: str, on_wait: Callable[[], None] = lambda: None
) -> Iterator[tuple[RunRecord | None, str]]:
    """Lock a run's key, and find the run in the record that has it: a finished or a stopped one.

    The lock is held until the context ends. The caller makes the run inside the context, so another
    process with an equal command waits and then finds the finished run.

    Args:
        config: The settings of the run. With `rerun`, or if the base shall be measured again, no
            run is looked for.
        key: From `run_key`. If it is empty, no run is looked for, and nobody has to wait.
        on_wait: Called once if another process of this machine makes an equal run, before this
            process waits for it.

    Yields:
        The finished run, or None; and the id of an unfinished run that can go on here. The id is
        empty if there is none, or if there is a finished run.
    """
    # Without a key, the lock has a name that nobody else asks for: this object's place in memory.
    lock_name = hash_json([config.tracking.experiment, key or id(config)])
    with store.wait_for_lock(config.tracking, f"key-{lock_name}", on_wait):
        runs = _find_equal_runs(config, key)
        finished = _take_finished(config, runs)
        unfinished_id = ""
        if not finished:
            abandoned_ids = (run.run_id for run in runs if is_abandoned(config.tracking, run))
            unfinished_id = next(abandoned_ids, "")
        yield finished, unfinished_id


def describe_changed_base(config: RunConfig, key: str, base: Evaluation) -> list[str]:
    """Say where a base scores differently than in the newest finished run with the same key.

    Args:
        config: The settings of the run that is being made, which has measured its base.
        key: From `run_key`.
        base: The base's answers to the questions that are not held out.

    Returns:
        A sentence for each benchmark whose score differs; none if there is no earlier run. It gives
        the scores in percent and the likely reason.
    """
    finished = [run for run in _search_runs(config, key) if run.status == "FINISHED"]
    earlier = next((run for run in finished if run.findings), None)
    if earlier is None:
        return []
    dtype = earlier.params.get("model.dtype", "")
    reason = "the libraries and the dtype are the same, so the processor or the load differs"
    if dtype != config.model.dtype:
        reason = f"that run computed in {dtype}, and this one in {config.model.dtype}"
    lines = []
    for name, evaluation in base.benchmarks.items():
        earlier_change = earlier.changes.get(name)
        if earlier_change is None or earlier_change.n != len(evaluation.samples):
            continue  # sequential testing may have stopped at another number of questions
        score_before = round(100 * earlier_change.primary.base.value, 1)
        score_now = round(100 * evaluation.score.value, 1)
        if score_before != score_now:
            lines.append(
                f"The base now scores {score_now} on {name}; in run {earlier.run_id[:8]}, with the "
                f"same settings, it scored {score_before}: {reason}."
            )
    return lines


def describe_kept(config: RunConfig, run_id: str) -> str:
    """Say what the repeated command reuses of a stopped run; it computes the rest again.

    The run's own folder shows it: there are files of the base's finished benchmarks, of checkpoints
    and of the trained weights. The single answers to a benchmark that was not finished are reused,
    too; they are named only if there is nothing else.

    Args:
        config: The settings of the run.
        run_id: The id of the stopped run.
    """
    folder = store.local_dir(config.tracking) / "runs" / run_id
    if not folder.is_dir():
        return f"its folder {folder} is not on this machine: everything is computed again"
    parts = []
    base_files = folder.glob("evaluations/*.base-*")  # KEY.base-BENCHMARK.parquet
    benchmarks = {file.stem.partition(".base-")[2] for file in base_files}
    if benchmarks:
        parts.append(f"the base model's answers to {', '.join(sorted(benchmarks))}")
    # The Trainer writes its state last, so a checkpoint that has it is whole.
    state_files = folder.glob("checkpoints/checkpoint-*/trainer_state.json")
    steps = [int(file.parent.name.partition("-")[2]) for file in state_files]
    is_trained = (folder / "checkpoints" / "trained.pt").is_file()
    if is_trained:
        parts.append("the whole training")
    elif steps:
        parts.append(f"the training up to step {max(steps)}")
    text = f"reused: {' and '.join(parts) or 'single answers'}; the rest is computed again"
    has_training = is_trained or bool(steps)
    if not config.tuned and not has_training:  # `tuned` names a model that needs no training
        text += ", the training too, because it had written no checkpoint"
    return text


def find_abandoned(
    tracking: TrackingConfig, kind: str, experiments: Sequence[str] = ()
) -> list[RunRecord]:
    """Return the runs of a kind that a killed process left RUNNING."""
    running = "attributes.status = 'RUNNING'"
    runs = find_runs(tracking, experiments, filter_string=running, kind=kind)
    return [run for run in runs if is_abandoned(tracking, run)]


def is_abandoned(tracking: TrackingConfig, run: RunRecord) -> bool:
    """Return whether a run is unfinished, belongs to this user, and no process works on it.

    That no process works on it is known in two cases: the run was made on this machine, or it is
    marked as ended by a signal or an error and its folder is here. The second case lets a run go
    on when Slurm queues its job again for another machine.
    """
    if run.status == "FINISHED":
        return False
    user = read_user()
    if run.tags.get(USER, user) != user:  # another user of a server has locks elsewhere
        return False
    folder = store.local_dir(tracking) / "runs" / run.run_id
    has_ended = run.status in ("KILLED", "FAILED") and folder.is_dir()
    is_of_this_machine = run.tags.get(Tag.host) == name_machine()
    if not (is_of_this_machine or has_ended):
        return False
    try:
        with store.lock_run(tracking, run.run_id):
            return True
    except Timeout:  # a process holds the run
        return False


def _take_finished(config: RunConfig, runs: list[RunRecord]) -> RunRecord | None:
    """Return the first finished run, and delete the folder that a kill at its very end left.

    A server may have another model by now, unless the user says by `served.version` that it has
    the same one.
    """
    if config.address and not config.served.version:
        return None
    finished = next((run for run in runs if run.status == "FINISHED"), None)
    if finished and finished.findings:
        folder = store.local_dir(config.tracking) / "runs" / finished.run_id
        shutil.rmtree(folder, ignore_errors=True)  # most runs have none any more
    return finished


def _find_equal_runs(config: RunConfig, key: str) -> list[RunRecord]:
    """Return the runs of a key that the settings allow to take, newest first."""
    if config.rerun or not config.baseline.reuse:
        return []
    return _search_runs(config, key)


def _search_runs(config: RunConfig, key: str) -> list[RunRecord]:
    """Return the runs of a key in the experiment, newest first; none without a key or a store."""
    if not key:
        return []
    condition = f"tags.`{Tag.run_key}` = '{key}'"
    experiments = [config.tracking.experiment]
    try:
        return find_runs(config.tracking, experiments, filter_string=condition, with_findings=True)
    except TrackingError:  # no store or experiment yet; opening the run explains errors
        return []
