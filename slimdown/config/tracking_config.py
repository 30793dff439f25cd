"""The settings of the record."""

import os
import re
from dataclasses import dataclass

from slimdown.config.fields import Range, setting

DEFAULT_STORE = "sqlite:///mlruns/mlflow.db"
_SERVERS = r"(https?|postgresql|mysql|mssql|databricks)(\+\w+)?://.*[^/].*"
_STORE = Range(
    f"must be a database or a server, such as {DEFAULT_STORE} or http://localhost:5000",
    re.compile(rf"sqlite(\+\w+)?:///+[^/:].*[^/]|databricks|{_SERVERS}").fullmatch,
)
_EXPERIMENT = Range("must have 1 to 500 characters", lambda name: 0 < len(name.strip()) <= 500)


def default_store(otherwise: str = DEFAULT_STORE) -> str:
    """Return the store that MLFLOW_TRACKING_URI names, or a local file where it is empty."""
    return os.environ.get("MLFLOW_TRACKING_URI", "").strip() or otherwise


@dataclass
class TrackingConfig:
    """Where the record goes."""

    uri: str = setting("an MLflow tracking URI: a database or a server", _STORE)
    experiment: str = setting("the MLflow experiment", _EXPERIMENT)
    # Files turn it on; what other commands record takes no time.
    system_metrics: bool = setting(
        "also record the load of the machine (system metrics)", default=False
    )
