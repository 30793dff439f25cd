"""A run that was killed at any moment goes on in the same run, and ends as if nothing had been."""

import errno
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from math import inf
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from hydra import compose, initialize_config_dir
from mlflow import MlflowClient
from mlflow.entities import Run
from recorded import here
from trl import SFTTrainer

from bench.families import byte_tokenizer, tiny
from slimdown.config.files import CONF_DIR
from slimdown.config.loader import load_config
from slimdown.config.schema import BenchmarkConfig, RunConfig
from slimdown.data.loading import load_data
from slimdown.evaluation.answers import BenchmarkEvaluation, Evaluation, write_samples
from slimdown.evaluation.engine import decoding
from slimdown.evaluation.harness import choose_scoring
from slimdown.evaluation.measure import measure
from slimdown.evaluation.parts import Parts
from slimdown.evaluation.questions import load_tasks
from slimdown.models.model import LoadedModel, load_model
from slimdown.stats.runs import RecordedRun
from slimdown.tracking import unfinished
from slimdown.tracking.owner import _started, owner_tags, this_process
from slimdown.tracking.tags import Tag
from slimdown.tracking.unfinished import end_forsaken, folder_of, mark_failed, reopened, to_go_on_in
from slimdown.tracking.write import TrackedRun
from slimdown.training.checkpoints import last_checkpoint
from slimdown.training.fine_tune import StepRecord, TrainResult, fine_tune
from slimdown.training.rows import TrainRows, prepare_rows
from slimdown.training.steps import take_steps, trainer_for
from slimdown.utils.disk import Interim
from slimdown.utils.errors import SlimdownError

DEAD = {
    Tag.owner: json.dumps(asdict(replace(this_process(), started="1"))),
    Tag.heartbeat: f"{time.time():.0f}",
}


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
        (
            [seen("a", "RUNNING", owner_tags())],
            "a",
        ),  # of this process, which a store did not let end it
        ([seen("a", "RUNNING", {})], None),  # of an older version: nobody knows
    ],
)
def test_a_finished_run_is_taken_before_one_that_nobody_works_on(
    runs: list[RecordedRun], chosen: str | None
) -> None:
    found = to_go_on_in(lambda: runs, lambda: pytest.fail("nobody works on any"))
    assert (found and found.run_id) == chosen


def test_a_run_at_work_elsewhere_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfinished, "INTERVAL", 0.01)
    answers: Iterator[list[RecordedRun]] = iter(
        [
            [seen("a", "RUNNING", elsewhere(5))],
            [seen("a", "RUNNING", elsewhere(1))],
            [seen("a", "FINISHED", DEAD)],
        ]
    )
    told: list[str] = []
    found = to_go_on_in(lambda: next(answers), lambda: told.append("waiting"))
    assert found is not None
    assert (found.status, told) == ("FINISHED", ["waiting"])


def test_a_process_here_that_stands_still_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfinished, "INTERVAL", 0.01)
    parent = psutil.Process().ppid()
    silent = replace(this_process(), pid=parent, started=_started(parent))
    tags = {Tag.owner: json.dumps(asdict(silent)), Tag.heartbeat: "1"}
    answers = iter([*[[seen("a", "RUNNING", tags)]] * 3, [seen("a", "FINISHED", DEAD)]])
    found = to_go_on_in(lambda: next(answers), lambda: None)
    assert found is not None
    assert found.status == "FINISHED"


def test_one_that_seems_silent_by_our_clock_is_looked_at_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
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


