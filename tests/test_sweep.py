"""Many runs of one command: what is finished is skipped, what fails stops no other, what is left is said."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from conftest import SMALL
from mlflow import MlflowClient
from mlflow.entities import Run
from recorded import here, record, right

from slimdown import run
from slimdown.config.schema import RunConfig
from slimdown.report.sweep import Job, State, Sweep
from slimdown.sweeper import _by_base
from slimdown.tracking.done import finished, run_key
from slimdown.tracking.owner import owner_tags, this_process
from slimdown.tracking.sweeps import PARENT, close_sweep, opened_sweep, tell_sweep
from slimdown.tracking.tags import Tag
from slimdown.tracking.write import TrackedRun

Command = Callable[..., tuple[object, str, str]]
FEW = [*SMALL[:2], "train.max_steps=2", "benchmark=[pocket_cs]", "benchmark.pocket_cs.limit=8"]
TAKEN = [*FEW, "lora.target_modules=[q_proj]"]
LAYERS = "lora.target_modules=[q_proj],[nothing]"


def runs_in(client: MlflowClient, kind: str = "tuned") -> list[Run]:
    experiments = [e.experiment_id for e in client.search_experiments()]
    chosen = f"tags.`slimdown.kind` = '{kind}'"
    return list(client.search_runs(experiments, chosen, order_by=["attributes.start_time"]))


def begin(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "slimdown.run", *arguments]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture
def command(
    store: MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """What a command comes to, in this process: its value or exit code, and what it writes to stdout and stderr."""

    def start(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["slimdown.run", *arguments])
        try:
            ended: object = run.main()
        except SystemExit as stop:
            ended = f"exit {stop.code}"
        return ended, *capsys.readouterr()

    return start


@pytest.fixture
def done_before(store: MlflowClient, composed: Callable[..., RunConfig]) -> Callable[..., str]:
    """Records a finished run of these settings, without making it."""

    def keep(*overrides: str, experiment: str = "slimdown") -> str:
        tags = {Tag.run_key: run_key(composed(*overrides))}
        return record(
            "earlier",
            {},
            {"gsm8k": right(50)},
            {"gsm8k": right(40)},
            config=here(experiment),
            tags=tags,
        )

    return keep


# --- a real sweep ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swept(
    migrated_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, int, str, str]:
    """A job, one that cannot be, and both once more: the folder, exit code, stdout and stderr."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "mlruns").mkdir()
    (folder / "mlruns" / "mlflow.db").write_bytes(migrated_store.read_bytes())
    with begin(folder, "-m", "seed=0,0", LAYERS, *FEW) as process:
        out, err = process.communicate(timeout=300)
    return folder, process.returncode, out, err


@pytest.fixture
def client(swept: tuple[Path, int, str, str]) -> MlflowClient:
    return MlflowClient(f"sqlite:///{swept[0]}/mlruns/mlflow.db")


def test_a_job_that_fails_stops_no_other_and_equal_jobs_are_made_once(
    swept: tuple[Path, int, str, str], client: MlflowClient
) -> None:
    _, code, out, err = swept
    good, bad = runs_in(client)
    assert (good.info.status, bad.info.status) == ("FINISHED", "FAILED")
    assert code == 1
    assert "This run cannot go on (job 2 of 4, seed=0 lora.target_modules=[nothing]):" in err
    assert f"Run {bad.info.run_id} is marked FAILED and keeps what was recorded so far." in err
    assert "Error executing job" not in err
    assert "Traceback" not in err
    lines = [re.split(r"  +", line.strip()) for line in out.splitlines()]
    assert ["1", "seed=0 lora.target_modules=[q_proj]", "finished", good.info.run_id[:8]] in [
        line[:4] for line in lines
    ]
    assert ["2", "seed=0 lora.target_modules=[nothing]", "failed", bad.info.run_id[:8]] in [
        line[:4] for line in lines
    ]
    assert ["3", "seed=0 lora.target_modules=[q_proj]", "skipped", good.info.run_id[:8]] in [
        line[:4] for line in lines
    ]
    assert (
        "4 jobs: 1 finished, 1 skipped, 2 failed; the same command makes what is not finished."
        in out
    )


def test_a_failed_run_keeps_its_reason_and_its_traceback(client: MlflowClient) -> None:
    _, bad = runs_in(client)
    assert bad.data.tags["slimdown.error"].startswith(
        "SlimdownError: lora.target_modules: pocket:model has no nothing"
    )
    kept = Path(client.download_artifacts(bad.info.run_id, "traceback.txt")).read_text()
    assert kept.startswith("Traceback")
    assert "in check_settings" in kept


