"""What is read of a store: by its tables and by MLflow's client, with the same result."""

import math
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from recorded import benchmark_settings, evaluation, here, record, right

from slimdown.config.schema import TrackingConfig
from slimdown.stats.findings import judge
from slimdown.tracking.evaluations import EvaluationRecord
from slimdown.tracking.read import experiment_names, find_runs, read_evaluation, read_run
from slimdown.tracking.write import TrackedRun
from slimdown.utils.errors import SlimdownError

BASE, TUNED = {"math": right(80)}, {"math": right(40)}


def make(name: str = "a run", **given: object) -> str:
    return record(name, {}, BASE, TUNED, **given)  # type: ignore[arg-type]


def by_client() -> TrackingConfig:
    """The same store under an address that does not name a file plainly, so that it is read as a server is."""
    return TrackingConfig(
        uri=here().uri.replace("sqlite:", "sqlite+pysqlite:"), experiment="slimdown"
    )


def test_the_tables_and_the_client_tell_the_same(store: MlflowClient) -> None:
    ids = [
        make("one"),
        make("two", tags={"slimdown.sweep": "ranks"}),
        make("three", config=here("other")),
    ]
    store.log_metric(ids[0], "odd/nan", math.nan)
    with TrackedRun(here(), "base", kind="baseline", tags={}):
        pass
    deleted = make("deleted")
    store.delete_run(deleted)
    fast = find_runs(here())
    swept = find_runs(here(), tags={"slimdown.sweep": "ranks"})
    slow = find_runs(by_client())
    assert [run.run_id for run in fast] == [run.run_id for run in slow]
    assert {run.run_id for run in fast} == set(ids)
    assert swept == find_runs(by_client(), tags={"slimdown.sweep": "ranks"})
    for one, other in zip(fast, slow, strict=True):
        assert (one.name, one.experiment, one.status, one.started) == (
            other.name, other.experiment, other.status, other.started,
        )  # fmt: skip
        assert (one.params, one.tags) == (other.params, other.tags)
        assert repr(sorted(one.metrics.items())) == repr(
            sorted(other.metrics.items())
        )  # nan is not equal to itself
    assert math.isnan(next(run for run in fast if run.run_id == ids[0]).metrics["odd/nan"])


