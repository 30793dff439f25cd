"""A hub that does not answer is waited for once, and not for each benchmark of a suite."""

import pytest
from huggingface_hub import constants

from slimdown.config.benchmark_config import BenchmarkConfig
from slimdown.evaluation import tasks
from slimdown.utils.errors import DataError

HUB_TASKS = ["hellaswag", "arc_easy", "piqa"]


@pytest.mark.parametrize(
    ("is_offline", "expected_tries"), [(False, HUB_TASKS[:1]), (True, HUB_TASKS)]
)
def test_a_suite_ends_at_the_first_benchmark_unless_only_the_cache_is_read(
    is_offline: bool, expected_tries: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def be_silent(name: str, task: str, manager: object) -> None:
        tried.append(task)
        with tasks.explain_hub_errors(f"benchmark.{name}.task={task}", DataError):
            raise ConnectionError

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", is_offline)
    monkeypatch.setattr(tasks, "_load_from_harness", be_silent)
    benchmarks = {name: BenchmarkConfig(name) for name in HUB_TASKS}
    with pytest.raises(DataError, match="does not answer") as refused:
        tasks.load_tasks(benchmarks, lacking={})
    assert tried == expected_tries
    assert len(str(refused.value).splitlines()) == 1
    assert all(f"benchmark.{name}.task" in str(refused.value) for name in expected_tries)