def test_the_log_of_a_sweep_tells_how_far_it_is_and_holds_no_escape_codes(
    swept: tuple[Path, int, str, str],
) -> None:
    _, _, out, err = swept
    assert "\njob 1 of 4, seed=0 lora.target_modules=[q_proj]\n" in out
    assert re.search(
        r"\njob 2 of 4, seed=0 lora.target_modules=\[nothing\], about \d+ (s|min) left\n", out
    )
    assert "\x1b" not in out + err
    assert "\n\n\n" not in out


def test_a_finished_run_is_skipped_in_a_line_and_gives_its_objective(
    swept: tuple[Path, int, str, str],
    client: MlflowClient,
    monkeypatch: pytest.MonkeyPatch,
    command: Command,
) -> None:
    monkeypatch.chdir(swept[0])
    good = runs_in(client)[0]
    uri = f"tracking.uri=sqlite:///{swept[0]}/mlruns/mlflow.db"
    for arguments in ([*TAKEN, uri], [uri, *reversed(TAKEN), "lora=qkv", "lora.r=8"]):
        value, out, err = command(*arguments)
        assert value == good.data.metrics["forgetting/mean_retained_change"]
        assert out.startswith(f"finished before: run {good.info.run_id}, pocket_cs ")
        assert out.count("\n") == 1
        assert err == ""
    assert len(runs_in(client)) == 2


def test_what_is_forced_is_made_again_once(
    swept: tuple[Path, int, str, str],
    client: MlflowClient,
    monkeypatch: pytest.MonkeyPatch,
    command: Command,
) -> None:
    monkeypatch.chdir(swept[0])
    first, value = runs_in(client)[0], None
    uri = f"tracking.uri=sqlite:///{swept[0]}/mlruns/mlflow.db"  # absolute: MLflow keeps one store a URI and process
    value, out, _ = command("-m", "rerun=true", "seed=0,0", uri, *TAKEN)
    assert value is None
    again = runs_in(client)[-1]
    assert (len(runs_in(client)), again.info.status) == (3, "FINISHED")
    assert "2 jobs: 1 finished, 1 skipped" in out
    assert again.data.tags[Tag.run_key] == first.data.tags[Tag.run_key]
    scores = {
        k: v for k, v in first.data.metrics.items() if k.startswith(("tuned/", "forgetting/"))
    }
    assert scores == {
        k: v for k, v in again.data.metrics.items() if k.startswith(("tuned/", "forgetting/"))
    }
    assert "rerun" not in again.data.params


