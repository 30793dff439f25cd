"""A finished run is not made again, and a run that a dead process left is resumed."""

import getpass
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock
from mlflow import MlflowClient
from record_builders import (
    KEPT,
    LOST,
    Compose,
    Patch,
    make_answers,
    make_info,
    record_run,
    set_metric,
)

from slimdown.comparison.run_records import RunRecord
from slimdown.config.schema import Dtype, RunConfig
from slimdown.models.base_model import fix_dtypes
from slimdown.pocket import DATA_DIR
from slimdown.tracking.provenance import name_machine
from slimdown.tracking.resume import (
    describe_changed_base,
    find_equal_run_and_lock,
    find_finished,
    is_abandoned,
    run_key,
)
from slimdown.tracking.run_reader import find_run
from slimdown.tracking.run_writer import open_run
from slimdown.tracking.sweep_run import open_sweep_run
from slimdown.utils.errors import TrackingError

KEY = "d" * 32


def look_up(config: RunConfig, key: str) -> tuple[RunRecord | None, str]:
    """Return the finished run of a key, and the unfinished one that can go on here."""
    with find_equal_run_and_lock(config, key) as found:
        return found


def test_a_finished_run_is_found_unless_asked_anew(config: RunConfig, composed: Compose) -> None:
    assert find_finished(config, KEY) is None
    run_id = record_run(config, "one", run_key=KEY)
    with find_equal_run_and_lock(config, KEY) as (finished, resume_run_id):
        assert (finished.run_id, resume_run_id) == (run_id, "")
        assert finished.findings is not None
    for override in ("rerun=true", "baseline.reuse=false"):
        assert look_up(composed(override), KEY) == (None, "")
    assert look_up(config, "") == (None, "")


