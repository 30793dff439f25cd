"""A run that was killed at any moment goes on in the same run, and ends as if nothing had been."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime

import pytest
from mlflow import MlflowClient
from recorded import here

from slimdown.judging.runs import RecordedRun
from slimdown.recording import unfinished
from slimdown.recording.owner import owner_tags, this_process
from slimdown.recording.tags import Tag
from slimdown.recording.unfinished import end_forsaken, to_go_on_in
from slimdown.recording.write import TrackedRun
from slimdown.training.fine_tune import StepRecord

DEAD = {Tag.owner: json.dumps(asdict(replace(this_process(), started="1"))), Tag.heartbeat: f"{time.time():.0f}"}


def seen(run_id: str, status: str, tags: dict[str, str]) -> RecordedRun:
    return RecordedRun(run_id, run_id, "slimdown", status, datetime.now(UTC), tags=dict(tags))


def elsewhere(heard: float) -> dict[str, str]:
    """Tags of a run on another machine that was heard of so many seconds ago."""
    owner = replace(this_process(), host="another")
    return {Tag.owner: json.dumps(asdict(owner)), Tag.heartbeat: f"{time.time() - heard:.0f}"}


# --- which run ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("runs", "chosen"),
    [
        ([], None),
        ([seen("a", "KILLED", DEAD), seen("b", "FINISHED", DEAD)], "b"),
        ([seen("a", "FAILED", {}), seen("b", "KILLED", {})], "a"),
        ([seen("a", "RUNNING", DEAD)], "a"),
        ([seen("a", "RUNNING", owner_tags())], "a"),  # of this process, which a store did not let end it
        ([seen("a", "RUNNING", {})], None),  # of an older version: nobody knows
    ],
)
def test_a_finished_run_is_taken_before_one_that_nobody_works_on(runs: list[RecordedRun], chosen: str | None) -> None:
    found = to_go_on_in(lambda: runs, lambda: pytest.fail("nobody works on any"))
    assert (found and found.run_id) == chosen


def test_a_run_at_work_elsewhere_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfinished, "INTERVAL", 0.01)
    answers: Iterator[list[RecordedRun]] = iter(
        [[seen("a", "RUNNING", elsewhere(5))], [seen("a", "RUNNING", elsewhere(1))], [seen("a", "FINISHED", DEAD)]]
    )
    told: list[str] = []
    found = to_go_on_in(lambda: next(answers), lambda: told.append("waiting"))
    assert found is not None
    assert (found.status, told) == ("FINISHED", ["waiting"])


def test_one_that_seems_silent_by_our_clock_is_looked_at_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfinished, "INTERVAL", 0.01)
    with_a_clock_behind = [[seen("a", "RUNNING", elsewhere(ago))] for ago in (1020, 1000)]
    answers = iter([*with_a_clock_behind, [seen("a", "FINISHED", DEAD)]])
    found = to_go_on_in(lambda: next(answers), lambda: None)
    assert found is not None
    assert found.status == "FINISHED"
    silent = [seen("a", "RUNNING", elsewhere(1000))]
    found = to_go_on_in(lambda: silent, lambda: None)
    assert found is silent[0]


# --- the run in the record ----------------------------------------------------------------------------------


def test_a_run_goes_on_without_what_it_said_of_its_end_and_keeps_each_step_once(store: MlflowClient) -> None:
    with pytest.raises(ValueError, match="no memory"), TrackedRun(here(), "a run", "tuned", {Tag.seed: "0"}) as run:
        run.log_settings({"lora.r": 8, "tracking.wait": 300.0})
        for step in (1, 2):
            run.log_step(StepRecord(step, {"loss": 1 / step, "grad_norm": 0.5}))
        raise ValueError("no memory")
    assert store.get_run(run.run_id).info.status == "FAILED"
    with TrackedRun(here(), "a run", "tuned", {Tag.sweep: "again"}, goes_on=run.run_id) as again:
        now = store.get_run(run.run_id)
        assert now.info.status == "RUNNING"
        assert Tag.error not in now.data.tags
        again.log_settings({"lora.r": 8, "tracking.wait": 10.0, "lora.lora_alpha": 16})
        for step in (1, 2, 3):
            again.log_step(StepRecord(step, {"loss": 1 / step, "grad_norm": 0.5}))
    ended = store.get_run(run.run_id)
    assert again.run_id == run.run_id
    assert ended.info.status == "FINISHED"
    assert ended.data.params == {"lora.r": "8", "tracking.wait": "300.0", "lora.lora_alpha": "16"}
    assert (ended.data.tags[Tag.seed], ended.data.tags[Tag.sweep]) == ("0", "again")
    assert [(m.step, m.value) for m in store.get_metric_history(run.run_id, "train/loss")] == [
        (1, 1.0),
        (2, 0.5),
        (3, 1 / 3),
    ]
    assert [file.path for file in store.list_artifacts(run.run_id)] == []  # no traceback


def test_a_base_s_measurement_does_not_stay_running_when_its_process_is_gone(store: MlflowClient) -> None:
    with TrackedRun(here(), "a run", "tuned", {}) as run:
        going, forsaken = (run.sibling(name, "baseline") for name in ("going", "forsaken"))
        for key, value in DEAD.items():
            store.set_tag(forsaken.run_id, key, value)
        end_forsaken(store, run.experiment_id)
        assert store.get_run(going.run_id).info.status == "RUNNING"
        assert store.get_run(forsaken.run_id).info.status == "KILLED"
