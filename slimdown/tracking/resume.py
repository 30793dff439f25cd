"""Equal runs: the key by which a finished one is found, and the unfinished one that goes on."""

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import Timeout

from slimdown.config.naming import flatten
from slimdown.config.schema import ModelConfig, RunConfig, TrackingConfig
from slimdown.evaluation.evaluation_cache import MEASUREMENT_VERSION
from slimdown.stats.run_records import RunRecord
from slimdown.tracking.metric_names import Tag
from slimdown.tracking.provenance import PACKAGES, find_version
from slimdown.tracking.run_reader import find_runs
from slimdown.tracking.store import local_dir, lock, run_dir, search_runs
from slimdown.training.result import TRAINING_VERSION
from slimdown.utils.distributed import process_count
from slimdown.utils.errors import TrackingError
from slimdown.utils.hashing import hash_file, hash_folder, hash_json
from slimdown.utils.hub import resolve_commit

# No result depends on these.
NOT_IN_KEY = ("tracking.", "baseline.", "train.checkpoint_minutes")


def run_key(config: RunConfig) -> str:
    """Return a digest of everything that a run's result depends on.

    Models and rows count by their content or by their commit on the hub, not by their place. The
    processor is not in the key: whoever shares a store shares its finished runs.

    Returns:
        32 hex digits, or "" where a file or a commit cannot be read: such a run is never skipped.
    """
    settings = {k: v for k, v in flatten(config).items() if not k.startswith(NOT_IN_KEY)}
    packages = [*PACKAGES, "unsloth", "unsloth_zoo"]
    try:
        settings |= _identify_model("model.", config.model)
        if config.tuned_model:
            settings |= _identify_model("tuned.", config.tuned_model)
            del settings["tuned"]
        for name, dataset in config.dataset.items():
            if dataset.file:
                content = dataset.file.suffix.lower() + hash_file(dataset.file)
                settings[f"dataset.{name}.path"] = content
            else:
                commit = resolve_commit(dataset.path, dataset.revision, "dataset")
                settings[f"dataset.{name}.revision"] = commit
        if folder := config.evaluation.include_path:
            files = sorted(Path(folder).rglob("*.[yp][ay]*"))  # .yaml and .py
            settings["evaluation.include_path"] = [hash_file(f) for f in files if f.is_file()]
    except OSError:
        return ""
    environment = {name: value for name, value in os.environ.items() if "MIXED_PRECISION" in name}
    return hash_json(
        {
            "settings": settings,
            "order of datasets": list(config.dataset),
            "packages": {name: (find_version(name) or "").partition("+")[0] for name in packages},
            "versions": [TRAINING_VERSION, MEASUREMENT_VERSION],
            "environment": environment,
            "processes": 1 if config.tuned else process_count(),
        }
    )


def _identify_model(prefix: str, model: ModelConfig) -> dict[str, object]:
    if model.folder:
        return {f"{prefix}id": hash_folder(model.folder), f"{prefix}revision": None}
    return {f"{prefix}id": model.id, f"{prefix}revision": resolve_commit(model.id, model.revision)}


def find_finished(config: RunConfig, key: str) -> RunRecord | None:
    """Return the newest finished run of this key in the experiment, None where there is none."""
    runs = _find_equal_runs(config, key)
    return next((run for run in runs if run.status == "FINISHED"), None)


@contextmanager
def find_finished_or_lock(
    config: RunConfig, key: str, on_wait: Callable[[], None] = lambda: None
) -> Iterator[tuple[RunRecord | None, str]]:
    """Yield the finished run of this key, or hold its lock so that nobody else makes it meanwhile.

    Args:
        config: With `rerun`, or where the base shall be measured again, no run is looked for.
        key: From `run_key`; "": nothing is looked for or locked.
        on_wait: Called once where another process of this machine makes an equal run.

    Yields:
        The finished run or None, and the id of an unfinished run that can go on here, or "".
    """
    if not key:
        yield None, ""
        return
    is_fresh = config.rerun or not config.baseline.reuse
    if not is_fresh and (finished := find_finished(config, key)):
        yield finished, ""
        return
    key_lock = lock(config.tracking, f"key-{hash_json([config.tracking.experiment, key])}")
    try:
        holding = key_lock.acquire(timeout=0)
    except Timeout:
        on_wait()
        holding = key_lock.acquire()
    with holding:
        runs = [] if is_fresh else _find_equal_runs(config, key)
        finished = next((run for run in runs if run.status == "FINISHED"), None)
        unfinished = (run.run_id for run in runs if is_abandoned(config.tracking, run))
        yield finished, "" if finished else next(unfinished, "")


def is_abandoned(tracking: TrackingConfig, run: RunRecord) -> bool:
    """Whether an unfinished run was begun on this machine, and no process works on it."""
    if run.status == "FINISHED" or run.tags.get(Tag.host) != socket.gethostname():
        return False
    return not is_locked(tracking, run.run_id)


def is_locked(tracking: TrackingConfig, run_id: str) -> bool:
    """Whether a process of this machine works on a run."""
    run_lock = lock(tracking, f"run-{run_id}")
    try:
        with run_lock.acquire(timeout=0):
            return False
    except Timeout:
        return True


def mark_orphans_killed(
    client: Any, tracking: TrackingConfig, experiment_id: str, keep: str = ""
) -> None:
    """Mark runs as KILLED whose process on this machine died, and delete files of finished runs.

    Args:
        client: Of the store.
        tracking: The store's address.
        experiment_id: Whose runs are looked at.
        keep: A run that goes on.
    """
    here = f"attributes.status = 'RUNNING' and tags.`{Tag.host}` = '{socket.gethostname()}'"
    with suppress(Exception):  # nothing depends on it
        for run in search_runs(client, [experiment_id], here):
            if run.info.run_id != keep and not is_locked(tracking, run.info.run_id):
                client.set_terminated(run.info.run_id, "KILLED")
    for folder in (local_dir(tracking) / "runs").glob("[0-9a-f]" * 32):
        with suppress(Exception):  # the run of another store
            run = client.get_run(folder.name).info
            is_over = run.status == "FINISHED" or run.lifecycle_stage == "deleted"
            if is_over and not is_locked(tracking, folder.name):
                shutil.rmtree(run_dir(tracking, folder.name))


def _find_equal_runs(config: RunConfig, key: str) -> list[RunRecord]:
    if not key:
        return []
    experiments = [config.tracking.experiment]
    try:
        return find_runs(config.tracking, experiments, {Tag.run_key: key}, with_findings=True)
    except TrackingError:  # no such store or experiment yet; opening the run says what is wrong
        return []
