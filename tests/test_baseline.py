"""The same evaluation is made once, across runs and crashes; what could change an answer makes it anew."""

import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from math import inf, isnan, nan
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_up import evaluation, written
from mlflow import MlflowClient
from recorded import settings_of

from slimdown.config.schema import BenchmarkConfig, RunConfig, TrackingConfig
from slimdown.evaluation import measure as baseline
from slimdown.evaluation.answers import BenchmarkEvaluation, Score, read_samples, write_samples
from slimdown.evaluation.harness import choose_scoring, evaluate
from slimdown.evaluation.measure import measure
from slimdown.evaluation.parts import Parts
from slimdown.evaluation.questions import load_tasks
from slimdown.models.model import LoadedModel, load_model
from slimdown.stats.changes import Verdict, changes_between
from slimdown.tracking.evaluations import EvaluationRecord, base_records
from slimdown.tracking.write import TrackedRun
from slimdown.utils.errors import SlimdownError

Composed = Callable[..., RunConfig]


class Counting:
    """A record in memory that counts what had to be made."""

    def __init__(self) -> None:
        self.kept: dict[str, BenchmarkEvaluation] = {}
        self.made: list[str] = []

    def lock(self, key: str) -> Any:
        return nullcontext()

    def find(self, name: str, key: str, benchmark: BenchmarkConfig) -> BenchmarkEvaluation | None:
        return self.kept.get(key)

    def keep(self, name: str, key: str, report: BenchmarkEvaluation) -> None:
        self.kept[key] = report
        self.made.append(name)

    def parts(self, key: str) -> Parts:
        return Parts()


def measured(loaded: LoadedModel, config: RunConfig, record: Any) -> dict[str, BenchmarkEvaluation]:
    tasks = load_tasks(config.benchmark)
    scoring = choose_scoring(loaded, tasks, config.benchmark, config.evaluation)
    done = measure(
        loaded, tasks, config.benchmark, config.evaluation, scoring, record, lambda d, t, n: None
    )
    return done.benchmarks


CS = ["benchmark=[pocket_cs]", "benchmark.pocket_cs.limit=6"]
BOTH = [
    "benchmark=[pocket_cs,pocket_math]",
    "benchmark.pocket_cs.limit=6",
    "benchmark.pocket_math.limit=6",
]


def test_an_equal_evaluation_is_found_and_a_new_benchmark_alone_is_made(
    pocket: LoadedModel, composed: Composed
) -> None:
    record = Counting()
    first = measured(pocket, composed(*CS), record)
    assert measured(pocket, composed(*CS), record) == first
    assert record.made == ["pocket_cs"]
    measured(pocket, composed(*BOTH), record)
    assert record.made == ["pocket_cs", "pocket_math"]


def test_a_primary_metric_without_a_score_for_each_question_is_refused_after_the_base(
    pocket: LoadedModel, composed: Composed
) -> None:
    record = Counting()
    (found,) = measured(pocket, composed(*CS), record).values()
    bare = tuple(replace(sample, scores={"acc_norm": 1.0}) for sample in found.samples)
    record.kept = dict.fromkeys(record.kept, replace(found, samples=bare))
    with pytest.raises(
        SlimdownError, match=r"benchmark.pocket_cs.metric=acc has no score for each question.*acc_norm"
    ):
        measured(pocket, composed(*CS), record)


@pytest.mark.parametrize(
    "override",
    [
        "benchmark.pocket_cs.limit=5",
        "benchmark.pocket_cs.task=pocket_cs_dev",
        "evaluation.token_budget=4096",
    ],
)
def test_what_can_change_an_answer_makes_it_anew(
    override: str, pocket: LoadedModel, composed: Composed
) -> None:
    record = Counting()
    measured(pocket, composed(*CS), record)
    measured(pocket, composed(*CS, override), record)
    assert len(record.made) == 2


def test_the_runs_seed_and_how_scores_are_read_do_not(
    pocket: LoadedModel, composed: Composed
) -> None:
    record = Counting()
    measured(pocket, composed(*CS), record)
    measured(
        pocket,
        composed(
            *CS, "seed=3", "benchmark.pocket_cs.role=target", "benchmark.pocket_cs.chance=0.3"
        ),
        record,
    )
    assert len(record.made) == 1


