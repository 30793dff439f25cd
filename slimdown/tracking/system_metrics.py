"""MLflow's system metrics of a run: processors, memory, disk, network and GPUs while it works."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

import psutil

from slimdown.config.tracking_config import TrackingConfig
from slimdown.tracking import store
from slimdown.utils.distributed import process_count, process_rank

# A run of seconds has some points; an hour has 67, which cost 1.6 s of the processor on SQLite.
_FIRST_SECONDS, _GROWTH, _LONGEST_SECONDS = 2.0, 1.5, 60
_END_SECONDS = 10.0  # the longest wait at the end for a store that falls silent
_log = logging.getLogger(__name__)


@contextmanager
def record_system_metrics(tracking: TrackingConfig, run_id: str) -> Iterator[None]:
    """Record how busy the machine is while the context is open, if the settings ask for it.

    If the store does not take the metrics, their recording ends without a warning: the run's own
    recording warns of such a store.

    Args:
        tracking: The store.
        run_id: An existing run. If it is resumed, its metrics go on after those that it has.
    """
    if not tracking.system_metrics:
        yield
        return
    has_ended = Event()
    # The monitor's own `start` is not used: its thread drops the last points, and its `finish`
    # waits for MLflow's retries.
    recording = Thread(target=_record_until, args=(has_ended, tracking, run_id), daemon=True)
    recording.start()
    try:
        yield
    finally:
        has_ended.set()
        recording.join(_END_SECONDS)


def _record_until(has_ended: Event, tracking: TrackingConfig, run_id: str) -> None:
    """Write points until the event is set, and one more after that; the waits grow.

    Args:
        has_ended: Set when the run ends.
        tracking: The store.
        run_id: The run.
    """
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    try:
        uri = store.open_store(tracking, must_exist=True).tracking_uri
        monitor = SystemMetricsMonitor(
            run_id,
            sampling_interval=_LONGEST_SECONDS,
            resume_logging=True,
            # The processes of one run have names of their own for their metrics.
            node_id=f"rank-{process_rank()}" if process_count() > 1 else None,
            tracking_uri=uri,
        )
        psutil.cpu_percent()  # later calls in this thread measure from this one on
        seconds = _FIRST_SECONDS
        is_over = False
        while not is_over:
            # It is True if the run ended during this wait. Then the point below is the last one.
            # The interval is the longest wait, which a variable of MLflow's may change.
            is_over = has_ended.wait(min(seconds, monitor.sampling_interval))
            seconds *= _GROWTH
            monitor.collect_metrics()
            store.check_store(tracking)  # MLflow would retry for minutes
            monitor.publish_metrics(monitor.aggregate_metrics())
        monitor.mlflow_logger.flush()
    except Exception as error:
        _log.debug("no more system metrics of run %s: %s", run_id, store.first_line(error))
