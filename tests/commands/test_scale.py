"""What `slimdown scale` refuses before it loads anything."""

from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from record_builders import record_run

from slimdown.commands import scale
from slimdown.config.schema import RunConfig


def test_no_task_files_that_a_record_names_are_run(
    store: MlflowClient,
    composed: Callable[..., RunConfig],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_id = record_run(composed(f"evaluation.include_path={tmp_path}"), "one")
    assert scale.main([run_id]) == 3
    assert f"type --include-path {tmp_path}" in " ".join(capsys.readouterr().err.split())