def test_a_report_comes_back_from_its_file_as_it_was(
    pocket: LoadedModel, composed: Composed, tmp_path: Path
) -> None:
    config = composed(*BOTH)
    for name, report in measured(pocket, config, Counting()).items():
        write_samples(tmp_path / "samples.parquet", "base", name, report)
        assert read_samples(tmp_path / "samples.parquet", config.benchmark[name]) == report


def test_graded_scores_come_back_from_a_file_to_the_last_bit(tmp_path: Path) -> None:
    """As single-precision numbers they moved all the same way, and nothing changed was a change with p = 4.5e-9."""
    draw = random.Random(1)
    fresh = written([draw.random() for _ in range(300)])
    odd = replace(
        fresh.samples[0], log_likelihoods=(-0.1, -inf, -1e-300), prompt="\x00 \u2028 é", response=""
    )
    fresh = replace(fresh, samples=(odd, *fresh.samples[1:]), seconds=0.1 + 0.2)
    write_samples(tmp_path / "samples.parquet", "base", "written", fresh)
    found = read_samples(tmp_path / "samples.parquet", fresh.benchmark)
    assert found == fresh
    change = changes_between(evaluation(written=found), evaluation(written=fresh)).benchmarks[
        "written"
    ]
    assert change.primary.difference.value == 0
    assert change.p_value == 1
    assert change.verdict is Verdict.retained  # 300 questions of which none moved
    undefined = replace(fresh, scores={"match.flexible": Score(1.0, nan)})
    write_samples(tmp_path / "samples.parquet", "base", "written", undefined)
    assert isnan(read_samples(tmp_path / "samples.parquet", fresh.benchmark).score.standard_error)


def as_before(file: Path, report: BenchmarkEvaluation) -> BenchmarkEvaluation:
    """A report through a file as records had them: the prompt's end, scores in single precision."""
    write_samples(file, "base", "written", report)
    table = pq.read_table(file)
    scores = table["score"].cast(pa.float32())
    earlier = table.set_column(table.schema.get_field_index("score"), "score", scores)
    earlier = earlier.rename_columns(
        ["question" if name == "prompt" else name for name in table.schema.names]
    )
    about = {b"slimdown": table.schema.metadata[b"slimdown"]}
    pq.write_table(earlier.replace_schema_metadata(about), file)
    return read_samples(file, report.benchmark)


def test_samples_of_earlier_records_are_read_and_rounded_ones_are_not_held_against_exact_ones(
    tmp_path: Path,
) -> None:
    whole, graded = written([1.0, 0.0, 1.0]), written([1 / 3, 0.1, 0.7])
    assert as_before(tmp_path / "samples.parquet", whole) == whole
    rounded = as_before(tmp_path / "samples.parquet", graded)
    assert rounded.scores_of("match.flexible") == pytest.approx([1 / 3, 0.1, 0.7], abs=1e-7)
    both = evaluation(written=rounded)
    assert changes_between(both, both).benchmarks["written"].primary.difference.value == 0
    with pytest.raises(SlimdownError, match="score_precision differs: float32 and float64"):
        changes_between(both, evaluation(written=graded))


def test_a_prompt_is_kept_whole(pocket: LoadedModel, composed: Composed, tmp_path: Path) -> None:
    config = composed(*CS)
    tasks = load_tasks(config.benchmark)
    task = tasks["pocket_cs"]["tasks"]["pocket_cs"]
    task.config.description = "Answer briefly. " * 80  # more than a page shows
    found = evaluate(pocket, tasks, config.benchmark, config.evaluation)
    write_samples(tmp_path / "samples.parquet", "base", "pocket_cs", found.benchmarks["pocket_cs"])
    kept = read_samples(tmp_path / "samples.parquet", config.benchmark["pocket_cs"])
    assert [sample.prompt for sample in kept.samples] == [
        task.config.description + task.doc_to_text(row)
        for row in task.dataset["test"].select(range(6))
    ]


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
            base_records(replace(config, tracking=local(tmp_path)), pocket, run)() as record,
        ):
            measured(pocket, config, record)
            sources.append(record.sources["pocket_cs"])
        assert not store.list_artifacts(run.run_id)
        assert store.get_run(run.run_id).data.tags["slimdown.baseline.pocket_cs"] == sources[-1]
    assert sources[0] == sources[1]
    baseline = store.get_run(sources[0])
    assert "base/pocket_cs/acc" in baseline.data.metrics
    assert baseline.data.tags["slimdown.kind"] == "baseline"
    assert baseline.data.params["model.id"] == "pocket:model"
    assert {key.split(".")[0] for key in baseline.data.params} == {
        "model",
        "quantization",
        "benchmark",
        "evaluation",
    }
    assert [a.path for a in store.list_artifacts(sources[0], "samples")] == [
        "samples/base-pocket_cs.parquet"
    ]


