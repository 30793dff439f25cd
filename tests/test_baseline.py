"""The same evaluation is made once, across runs and crashes; what could change an answer makes it anew."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from slimdown.baseline import measure
from slimdown.config import BenchmarkConfig, RunConfig, TrackingConfig
from slimdown.evaluate import choose_scoring, load_tasks
from slimdown.model import LoadedModel
from slimdown.samples import BenchmarkReport, read_samples, write_samples
from slimdown.tracking import EvaluationRecord, TrackedRun, base_record

Composed = Callable[..., RunConfig]


class Counting:
    """A record in memory that counts what had to be made."""

    def __init__(self) -> None:
        self.kept: dict[str, BenchmarkReport] = {}
        self.made: list[str] = []

    def lock(self, key: str) -> Any:
        return nullcontext()

    def find(self, name: str, key: str, benchmark: BenchmarkConfig) -> BenchmarkReport | None:
        return self.kept.get(key)

    def keep(self, name: str, key: str, report: BenchmarkReport) -> None:
        self.kept[key] = report
        self.made.append(name)


def measured(loaded: LoadedModel, config: RunConfig, record: Any) -> dict[str, BenchmarkReport]:
    tasks = load_tasks(config.benchmark)
    scoring = choose_scoring(loaded, tasks, config.benchmark, config.evaluation)
    done = measure(loaded, tasks, config.benchmark, config.evaluation, scoring, record, lambda d, t, n: None)
    return done.benchmarks


CS = ["benchmark=[pocket_cs]", "benchmark.pocket_cs.limit=6"]
BOTH = ["benchmark=[pocket_cs,pocket_math]", "benchmark.pocket_cs.limit=6", "benchmark.pocket_math.limit=6"]


def test_an_equal_evaluation_is_found_and_a_new_benchmark_alone_is_made(
    pocket: LoadedModel, composed: Composed
) -> None:
    record = Counting()
    first = measured(pocket, composed(*CS), record)
    assert measured(pocket, composed(*CS), record) == first
    assert record.made == ["pocket_cs"]
    measured(pocket, composed(*BOTH), record)
    assert record.made == ["pocket_cs", "pocket_math"]


@pytest.mark.parametrize(
    "override",
    ["benchmark.pocket_cs.limit=5", "benchmark.pocket_cs.task=pocket_cs_dev", "evaluation.token_budget=4096"],
)
def test_what_can_change_an_answer_makes_it_anew(override: str, pocket: LoadedModel, composed: Composed) -> None:
    record = Counting()
    measured(pocket, composed(*CS), record)
    measured(pocket, composed(*CS, override), record)
    assert len(record.made) == 2


def test_the_runs_seed_and_how_scores_are_read_do_not(pocket: LoadedModel, composed: Composed) -> None:
    record = Counting()
    measured(pocket, composed(*CS), record)
    measured(
        pocket, composed(*CS, "seed=3", "benchmark.pocket_cs.role=target", "benchmark.pocket_cs.chance=0.3"), record
    )
    assert len(record.made) == 1


def test_a_report_comes_back_from_its_file_as_it_was(pocket: LoadedModel, composed: Composed, tmp_path: Path) -> None:
    config = composed(*BOTH)
    for name, report in measured(pocket, config, Counting()).items():
        write_samples(tmp_path / "samples.parquet", "base", name, report)
        assert read_samples(tmp_path / "samples.parquet", config.benchmark[name]) == report


def local(folder: Path) -> TrackingConfig:
    return TrackingConfig(uri=f"sqlite:///{folder}/mlruns/mlflow.db", experiment="slimdown")


def test_a_base_lies_in_a_run_of_its_own_and_is_found_by_another(
    store: MlflowClient, pocket: LoadedModel, composed: Composed, tmp_path: Path
) -> None:
    config = composed(*CS)
    sources = []
    for _ in range(2):
        with (
            TrackedRun(local(tmp_path), "tuned", "tuned", {}) as run,
            base_record(local(tmp_path), pocket, run, True, {"model.id": "pocket:model"}) as record,
        ):
            measured(pocket, config, record)
            sources.append(record.sources["pocket_cs"])
        assert [a.path for a in store.list_artifacts(run.run_id, "samples")] == ["samples/base-pocket_cs.parquet"]
    assert sources[0] == sources[1]
    baseline = store.get_run(sources[0])
    assert "base/pocket_cs/acc" in baseline.data.metrics
    assert baseline.data.tags["slimdown.kind"] == "baseline"
    assert baseline.data.params == {"model.id": "pocket:model"}
    assert [a.path for a in store.list_artifacts(sources[0], "samples")] == ["samples/base-pocket_cs.parquet"]


def test_reuse_false_makes_it_anew(
    store: MlflowClient, pocket: LoadedModel, composed: Composed, tmp_path: Path
) -> None:
    sources = []
    for reuse in (True, False):
        with (
            TrackedRun(local(tmp_path), "tuned", "tuned", {}) as run,
            base_record(local(tmp_path), pocket, run, reuse, {}) as record,
        ):
            measured(pocket, composed(*CS), record)
            sources.append(record.sources["pocket_cs"])
    assert sources[0] != sources[1]


def test_a_run_that_stops_in_the_second_benchmark_leaves_the_first(
    store: MlflowClient, pocket: LoadedModel, composed: Composed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slimdown.evaluate import Evaluator

    config, whole = composed(*BOTH), Evaluator.evaluate

    def stopped(self: Evaluator, name: str, *rest: Any) -> BenchmarkReport:
        if name == "pocket_math":
            raise KeyboardInterrupt
        return whole(self, name, *rest)

    monkeypatch.setattr(Evaluator, "evaluate", stopped)
    with (
        pytest.raises(KeyboardInterrupt),
        TrackedRun(local(tmp_path), "tuned", "tuned", {}) as run,
        base_record(local(tmp_path), pocket, run, True, {}) as record,
    ):
        measured(pocket, config, record)
    monkeypatch.setattr(Evaluator, "evaluate", whole)
    with (
        TrackedRun(local(tmp_path), "tuned", "tuned", {}) as again,
        base_record(local(tmp_path), pocket, again, True, {}) as record,
    ):
        measured(pocket, config, record)
    killed, finished = record.sources["pocket_cs"], record.sources["pocket_math"]
    assert store.get_run(killed).info.status == "KILLED"
    assert store.get_run(finished).info.status == "FINISHED"


def test_an_evaluation_whose_file_was_deleted_is_made_anew(
    store: MlflowClient, pocket: LoadedModel, composed: Composed, tmp_path: Path
) -> None:
    config = composed(*CS)
    for i in range(2):
        with (
            TrackedRun(local(tmp_path), "tuned", "tuned", {}) as run,
            base_record(local(tmp_path), pocket, run, True, {}) as record,
        ):
            measured(pocket, config, record)
        if i == 0:
            first = record.sources["pocket_cs"]
            [file] = (tmp_path / "mlruns" / "artifacts" / first).rglob("*.parquet")
            file.unlink()
    assert record.sources["pocket_cs"] != first


def hold(folder: str, ready: Any) -> None:
    with TrackedRun(local(Path(folder)), "tuned", "tuned", {}) as run:
        record = EvaluationRecord(local(Path(folder)), "base", run, True, lambda: run)
        with record.lock("key"):
            ready.set()
            time.sleep(600)


def test_one_process_at_a_time_holds_a_key_and_a_dead_one_does_not(store: MlflowClient, tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Event()
    owner = spawn.Process(target=hold, args=(str(tmp_path), ready))
    owner.start()
    assert ready.wait(60)
    with TrackedRun(local(tmp_path), "tuned", "tuned", {}) as run:
        lock = EvaluationRecord(local(tmp_path), "base", run, True, lambda: run).lock("key")
        with pytest.raises(TimeoutError):
            lock.acquire(timeout=0.2)
        assert owner.pid is not None
        os.kill(owner.pid, signal.SIGKILL)
        owner.join()
        with lock.acquire(timeout=10):
            assert lock.is_locked