def test_a_local_store_is_read_without_mlflow_and_torch(store: MlflowClient) -> None:
    make()
    script = (
        "import sys\nfrom slimdown.compare import main\nsys.argv = ['compare']\nmain()\n"
        "print(sorted({'mlflow', 'torch', 'transformers', 'scipy.stats'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_experiments_tags_and_filters_choose(store: MlflowClient) -> None:
    make("one", tags={"slimdown.sweep": "it's"})
    make("two", config=here("other"))
    assert experiment_names(here()) == ["Default", "other", "slimdown"]
    assert [run.name for run in find_runs(here(), ["other"])] == ["two"]
    assert [run.name for run in find_runs(here(), tags={"slimdown.sweep": "it's"})] == ["one"]
    assert [
        run.name
        for run in find_runs(here(), [], "params.`lora.r` = '8' and attributes.run_name = 'two'")
    ] == ["two"]
    assert len(find_runs(here(), max_results=1)) == 1
    with pytest.raises(SlimdownError, match=r"no experiment othr in .*; did you mean other\?"):
        find_runs(here(), ["othr"])
    with pytest.raises(
        SlimdownError, match=r"the filter 'lora.r is 8' is not understood: .*write e\.g\."
    ):
        find_runs(here(), [], "lora.r is 8")


@pytest.mark.parametrize("client", [False, True])
def test_a_run_is_found_by_id_beginning_or_name(store: MlflowClient, client: bool) -> None:
    run_id = make("pocket lora.r=8 it's")
    make("twice")
    make("twice")
    config = by_client() if client else here()
    assert read_run(config, run_id).name == "pocket lora.r=8 it's"
    assert read_run(config, run_id[:12]).run_id == run_id
    assert read_run(config, "pocket lora.r=8 it's").metrics[
        "forgetting/math/change"
    ] == pytest.approx(-0.4)
    with pytest.raises(SlimdownError, match="2 runs are called twice; give the id of one: "):
        read_run(config, "twice")
    with pytest.raises(
        SlimdownError,
        match=r"there is no run pocket lora.r=9 it's in .*did you mean pocket lora.r=8 it's\?",
    ):
        read_run(config, "pocket lora.r=9 it's")
    with TrackedRun(here(), "base", kind="baseline", tags={}) as base:
        pass
    with pytest.raises(SlimdownError, match="is the measurement of a base; only a fine-tuning run"):
        read_run(config, base.run_id)


def test_an_evaluation_comes_back_as_it_was_written(store: MlflowClient) -> None:
    run = read_run(here(), make())
    assert read_evaluation(here(), run, "tuned").benchmarks == evaluation(TUNED).benchmarks
    assert read_evaluation(here(), run, "base").harness_version == "0.4.13"


def linked(name: str) -> str:
    """The id of a finished run whose base is found in the record, or measured and kept in a run of its own."""
    before, after = evaluation(BASE), evaluation(TUNED)
    with (
        TrackedRun(here(), name, "tuned", {}) as run,
        TrackedRun(here(), "base", "baseline", {}) as base,
    ):
        run.log_settings(benchmark_settings(before))
        kept = EvaluationRecord(here(), "base", run, True, lambda: base)
        if not kept.find("math", "key", before.benchmarks["math"].benchmark):
            kept.keep("math", "key", before.benchmarks["math"])
        run.log_base(before)
        run.log_evaluation("tuned", "math", after.benchmarks["math"])
        run.keep(judge(before, after), {"report.md": ""})
    return run.run_id


def test_a_bases_answers_are_stored_once_and_read_where_they_lie(
    store: MlflowClient, tmp_path: Path
) -> None:
    ids = [linked("one"), linked("two")]
    assert len(list(tmp_path.rglob("base-math.parquet"))) == 1
    [holder] = {read_run(here(), run_id).tags["slimdown.baseline.math"] for run_id in ids}
    for config in (here(), by_client()):
        for run_id in ids:
            found = read_evaluation(config, read_run(config, run_id), "base")
            assert found.benchmarks == evaluation(BASE).benchmarks
    store.delete_run(holder)  # into MLflow's bin, out of which it can still be read
    assert (
        read_evaluation(here(), read_run(here(), ids[0]), "base").benchmarks
        == evaluation(BASE).benchmarks
    )


def remove(client: MlflowClient, holder: str, folder: Path) -> str:
    client.delete_run(holder)
    client._tracking_client.store._hard_delete_run(holder)  # as `mlflow gc`
    shutil.rmtree(folder)
    return f"has lost the base's answers to math, which run {holder} held: "


def delete_artifacts(client: MlflowClient, holder: str, folder: Path) -> str:
    shutil.rmtree(folder)
    return f"has lost the base's answers to math, which run {holder} held: "


def damage(client: MlflowClient, holder: str, folder: Path) -> str:
    [file] = folder.rglob("*.parquet")
    file.write_bytes(file.read_bytes()[:-100])
    return rf"the samples of math in run {holder} cannot be read \(.*; the file is damaged"


@pytest.mark.parametrize("lose", [remove, delete_artifacts, damage])
def test_a_base_that_is_gone_is_named_and_measured_again_for_all(
    lose: Callable[[MlflowClient, str, Path], str], store: MlflowClient, tmp_path: Path
) -> None:
    run = read_run(here(), linked("one"))
    holder = run.tags["slimdown.baseline.math"]
    said = lose(store, holder, tmp_path / "mlruns" / "artifacts" / holder)
    with pytest.raises(
        SlimdownError,
        match=f"{said}.*; the next run with the same base, settings and versions measures",
    ):
        read_evaluation(here(), run, "base")
    again = read_run(here(), linked("two"))
    assert again.tags["slimdown.baseline.math"] != holder
    assert read_evaluation(here(), run, "base").benchmarks == evaluation(BASE).benchmarks


def test_what_was_measured_elsewhere_is_recorded_whole_and_without_torch(
    store: MlflowClient,
) -> None:
    script = (
        "import sys\nfrom recorded import *\nfrom slimdown.tracking.runs import record_findings\n"
        "before, after = evaluation({'math': right(80)}), evaluation({'math': right(40)})\n"
        "run = record_findings(here(), 'logs', benchmark_settings(before), judge(before, after),\n"
        "                      lambda run_id: {'report.md': run_id})\n"
        "print(run.run_id, 'torch' in sys.modules)\n"
    )
    command, place = (
        [sys.executable, "-c", script],
        os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    )
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": place}, check=True
    )
    run_id, torch = done.stdout.split()
    assert torch == "False"
    run = store.get_run(run_id)
    assert (run.info.status, run.data.tags["slimdown.kind"]) == ("FINISHED", "tuned")
    assert run.data.metrics["forgetting/math/change"] == pytest.approx(-0.4)
    assert run.data.tags["mlflow.note.content"] == run_id


def test_a_run_without_a_complete_measurement_is_refused(
    store: MlflowClient, tmp_path: Path
) -> None:
    run = TrackedRun(here(), "going", kind="tuned", tags={})
    with pytest.raises(SlimdownError, match=r"\(going\) is still going; it left"):
        read_evaluation(here(), read_run(here(), run.run_id), "tuned")
    with pytest.raises(RuntimeError), run:
        raise RuntimeError("the disk is full")
    with pytest.raises(SlimdownError, match=r"\(going\) failed: RuntimeError: the disk is full;"):
        read_evaluation(here(), read_run(here(), run.run_id), "tuned")
    lost = make()
    shutil.rmtree(tmp_path / "mlruns" / "artifacts" / lost)
    with pytest.raises(SlimdownError, match=f"run {lost} has lost its samples of math"):
        read_evaluation(here(), read_run(here(), lost), "tuned")


def test_reading_makes_no_store(tmp_path: Path) -> None:
    with pytest.raises(
        SlimdownError, match=r"there is no record .*nowhere\.db yet; python -m slimdown.run makes one"
    ):
        find_runs(TrackingConfig(uri=f"sqlite:///{tmp_path}/nowhere.db", experiment=""))
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("these are no tables" * 100)
    with pytest.raises(SlimdownError, match="is no MLflow record, and is left as it is"):
        find_runs(TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db", experiment=""))


def test_reading_works_while_a_run_writes(store: MlflowClient, tmp_path: Path) -> None:
    make()
    writing = sqlite3.connect(tmp_path / "mlruns" / "mlflow.db", isolation_level=None)
    writing.execute("BEGIN IMMEDIATE")
    assert len(find_runs(here())) == 1
    writing.close()
