"""Whether anybody works on a run: known to whoever reads the store, on this machine exactly."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest
from mlflow import MlflowClient
from recorded import here

from slimdown.tracking import owner
from slimdown.tracking.owner import is_gone, is_silent, owner_of, owner_tags, this_process
from slimdown.tracking.tags import Tag
from slimdown.tracking.write import TrackedRun
from slimdown.utils.errors import SlimdownError


def tags_of(who: owner.Owner, heard: float = 0.0) -> dict[str, str]:
    """What a run of this owner is tagged with that was heard of so many seconds ago."""
    return {Tag.owner: json.dumps(asdict(who)), Tag.heartbeat: f"{time.time() - heard:.0f}"}


def test_a_process_that_lives_is_not_gone_however_silent() -> None:
    assert not is_gone(owner_tags())
    assert not is_gone(tags_of(this_process(), heard=1e6))
    assert is_silent(tags_of(this_process(), heard=1e6))


def test_a_process_that_has_ended_is_gone_even_if_its_parent_has_not_noticed() -> None:
    script = "from slimdown.tracking.owner import owner_tags; import json; print(json.dumps(owner_tags()))"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        tags = json.loads(process.stdout.read())
        os.waitid(
            os.P_PID, process.pid, os.WEXITED | os.WNOWAIT
        )  # it has ended and is still in the system's list
        assert is_gone(tags)
    assert is_gone(tags)


def test_another_process_that_has_the_number_by_now_is_not_the_owner() -> None:
    assert is_gone(tags_of(replace(this_process(), started="1")))
    assert is_gone(tags_of(replace(this_process(), started="")))


@pytest.mark.parametrize("elsewhere", [{"host": "another"}, {"boot": "before the last restart"}])
def test_of_a_process_elsewhere_silence_tells(elsewhere: dict[str, str]) -> None:
    who = replace(this_process(), pid=2**22 + 1, **elsewhere)
    assert not is_gone(tags_of(who, heard=2 * owner.INTERVAL))
    assert is_gone(tags_of(who, heard=11 * owner.INTERVAL))


@pytest.mark.parametrize("said", ["", "{}", "no json", '{"host": 1}', "[]"])
def test_of_an_older_record_nothing_is_known(said: str) -> None:
    assert owner_of({Tag.owner: said}) is None
    assert not is_gone({Tag.owner: said, Tag.heartbeat: "then"})


def test_a_run_is_heard_of_while_it_goes_on_and_not_afterwards(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "INTERVAL", 0.02)
    with TrackedRun(here(), "a run", "tuned", {}) as run:
        run.heartbeat.is_at("training 3/4")
        tags = store.get_run(run.run_id).data.tags
        assert owner_of(tags) == this_process()
        until = time.monotonic() + 20
        while Tag.at not in tags and time.monotonic() < until:
            tags = store.get_run(run.run_id).data.tags
        assert tags[Tag.at] == "training 3/4"
    time.sleep(0.1)  # one may have been on its way
    run.heartbeat.is_at("the end")
    time.sleep(0.1)
    assert store.get_run(run.run_id).data.tags[Tag.at] == "training 3/4"


def taken(store: MlflowClient, run: TrackedRun) -> None:
    """Have a process on another machine go on in a run."""
    for key, value in tags_of(replace(this_process(), host="node7", pid=123)).items():
        store.set_tag(run.run_id, key, value)


def test_a_run_that_another_machine_went_on_in_is_left_to_it(store: MlflowClient) -> None:
    run = TrackedRun(here(), "a run", "tuned", {})
    with (
        pytest.raises(
            SlimdownError, match=rf"^run {run.run_id} was gone on in by node7 \(process 123\)"
        ),
        run,
    ):
        taken(store, run)
    assert store.get_run(run.run_id).info.status == "RUNNING"
    assert owner_of(store.get_run(run.run_id).data.tags) != this_process()


def test_what_ends_a_run_that_is_another_s_is_not_told_of_it(store: MlflowClient) -> None:
    run = TrackedRun(here(), "a run", "tuned", {})
    with pytest.raises(KeyboardInterrupt) as ended, run:
        taken(store, run)
        raise KeyboardInterrupt
    assert "goes on there" in ended.value.__notes__[-1]
    assert store.get_run(run.run_id).info.status == "RUNNING"


def test_a_heartbeat_finds_that_the_run_is_another_s_and_beats_no_more(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "INTERVAL", 0.02)
    run = TrackedRun(here(), "a run", "tuned", {})
    with pytest.raises(SlimdownError, match="it goes on there") as ended, run:
        taken(store, run)
        until = time.monotonic() + 20
        while time.monotonic() < until:
            run.log_base_loss("key", 1.0)  # raises once a beat has looked
            run.heartbeat.stop_if_taken()
    assert not hasattr(ended.value, "__notes__")  # it says all itself
    run.heartbeat.is_at("the middle")
    time.sleep(0.1)
    assert Tag.at not in store.get_run(run.run_id).data.tags


def test_after_standing_still_a_process_looks_before_it_does_anything(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = TrackedRun(here(), "a run", "tuned", {})
    taken(store, run)
    run.heartbeat.stop_if_taken()  # heard of a moment ago: nobody can have taken it
    monkeypatch.setattr(owner, "_SILENT_AFTER", -1.0)
    with pytest.raises(SlimdownError, match="it goes on there"):
        run.heartbeat.stop_if_taken()


def test_a_store_that_refuses_heartbeats_disturbs_nobody(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    class Silent:
        def log_batch(self, run_id: str, **_: object) -> None:
            asked.append(run_id)
            raise OSError("database is locked")

    monkeypatch.setattr(owner, "INTERVAL", 0.01)
    with TrackedRun(here(), "a run", "tuned", {}) as run:
        beating = owner.Heartbeat(Silent(), run.run_id)
        beating.begin()
        until = time.monotonic() + 20
        while len(asked) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        beating.end()
    assert len(asked) >= 2
    beating.stop_if_taken()  # of which silence says nothing
    assert capsys.readouterr().err == ""
