"""Records of every format are still read, and later changes make nothing be measured again.

`golden/make_records.py` made them.
"""

import json
import sqlite3
import subprocess
import sys
import tarfile
from contextlib import closing
from dataclasses import field, fields, make_dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands_and_runs import call_verb
from omegaconf import OmegaConf
from record_builders import Compose, Patch
from safetensors.numpy import load_file

from slimdown.config import naming
from slimdown.config.loader import read_recorded
from slimdown.config.schema import (
    BenchmarkConfig,
    DatasetConfig,
    EvaluationConfig,
    RunConfig,
    TrainConfig,
)
from slimdown.evaluation.evaluation_cache import evaluation_key
from slimdown.evaluation.evaluator import Evaluator
from slimdown.evaluation.tasks import BenchmarkTask, load_tasks
from slimdown.models.base_model import load_base_model
from slimdown.models.identity import describe_computation
from slimdown.tracking.base_evaluations import open_base_cache
from slimdown.tracking.provenance import find_version
from slimdown.tracking.resume import MEASUREMENT_VERSION, NOT_IN_KEY, TRAINING_VERSION, run_key

GOLDEN = Path(__file__).parents[1] / "golden"
NUMBERS = (".n", ".change", ".change_low", ".change_high", ".p_value", ".verdict")