def test_two_commands_at_once_make_a_run_once(migrated_store: Path, tmp_path: Path) -> None:
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns" / "mlflow.db").write_bytes(migrated_store.read_bytes())
    both = [begin(tmp_path, *FEW) for _ in range(2)]
    told = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    [made] = runs_in(MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db"))
    assert made.info.status == "FINISHED"
    [waited] = [out for out, _ in told if out.startswith("Another process makes an equal run")]
    assert f"finished before: run {made.info.run_id}" in waited


def test_two_sweeps_at_once_share_their_jobs(migrated_store: Path, tmp_path: Path) -> None:
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns" / "mlflow.db").write_bytes(migrated_store.read_bytes())
    both = [begin(tmp_path, "-m", "seed=0,1", *FEW) for _ in range(2)]
    told = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    runs = runs_in(MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db"))
    assert sorted((run.data.tags[Tag.seed], run.info.status) for run in runs) == [
        ("0", "FINISHED"),
        ("1", "FINISHED"),
    ]
    assert all("2 jobs: 1 finished, 1 skipped" in out for out, _ in told), told
    [_] = [
        out
        for out, _ in told
        if "job 1 of 2, seed=0: another process makes an equal run just now, and the" in out
    ]


# --- what is looked for, and where -----------------------------------------------------------------------


def test_a_sweep_of_finished_runs_makes_none(
    done_before: Callable[..., str], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [done_before("lora.r=4"), done_before("lora.r=8")]
    monkeypatch.setattr("slimdown.experiment.experiment", lambda *_: pytest.fail("a run was begun"))
    value, out, _ = command("-m", "lora.r=8,4")
    assert value is None
    assert f"job 1 of 2, lora.r=8, finished before: run {ids[1]}, gsm8k −10.0 forgotten\n" in out
    assert f"job 2 of 2, lora.r=4, finished before: run {ids[0]}, gsm8k −10.0 forgotten\n" in out
    assert (
        "2 jobs: 2 skipped; rerun=true makes again what was skipped. Each verdict is its run's alone; "
        in out
    )
    assert "python -m slimdown.compare says which hold among all (†)." in " ".join(out.split())
    assert command("lora.r=4")[0] == pytest.approx(-0.1)


def test_a_run_is_looked_for_in_its_own_experiment_among_finished_ones(
    done_before: Callable[..., str], composed: Callable[..., RunConfig], store: MlflowClient
) -> None:
    key, tracking = run_key(composed()), here("mine")
    assert finished(tracking, key) is None
    done_before()
    assert finished(tracking, key) is None
    run_id = done_before(experiment="mine")
    found = finished(tracking, key)
    assert found is not None
    assert found.run_id == run_id
    assert finished(tracking, "") is None
    store.set_terminated(run_id, "KILLED")
    assert finished(tracking, key) is None
    store.set_terminated(run_id, "FINISHED")
    store.delete_run(run_id)
    assert finished(tracking, key) is None


def test_a_trial_that_was_pruned_before_its_study_was_told_is_made_no_further(
    done_before: Callable[..., str],
    command: Command,
    store: MlflowClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pruned = done_before("lora.r=4")
    store.set_terminated(pruned, "KILLED")
    store.set_tag(pruned, Tag.pruned, "pruned after 25% of its steps")
    store.set_tag(pruned, Tag.sweep, "mine")
    monkeypatch.setattr("slimdown.experiment.experiment", lambda *_: pytest.fail("it goes on"))
    trials = [
        "-m",
        "+search.space={lora.r:{choices:[4]}}",
        "search.n_trials=1",
        "search.study=mine",
    ]
    _, out, _ = command(*trials)
    assert re.search(rf"1  lora.r=4 +pruned +{pruned[:8]} +pruned after 25% of its steps", out)
    assert command(*trials) == (None, "", "")  # nothing is left to do


# --- what ends a job ----------------------------------------------------------------------------------------


class Panic(BaseException):
    """As a library in Rust raises, which `except Exception` does not see."""


ENDS = [
    SystemExit(3),
    MemoryError("no room"),
    torch.OutOfMemoryError("CUDA out of memory"),
    Panic("at byte 3"),
    None,
]


def test_no_way_of_ending_a_job_ends_the_sweep(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = iter(ENDS)

    def ending(*settings: object) -> None:
        if end := next(ends):
            raise end
        os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C does

    monkeypatch.setattr("slimdown.experiment.experiment", ending)
    ended, out, err = command("-m", "seed=0,1,2,3,4,5")
    assert ended == f"exit {run.interruption.EXIT_CODE}"
    for number, (state, why) in enumerate(
        (
            ("failed", "SystemExit: 3"),
            ("failed", "MemoryError: no room"),
            ("failed", "OutOfMemoryError: CUDA out of memory"),
            ("failed", "Panic: at byte 3"),
            ("interrupted", ""),
            ("still to do", ""),
        )
    ):
        assert re.search(rf"{number + 1}  seed={number} +{state} +{why}", out)
    assert "4 failed, 1 interrupted, 1 still to do" in out
    assert err.count("Traceback") == 4  # nothing else holds it where no run was opened
    assert "Error executing job" not in err


def test_an_exit_inside_a_run_is_its_failure_and_shows_no_secret(store: MlflowClient) -> None:
    with pytest.raises(SystemExit), TrackedRun(here(), "exits", "tuned", {}) as tracked:
        sys.exit("no way to postgresql://me:hunter2-hunter2@server/x")
    ended = store.get_run(tracked.run_id)
    assert ended.info.status == "FAILED"
    assert ended.data.tags["slimdown.error"] == "SystemExit: no way to postgresql://***@server/x"
    assert (
        "hunter2" not in Path(store.download_artifacts(tracked.run_id, "traceback.txt")).read_text()
    )


# --- the run of a whole sweep ------------------------------------------------------------------------------


@pytest.fixture
def killed() -> str:
    """The owner that a process was which is no more."""
    return json.dumps({**asdict(this_process()), "started": "1"})


def test_the_run_of_a_sweep_that_was_killed_is_marked_so_by_the_next_and_goes_on_with_its_own(
    store: MlflowClient, killed: str
) -> None:
    me = owner_tags()[Tag.owner]
    first = opened_sweep(here(), "monday", "a", "sweep of seed", killed, "0 of 2 jobs done")
    assert store.get_run(first).info.status == "RUNNING"
    second = opened_sweep(here(), "tuesday", "b", "sweep of lora.r", me, "0 of 2 jobs done")
    assert [store.get_run(run_id).info.status for run_id in (first, second)] == [
        "KILLED",
        "RUNNING",
    ]
    assert opened_sweep(here(), "wednesday", "a", "sweep of seed", me, "0 of 2 jobs done") == first
    again = store.get_run(first)
    assert (again.info.status, again.data.tags[Tag.sweep], again.data.tags[Tag.owner]) == (
        "RUNNING",
        "wednesday",
        me,
    )


def test_a_sweep_that_two_commands_share_is_ended_by_the_one_that_ends_last(
    store: MlflowClient, killed: str
) -> None:
    me = owner_tags()[Tag.owner]
    shared = opened_sweep(here(), "mine", "a", "sweep of seed", me, "0 of 2 jobs done")
    assert (
        opened_sweep(here(), "theirs", "a", "sweep of seed", killed, "0 of 2 jobs done") == shared
    )
    assert store.get_run(shared).data.tags[Tag.sweep] == "mine"
    with TrackedRun(here(), "job", "tuned", {PARENT: shared}):
        close_sweep(here(), "a", "FAILED", "1 of 2 jobs done", lambda: [("sweep.md", "one of two")])
        assert store.get_run(shared).info.status == "RUNNING"
    close_sweep(here(), "a", "FINISHED", "2 of 2 jobs done", lambda: [("sweep.md", "two of two")])
    assert store.get_run(shared).info.status == "FINISHED"
    assert Path(store.download_artifacts(shared, "sweep.md")).read_text() == "two of two"


def test_a_sweep_tells_that_it_lives_and_how_far_it_is_in_its_own_run_alone(
    store: MlflowClient, killed: str
) -> None:
    me, told = owner_tags()[Tag.owner], Sweep(Path("mine"))
    told.jobs = [Job("seed=0", State.skipped, run_id="a" * 32), Job("seed=1"), Job("seed=2")]
    theirs = json.dumps({**json.loads(me), "host": "node7"})
    shared = opened_sweep(here(), "mine", "a", "sweep of seed", me, told.tally())
    store.set_tag(shared, Tag.heartbeat, f"{time.time() - 30:.0f}")
    with TrackedRun(here(), "made by another command", "tuned", {PARENT: shared}):
        pass
    before = store.get_run(shared).data.tags
    tell_sweep(here(), "a", theirs, told.tally)
    assert store.get_run(shared).data.tags == before
    tell_sweep(here(), "a", me, told.tally)
    after = store.get_run(shared).data.tags
    assert int(after[Tag.heartbeat]) > int(before[Tag.heartbeat])
    assert (before[Tag.at], after[Tag.at]) == ("1 of 3 jobs done", "2 of 3 jobs done")
    store.set_tag(
        shared, Tag.owner, killed
    )  # of two commands the first one died, and the other goes on
    tell_sweep(here(), "a", theirs, told.tally)
    assert store.get_run(shared).data.tags[Tag.owner] == theirs


def test_where_the_store_is_swept_the_run_in_each_is_ended(
    store: MlflowClient, command: Command
) -> None:
    other = f"sqlite:///{Path('other.db').absolute()}"
    Path("other.db").write_bytes(Path("mlruns/mlflow.db").read_bytes())
    ended, _, _ = command(
        "-m", f"tracking.uri={here().uri},{other}", *FEW, "lora.target_modules=[nothing]"
    )
    assert ended == "exit 1"
    for client in (store, MlflowClient(other)):
        [sweep] = runs_in(client, "sweep")
        assert (sweep.info.status, sweep.data.tags[Tag.at]) == (
            "FAILED",
            "0 of 2 jobs done, 2 failed",
        )


def test_where_the_experiment_is_swept_the_run_in_each_is_ended(
    store: MlflowClient, command: Command
) -> None:
    ended, out, _ = command(
        "-m", "tracking.experiment=one,two", *FEW, "lora.target_modules=[nothing]"
    )
    assert (ended, "2 jobs: 2 failed" in out) == ("exit 1", True)
    assert [run.info.status for run in runs_in(store, "sweep")] == ["FAILED", "FAILED"]


def test_jobs_of_one_base_follow_each_other_and_keep_their_order() -> None:
    def jobs(*bases: str) -> list[list[str]]:
        return [
            [f"lora.r={r}", f"model={base}", "seed=0"]
            for r, base in zip("4488", bases, strict=True)
        ]

    assert _by_base(jobs("a", "b", "a", "b")) == [jobs("a", "b", "a", "b")[i] for i in (0, 2, 1, 3)]
    assert _by_base(jobs("a", "a", "a", "a")) == jobs("a", "a", "a", "a")