def test_a_signal_leaves_a_delivered_run_finished(config: RunConfig, monkeypatch: Patch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("slimdown.tracking.runs_page.share_view", interrupt)
    with pytest.raises(KeyboardInterrupt):
        record_run(config, "one", run_key=KEY)
    [folder] = Path("mlruns/runs").iterdir()
    finished = find_finished(config, KEY)
    assert finished.run_id == folder.name
    assert not folder.exists()


def test_an_unfinished_run_goes_on_where_it_was_begun_and_nobody_works_on_it(
    store: MlflowClient, config: RunConfig, monkeypatch: Patch
) -> None:
    info = make_info(config, "one", run_key=KEY)
    with pytest.raises(KeyboardInterrupt), open_run(config, info) as run:
        assert look_up(config, KEY) == (None, "")  # it is at work
        raise KeyboardInterrupt
    assert look_up(config, KEY) == (None, run.run_id)
    store.update_run(run.run_id, "RUNNING")  # its process vanished
    for host, resume_run_id in (
        (name_machine(), run.run_id),
        (f"{socket.gethostname()} 12345678", ""),  # another machine of this name
        ("another", ""),
    ):
        store.set_tag(run.run_id, "slimdown.host", host)
        assert look_up(config, KEY) == (None, resume_run_id)
    store.update_run(run.run_id, "KILLED")  # it ended itself, and its folder is here
    assert look_up(config, KEY) == (None, run.run_id)
    again = make_info(config, "one", run_key=KEY, resume_run_id=run.run_id)
    with pytest.raises(KeyboardInterrupt), open_run(config, again):
        raise KeyboardInterrupt
    assert store.get_run(run.run_id).data.tags["slimdown.host"] == name_machine()
    store.set_tag(run.run_id, "mlflow.user", "mallory")  # whose locks lie elsewhere
    assert look_up(config, KEY) == (None, "")
    store.set_tag(run.run_id, "mlflow.user", getpass.getuser())
    store.update_run(run.run_id, "RUNNING")
    store.set_tag(run.run_id, "slimdown.host", name_machine())
    monkeypatch.setattr("uuid.getnode", lambda: 7)  # another machine, again
    assert look_up(config, KEY) == (None, "")


def test_a_run_goes_on_in_one_process_though_two_machines_see_its_folder(
    store: MlflowClient, config: RunConfig, monkeypatch: Patch
) -> None:
    """As after one killed command that is repeated on two nodes at once."""
    info = make_info(config, "one", run_key=KEY)
    with pytest.raises(KeyboardInterrupt), open_run(config, info) as run:
        raise KeyboardInterrupt
    again = make_info(config, "one", run_key=KEY, resume_run_id=run.run_id)
    with pytest.raises(KeyboardInterrupt), open_run(config, again):
        store.set_tag(run.run_id, "slimdown.host", "another")
        monkeypatch.setattr("slimdown.tracking.store.lock", lambda *_: FileLock("elsewhere"))
        store.update_run(run.run_id, "KILLED")  # as the other node has just read it
        record = find_run(config.tracking, run.run_id)
        assert not is_abandoned(config.tracking, record)
        is_refused = pytest.raises(TrackingError, match="another process")
        with is_refused, open_run(config, again):
            raise AssertionError
        assert store.get_run(run.run_id).data.tags["slimdown.host"] == "another"
        raise KeyboardInterrupt


def test_equal_runs_wait_for_each_other(config: RunConfig, composed: Compose) -> None:
    def put_off() -> None:
        raise InterruptedError

    with find_equal_run_and_lock(config, KEY):
        with pytest.raises(InterruptedError), find_equal_run_and_lock(config, KEY, put_off):
            pass
        with find_equal_run_and_lock(composed("tracking.experiment=other"), KEY, put_off):
            pass
    with find_equal_run_and_lock(config, KEY, put_off):
        pass


COUNTS = ["lora.r=4", "seed=1", "benchmark.pocket_cs.limit=7", "evaluation.holdout=0.5"]
COUNTS += ["dataset.pocket_instructions.max_examples=9"]
COUNTS_NOT = ["tracking.experiment=other", "baseline.reuse=false", "rerun=true"]
COUNTS_NOT += ["train.checkpoint_minutes=3"]


@pytest.mark.parametrize("override", COUNTS + COUNTS_NOT)
def test_the_key_holds_what_a_result_depends_on(override: str, composed: Compose) -> None:
    assert (run_key(composed(override)) != run_key(composed())) is (override in COUNTS)


def test_rows_count_by_their_content_not_by_their_place(composed: Compose, tmp_path: Path) -> None:
    keys = []
    text = (DATA_DIR / "pocket_instructions_train.jsonl").read_text()
    for name, content in (("a", text), ("b", text), ("c", text + text[: text.index("\n") + 1])):
        (tmp_path / f"{name}.jsonl").write_text(content)
        override = f"dataset.pocket_instructions.path={tmp_path}/{name}.jsonl"
        keys.append(run_key(composed(override)))
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.parametrize(
    "file",  # the last is made by the first run
    ["own.yaml", "own.yml", "_default_yaml", "utils.py", "__pycache__/utils.cpython-311.pyc"],
)
def test_own_tasks_count_by_their_content(file: str, composed: Compose, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("task: own")
    config = composed(f"evaluation.include_path={tmp_path}")
    before = run_key(config)
    (tmp_path / file).write_text("task: own # changed")
    assert (run_key(config) != before) is not file.endswith(".pyc")


def test_a_killed_sweep_is_ended_by_the_next(store: MlflowClient, composed: Compose) -> None:
    tracking = composed().tracking
    with (
        open_sweep_run(tracking, "one", "sweep of seed") as sweep,
        open_sweep_run(tracking, "two", "sweep of lora.r"),
    ):
        assert store.get_run(sweep.run_id).info.status == "RUNNING"  # it is at work
    store.update_run(sweep.run_id, "RUNNING")  # as SIGKILL leaves it
    with open_sweep_run(tracking, "three", "sweep of lora.r"):
        assert store.get_run(sweep.run_id).info.status == "KILLED"


@pytest.mark.usefixtures("store")
def test_another_score_of_the_base_is_said_with_its_reason(composed: Compose) -> None:
    """The newest finished run of the same key is compared, question numbers being equal."""
    config = set_metric(fix_dtypes(composed("model.dtype=float32")))
    key = run_key(config)
    assert key
    base, _ = make_answers(config)
    assert describe_changed_base(config, key, base) == []  # there is no such run
    run_id = record_run(config, "before", run_key=key)
    assert describe_changed_base(config, key, base) == []  # the same scores
    other, _ = make_answers(config, KEPT[:1] * 2)
    assert describe_changed_base(config, key, other) == []  # other numbers of questions
    moved, _ = make_answers(config, [LOST[1], LOST[1]])
    in_bfloat16 = replace(config, model=replace(config.model, dtype=Dtype.bfloat16))
    for now, reason in ((config, "processor"), (in_bfloat16, "float32, and this one in bfloat16")):
        lines = describe_changed_base(now, key, moved)
        assert len(lines) == len(config.benchmark)
        assert run_id[:8] in lines[0]
        assert reason in lines[0]


def test_another_version_has_another_key(composed: Compose, monkeypatch: Patch) -> None:
    keys, config = [], composed()
    for version in ("1", "2"):
        monkeypatch.setattr("slimdown.tracking.resume.find_version", lambda name, v=version: v)
        keys.append(run_key(config))
    assert keys[0] != keys[1]


def test_a_key_is_made_without_torch_and_mlflow() -> None:
    script = (
        "import sys\nimport slimdown.tracking.resume, slimdown.tracking.sweep_run\n"
        "assert not {'torch', 'mlflow', 'pyarrow'} & set(sys.modules), sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