def test_reuse_false_makes_it_anew(
    store: MlflowClient, pocket: LoadedModel, composed: Composed, tmp_path: Path
) -> None:
    sources = []
    for reuse in (True, False):
        with (
            TrackedRun(local(tmp_path), "tuned", "tuned", {}) as run,
            base_records(settings_of(local(tmp_path), reuse), pocket, run)() as record,
        ):
            measured(pocket, composed(*CS), record)
            sources.append(record.sources["pocket_cs"])
    assert sources[0] != sources[1]


def test_a_run_that_stops_in_the_second_benchmark_leaves_the_first(
    store: MlflowClient,
    pocket: LoadedModel,
    composed: Composed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from slimdown.evaluation.harness import Evaluator

    config, whole = composed(*BOTH), Evaluator.evaluate

    def stopped(self: Evaluator, name: str, *rest: Any) -> BenchmarkEvaluation:
        if name == "pocket_math":
            raise KeyboardInterrupt
        return whole(self, name, *rest)

    monkeypatch.setattr(Evaluator, "evaluate", stopped)
    with (
        pytest.raises(KeyboardInterrupt),
        TrackedRun(local(tmp_path), "tuned", "tuned", {}) as run,
        base_records(settings_of(local(tmp_path), True), pocket, run)() as record,
    ):
        measured(pocket, config, record)
    monkeypatch.setattr(Evaluator, "evaluate", whole)
    with (
        TrackedRun(local(tmp_path), "tuned", "tuned", {}) as again,
        base_records(settings_of(local(tmp_path), True), pocket, again)() as record,
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
            base_records(settings_of(local(tmp_path), True), pocket, run)() as record,
        ):
            measured(pocket, config, record)
        if i == 0:
            first = record.sources["pocket_cs"]
            [file] = (tmp_path / "mlruns" / "artifacts" / first).rglob("*.parquet")
            file.unlink()
    assert record.sources["pocket_cs"] != first


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-200])


def overwritten(file: Path) -> None:
    file.write_bytes(b"<html>502 Bad Gateway</html>")


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def changed(file: Path) -> None:
    table = pq.read_table(file)
    place = table.schema.get_field_index("score")
    pq.write_table(
        table.set_column(place, "score", pa.array([1.0 - v for v in table["score"].to_pylist()])),
        file,
    )


def without_its_metadata(file: Path) -> None:
    pq.write_table(pq.read_table(file).replace_schema_metadata(None), file)


def of_another_schema(file: Path) -> None:
    pq.write_table(pq.read_table(file).drop_columns(["score"]), file)


def with_words_for_scores(file: Path) -> None:
    table = pq.read_table(file)
    place = table.schema.get_field_index("score")
    pq.write_table(table.set_column(place, "score", pa.array(["right"] * len(table))), file)


@pytest.mark.parametrize(
    "damage",
    [
        cut_short,
        overwritten,
        emptied,
        changed,
        without_its_metadata,
        of_another_schema,
        with_words_for_scores,
    ],
)
def test_damaged_samples_are_measured_again_and_told_once(
    damage: Callable[[Path], None],
    store: MlflowClient,
    pocket: LoadedModel,
    composed: Composed,
    tmp_path: Path,
) -> None:
    config, sources, told = composed(*CS), [], []
    for i in range(3):
        with (
            TrackedRun(local(tmp_path), "tuned", "tuned", {}) as run,
            base_records(settings_of(local(tmp_path)), pocket, run, told.append)() as record,
        ):
            measured(pocket, config, record)
        sources.append(record.sources["pocket_cs"])
        if i == 0:
            [file] = (tmp_path / "mlruns" / "artifacts" / sources[0]).rglob("*.parquet")
            damage(file)
    assert sources[0] != sources[1] == sources[2]
    [line] = told
    assert line.startswith(
        f"pocket_cs is measured again: its samples in run {sources[0]} are damaged ("
    )
    assert "\n" not in line


