"""Start a command as its user does, and find what it recorded."""

import os
import subprocess
import sys
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

Result = subprocess.CompletedProcess[str]


def run_command(folder: Path, *arguments: str, **environment: str) -> Result:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, **environment},
    )


def find_runs(client: MlflowClient, kind: str = "tuned") -> list[Run]:
    experiments = [e.experiment_id for e in client.search_experiments()]
    query = f"tags.`slimdown.kind` = '{kind}'"
    return list(client.search_runs(experiments, query, order_by=["attributes.start_time"]))
