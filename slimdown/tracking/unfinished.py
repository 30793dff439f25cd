"""Runs that were not finished: the one that a command goes on in, and those that nobody will."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slimdown.config.schema import TrackingConfig
from slimdown.stats.runs import RecordedRun
from slimdown.tracking.connection import open_store, sqlite_file
from slimdown.tracking.owner import INTERVAL, is_gone, is_silent, owner_of, this_process
from slimdown.tracking.tags import Tag
from slimdown.utils.digests import digest
from slimdown.utils.errors import SlimdownError
from slimdown.utils.redaction import redact

if TYPE_CHECKING:
    from mlflow.entities import Run

_MOST_DEATHS = 5  # in a row, of which each left what was there before; what is killed so early once more is FAILED


def to_go_on_in(
    ask: Callable[[], Sequence[RecordedRun]], waiting: Callable[[], None]
) -> RecordedRun | None:
    """Of the runs of one key, newest first, the finished one; else one that nobody works on; None where there is none.

    As long as somebody else works on one it is waited for: a lock on the key keeps others away where there is one, and
    where there is none, heartbeats do.

    Args:
        ask: what the store has by now.
        waiting: called once, where something is waited for.
    """
    told, heard = False, ""
    while True:
        runs = ask()
        if finished := next((run for run in runs if run.status == "FINISHED"), None):
            return finished
        at_work = next(
            (run for run in runs if run.status == "RUNNING" and _is_at_work(run.tags, heard)), None
        )
        if at_work is None:
            return next(
                (run for run in runs if run.status != "RUNNING" or owner_of(run.tags)), None
            )
        heard = at_work.tags.get(Tag.heartbeat, "")
        if not told:
            waiting()
            told = True
        time.sleep(2 * INTERVAL if is_silent(at_work.tags) else INTERVAL / 4)


def _is_at_work(tags: Mapping[str, str], heard: str) -> bool:
    """Whether somebody else works on a run; `heard` is its heartbeat as it was a while ago."""
    owner = owner_of(tags)
    if owner is None or owner == this_process():
        return False  # a command of before whose end the store did not take
    if owner.is_here:
        return owner.lives  # however silent: stopped, it may go on
    if not is_silent(tags):
        return True
    return (
        tags.get(Tag.heartbeat) != heard
    )  # by our clock; that of a machine elsewhere may be wrong, so look again


def folder_of(config: TrackingConfig, run_id: str) -> Path:
    """Where a run keeps what is not finished: beside a local store, else below the folder that it is started in."""
    file = sqlite_file(config.uri)
    return (file.absolute().parent if file else Path.cwd() / "outputs") / "checkpoints" / run_id


def reopened(client: Any, run_id: str, tags: Mapping[str, str], folder: Path) -> "Run":
    """The run, which goes on from now on, without what it said of its end; returned as it was before.

    Args:
        client: of its store.
        run_id: of a run that nobody works on.
        tags: of who does from now on, and what else is new.
        folder: with its unfinished work.

    Raises:
        SlimdownError: its processes died again and again and left nothing new; it is marked FAILED.
    """
    from mlflow.entities import RunTag

    run: Run = client.get_run(run_id)
    n_deaths, kept = _deaths(run, folder)
    if n_deaths > _MOST_DEATHS:
        reason = (
            f"its process was killed {n_deaths} times in a row before it had kept anything new, the last time at "
            f"{run.data.tags.get(Tag.at, 'the start')}; a system that is out of memory does so, see its log"
        )
        client.set_tag(run_id, Tag.error, reason)
        client.set_terminated(run_id, "FAILED")
        raise SlimdownError(f"run {run_id}: {reason}. The same command tries again")
    tags = {**tags, Tag.deaths: f"{n_deaths} {kept}"}
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    client.update_run(run_id, "RUNNING")
    for of_an_end in {Tag.error, Tag.pruned} & run.data.tags.keys():
        client.delete_tag(run_id, of_an_end)
    if Tag.error in run.data.tags:
        with suppress(Exception):  # a place that deletes nothing: the next traceback is put over it
            from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

            get_artifact_repository(run.info.artifact_uri).delete_artifacts("traceback.txt")
    return run


def _deaths(run: "Run", folder: Path) -> tuple[int, str]:
    """How often in a row its process died without a word and left what was there before, and a digest of that."""
    files = sorted([*folder.rglob("*"), *(folder.parent / "evaluations").glob("*")])
    known = sorted(
        {*run.data.tags, *run.data.metrics} - {Tag.deaths, Tag.at, Tag.error, Tag.pruned}
    )
    kept = digest([known, [(str(file.relative_to(folder.parent)), _size(file)) for file in files]])
    n_before, _, before = run.data.tags.get(Tag.deaths, "0 ").partition(" ")
    if run.info.status != "RUNNING":
        return 0, kept
    return (int(n_before) if kept == before else 0) + 1, kept


def mark_failed(config: TrackingConfig, run_id: str, reason: str, died: str) -> None:
    """Mark a run that goes on no more as FAILED, with the reason; `died` is the process that died, as in `Tag.owner`.

    One that has ended, or that another process works on by now, is left as it is.
    """
    client = open_store(config)
    run = client.get_run(run_id)
    if run.info.status != "RUNNING" or not (
        run.data.tags.get(Tag.owner) == died or is_gone(run.data.tags)
    ):
        return
    client.set_tag(run_id, Tag.error, redact(reason))
    client.set_terminated(run_id, "FAILED")


def steps_in(client: Any, run: "Run") -> set[tuple[str, int]]:
    """Which metrics of training it holds of which steps."""
    of_steps = (
        [key for key in run.data.metrics if key.startswith("train/")]
        if "train/loss" in run.data.metrics
        else []
    )
    return {
        (key, metric.step)
        for key in of_steps
        for metric in client.get_metric_history(run.info.run_id, key)
    }


def end_forsaken(client: Any, experiment: str, folders: Path) -> None:
    """Mark as KILLED runs whose process is gone and that nobody will go on in, and delete what is kept for nothing.

    The first are measurements of bases, what they hold is found, and runs of which an equal one is finished. The second
    are the folders of runs that are finished, or deleted. Nothing depends on it, so it is not tried twice.

    Args:
        client: of the store.
        experiment: whose runs are looked at.
        folders: that of each run's unfinished work, by its id.
    """
    with suppress(Exception):
        for run in client.search_runs([experiment], "attributes.status = 'RUNNING'"):
            key = run.data.tags.get(Tag.run_key, "")
            ended = f"tags.`{Tag.run_key}` = '{key}' and attributes.status = 'FINISHED'"
            is_base = run.data.tags.get(Tag.kind) == "baseline"
            if is_gone(run.data.tags) and (
                is_base or (key and client.search_runs([experiment], ended, max_results=1))
            ):
                client.set_terminated(run.info.run_id, "KILLED")
    for folder in folders.glob("[0-9a-f]" * 32):
        with suppress(Exception):  # of another store, which says nothing of it here
            run = client.get_run(folder.name)
            is_deleted = run.info.lifecycle_stage == "deleted" and (
                run.info.status != "RUNNING" or is_gone(run.data.tags)
            )
            if run.info.status == "FINISHED" or is_deleted:
                shutil.rmtree(folder)


def kept_bytes(config: TrackingConfig) -> dict[Path, int]:
    """The size of each folder, seen from here, that keeps the unfinished work of a run."""
    folders = folder_of(config, "any").parent.glob("[0-9a-f]" * 32)
    return {folder: sum(_size(file) for file in folder.rglob("*")) for folder in folders}


def _size(file: Path) -> int:
    with suppress(OSError):  # a run has replaced it
        return file.stat().st_size if file.is_file() else 0
    return 0
