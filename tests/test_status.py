"""What is running where, how far and since when, told from the store alone."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from recorded import here, record, right

from slimdown import status
from slimdown.tracking.owner import Owner, this_process
from slimdown.tracking.sweeps import PARENT, opened_sweep
from slimdown.tracking.tags import Tag
from slimdown.tracking.unfinished import folder_of
from slimdown.tracking.write import TrackedRun

Said = Callable[..., str]


@pytest.fixture
def said(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Said:
    def ask(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["status", *arguments])
        status.main()
        return capsys.readouterr().out

    return ask


def owned(run: TrackedRun, owner: Owner, at: str, heard: float = 0.0) -> None:
    client = MlflowClient(here().uri)
    tags = {
        Tag.owner: json.dumps(asdict(owner)),
        Tag.at: at,
        Tag.heartbeat: f"{time.time() - heard:.0f}",
    }
    for key, value in tags.items():
        client.set_tag(run.run_id, key, value)


@pytest.fixture
def runs(store: MlflowClient) -> dict[str, TrackedRun]:
    """A run in each state."""
    record("done", {}, {"gsm8k": right(50)}, {"gsm8k": right(40)}, tags={Tag.run_key: "1"})
    names = ("going", "elsewhere", "gone", "silent", "older", "broken", "superseded")
    made = {name: TrackedRun(here(), name, "tuned", {}) for name in names}
    owned(made["going"], this_process(), "training 120/376")
    owned(
        made["elsewhere"],
        replace(this_process(), host="node7"),
        "measuring the base 3/20",
        heard=60,
    )
    owned(made["gone"], replace(this_process(), started="1"), "training 7/376")
    owned(made["silent"], replace(this_process(), host="node8"), "training 9/376", heard=4000)
    store.delete_tag(made["older"].run_id, Tag.owner)
    with pytest.raises(RuntimeError), made["broken"]:
        raise RuntimeError("no room")
    store.set_terminated(made["superseded"].run_id, "KILLED")
    store.set_tag(made["superseded"].run_id, Tag.run_key, "1")
    return made


def test_each_run_that_is_not_finished_has_a_row(runs: dict[str, TrackedRun], said: Said) -> None:
    rows = {row["name"]: row for row in json.loads(said("--format", "json"))}
    standing = {name: row["standing"] for name, row in rows.items()}
    assert standing == {
        "going": "going",
        "elsewhere": "going",
        "older": "going or gone",
        "gone": "gone",
        "silent": "gone",
        "broken": "failed",
    }
    assert rows["elsewhere"]["host"] == "node7"
    assert rows["going"]["at"] == "training 120/376"
    assert rows["broken"]["why"] == "RuntimeError: no room"
    assert rows["gone"]["run_id"] == runs["gone"].run_id


def test_a_person_reads_how_many_are_finished_and_what_to_do(
    runs: dict[str, TrackedRun], said: Said
) -> None:
    shown = said()
    assert "7 runs of " in shown
    assert ": 2 going, 1 going or gone, 2 gone, 1 failed, 1 finished" in shown
    [line] = [line for line in shown.splitlines() if "elsewhere" in line]
    assert "node7" in line
    assert "measuring the base 3/20" in line
    assert "60 s ago" in line
    assert "The command of a run that is gone, stopped or failed goes on in it." in shown


def test_a_sweep_stands_above_its_runs(
    store: MlflowClient, runs: dict[str, TrackedRun], said: Said
) -> None:
    me, gone = (
        json.dumps(asdict(replace(this_process(), host=host))) for host in ("node7", "node9")
    )
    ended = opened_sweep(here(), "sunday", "a", "sweep of lora.r", gone, "2 of 2 jobs done")
    store.set_terminated(ended, "FINISHED")
    dead = opened_sweep(here(), "monday", "b", "sweep of seed", gone, "1 of 2 jobs done")
    lives = opened_sweep(
        here(), "tuesday", "c", "sweep of lora.r", me, "3 of 12 jobs done, 1 failed"
    )
    store.set_tag(dead, Tag.heartbeat, "5")
    for name, parent in (("going", lives), ("broken", lives), ("gone", dead), ("older", ended)):
        store.set_tag(runs[name].run_id, PARENT, parent)
    rows = json.loads(said("--format", "json"))
    assert [(row["name"], row["kind"], row["standing"]) for row in rows] == [
        ("sweep of lora.r", "sweep", "going"),
        ("going", "tuned", "going"),
        ("broken", "tuned", "failed"),
        ("elsewhere", "tuned", "going"),
        ("older", "tuned", "going or gone"),
        ("sweep of seed", "sweep", "gone"),
        ("gone", "tuned", "gone"),
        ("silent", "tuned", "gone"),
    ]
    assert [row["sweep"] for row in rows] == [None, lives, lives, None, None, None, dead, None]
    assert "7 runs of " in said()
    assert re.search(r"sweep of lora.r +going +3 of 12 jobs done, 1 failed +node7", said())
    assert [row["name"] for row in json.loads(said("--format", "json", "--sweep", "monday"))] == [
        "sweep of seed"
    ]


def test_what_unfinished_runs_keep_is_told(runs: dict[str, TrackedRun], said: Said) -> None:
    folder = folder_of(here(), runs["gone"].run_id)
    assert "What runs go on from" not in said()
    (folder / "checkpoint-7").mkdir(parents=True)
    (folder / "checkpoint-7" / "optimizer.pt").write_bytes(bytes(3 * 2**20))
    told = " ".join(said().split())
    assert "What runs go on from takes 3.0 MiB in " in told


def test_a_store_without_runs_and_one_that_is_not_there(said: Said, tmp_path: Path) -> None:
    assert "0 runs of " in said()
    with pytest.raises(SystemExit, match="Where runs are cannot be told:\n  there is no record"):
        said("--tracking-uri", f"sqlite:///{tmp_path}/none.db")
    with pytest.raises(SystemExit, match="there is no experiment rank"):
        said("--experiment", "rank")


def test_it_needs_neither_torch_nor_mlflow(store: MlflowClient) -> None:
    script = (
        "import sys; from slimdown import status; sys.argv = ['status']; status.main();"
        "print({'torch', 'mlflow', 'transformers', 'matplotlib'} & set(sys.modules))"
    )
    told = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert told.stdout.splitlines()[-1] == "set()"
