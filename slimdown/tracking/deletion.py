"""Delete a run with what it made: the entries of the run and its models, and their local files.

MLflow's `gc` would also delete every experiment and model that anybody marked as deleted.
"""

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from filelock import Timeout

from slimdown.comparison.run_records import RunRecord
from slimdown.config.tracking_config import TrackingConfig
from slimdown.report.formatting import find_local_path
from slimdown.tracking import store
from slimdown.utils.errors import TrackingError


@dataclass(frozen=True)
class DeletionPlan:
    """What goes with a run.

    Attributes:
        run: The run.
        model_ids: MLflow's ids of the models that it made; its base is not among them.
        folders: Local folders of the run and of its models.
        n_bytes: What these folders hold.
        is_remote: Whether files of it lie on a server, where only its owner can delete them.
    """

    run: RunRecord
    model_ids: tuple[str, ...]
    folders: tuple[Path, ...]
    n_bytes: int
    is_remote: bool


def plan_deletion(tracking: TrackingConfig, run: RunRecord) -> DeletionPlan:
    """Find what a deletion of a run would remove: its models, its folders and those of its models.

    Nothing is deleted yet.

    Raises:
        TrackingError: A process works on the run, a registered model is made from it, or the store
            does not answer.
    """
    client = store.open_store(tracking, must_exist=True)
    with store.explain_store_errors(tracking):
        _check_free(tracking, run)
        # A registered model without its files would be useless, so its user decides first.
        versions = client.search_model_versions(f"run_id = '{run.run_id}'")
        if versions:
            names = ", ".join(f"models:/{model.name}/{model.version}" for model in versions)
            problem = f"is registered as {names}; delete that version first, in MLflow's pages"
            raise TrackingError(f"run {run.run_id} ({run.name}) {problem}")
        experiment_id = client.get_run(run.run_id).info.experiment_id
        made_by_run = f"source_run_id = '{run.run_id}'"
        search = partial(client.search_logged_models, [experiment_id], made_by_run)
        models = store.search_all(search)
    uris_by_id = {run.run_id: run.artifact_uri}
    uris_by_id |= {str(model.model_id): model.artifact_location for model in models}
    # One folder for the run and one for each model; None for each whose files lie on a server.
    artifact_folders = [_find_folder(tracking, owner, uri) for owner, uri in uris_by_id.items()]
    unfinished = store.local_dir(tracking) / "runs" / run.run_id  # there until a run is finished
    folders = [*filter(None, artifact_folders), unfinished]
    present = tuple(folder for folder in folders if folder.is_dir())
    files = [file for folder in present for file in folder.rglob("*") if file.is_file()]
    return DeletionPlan(
        run=run,
        model_ids=tuple(str(model.model_id) for model in models),
        folders=present,
        n_bytes=sum(file.stat().st_size for file in files),
        is_remote=not all(artifact_folders),
    )


def delete_run(tracking: TrackingConfig, plan: DeletionPlan) -> None:
    """Delete what was planned. MLflow keeps the entries, marked as deleted.

    Raises:
        TrackingError: The store refuses, or a file cannot be deleted.
    """
    client = store.open_store(tracking, must_exist=True)
    with store.explain_store_errors(tracking):
        _check_free(tracking, plan.run)
        for model_id in plan.model_ids:
            client.delete_logged_model(model_id)
        client.delete_run(plan.run.run_id)
        for folder in plan.folders:
            shutil.rmtree(folder)


def _find_folder(tracking: TrackingConfig, owner_id: str, uri: str) -> Path | None:
    """Return the local folder of a run or a model; None if it is elsewhere.

    A store may name any place, and this folder will be deleted. So it counts only if it lies beside
    the store and bears the id of the run or the model.
    """
    if not (path := find_local_path(uri)):
        return None
    folder = Path(path).resolve().parent  # the address ends in `artifacts`
    is_own = folder.name == owner_id and folder.is_relative_to(store.local_dir(tracking).resolve())
    return folder if is_own else None


def _check_free(tracking: TrackingConfig, run: RunRecord) -> None:
    """Check that no process works on a run, as far as is known here.

    Raises:
        TrackingError: A process of this machine, or of one that sees the run's folder, works on it.
    """
    try:
        with store.lock_run(tracking, run.run_id):
            return
    except Timeout:
        problem = f"a process works on run {run.run_id} ({run.name})"
        raise TrackingError(f"{problem}; wait until it has ended, or end it") from None
