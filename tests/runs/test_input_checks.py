"""Each setting that a check reads is checked, whichever run of a sweep has it."""

from dataclasses import replace
from pathlib import Path

import pytest
from record_builders import Patch, compose_config

from slimdown.config.engines import Backend
from slimdown.runs.input_checks import find_problems


@pytest.mark.parametrize("order", [1, -1])
def test_each_backend_of_a_sweep_is_checked(order: int, monkeypatch: Patch) -> None:
    monkeypatch.setattr("slimdown.runs.input_checks.count_gpus", lambda: 0)
    config = compose_config()
    on_gpu = replace(config, evaluation=replace(config.evaluation, backend=Backend.vllm))
    [problem] = find_problems([config, on_gpu][::order])
    assert problem.startswith("evaluation.backend=vllm needs a GPU")
    assert not list(find_problems([config]))


@pytest.mark.parametrize("order", [1, -1])
def test_tasks_are_looked_for_in_the_folder_of_each_run(order: int, tmp_path: Path) -> None:
    (tmp_path / "rivers.yaml").write_text("task: rivers\n")
    config = compose_config(f"evaluation.include_path={tmp_path}", "benchmark=rivers")
    without_folder = replace(config, evaluation=replace(config.evaluation, include_path=None))
    [problem] = find_problems([config, without_folder][::order])
    assert problem.startswith("benchmark=rivers: the harness has no task of this name")
    assert not list(find_problems([config]))