def test_a_run_goes_on_without_what_it_said_of_its_end_and_keeps_each_step_once(
    store: MlflowClient,
) -> None:
    with (
        pytest.raises(ValueError, match="no memory"),
        TrackedRun(here(), "a run", "tuned", {Tag.seed: "0"}) as run,
    ):
        run.log_settings({"lora.r": 8, "tracking.wait": 300.0})
        for step in (1, 2):
            run.log_step(StepRecord(step, {"loss": 1 / step, "grad_norm": 0.5}))
        run._metrics({"cost/load_seconds": 1.0, "train/n_train": 32})
        for score in (0.5, 0.25):  # of a base after its first stage, and after its last
            run._metrics({"base/cs/acc": score})
        raise ValueError("no memory")
    assert store.get_run(run.run_id).info.status == "FAILED"
    with TrackedRun(here(), "a run", "tuned", {Tag.sweep: "again"}, goes_on=run.run_id) as again:
        now = store.get_run(run.run_id)
        assert now.info.status == "RUNNING"
        assert Tag.error not in now.data.tags
        again.log_settings({"lora.r": 8, "tracking.wait": 10.0, "lora.lora_alpha": 16})
        again._metrics({"cost/load_seconds": 2.0, "train/n_train": 32})
        for score in (0.5, 0.25):
            again._metrics({"base/cs/acc": score})
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
    counts = [
        len(store.get_metric_history(run.run_id, key))
        for key in ("cost/load_seconds", "train/n_train")
    ]
    assert counts == [2, 1]
    assert ended.data.metrics["base/cs/acc"] == 0.25
    assert [file.path for file in store.list_artifacts(run.run_id)] == []  # no traceback


def test_a_run_whose_worker_died_is_marked_unless_it_goes_on(store: MlflowClient) -> None:
    def of(status: str, tags: dict[str, str], died: str = "") -> tuple[str, str | None]:
        run = TrackedRun(here(), "a run", "tuned", {})
        for key, value in tags.items():
            store.set_tag(run.run_id, key, value)
        store.update_run(run.run_id, status)
        mark_failed(here(), run.run_id, "it died", died)
        made = store.get_run(run.run_id)
        return made.info.status, made.data.tags.get(Tag.error)

    assert of("RUNNING", DEAD) == ("FAILED", "it died")
    assert of("FINISHED", DEAD) == ("FINISHED", None)
    assert of("RUNNING", elsewhere(5)) == ("RUNNING", None)
    assert of("RUNNING", elsewhere(5), elsewhere(5)[Tag.owner]) == ("FAILED", "it died")


def test_a_run_that_was_to_be_made_again_does_not_stay_running_when_its_process_is_gone(
    store: MlflowClient,
) -> None:
    with TrackedRun(here(), "first", "tuned", {Tag.run_key: "1"}) as first:
        pass
    again, only = (TrackedRun(here(), name, "tuned", {Tag.run_key: name}) for name in ("1", "2"))
    for run in (again, only):
        for key, value in DEAD.items():
            store.set_tag(run.run_id, key, value)
    end_forsaken(store, first.experiment_id, Path("nowhere"))
    states = [store.get_run(run.run_id).info.status for run in (first, again, only)]
    assert states == ["FINISHED", "KILLED", "RUNNING"]


def test_what_nobody_goes_on_from_is_deleted(store: MlflowClient, tmp_path: Path) -> None:
    names = ("finished", "deleted", "deleted and at work", "killed", "at work")
    made = {name: TrackedRun(here(), name, "tuned", {}) for name in names}
    for name, status in (("finished", "FINISHED"), ("deleted", "FAILED"), ("killed", "KILLED")):
        store.set_terminated(made[name].run_id, status)
    for name in ("deleted", "deleted and at work"):
        store.delete_run(made[name].run_id)
    of_no_run = {"evaluations": "evaluations", "of another store": "0" * 32}
    folders = {name: tmp_path / run.run_id for name, run in made.items()}
    folders |= {name: tmp_path / folder for name, folder in of_no_run.items()}
    for folder in folders.values():
        folder.mkdir()
        (folder / "optimizer.pt").touch()
    end_forsaken(store, made["killed"].experiment_id, tmp_path)
    left = {name for name, folder in folders.items() if folder.exists()}
    assert left == {"deleted and at work", "killed", "at work", *of_no_run}


def test_a_base_s_measurement_does_not_stay_running_when_its_process_is_gone(
    store: MlflowClient,
) -> None:
    with TrackedRun(here(), "a run", "tuned", {}) as run:
        going, forsaken = (run.sibling(name, "baseline") for name in ("going", "forsaken"))
        for key, value in DEAD.items():
            store.set_tag(forsaken.run_id, key, value)
        end_forsaken(store, run.experiment_id, Path("nowhere"))
        assert store.get_run(going.run_id).info.status == "RUNNING"
        assert store.get_run(forsaken.run_id).info.status == "KILLED"


