"""The run of a whole sweep, with its table; the runs of its jobs have its tag `Tag.sweep`."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from slimdown.config.tracking_config import TrackingConfig
from slimdown.tracking import store
from slimdown.tracking.metrics_and_tags import Tag
from slimdown.tracking.resume import find_abandoned
from slimdown.utils.secrets import redact


@dataclass
class SweepRun:
    """An open run of kind `sweep`, no parent of its jobs: MLflow folds children away."""

    run_id: str
    failed: bool = False  # set it to True if a job failed
    files: dict[str, str] = field(default_factory=dict)  # by path, recorded when the sweep ends


@contextmanager
def open_sweep_run(tracking: TrackingConfig, name: str, title: str) -> Iterator[SweepRun]:
    """Open the run of a whole sweep; it ends FINISHED, FAILED or KILLED.

    Args:
        tracking: The store.
        name: The name that all runs of the sweep share, see `Tag.sweep`.
        title: The run's name.

    Yields:
        The run. The caller fills its `files` and sets `failed`; both are read when the sweep ends.

    Raises:
        TrackingError: The store does not answer when the sweep begins.
    """
    client = store.open_store(tracking)
    with store.explain_store_errors(tracking):
        for killed in find_abandoned(tracking, "sweep"):
            client.set_terminated(killed.run_id, "KILLED")
        experiment_id = store.find_experiment(client, tracking)
        run = store.create_run(client, experiment_id, title, "sweep", {Tag.sweep: name})
    run_id: str = run.info.run_id
    sweep = SweepRun(run_id)
    status = "KILLED"  # it stays so if an interrupt or an exit ends the block

    with store.lock(tracking, f"run-{run_id}"):
        try:
            yield sweep
            status = "FAILED" if sweep.failed else "FINISHED"
        except Exception:
            status = "FAILED"
            raise
        finally:
            # A store that falls silent is no error: the runs of the sweep hold all results.
            with suppress(Exception):
                store.check_store(tracking)
                for path, text in sweep.files.items():
                    client.log_text(run_id, redact(text), path)
                client.set_terminated(run_id, status)
