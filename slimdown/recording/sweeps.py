"""The run of a whole sweep, which holds those of its jobs in MLflow's pages: opened by the first job that is made."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from slimdown.guarding.errors import UserError
from slimdown.guarding.redaction import redact
from slimdown.judging.runs import RecordedRun
from slimdown.recording.connection import experiment_id, open_store
from slimdown.recording.locks import saving_work
from slimdown.recording.read import find_runs
from slimdown.recording.tags import Tag
from slimdown.settings.schema import TrackingConfig

PARENT = "mlflow.parentRunId"  # MLflow's own tag of a nested run


def opened_sweep(config: TrackingConfig, sweep: str, key: str, name: str) -> str:
    """The id of the sweep's run: that of the same jobs which is not finished, opened again, or a new one.

    Args:
        config: the store.
        sweep: what the runs of the command have in common, see `Tag.sweep`.
        key: of its list of jobs.
        name: of the run.
    """
    with saving_work(config, f"sweep-{key}"):
        found = _unfinished(config, key)
        if found and found.status == "RUNNING" and found.tags.get(Tag.sweep) == sweep:
            return found.run_id  # another job of this command was first
        client = open_store(config)
        tags: dict[str, str] = {Tag.kind: "sweep", Tag.sweep: sweep, Tag.sweep_key: key}
        if not found:
            return str(client.create_run(experiment_id(client, config), run_name=redact(name), tags=tags).info.run_id)
        client.set_tag(found.run_id, Tag.sweep, sweep)
        client.update_run(found.run_id, "RUNNING")
        return found.run_id


def _unfinished(config: TrackingConfig, key: str) -> RecordedRun | None:
    tags: dict[str, str] = {Tag.kind: "sweep", Tag.sweep_key: key}
    with suppress(UserError):  # no such store or experiment yet
        return next(
            (run for run in find_runs(config, [config.experiment], tags=tags) if run.status != "FINISHED"), None
        )
    return None


def close_sweep(config: TrackingConfig, key: str, status: str, files: Callable[[], Iterable[tuple[str, str]]]) -> None:
    """End the sweep's run, where it has one that is not finished, with these texts, by paths, among its artifacts."""
    if found := _unfinished(config, key):
        client = open_store(config)
        for path, text in files():
            client.log_text(found.run_id, redact(text), path)
        client.set_terminated(found.run_id, status)


def runs_of(config: TrackingConfig, run_ids: Sequence[str]) -> list[RecordedRun]:
    """These of the experiment's finished runs, in this order."""
    runs = {run.run_id: run for run in find_runs(config, [config.experiment]) if run.status == "FINISHED"}
    return [runs[run_id] for run_id in dict.fromkeys(run_ids) if run_id in runs]
