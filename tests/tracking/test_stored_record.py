"""A stored record is still read, and its finished runs and measured bases are still found.

`golden/make_record.py` made it.
"""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands_and_runs import call_verb, succeed
from record_builders import Compose, Patch, unpack_record
from safetensors.numpy import load_file

from slimdown.config.benchmark_config import ResolvedBenchmark
from slimdown.config.schema import EvaluationConfig
from slimdown.evaluation.evaluation_cache import evaluation_key
from slimdown.tracking.base_evaluations import RecordedEvaluations
from slimdown.tracking.resume import run_key

GOLDEN = Path(__file__).parents[1] / "golden"
NUMBERS = (".n", ".change", ".change_low", ".change_high", ".p_value", ".verdict")
LORA = "pocket lora.r=2"


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the stored record."""
    folder = tmp_path_factory.mktemp("record")
    unpack_record(folder)
    return folder


@pytest.fixture
def answers(record: Path) -> dict[str, Any]:
    """What the code that wrote the record said about it."""
    return dict(json.loads((record / "answers.json").read_text()))


def read_artifact(record: Path, run_id: str, name: str) -> str:
    return (record / "mlruns" / "artifacts" / run_id / "artifacts" / name).read_text()


def test_runs_are_listed_compared_and_checked_alike(record: Path, answers: dict[str, Any]) -> None:
    rows = json.loads(call_verb(record, "status", "--format=json").stdout)["rows"]
    stored = answers["status"]["says"]["rows"]
    parts = ("run_id", "status", "name", "outcome")
    assert [[row[k] for k in parts] for row in rows] == [[row[k] for k in parts] for row in stored]
    compared = json.loads(call_verb(record, "compare", "--all", "--format=json").stdout)["rows"]
    today = {row["run_ids"]: row for row in compared}
    assert len(today) == len(answers["compare"]["says"]["rows"]) == len(answers["ids"])
    for row in answers["compare"]["says"]["rows"]:
        numbers = {key: row[key] for key in row if key.endswith(NUMBERS)}
        assert {key: today[row["run_ids"]][key] for key in numbers} == pytest.approx(numbers)
    for name, run_id in answers["ids"].items():
        done = call_verb(record, "check", run_id, "--max-loss=0.5")
        assert done.returncode == answers["check"][name]["exit"], done.stderr


def test_runs_merge_as_they_did(record: Path, answers: dict[str, Any], tmp_path: Path) -> None:
    for name, run_id in answers["ids"].items():
        done = call_verb(record, "merge", run_id, f"--out={tmp_path / run_id}")
        stored = answers["merge"][name]
        if isinstance(stored, str):
            assert (done.returncode, "trained nothing" in done.stderr) == (1, True)
            continue
        assert done.returncode == 0, done.stderr
        tensors = load_file(tmp_path / run_id / "model.safetensors")
        squares = {key: float((value.astype("f8") ** 2).sum()) for key, value in tensors.items()}
        assert squares == pytest.approx(stored, rel=1e-6)


def test_a_run_is_scaled_and_two_are_compared(record: Path, answers: dict[str, Any]) -> None:
    lora, ia3 = (answers["ids"][f"pocket {name}"] for name in ("lora.r=2", "method=ia3"))
    done = succeed(record, "scale", lora, "--scales=0.5,1", "--format=json")
    stored = answers["scale"]["says"]["rows"]
    for row, before in zip(json.loads(done.stdout)["rows"], stored, strict=True):
        assert row["validation_loss"] == pytest.approx(before["validation_loss"], rel=1e-3)
        assert row["pocket_math.change"] == pytest.approx(before["pocket_math.change"], abs=0.1)
    succeed(record, "compare", lora, ia3, "--paired")


def test_the_same_settings_find_a_finished_run(
    record: Path, answers: dict[str, Any], composed: Compose, monkeypatch: Patch
) -> None:
    """By the versions of the packages that wrote the record."""
    for run_id in (answers["ids"][LORA], answers["ids"]["pocket method=ia3"]):
        overrides = read_artifact(record, run_id, "overrides.txt").splitlines()
        versions = json.loads(read_artifact(record, run_id, "environment.json"))
        monkeypatch.setattr("slimdown.tracking.resume.find_version", versions.get)
        with closing(sqlite3.connect(record / "mlruns" / "mlflow.db")) as store:
            query = "SELECT value FROM tags WHERE key = 'slimdown.run_key' AND run_uuid = ?"
            [key] = store.execute(query, (run_id,)).fetchone()
        assert run_key(composed(*overrides)) == key
        assert run_key(composed(*overrides, "seed=1")) != key


def test_the_same_questions_find_a_measured_base(
    record: Path, answers: dict[str, Any], composed: Compose, monkeypatch: Patch, tmp_path: Path
) -> None:
    overrides = read_artifact(record, answers["ids"][LORA], "overrides.txt").splitlines()
    config = composed(*overrides, f"tracking.uri=sqlite:///{record}/mlruns/mlflow.db")
    plain = config.evaluation
    plain.apply_chat_template = False  # what `auto` came to
    cache = RecordedEvaluations(config, "base", tmp_path)
    lines = {line[:40]: line for line in (record / "keys.jsonl").read_text().splitlines()}
    by_task = {benchmark.task: (name, benchmark) for name, benchmark in config.benchmark.items()}
    n_found = 0
    for line in lines.values():  # once each, of those that several runs looked for
        key, number, identity, backend, questions, _, versions, settings = json.loads(line)
        packages = ("lm-eval", "torch", "transformers", "tokenizers")
        written_by = dict(zip(packages, versions, strict=True))
        monkeypatch.setattr("slimdown.evaluation.evaluation_cache.find_version", written_by.get)
        monkeypatch.setattr("slimdown.evaluation.evaluation_cache.MEASUREMENT_VERSION", number)
        name, benchmark = by_task[settings["benchmark"]["task"]]
        parts: Any = SimpleNamespace(identity=identity), backend, questions, benchmark
        assert evaluation_key(*parts, plain) == key
        other = EvaluationConfig(**vars(plain) | {"system_instruction": "Be brief."})
        assert evaluation_key(*parts, other) != key
        if found := cache.find(key, name, ResolvedBenchmark.of(benchmark)):
            assert found.origin.startswith("run "), (key, name)
            n_found += len(found.samples)
    assert n_found == 2 * 3 * 12  # of the base in nf4, and as it is; tuned models are in no store