def test_evaluations_found_by_earlier_keys_are_made_anew_once_and_told(
    store: MlflowClient,
    pocket: LoadedModel,
    composed: Composed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, sources, told = composed(*CS), [], []
    for kind in ("", baseline.KEY_VERSION, baseline.KEY_VERSION):
        monkeypatch.setattr(baseline, "KEY_VERSION", kind)
        with (
            TrackedRun(local(tmp_path), "tuned", "tuned", {}) as run,
            base_records(settings_of(local(tmp_path)), pocket, run, told.append)() as record,
        ):
            run.log_model(pocket)
            measured(pocket, config, record)
        sources.append(record.sources["pocket_cs"])
    assert sources[0] != sources[1] == sources[2]
    [line] = told
    assert line.startswith(
        "pocket_cs is measured anew: the record's evaluation of it with these settings, in run "
    )


def test_what_is_made_before_a_training_and_after_it_lies_in_one_run_and_is_told_of_once(
    store: MlflowClient, pocket: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stages, of which an earlier version kept two."""

    def waited_for(
        config: TrackingConfig, key: str, waits: Callable[[], None], client: object
    ) -> nullcontext[None]:
        waits()
        return nullcontext()

    report, settings, told, sources = written([1.0, 0.0]), settings_of(local(tmp_path)), [], []
    with TrackedRun(local(tmp_path), "tuned", "tuned", {}) as run:
        run.log_model(pocket)
        with base_records(settings, pocket, run)() as record:
            for n in (32, 45):
                record.of_stage(n).keep("cs", f"old {n}", report)
            earlier = record.sources["cs"]
        monkeypatch.setattr("slimdown.tracking.evaluations.saving_work", waited_for)
        opened = base_records(settings, pocket, run, told.append)
        for n in (32, 45):
            with opened() as record, record.lock(f"new {n}"):
                assert record.of_stage(n).find("cs", f"new {n}", report.benchmark) is None
                record.of_stage(n).keep("cs", f"new {n}", report)
            sources.append(record.sources["cs"])
            assert store.get_run(sources[-1]).info.status == "FINISHED"
        with opened() as record:
            assert record.of_stage(45).find("cs", "new 45", report.benchmark) == report
    assert sources[0] == sources[1] != earlier
    assert [file.path for file in store.list_artifacts(sources[0], "samples")] == [
        f"samples/base-cs-to-{n}.parquet" for n in (32, 45)
    ]
    assert [line.partition(":")[0] for line in told] == [
        "Another process measures what is needed next just now, which is waited for.",
        "cs is measured anew",
    ]


def test_a_newer_base_is_not_taken_for_another(
    store: MlflowClient, composed: Composed, tmp_path: Path
) -> None:
    sources, other = [], "quantization.bnb_4bit_use_double_quant=false"
    for overrides in ([], [other], [], [other]):
        config = composed(*CS, *overrides)
        base = load_model(config.model, config.quantization)
        with (
            TrackedRun(local(tmp_path), "tuned", "tuned", {}) as run,
            base_records(settings_of(local(tmp_path)), base, run)() as record,
        ):
            measured(base, config, record)
        sources.append(record.sources["pocket_cs"])
    assert sources[0] == sources[2] != sources[1] == sources[3]


def hold(folder: str, ready: Any) -> None:
    with TrackedRun(local(Path(folder)), "tuned", "tuned", {}) as run:
        record = EvaluationRecord(local(Path(folder)), "base", run, True)
        with record.lock("key"):
            ready.set()
            time.sleep(600)


def test_one_process_at_a_time_holds_a_key_and_a_dead_one_does_not(
    store: MlflowClient, tmp_path: Path
) -> None:
    spawn = multiprocessing.get_context("spawn")
    ready = spawn.Event()
    owner = spawn.Process(target=hold, args=(str(tmp_path), ready))
    owner.start()
    assert ready.wait(60)
    with TrackedRun(local(tmp_path), "tuned", "tuned", {}) as run:
        record, held = EvaluationRecord(local(tmp_path), "base", run, True), threading.Event()

        def hold_next() -> None:
            with record.lock("key"):
                held.set()

        waiting = threading.Thread(target=hold_next)
        waiting.start()
        assert not held.wait(0.3)
        assert owner.pid is not None
        os.kill(owner.pid, signal.SIGKILL)
        owner.join()
        assert held.wait(10)
        waiting.join()
