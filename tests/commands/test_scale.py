"""What `slimdown scale` refuses before it loads anything, and what it makes of whole models."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from builders import slow
from commands_and_runs import SMALL, call_verb, find_runs, succeed
from mlflow import MlflowClient
from record_builders import Compose, Patch, record_run

from slimdown.config.schema import RunConfig

ASKED = ["benchmark=[pocket_instructions,pocket_cs]"]
ASKED += [f"benchmark.pocket_{name}.limit=8" for name in ("instructions", "cs")]


def test_no_task_files_that_a_record_names_are_run(
    store: MlflowClient, composed: Compose, tmp_path: Path
) -> None:
    run_id = record_run(composed(f"evaluation.include_path={tmp_path}"), "one")
    done = call_verb(tmp_path, "scale", run_id)
    assert done.returncode == 3
    assert f"type --include-path {tmp_path}" in " ".join(done.stderr.split())
    run_id = record_run(composed(), "two")
    done = call_verb(tmp_path, "scale", run_id, "--include-path", str(tmp_path))
    assert done.returncode == 3
    assert "leave out --include-path" in " ".join(done.stderr.split())


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("read_only", ["store", "folder"])
def test_a_record_that_takes_nothing_is_refused_before_anything_is_measured(
    read_only: str, tmp_path: Path, config: RunConfig, monkeypatch: Patch
) -> None:
    run_id = record_run(config, "one")
    if read_only == "store":
        with closing(sqlite3.connect(tmp_path / "mlruns" / "mlflow.db")) as database:
            refuse = "SELECT RAISE(ABORT, 'attempt to write a readonly database'); END"
            for change in ("UPDATE", "INSERT"):
                trigger = f"CREATE TRIGGER no{change} BEFORE {change} ON tags BEGIN {refuse}"
                database.execute(trigger)
    else:  # root writes where it likes

        def refuse_file(dir: str) -> None:
            raise PermissionError(13, "Permission denied", dir)

        monkeypatch.setattr("slimdown.tracking.run_reader.tempfile.TemporaryFile", refuse_file)
    monkeypatch.setattr("slimdown.runs.scaled_runs.measure_scales", None)
    done = call_verb(tmp_path, "scale", run_id)
    assert done.returncode == 3
    message = " ".join(done.stderr.split())
    assert "cannot be used" in message
    assert "readonly" in message or "Permission denied" in message


def read_changes(client: MlflowClient, run_id: str, path: str = "findings.json") -> Any:
    findings = json.loads(Path(client.download_artifacts(run_id, path)).read_text())
    return {name: benchmark["changes"] for name, benchmark in findings["benchmarks"].items()}


def read_answers(file: str | Path) -> str:
    return pd.read_parquet(file)[["response", "log_likelihoods"]].to_json(double_precision=15)


@pytest.mark.parametrize("method", ["full", *slow("last_layer")])
def test_a_whole_model_is_scaled_and_saved_and_answers_as_it_was_measured(
    method: str, store: MlflowClient, tmp_path: Path
) -> None:
    settings = [f"method={method}", "quantization=none", "train.learning_rate=3e-3"]
    settings += [*SMALL[:3], *ASKED]
    succeed(tmp_path, "run", *settings)
    [run] = find_runs(store)
    run_id, trained = run.info.run_id, read_changes(store, run.info.run_id)
    Path(".half.draft").mkdir()  # as SIGKILL leaves it
    Path(".half.draft/model-9.safetensors").write_bytes(b"half")
    chosen = [run_id, "--scales", "0,0.5", "--max-loss", "0.9", "--save", "half"]
    done = call_verb(tmp_path, "scale", *chosen, "-o", "scales.json")
    assert done.returncode in (0, 2), done.stderr  # eight questions a benchmark may not tell
    losses = [row["validation_loss"] for row in json.loads(Path("scales.json").read_text())["rows"]]
    assert losses[0] == run.data.metrics["train/validation_loss_before"]
    assert losses[1] not in (losses[0], run.data.metrics["train/validation_loss_after"])
    half = read_changes(store, run_id, "scales/0.5.json")
    assert [file.name for file in Path("half").glob("*.safetensors")] == ["model.safetensors"]
    card = Path("half/README.md").read_text()
    assert " by 0.5." in card
    assert 'AutoModelForCausalLM.from_pretrained("FOLDER")' in card
    succeed(tmp_path, "run", "tuned=half", "model=pocket", *settings[1:2], *ASKED)
    saved_id = find_runs(store)[-1].info.run_id
    assert read_changes(store, saved_id) == half
    for name in half:
        [measured] = tmp_path.glob(f"mlruns/**/scales/evaluations/*.tuned-{name}.parquet")
        path = f"samples/tuned-{name}.parquet"
        ours, whole = (store.download_artifacts(number, path) for number in (saved_id, run_id))
        assert read_answers(measured) == read_answers(ours)
        if name == "pocket_cs":  # texts may be alike
            assert read_answers(ours) != read_answers(whole)
    if method == "last_layer":
        return
    succeed(tmp_path, "scale", run_id, "--scales", "1,2")
    assert read_changes(store, run_id, "scales/1.0.json") == trained
    succeed(tmp_path, "scale", saved_id, "--scales", "2")  # twice the half
    twice = read_changes(store, saved_id, "scales/2.0.json")
    for changes in (*twice.values(), *trained.values()):
        changes.pop("p_right", None)  # in float32 twice the half differs in the last digits
    assert twice == trained
    Path("half/generation_config.json").write_text("{}")
    done = call_verb(tmp_path, "scale", saved_id)
    assert done.returncode == 3
    assert "half@sha256:" in done.stderr