def test_a_run_that_is_killed_each_time_before_it_keeps_anything_is_failed(
    store: MlflowClient,
) -> None:
    run = TrackedRun(here(), "too large", "tuned", {})
    folder = folder_of(here(), run.run_id)

    def go_on() -> None:
        reopened(store, run.run_id, DEAD, folder)

    for _ in range(4):
        go_on()
    (folder / "checkpoint-3").mkdir(parents=True)  # it got further
    for _ in range(5):
        go_on()
    store.set_tag(run.run_id, Tag.at, "training 3/376")
    with pytest.raises(
        SlimdownError, match=r"was killed 6 times in a row .* at training 3/376; .*tries again"
    ):
        go_on()
    failed = store.get_run(run.run_id)
    assert failed.info.status == "FAILED"
    assert "out of memory" in failed.data.tags[Tag.error]
    for _ in range(6):
        go_on()
    assert store.get_run(run.run_id).info.status == "RUNNING"
    store.set_terminated(run.run_id, "KILLED")  # by a person
    for _ in range(6):
        go_on()


# --- training ------------------------------------------------------------------------------------------------

TRAINED = [
    "dataset.pocket_instructions.max_examples=24",
    "dataset.pocket_instructions.validation_examples=8",
    "train.max_steps=5",  # of three in an epoch: the kill comes in the second
    "lora.lora_dropout=0.1",
]
METHODS = {
    "lora": [],
    "dora": [],
    "pissa": ["quantization=none"],
    "prefix": [],
    "prompt": [],
    "ia3": [],
    "bottleneck": [],
    "last_layer": ["quantization=none"],
    "full": ["quantization=none"],
}


class Killed(Exception):
    """Ends a training where it is."""


@pytest.fixture(scope="module")
def rows() -> TrainRows:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = load_config(compose("config", overrides=TRAINED))
    base = load_model(config.model, config.quantization)
    return prepare_rows(base, load_data(config.dataset, 0, base.tokenizer), config.train)


def trained(
    config: RunConfig, rows: TrainRows, folder: Path, interim: Interim, kill_at: int = 0
) -> tuple[TrainResult, int]:
    """What training comes to, and how many steps were computed; killed after a step that is not kept any more."""
    base, forwards = load_model(config.model, config.quantization), [0]

    def count(*_: object) -> None:
        forwards[0] += torch.is_grad_enabled()

    def on_step(record: StepRecord) -> None:
        if record.step == kill_at:
            raise Killed

    base.model.get_input_embeddings().register_forward_pre_hook(count)
    what = (config.method, config.lora, config.train, 0, folder)
    result = fine_tune(base, rows, *what, before=1.0, on_step=on_step, interim=interim).training
    assert result is not None
    return result, forwards[0]


