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
from collections.abc import Callable, Iterator
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
from slimdown.scoring.question_files import list_used_scores, read_questions
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

    Models and rows count by their content or by their commit on the hub, not by their place. The
    processor is not in the key: whoever shares a store shares its finished runs.

    Returns:
        32 hex digits, or "" where a file or a commit cannot be read: such a run is never skipped.
    """
    settings = flatten(config, without_defaults=True)
    settings = {k: v for k, v in settings.items() if not k.startswith(NOT_IN_KEY)}
    for name in ("evaluation.apply_chat_template", "train.assistant_only_loss"):
        if not config.may_hold_conversations and settings.get(name) == "auto":
            settings[name] = False  # its effect
    try:
        settings |= _identify_model("model.", config.model)
        if config.tuned_model:
            settings |= {"tuned": ""} | _identify_model("tuned.", config.tuned_model)
        for name, dataset in config.dataset.items():
            if file := dataset.file:
                settings[f"dataset.{name}.path"] = file.suffix.lower() + hash_file(file)
            else:
                commit = resolve_commit(dataset.path, dataset.revision, "dataset")
                settings[f"dataset.{name}.revision"] = commit
        files = {f"benchmark.{name}.path": one.path for name, one in config.benchmark.items()}
        for key, place in {**config.keep.list_files(), **files}.items():
            if place:
                settings[key] = hash_file(Path(place).expanduser())
        if folder := config.evaluation.include_path:
            # The harness includes files such as _default_template_yaml, too.
            own = sorted(f for f in Path(folder).rglob("*") if re.search(r"ya?ml$|\.py$", f.name))
            settings["evaluation.include_path"] = [hash_file(f) for f in own if f.is_file()]
    except OSError:
        return ""
    engines = [BACKENDS[config.evaluation.backend], ENGINES[config.train.engine]]
    of_engines = [name for one in engines[: 1 if config.tuned else 2] for name in one.packages]
    parts = {
        "settings": settings,
        "order of datasets": list(config.dataset),
        "packages": {
            name: (find_version(name) or "").partition("+")[0] for name in (*PACKAGES, *of_engines)
        },
        "versions": [TRAINING_VERSION, MEASUREMENT_VERSION],
        "processes": 1 if config.tuned else process_count(),
    }
    questions = [read_questions(b.path, b.score) for b in config.benchmark.values() if b.path]
    chosen: dict[str, list[str]] = {
        "method": [config.method.name],
        "keep": [config.keep.name],
        "score": [score for rows in questions for score in list_used_scores(rows)],
    }
    if packages := [p for group, names in chosen.items() for p in find_packages(group, names)]:
        parts["extensions"] = packages
    return hash_json(parts)


def _identify_model(prefix: str, model: ModelConfig) -> dict[str, object]:
    if model.folder:
        return {f"{prefix}id": model.hash_files()}
    return {f"{prefix}id": model.id, f"{prefix}revision": resolve_commit(model.id, model.revision)}


def find_finished(config: RunConfig, key: str) -> RunRecord | None:
    """Return the newest finished run of this key in the experiment, or None where none counts.

    If a kill at its very end left its own folder, that is deleted: the store has everything.
    """
    return _choose_finished(config, _find_equal_runs(config, key))


@contextmanager
def find_finished_or_lock(
    config: RunConfig, key: str, on_wait: Callable[[], None] = lambda: None
) -> Iterator[tuple[RunRecord | None, str]]:
    """Yield the finished run of this key, or hold its lock so that nobody else makes it meanwhile.

    Args:
        config: With `rerun`, or if the base shall be measured again, no run is looked for.
        key: From `run_key`; "": nothing is looked for or locked.
        on_wait: Called once where another process of this machine makes an equal run.

    Yields:
        The finished run or None, and the id of an unfinished run that can go on here, or "".
    """
    name = hash_json([config.tracking.experiment, key or id(config)])
    with store.wait_for_lock(config.tracking, f"key-{name}", on_wait):
        runs = _find_equal_runs(config, key)
        finished = _choose_finished(config, runs)
        unfinished = (run.run_id for run in runs if is_abandoned(config.tracking, run))
        yield finished, "" if finished else next(unfinished, "")


def describe_changed_base(config: RunConfig, key: str, base: Evaluation) -> list[str]:
    """Say where a base scores otherwise than in the newest finished run of the same settings.

    Args:
        config: The settings of the run that goes on now.
        key: From `run_key`.
        base: The base's answers to the questions that are not held out.

    Returns:
        A line for each benchmark whose score is another one; none if there is no such run.
    """
    earlier = next(iter(_search_finished(config, key)), None)
    if earlier is None:
        return []
    dtype = earlier.params.get("model.dtype", "")
    reason = "the libraries and the dtype are the same, so the processor or the load differs"
    if dtype != config.model.dtype:
        reason = f"that run computed in {dtype}, and this one in {config.model.dtype}"
    lines = []
    for name, evaluation in base.benchmarks.items():
        change = earlier.changes.get(name)
        if change is None or change.n != len(evaluation.samples):
            continue
        before, now = (
            round(100 * score, 1) for score in (change.primary.base.value, evaluation.score.value)
        )
        if before != now:
            lines.append(
                f"The base now scores {now} on {name}; in run {earlier.run_id[:8]}, with the same "
                f"settings, it scored {before}: {reason}."
            )
    return lines


def describe_kept(config: RunConfig, run_id: str) -> str:
    """Say what the repeated command takes from a stopped run; it makes the rest anew."""
    folder = store.local_dir(config.tracking) / "runs" / run_id
    if not folder.is_dir():
        return f"its folder {folder} is not on this machine: everything is computed again"
    names = {file.stem.partition(".base-")[2] for file in folder.glob("evaluations/*.base-*")}
    parts = [f"the base's answers to {', '.join(sorted(names))}"] if names else []
    states = folder.glob("checkpoints/checkpoint-*/trainer_state.json")
    if (folder / "checkpoints" / "trained.pt").is_file():
        parts.append("the whole training")
    elif steps := [int(state.parent.name.partition("-")[2]) for state in states]:
        parts.append(f"the training up to step {max(steps)}")
    elif not config.tuned:
        parts.append("no training, of which no checkpoint was written")
    return f"reused: {'; '.join(parts) or 'single answers'}; the rest is computed again"


def is_abandoned(tracking: TrackingConfig, run: RunRecord) -> bool:
    """Whether this user's unfinished run is one that no process works on, as far as is known here.

    That is known of runs of this machine, and of those that ended, by a signal or an error, in a
    folder that is here: Slurm may queue a job again for another machine.
    """
    folder = store.local_dir(tracking) / "runs" / run.run_id
    has_ended = run.status in ("KILLED", "FAILED") and folder.is_dir()
    is_known = run.tags.get(Tag.host) == name_machine() or has_ended
    # Locks of another user of a server lie elsewhere.
    is_own = run.tags.get(USER, user := read_user()) == user
    if run.status == "FINISHED" or not is_known or not is_own:
        return False
    try:
        with store.lock_run(tracking, run.run_id):
            return True
    except Timeout:
        return False


def _choose_finished(config: RunConfig, runs: list[RunRecord]) -> RunRecord | None:
    finished = next((run for run in runs if run.status == "FINISHED"), None)
    if finished and finished.findings:
        shutil.rmtree(store.local_dir(config.tracking) / "runs" / finished.run_id, True)
    return finished


def _find_equal_runs(config: RunConfig, key: str) -> list[RunRecord]:
    if config.rerun or not config.baseline.reuse:
        return []
    return _search_runs(config, key)


def _search_finished(config: RunConfig, key: str) -> list[RunRecord]:
    return [run for run in _search_runs(config, key) if run.status == "FINISHED" and run.findings]


def _search_runs(config: RunConfig, key: str) -> list[RunRecord]:
    """Return the runs of a key in the experiment, newest first; none without a key or a store."""
    if not key:
        return []
    condition = f"tags.`{Tag.run_key}` = '{key}'"
    experiments = [config.tracking.experiment]
    try:
        return find_runs(config.tracking, experiments, "", condition, with_findings=True)
    except TrackingError:  # no such store or experiment yet; opening the run says what is wrong
        return []
