"""A signal ends the run, wherever it arrives."""

import os
import signal
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from sqlalchemy.orm import loading
from test_tracking import tracked

from slimdown.models.model import LoadedModel
from slimdown.utils.errors import SlimdownError
from slimdown.utils.interruption import (
    interrupted,
    listening,
    stop_between_forwards,
    stop_if_interrupted,
    undisturbed,
)


class Thing:
    """Something that a weak reference can point to."""


def lose_a_signal(number: int = signal.SIGTERM) -> None:
    """Deliver a signal inside a weakref callback, out of which Python lets no exception."""
    thing = Thing()
    reference = weakref.ref(thing, lambda _: signal.raise_signal(number))
    del thing
    assert reference() is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_python_swallows_is_remembered(
    number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt), listening():
        lose_a_signal(number)
        assert interrupted()
        stop_if_interrupted()
        pytest.fail("the work went on")
    assert not interrupted()
    assert capsys.readouterr().err == ""  # and Python does not tell of it as an error of ours


def test_a_swallowed_signal_comes_out_at_the_end_whatever_became_of_it() -> None:
    with pytest.raises(KeyboardInterrupt), listening():
        lose_a_signal()
    with pytest.raises(KeyboardInterrupt), listening():
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise ImportError("a half-imported module") from None


def test_a_forward_ends_what_a_swallowed_signal_did_not(pocket: LoadedModel) -> None:
    stop_between_forwards(pocket.model, lambda: None)
    tokens = torch.arange(3, 10)[None]
    with torch.no_grad(), pytest.raises(KeyboardInterrupt), listening():
        pocket.model(tokens)
        lose_a_signal()
        pocket.model(tokens)
        pytest.fail("the work went on")


def test_a_forward_ends_what_another_process_goes_on_in(pocket: LoadedModel) -> None:
    def stop() -> None:
        raise SlimdownError("it goes on there")

    stop_between_forwards(pocket.model, stop)
    with pytest.raises(SlimdownError, match="it goes on there"):
        pocket.model(torch.arange(3, 10)[None])


def test_a_signal_waits_for_what_must_not_be_torn_apart(capfd: pytest.CaptureFixture[str]) -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), listening():
        with undisturbed():
            with undisturbed():
                signal.raise_signal(signal.SIGINT)
            done.append("whole")
        done.append("torn")
    assert done == ["whole"]
    assert (
        "Stopping as soon as the record is whole; once more ends at once" in capfd.readouterr().err
    )


def test_a_signal_within_a_query_leaves_no_lock_on_the_store(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite's lock is freed with the cursor, which lives in the traceback of what was raised over it."""
    run = tracked()
    read_rows = loading.instances

    def interrupted_before_the_first_row(cursor: object, context: object) -> object:
        monkeypatch.setattr(loading, "instances", read_rows)
        signal.raise_signal(signal.SIGINT)
        return read_rows(cursor, context)

    with pytest.raises(KeyboardInterrupt) as stopped, listening(), run:
        monkeypatch.setattr(loading, "instances", interrupted_before_the_first_row)
        run._client.search_experiments()
    assert stopped.value.__notes__ == [
        f"Run {run.run_id} is marked KILLED and keeps what was recorded so far."
    ]


def test_handlers_are_as_before_afterwards() -> None:
    def handlers() -> list[object]:
        return [
            *map(signal.getsignal, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)),
            sys.unraisablehook,
        ]

    before = handlers()
    with listening(), listening():
        assert handlers() != before
    assert handlers() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_process_that_is_deaf_to_a_signal_stays_so(number: int) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with listening():
            assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_second_signal_ends_the_process_at_once() -> None:
    script = (
        "import signal, time\n"
        "from slimdown.utils.interruption import listening, undisturbed\n"
        "with listening(), undisturbed():\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    signal.raise_signal(signal.SIGTERM)\n"  # of one wish to stop: `timeout` sends two
        "    time.sleep(1.1)\n"
        "    print('still here', flush=True)\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "    print('too long')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 130
    assert done.stdout == "still here\n"
    assert "Ended at once. A run that was open stays marked RUNNING" in done.stderr


@pytest.mark.parametrize("lost", [True, False])
def test_an_interrupted_run_is_killed_and_the_interruption_says_so(
    lost: bool, store: MlflowClient
) -> None:
    run = tracked()
    with pytest.raises(KeyboardInterrupt) as stopped, listening(), run:
        if lost:
            lose_a_signal()  # and the work goes on to its end
        else:
            signal.raise_signal(signal.SIGTERM)
    assert store.get_run(run.run_id).info.status == "KILLED"
    assert stopped.value.__notes__ == [
        f"Run {run.run_id} is marked KILLED and keeps what was recorded so far."
    ]


def test_a_signal_while_a_failed_run_is_closed_leaves_it_failed(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tracked()
    monkeypatch.setattr(run, "_flush", lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(KeyboardInterrupt) as stopped, listening(), run:
        raise ValueError("a loss that is not a number")
    assert store.get_run(run.run_id).info.status == "FAILED"
    assert stopped.value.__notes__ == [
        f"Run {run.run_id} is marked FAILED and keeps what was recorded so far."
    ]


def test_a_signal_during_the_imports_speaks_of_no_run(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "slimdown.run"]
    said = []
    with subprocess.Popen(command, cwd=tmp_path, text=True, stderr=subprocess.PIPE) as job:
        assert job.stderr is not None
        for line in job.stderr:
            said.append(line)
            if "omegaconf" in line:  # in the middle of what run.py imports
                os.kill(job.pid, signal.SIGTERM)
    assert job.returncode == 130
    assert [line for line in said if "import time:" not in line] == [
        "Interrupted while no run was open: nothing is lost.\n"
    ]
    assert not list(tmp_path.iterdir())