@pytest.fixture(scope="module")
def kept(rows: TrainRows, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a training leaves that is killed at its last step."""
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = load_config(compose("config", overrides=TRAINED))
    folder = tmp_path_factory.mktemp("kept")
    with pytest.raises(Killed):
        trained(config, rows, folder, Interim(folder / "run", 0.0, print), kill_at=5)
    return folder / "run"


def content(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


@pytest.mark.parametrize(
    "method",
    [
        pytest.param(method, marks=() if method in ("lora", "full") else pytest.mark.slow)
        for method in METHODS
    ],
)
def test_a_training_that_was_killed_ends_as_if_nothing_had_been(
    method: str, composed: Callable[..., RunConfig], rows: TrainRows, tmp_path: Path
) -> None:
    config = composed(*TRAINED, *METHODS[method], f"method={method}")
    told: list[str] = []
    never, always = (
        Interim(tmp_path / name, seconds, told.append)
        for name, seconds in (("no", inf), ("run", 0.0))
    )
    first, n_first = trained(config, rows, tmp_path / "a", never)
    with pytest.raises(Killed):
        trained(config, rows, tmp_path / "b", always, kill_at=5)
    assert [folder.name for folder in always.folder.iterdir()] == ["checkpoint-4"]
    second, n_second = trained(config, rows, tmp_path / "c", always)
    assert n_first - n_second == 4
    assert content(second.adapter_dir) == content(first.adapter_dir)
    assert second.history == first.history
    assert second.train_loss == first.train_loss
    assert (second.tokens, second.steps) == (first.tokens, first.steps)
    assert second.validation_loss_after == first.validation_loss_after
    assert second.runtime_seconds > 0
    assert told == []
    third, n_third = trained(config, rows, tmp_path / "d", always)  # killed after its last step
    assert n_first - n_third == 5
    assert (third.history, third.train_loss) == (first.history, first.train_loss)
    assert content(third.adapter_dir) == content(first.adapter_dir)


@pytest.mark.parametrize("family", ["gpt_neox", "mixtral"])
def test_weights_that_published_files_call_otherwise_are_found_again(
    family: str, composed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    config = composed("train.max_steps=3", "train.warmup_steps=0").train
    rows = Dataset.from_dict({"input_ids": [[20, 21, 22]] * 8, "labels": [[20, 21, 22]] * 8})
    interim, ended = Interim(tmp_path / "run", 0.0, print), list[dict[str, torch.Tensor]]()
    for kill_at in (0, 3, 0):
        model = tiny(family)
        trainer = trainer_for(model, byte_tokenizer(), rows, config, 0, tmp_path, "cpu", SFTTrainer)

        def note(step: int, of: int, values: dict[str, float], kill_at: int = kill_at) -> None:
            if step == kill_at:
                raise Killed

        with suppress(Killed):
            take_steps(trainer, config, 0, "cpu", note, interim if ended else None)
        ended.append(model.state_dict())
    undisturbed, _, gone_on = ended
    assert all(torch.equal(undisturbed[name], gone_on[name]) for name in undisturbed)


def damaged(folder: Path) -> None:
    weights = folder / "checkpoint-4" / "optimizer.pt"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "damaged": (damaged, "optimizer.pt is damaged"),
    "of another run": (
        lambda folder: folder.rename(folder.parent / "other"),
        "it is of another run",
    ),
    "without a file": (
        lambda folder: (folder / "checkpoint-4" / "scheduler.pt").unlink(),
        "FileNotFoundError",
    ),
    "with a mark that is none": (
        lambda folder: (folder / "checkpoint-4" / "whole.json").write_text("[]"),
        "TypeError",
    ),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_checkpoint_that_cannot_be_used_is_told_of(how: str, kept: Path, tmp_path: Path) -> None:
    folder, told = Path(shutil.copytree(kept, tmp_path / kept.name)), list[str]()
    assert last_checkpoint(Interim(folder, 0.0, told.append)) is not None
    spoil, why = SPOILT[how]
    spoil(folder)
    there = folder if folder.exists() else folder.parent / "other"
    assert last_checkpoint(Interim(there, 0.0, told.append)) is None
    assert told[0].startswith(
        f"training starts from the beginning: its checkpoint in {there} cannot be used ("
    )
    assert why in told[0]


def test_what_keeps_no_checkpoint_knows_that_it_begins_again(tmp_path: Path) -> None:
    interim = Interim(tmp_path / "run", inf, print)  # as train.engine=unsloth does
    assert [interim.begun(), interim.begun()] == [False, True]


def test_a_checkpoint_of_another_dtype_is_not_gone_on_from(
    kept: Path, rows: TrainRows, composed: Callable[..., RunConfig], tmp_path: Path
) -> None:
    folder, told = Path(shutil.copytree(kept, tmp_path / kept.name)), list[str]()
    config = composed(*TRAINED, "model.dtype=bfloat16")
    result, _ = trained(config, rows, tmp_path / "a", Interim(folder, inf, told.append))
    assert "it was computed in float32, and here the model is bfloat16" in told[0]
    undisturbed, _ = trained(
        config, rows, tmp_path / "b", Interim(tmp_path / "no", inf, told.append)
    )
    assert content(result.adapter_dir) == content(undisturbed.adapter_dir)


def test_a_checkpoint_that_was_cut_short_leaves_the_one_before(kept: Path, tmp_path: Path) -> None:
    folder, told = Path(shutil.copytree(kept, tmp_path / kept.name)), list[str]()
    (shutil.copytree(folder / "checkpoint-4", folder / "checkpoint-5") / "whole.json").unlink()
    found = last_checkpoint(Interim(folder, 0.0, told.append))
    assert found is not None
    assert (found.step, found.of, told) == (4, 5, [])


def test_a_checkpoint_that_has_no_room_does_not_end_the_training(
    composed: Callable[..., RunConfig],
    rows: TrainRows,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    told: list[str] = []
    result, _ = trained(
        composed(*TRAINED), rows, tmp_path / "a", Interim(tmp_path / "run", 0.0, told.append)
    )
    assert result.steps == 5
    assert told[0].startswith(
        f"no checkpoint is kept of step 1 in {tmp_path / 'run'} ([Errno 28] No space left"
    )
    assert list((tmp_path / "run").iterdir()) == []


# --- measuring -------------------------------------------------------------------------------------------------

FEW = ["evaluation.token_budget=96", "model.dtype=float32"]  # a few rows a forward, so a few parts


class Remembering:
    """A record of which nothing is found, with parts in a folder."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self._folder, self._seconds = folder, seconds

    def lock(self, key: str) -> AbstractContextManager[None]:
        return nullcontext()

    def find(self, name: str, key: str, benchmark: BenchmarkConfig) -> None:
        return None

    def keep(self, name: str, key: str, report: BenchmarkEvaluation) -> None:
        assert not any(self._folder.glob("*.jsonl")) or self._seconds == 0

    def parts(self, key: str) -> Parts:
        return Parts(self._folder / f"{key}.jsonl", self._seconds)

    def find_loss(self, key: str) -> None:
        return None

    def keep_loss(self, key: str, loss: float) -> None:
        pass


def measured(
    config: RunConfig, loaded: LoadedModel, folder: Path, seconds: float, most: float = inf
) -> tuple[Evaluation, int]:
    """What is measured, and by how many forwards; killed before there are more than `most`."""
    tasks, forwards = load_tasks(config.benchmark), [0]

    def count(*_: object) -> None:
        if forwards[0] >= most:
            raise Killed
        forwards[0] += 1

    scoring = choose_scoring(loaded, tasks, config.benchmark, config.evaluation)
    handle = loaded.model.get_input_embeddings().register_forward_pre_hook(count)
    record = Remembering(folder, seconds)
    try:
        asked = (loaded, tasks, config.benchmark, config.evaluation, scoring, record)
        return measure(*asked, on_progress=lambda *_: None), forwards[0]
    finally:
        handle.remove()


def samples(evaluation: Evaluation, folder: Path) -> dict[str, str]:
    folder.mkdir()
    for name, report in evaluation.benchmarks.items():
        write_samples(folder / f"{name}.parquet", "base", name, replace(report, seconds=1.0))
    return content(folder)


@pytest.mark.parametrize("name", ["pocket_math", "pocket_cs"])  # of written answers, and of choices
def test_a_measurement_that_was_killed_asks_for_the_rest(
    name: str, composed: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "PART", 2)
    config = composed(*FEW, f"benchmark=[{name}]", f"benchmark.{name}.limit=24")
    loaded = load_model(config.model, config.quantization)
    whole, n_forwards = measured(config, loaded, tmp_path / "none", inf)
    assert not (tmp_path / "none").exists()
    n_made = 0
    for most in (n_forwards // 2, n_forwards // 3):
        with pytest.raises(Killed):
            measured(config, loaded, tmp_path / "parts", 0.0, most)
        n_made += most
        [file] = (tmp_path / "parts").iterdir()
        with file.open("ab") as torn:
            torn.write(file.read_bytes()[:50])  # as a system leaves it that loses its power
    again, n_more = measured(config, loaded, tmp_path / "parts", 0.0)
    assert samples(again, tmp_path / "b") == samples(whole, tmp_path / "a")
    assert n_made + n_more < 1.5 * n_forwards
    assert not (tmp_path / "parts").exists()


def test_parts_are_taken_as_long_as_they_are_what_is_asked(tmp_path: Path) -> None:
    file = tmp_path / "key.jsonl"
    parts = Parts(file, 0.0)
    for i in range(3):
        assert parts.take([i]) is None
        parts.put([i], [[i, 0.1 + i]])
    assert [Parts(file).take([i]) for i in (1, 2)] == [None, None]
    again = Parts(file, 0.0)
    assert [again.take([0]), again.take([5]), again.take([1])] == [[[0, 0.1]], None, None]
    again.put([5], [["another"]])  # what followed is forgotten
    last = Parts(file, 0.0)
    assert [last.take([0]), last.take([5]), last.take([2])] == [[[0, 0.1]], [["another"]], None]
    changed = file.read_bytes().replace(b"0.1", b"0.2")
    file.write_bytes(changed)
    assert Parts(file).take([0]) is None
    shutil.copy(file, tmp_path / "other.jsonl")
    assert Parts(tmp_path / "other.jsonl").take([0]) is None


def test_parts_without_room_are_not_kept(tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("")
    parts = Parts(tmp_path / "a file" / "key.jsonl", 0.0)
    parts.put([1], [1])
    assert parts.take([1]) is None


# --- a real process ----------------------------------------------------------------------------------------------

SMALL_RUN = [
    "train.max_steps=4",
    "dataset.pocket_instructions.max_examples=32",
    "dataset.pocket_instructions.validation_examples=8",
    "benchmark=[pocket_math]",
    "benchmark.pocket_math.limit=24",
    "evaluation.token_budget=96",  # a few questions a forward, so a few parts
    "train.checkpoint_minutes=1e-6",
]


def begin(folder: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "slimdown.run", *SMALL_RUN]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


DIES = """
import os, signal, sys
from pathlib import Path

from slimdown import run
from slimdown.{module} import {kind}

keep = {kind}.{method}

def keep_and_die(self, *what):
    keep(self, *what)
    if any(Path("mlruns/checkpoints").glob({pattern!r})):
        os.kill(os.getpid(), signal.SIGKILL)

{kind}.{method} = keep_and_die
sys.exit(run.main() and 0)
"""


def killed_once_there_is(pattern: str, folder: Path) -> None:
    """Make a run that is killed by the system as soon as it has kept a file of this pattern, which it may not long."""
    parts, steps = (
        ("measuring.parts", "Parts", "put"),
        ("training.checkpoints", "Keeping", "after_step"),
    )
    module, kind, method = steps if "checkpoint" in pattern else parts
    script = DIES.format(module=module, kind=kind, method=method, pattern=pattern)
    command = [sys.executable, "-c", script, *SMALL_RUN]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr


def made(folder: Path) -> tuple[dict[str, object], list[Run]]:
    """What the one run of a folder holds, its bytes and its numbers, and the runs that hold bases."""
    client = MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    everything = client.search_runs([e.experiment_id for e in client.search_experiments()])
    [run] = [run for run in everything if run.data.tags[Tag.kind] == "tuned"]
    assert run.info.status == "FINISHED"
    [model] = client.search_logged_models([run.info.experiment_id])
    place = Path(model.artifact_location.removeprefix("file://"))
    answers = client.download_artifacts(run.info.run_id, "samples/tuned-pocket_math.parquet")
    history = client.get_metric_history(run.info.run_id, "train/loss")
    metrics = {key: value for key, value in run.data.metrics.items() if not key.startswith("cost/")}
    held = {
        "adapter": hashlib.sha256((place / "adapter_model.safetensors").read_bytes()).hexdigest(),
        "answers": pq.read_table(answers).replace_schema_metadata(),  # which holds the seconds
        "losses": [(metric.step, metric.value) for metric in history],
        **metrics,
    }
    return held, [run for run in everything if run.data.tags[Tag.kind] == "baseline"]


def test_a_run_that_is_killed_again_and_again_goes_on_in_the_same_run(
    migrated_store: Path, tmp_path: Path
) -> None:
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    for folder in (calm, stormy):
        (folder / "mlruns").mkdir(parents=True)
        shutil.copy(migrated_store, folder / "mlruns" / "mlflow.db")
    undisturbed = begin(calm)  # beside the others: this takes long
    for pattern in (
        "evaluations/*.jsonl",
        "*/checkpoint-2/whole.json",
        "[!e]*/*.jsonl",
    ):  # base, training, tuned model
        killed_once_there_is(pattern, stormy)
    shown = subprocess.run(
        [sys.executable, "-m", "slimdown.status"],
        cwd=stormy,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "1 gone" in shown
    both = [begin(stormy), begin(stormy)]
    told = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    went_on, waited = sorted(told, key=lambda said: "finished before" in said)
    assert re.search(r"goes on in run \w+, from step 4 of 4", went_on)
    assert "Another process makes an equal run just now" in waited
    with undisturbed:
        undisturbed.communicate(timeout=300)
        assert undisturbed.returncode == 0
    (held, bases), (expected, _) = made(stormy), made(calm)
    assert held == expected
    assert {base.info.status for base in bases} <= {"KILLED", "FINISHED"}
    assert [*(stormy / "mlruns" / "checkpoints").rglob("*.*")] == []
