"""The run of a whole sweep, which holds those of its jobs in MLflow's pages: opened by the first job that is made."""

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from slimdown.config.schema import TrackingConfig
from slimdown.stats.runs import RecordedRun
from slimdown.tracking.connection import experiment_id, open_store
from slimdown.tracking.locks import saving_work
from slimdown.tracking.owner import is_gone, owner_of
from slimdown.tracking.read import find_runs
from slimdown.tracking.tags import Tag
from slimdown.utils.errors import SlimdownError
from slimdown.utils.redaction import redact

if TYPE_CHECKING:
    from mlflow import MlflowClient

PARENT = "mlflow.parentRunId"  # MLflow's own tag of a nested run


def opened_sweep(
    config: TrackingConfig, sweep: str, key: str, name: str, owner: str, at: str
) -> str:
    """The id of the sweep's run: that of the same jobs which is not finished, opened again, or a new one.

    One that another living command works on too is shared. Others of the experiment, which nobody works on any more,
    are marked KILLED.

    Args:
        config: the store.
        sweep: what the runs of the command have in common, see `Tag.sweep`.
        key: of its list of jobs.
        name: of the run.
        owner: the command's process, see `Tag.owner`; a job may be made by another.
        at: how far it is.
    """
    with saving_work(config, f"sweep-{key}"):
        found = _unfinished(config, key)
        if found and found.status == "RUNNING" and owner_of(found.tags) and not is_gone(found.tags):
            return found.run_id
        client = open_store(config)
        _end_gone(config, client, found.run_id if found else "")
        tags: dict[str, str] = {
            Tag.kind: "sweep",
            Tag.sweep: sweep,
            Tag.sweep_key: key,
            **_beat(owner, at),
        }
        if not found:
            return str(
                client.create_run(
                    experiment_id(client, config), run_name=redact(name), tags=tags
                ).info.run_id
            )
        _set(client, found.run_id, tags)
        client.update_run(found.run_id, "RUNNING")
        return found.run_id


def tell_sweep(
    config: TrackingConfig, key: str, owner: str, tally: Callable[[Collection[str]], str]
) -> None:
    """Let others know that the sweep goes on, where its run is this command's or its owner is gone; for a thread.

    Args:
        config: the store.
        key: see `opened_sweep`.
        owner: the command's process.
        tally: given the sweep's finished runs, whoever made them, how far it is.
    """
    client: Any = open_store(config)
    client = getattr(client, "inner", client)
    going = f"tags.`{Tag.kind}` = 'sweep' and tags.`{Tag.sweep_key}` = '{key}' and attributes.status = 'RUNNING'"
    if experiment := client.get_experiment_by_name(config.experiment):
        for run in client.search_runs([experiment.experiment_id], going):
            if run.data.tags.get(Tag.owner) == owner or is_gone(run.data.tags):
                jobs = find_runs(config, [config.experiment], tags={PARENT: run.info.run_id})
                at = tally([job.run_id for job in jobs if job.status == "FINISHED"])
                _set(client, run.info.run_id, _beat(owner, at))


def _beat(owner: str, at: str) -> dict[str, str]:
    return {Tag.owner: owner, Tag.heartbeat: f"{time.time():.0f}", Tag.at: at}


def _set(client: Any, run_id: str, tags: Mapping[str, str]) -> None:
    for tag, value in tags.items():
        client.set_tag(run_id, tag, value)


def _has_jobs(config: TrackingConfig, run_id: str) -> bool:
    """Whether somebody makes a job of a sweep just now."""
    jobs = find_runs(config, [config.experiment], tags={PARENT: run_id})
    return any(job.status == "RUNNING" and not is_gone(job.tags) for job in jobs)


def _end_gone(config: TrackingConfig, client: "MlflowClient", but: str) -> None:
    """Mark as KILLED the runs of sweeps whose commands were killed outright, but one; nothing depends on it."""
    with suppress(Exception):
        for run in find_runs(config, [config.experiment], tags={Tag.kind: "sweep"}):
            is_going = run.status == "RUNNING" and run.run_id != but
            if is_going and is_gone(run.tags) and not _has_jobs(config, run.run_id):
                client.set_terminated(run.run_id, "KILLED")


def _unfinished(config: TrackingConfig, key: str) -> RecordedRun | None:
    tags: dict[str, str] = {Tag.kind: "sweep", Tag.sweep_key: key}
    with suppress(SlimdownError):  # no such store or experiment yet
        return next(
            (
                run
                for run in find_runs(config, [config.experiment], tags=tags)
                if run.status != "FINISHED"
            ),
            None,
        )
    return None


def close_sweep(
    config: TrackingConfig,
    key: str,
    status: str,
    at: str,
    files: Callable[[], Iterable[tuple[str, str]]],
) -> None:
    """End the sweep's run, where it has one that is not finished, with these texts, by paths, among its artifacts.

    Another command, on another machine, may make jobs of the same sweep just now: the one that ends last ends it.
    """
    if (found := _unfinished(config, key)) and not _has_jobs(config, found.run_id):
        client = open_store(config)
        client.set_tag(found.run_id, Tag.at, at)
        for path, text in files():
            client.log_text(found.run_id, redact(text), path)
        client.set_terminated(found.run_id, status)


def runs_of(config: TrackingConfig, run_ids: Sequence[str]) -> list[RecordedRun]:
    """These of the experiment's finished runs, in this order."""
    runs = {
        run.run_id: run
        for run in find_runs(config, [config.experiment])
        if run.status == "FINISHED"
    }
    return [runs[run_id] for run_id in dict.fromkeys(run_ids) if run_id in runs]