@pytest.fixture(scope="module", params=[1])
def records(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the records of one format."""
    folder = tmp_path_factory.mktemp("records")
    with tarfile.open(GOLDEN / f"records_{request.param}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    with closing(sqlite3.connect(folder / "mlruns" / "mlflow.db")) as store:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            change = f"UPDATE {table} SET {column} = replace({column}, 'file:///records', ?)"
            store.execute(change, (folder.as_uri(),))
        store.commit()
    environment = next(folder.rglob("environment.json")).read_text()
    if find_version("mlflow") != json.loads(environment)["mlflow"]:
        place = f"sqlite:///{folder}/mlruns/mlflow.db"
        upgrade = [sys.executable, "-m", "mlflow", "db", "upgrade", place]
        if subprocess.run(upgrade, capture_output=True).returncode:
            pytest.skip("MLflow is older than the store")
    return folder


@pytest.fixture
def answers(records: Path) -> dict[str, Any]:
    """What the code that wrote the records said about them."""
    return dict(json.loads((records / "answers.json").read_text()))


def read_artifact(records: Path, run_id: str, name: str) -> str:
    return (records / "mlruns" / "artifacts" / run_id / "artifacts" / name).read_text()


def test_each_is_listed_compared_and_checked_with_its_numbers(
    records: Path, answers: dict[str, Any]
) -> None:
    rows = json.loads(call_verb(records, "status", "--format=json").stdout)["rows"]
    stored = answers["status"]["says"]["rows"]
    parts = ("run_id", "status", "name", "outcome")
    assert [[row[k] for k in parts] for row in rows] == [[row[k] for k in parts] for row in stored]
    compared = json.loads(call_verb(records, "compare", "--all", "--format=json").stdout)["rows"]
    today = {row["run_ids"]: row for row in compared}
    assert len(today) == len(answers["compare"]["says"]["rows"]) == 6
    for row in answers["compare"]["says"]["rows"]:
        numbers = {key: row[key] for key in row if key.endswith(NUMBERS)}
        assert {key: today[row["run_ids"]][key] for key in numbers} == pytest.approx(numbers)
    for name, run_id in answers["ids"].items():
        done = call_verb(records, "check", run_id, "--max-loss=0.5")
        assert done.returncode == answers["check"][name]["exit"], done.stderr


def test_each_is_merged_into_the_same_weights(
    records: Path, answers: dict[str, Any], tmp_path: Path
) -> None:
    for name, run_id in answers["ids"].items():
        done, stored = call_verb(records, "merge", run_id, f"--out={tmp_path / run_id}"), None
        if isinstance(answers["merge"][name], str):
            assert (done.returncode, "trained nothing" in done.stderr) == (1, True)
            continue
        assert done.returncode == 0, done.stderr
        stored = answers["merge"][name]
        tensors = load_file(tmp_path / run_id / "model.safetensors")
        squares = {key: float((value.astype("f8") ** 2).sum()) for key, value in tensors.items()}
        assert squares == pytest.approx(stored, rel=1e-6)


def test_a_run_is_scaled_and_two_are_compared_by_their_answers(
    records: Path, answers: dict[str, Any]
) -> None:
    lora, ia3 = (answers["ids"][f"pocket {name}"] for name in ("lora.r=2", "method=ia3"))
    done = call_verb(records, "scale", lora, "--scales=0.5,1", "--format=json")
    assert done.returncode == 0, done.stderr
    stored = answers["scale"]["says"]["rows"]
    for row, before in zip(json.loads(done.stdout)["rows"], stored, strict=True):
        assert row["validation_loss"] == pytest.approx(before["validation_loss"], rel=1e-3)
        assert row["pocket_math.change"] == pytest.approx(before["pocket_math.change"], abs=0.1)
    done = call_verb(records, "compare", lora, ia3, "--paired")
    assert done.returncode == 0, done.stderr


def read_overrides(records: Path, run_id: str) -> list[str]:
    """The command of a run, with the alpha that every rank had then."""
    overrides = read_artifact(records, run_id, "overrides.txt").splitlines()
    return [*overrides, *(["lora.lora_alpha=16"] if "lora.r=2" in overrides else [])]


def make_run_key(config: RunConfig, versions: dict[str, Any], patch: Patch) -> str:
    """The key of a run with the packages and versions of a record."""
    patch.setattr("slimdown.tracking.resume.find_version", versions.get)
    patch.setattr("slimdown.tracking.resume.MEASUREMENT_VERSION", 1)
    patch.setattr("slimdown.tracking.resume.TRAINING_VERSION", 1)
    return run_key(config)


def read_key(records: Path, run_id: str) -> str:
    with closing(sqlite3.connect(records / "mlruns" / "mlflow.db")) as store:
        query = "SELECT value FROM tags WHERE key = 'slimdown.run_key' AND run_uuid = ?"
        return str(store.execute(query, (run_id,)).fetchone()[0])


def replace_section(config: RunConfig, section: str, value: Any) -> RunConfig:
    """The config with a section of another type."""
    kind = field(default_factory=type(value))
    root = make_dataclass("Root", [(section, type(value), kind)], bases=(RunConfig,))
    return root(**(vars(config) | {section: value}))  # type: ignore[no-any-return]


def extend(config: RunConfig, section: str, kind: type, name: str, value: object) -> RunConfig:
    """The config with a setting that no version has, at `value`; its default is 3."""
    longer = make_dataclass("Longer", [(name, int, 3)], bases=(kind,))
    return replace_section(
        config, section, longer(**vars(getattr(config, section)), **{name: value})
    )


def shorten(config: RunConfig, section: str, kind: type, name: str) -> RunConfig:
    """The config without a setting that the records have."""
    shorter = make_dataclass(
        "Shorter", [(f.name, f.type, f) for f in fields(kind) if f.name != name]
    )
    values = {f: v for f, v in vars(getattr(config, section)).items() if f != name}
    return replace_section(config, section, shorter(**values))


@pytest.mark.parametrize("run", ["pocket lora.r=2", "pocket method=ia3"])
def test_the_same_settings_find_a_finished_run(
    run: str, records: Path, answers: dict[str, Any], composed: Compose,
    monkeypatch: Patch,
) -> None:  # fmt: skip
    run_id = answers["ids"][run]
    config = composed(*read_overrides(records, run_id))
    versions = json.loads(read_artifact(records, run_id, "environment.json"))
    key = read_key(records, run_id)
    assert make_run_key(config, versions, monkeypatch) == key
    for value, is_same in ((3, True), (4, False)):  # a setting that comes
        longer = extend(config, "train", TrainConfig, "new", value)
        monkeypatch.setattr("slimdown.config.naming.RunConfig", type(longer))
        assert (make_run_key(longer, versions, monkeypatch) == key) is is_same
    for gone in ("loss_type", "optim", "look_steps"):  # and ones that go
        shorter = shorten(config, "train", TrainConfig, gone)
        monkeypatch.setattr("slimdown.config.naming.RunConfig", type(shorter))
        assert make_run_key(shorter, versions, monkeypatch) == key


def test_the_same_questions_find_a_measured_base(
    records: Path, answers: dict[str, Any], composed: Compose, monkeypatch: Patch
) -> None:
    run_id = answers["ids"]["pocket lora.r=2"]
    plain = "evaluation.apply_chat_template=false"  # what `auto` came to
    config = composed(*read_overrides(records, run_id), plain)
    benchmarks = {one.task: one for one in config.benchmark.values()}
    longer = extend(config, "evaluation", EvaluationConfig, "new", 3)
    shorter = shorten(config, "evaluation", EvaluationConfig, "apply_chat_template")
    for line in (records / "keys.jsonl").read_text().splitlines():
        key, number, identity, backend, questions, _, versions, settings = json.loads(line)
        packages = dict(
            zip(("lm-eval", "torch", "transformers", "tokenizers"), versions, strict=True)
        )
        monkeypatch.setattr("slimdown.evaluation.evaluation_cache.version", packages.get)
        monkeypatch.setattr("slimdown.evaluation.evaluation_cache.MEASUREMENT_VERSION", number)
        benchmark = benchmarks[settings["benchmark"]["task"]]
        parts: Any = SimpleNamespace(identity=identity), backend, questions, benchmark
        for one in (config, longer, shorter):
            monkeypatch.setattr("slimdown.config.naming.RunConfig", type(one))
            assert evaluation_key(*parts, one.evaluation) == key
        monkeypatch.setattr("slimdown.config.naming.RunConfig", type(longer))
        assert evaluation_key(*parts, replace(longer.evaluation, new=4)) != key


def test_a_measured_base_is_taken_until_a_version_measures_otherwise(
    records: Path, answers: dict[str, Any], composed: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = answers["ids"]["pocket lora.r=2"]
    monkeypatch.chdir(records)
    config = composed(*read_artifact(records, run_id, "overrides.txt").splitlines())
    versions = json.loads(read_artifact(records, run_id, "environment.json"))
    answering = ("lm-eval", "torch", "transformers", "tokenizers", "bitsandbytes")
    if any(find_version(name) != versions[name] for name in answering) or MEASUREMENT_VERSION > 1:
        pytest.skip("another version of a package has another key")
    # Of the machine that wrote the records.
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    lines = [json.loads(line) for line in (records / "keys.jsonl").read_text().splitlines()]
    hashes = {parts[-1]["benchmark"]["task"]: parts[4] for parts in lines}  # with its folder
    monkeypatch.setattr(BenchmarkTask, "hash_questions", lambda task, _: hashes[task.config.task])
    uncached = describe_computation.__wrapped__
    monkeypatch.setattr("slimdown.models.base_model.describe_computation", uncached)
    config.evaluation.apply_chat_template = False  # what `auto` came to
    evaluator = Evaluator(load_tasks(config.benchmark), config.evaluation)
    base = load_base_model(config.model, config.quantization)
    benchmarks = evaluator.evaluate(base, open_base_cache(config)).benchmarks
    assert len(benchmarks) == 3
    assert all(one.origin.startswith("run ") for one in benchmarks.values())
    with monkeypatch.context() as later:
        later.setattr("slimdown.evaluation.evaluation_cache.MEASUREMENT_VERSION", 2)
        benchmarks = evaluator.evaluate(base, open_base_cache(config)).benchmarks
    assert not any(one.origin for one in benchmarks.values())


def test_a_setting_that_comes_has_a_default() -> None:
    """Without one, it would stand in every key, and every base would be measured again."""
    first = OmegaConf.load(Path(naming.__file__).parent / "first_settings.yaml")
    named = {"dataset": {"<name>": DatasetConfig()}, "benchmark": {"<name>": BenchmarkConfig()}}
    schema = OmegaConf.merge(OmegaConf.structured(RunConfig), named)
    outside = (*NOT_IN_KEY, "search.", "rerun")
    keys = {key for key in OmegaConf.missing_keys(schema) if not key.startswith(outside)}
    assert not {key for key in keys if OmegaConf.select(first, key, default=...) is ...}


def test_the_same_command_skips_the_finished_run(records: Path, answers: dict[str, Any]) -> None:
    run_id = answers["ids"]["pocket lora.r=2"]
    versions = json.loads(read_artifact(records, run_id, "environment.json"))
    today = {name: find_version(name) for name in versions if find_version(name)}
    if not today.items() <= versions.items() or MEASUREMENT_VERSION * TRAINING_VERSION > 1:
        pytest.skip("another version of a package has another key")
    overrides = read_overrides(records, run_id)
    done = call_verb(records, "run", *overrides)
    assert f"finished before: run {run_id}" in done.stdout, done.stderr


def test_a_setting_that_is_gone_is_passed_over_and_a_typo_is_not(
    records: Path, answers: dict[str, Any]
) -> None:
    text = read_artifact(records, answers["ids"]["pocket lora.r=2"], "config.yaml")
    longer = text.replace("train:\n", "train:\n  gone: 3\n") + "old: {a: 1}\n"
    longer = longer.replace("    role: ", "    lost: [1]\n    role: ")
    assert longer.count("lost") == 3
    assert read_recorded(longer, "x") == read_recorded(text, "x")
    assert "train.gone is not a setting" in call_verb(records, "run", "train.gone=3").stderr
