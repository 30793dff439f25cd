"""Runs are found, and an odd one harms no other."""

import base64
import json
import os
import sqlite3
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from commands_and_runs import find_trained, succeed
from mlflow import MlflowClient
from record_builders import Compose, Logs, Patch, record_run, set_metric

from slimdown.config.schema import RunConfig
from slimdown.tracking.metrics_and_tags import Tag
from slimdown.tracking.recorded_settings import digest_settings, read_settings
from slimdown.tracking.run_reader import (
    download_tuned,
    find_run,
    find_runs,
    read_config,
    read_evaluations,
)
from slimdown.utils.errors import ConfigError, TrackingError


def test_a_run_is_found_by_id_beginning_or_name(store: MlflowClient, config: RunConfig) -> None:
    first, second = (record_run(config, name) for name in ("one", "other"))
    for text in (first, first[:8], "one"):
        assert find_run(config.tracking, text).run_id == first
    record_run(config, "other")
    quoted = {name: record_run(config, name) for name in ("it's", 'it\'s "x"', "C:\\", "o_her")}
    for name, run_id in quoted.items():
        assert find_run(config.tracking, name).run_id == run_id
    base = store.create_run("1", tags={"slimdown.kind": "baseline"}).info.run_id
    for text, message in (
        (base, "is a baseline run, and no fine-tuning; slimdown status lists"),
        (base[:8], f"{base} is a baseline run, and no fine-tuning"),
        ("other", "2 runs are called other: .*; give an id"),
        (first[:4].replace(first[1], "_", 1), "there is no run"),
        ("nobody", "there is no run nobody"),
        ("onne", r"did you mean one\?"),
        ("", "RUN is empty"),
    ):
        with pytest.raises(TrackingError, match=message):
            find_run(config.tracking, text)
    assert find_run(config.tracking, second).findings is not None


def test_all_pages_are_read(store: MlflowClient, composed: Compose, monkeypatch: Patch) -> None:
    monkeypatch.setattr("slimdown.tracking.store._PAGE", 2)
    config = composed()
    for number in range(3):
        record_run(composed(f"tracking.experiment=e{number}"), f"run {number}")
        record_run(config, f"run {number + 3}")
    assert len(find_runs(config.tracking)) == 6
    assert len(find_runs(config.tracking, n_newest=3)) == 3
    [first] = find_runs(config.tracking, experiments=["e0"])  # the oldest comes last
    assert first.name == "run 0"
    sweep = 'it\'s "x"'  # which no condition of MLflow can hold
    for run in find_runs(config.tracking):
        store.set_tag(run.run_id, Tag.sweep, sweep)
    assert len(find_runs(config.tracking, sweep=sweep, n_newest=3)) == 3


def test_what_a_store_cannot_give_now_is_not_called_lost(
    store: MlflowClient, config: RunConfig, tmp_path: Path, monkeypatch: Patch
) -> None:
    run = find_run(config.tracking, record_run(config, "one"))

    def fail(*_: object) -> None:
        raise OSError("Read timed out. (read timeout=15)")

    (find_trained(store, run.run_id) / "adapter_config.json").unlink()
    with pytest.raises(TrackingError, match="train it again"):
        download_tuned(config.tracking, run, tmp_path)
    (find_trained(store, run.run_id) / "adapter_model.safetensors").touch()
    with pytest.raises(TrackingError, match=r"has lost what run \w+ trained; train it again"):
        download_tuned(config.tracking, run, tmp_path)
    monkeypatch.setattr(MlflowClient, "list_logged_model_artifacts", fail)
    server = replace(config.tracking, uri="http://127.0.0.1:9")
    monkeypatch.setattr("slimdown.tracking.store.open_store", lambda *_, **__: store)
    with pytest.raises(TrackingError, match="longer: MLFLOW_HTTP_REQUEST_TIMEOUT=120"):
        download_tuned(server, run, tmp_path)


def test_experiments_sweeps_and_filters_choose(store: MlflowClient, composed: Compose) -> None:
    first = composed("lora.r=2")
    record_run(first, "a", sweep="ranks")
    record_run(composed("lora.r=4"), "b", sweep="it's `odd`")
    record_run(composed("tracking.experiment=second"), "c")

    def names(**choice: object) -> list[str]:
        return sorted(run.name for run in find_runs(first.tracking, **choice))

    assert names() == ["a", "b", "c"]
    assert names(experiments=["second"]) == ["c"]
    assert names(sweep="it's `odd`") == ["b"]
    assert names(filter_string="params.`lora.r` = '2'") == ["a"]
    with pytest.raises(TrackingError, match=r"secnd.* second\b"):
        names(experiments=["secnd"])
    with pytest.raises(TrackingError, match="written so"):
        names(filter_string="lora is 2")


def test_an_odd_run_is_left_out(store: MlflowClient, config: RunConfig, caplog: Logs) -> None:
    good, odd = (record_run(config, name) for name in ("good", "odd"))
    artifacts = store.get_run(odd).info.artifact_uri.removeprefix("file://")
    file = Path(artifacts) / "findings.json"
    for content in (b"{", b"\xff"):
        file.write_bytes(content)
        caplog.clear()
        found = find_runs(config.tracking, with_findings=True)
        assert [run.name for run in found if run.findings] == ["good"]
        assert odd in caplog.text
        assert "damaged" in caplog.text
        assert "rerun=true" in caplog.text
        assert "Error" not in caplog.text
    plain = find_run(config.tracking, good).findings.to_dict()
    assert plain["format"] == 1
    primary = next(iter(plain["benchmarks"].values()))
    bomb = base64.b64encode(zlib.compress(bytes(2**28 + 8), 1)).decode()
    change = primary["changes"][primary["metric"]]["difference"]
    for text, line in (
        (json.dumps(plain | {"format": 2}), "it has format 2, and this slimdown reads format 1"),
        ("{}", "it has format None"),
        *((text, "cannot be read: this version cannot read") for text in ("[]", "null")),
        (json.dumps(plain | {"benchmarks": {"a": {}}}), "the version that made them does"),
        (json.dumps(plain).replace(change["changes"], bomb), "above 256 MiB"),
        (json.dumps(plain).replace(change["changes"], change["changes"][:-8]), "are cut short"),
        ("[" * 100_000, "cannot be read: maximum recursion"),
        (" " * (2**26 + 1), "is no file, or larger than 64 MiB"),
    ):
        caplog.clear()
        file.write_text(text)
        assert find_run(config.tracking, odd).findings is None
        assert line in caplog.text
        assert "damaged" not in caplog.text
    file.unlink()
    os.mkfifo(file)
    find_run(config.tracking, odd)
    assert "is no file" in caplog.text
    file.unlink()
    find_runs(config.tracking, with_findings=True)
    assert f"is not at {file}" in caplog.text


def test_samples_that_are_damaged_or_gone_are_named(config: RunConfig) -> None:
    run = find_run(config.tracking, record_run(config, "one"))
    file = Path(run.artifact_uri.removeprefix("file://")) / "samples" / "tuned-pocket_cs.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    for change in (lambda: None, file.unlink):
        change()
        with pytest.raises(TrackingError, match=r"/tuned-pocket_cs\.parquet"):
            read_evaluations(config.tracking, run)


def test_settings_that_were_changed_are_refused(store: MlflowClient, config: RunConfig) -> None:
    run = find_run(config.tracking, record_run(config, "one"))
    text = Path(store.download_artifacts(run.run_id, "settings.json")).read_text()
    changed = text.replace('"seed": 0', '"seed": 1')
    assert changed != text
    store.log_text(run.run_id, changed, "settings.json")
    for read in (read_config, read_evaluations):
        with pytest.raises(ConfigError, match=f"{run.run_id}.*not what the run wrote"):
            read(config.tracking, run)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": 1, "hidden": [], "settings": {"evaluation": {"holdout": null}}}', "it cannot"),
        ('{"format": 1, "hidden": [], "settings": {"evaluation": {}}}', "holdout"),
        ('{"format": 1, "hidden": [], "settings": {"train": 3}}', "it cannot be read"),
        ('{"format": 2, "hidden": [], "settings": {}}', "it has format 2, and this"),
        ("[" * 10_000, "it cannot be read"),
        ("- a", "it cannot be read"),
        ("[]", "it cannot be read"),
    ],
    ids=["null", "missing", "a number", "format 2", "deep", "YAML", "a list"],
)
def test_settings_that_no_run_records_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_settings(text, digest_settings(text), "it")


@pytest.mark.parametrize(
    "prompt",
    [
        "Reply with one token: yes/no",
        'Answer as JSON, {"token": "A", "password": "B", "api_key": 3}; one token: A, B, C or D.',
        "token: yes/no " * 500,  # 7,000 characters
        "password: yes\nsecret: no\ncredentials: perhaps\n\t- pwd: 'quoted'",
    ],
)
def test_the_held_out_half_is_found_whatever_the_prompt_says(
    prompt: str, store: MlflowClient, composed: Compose
) -> None:
    config = set_metric(composed("evaluation.holdout=0.5"))
    config.evaluation.system_instruction = prompt
    config.evaluation.apply_chat_template = True
    run = find_run(config.tracking, record_run(config, "one"))
    assert run.holdout == 0.5
    assert run.params["evaluation.system_instruction"] == prompt
    assert read_config(config.tracking, run).evaluation == config.evaluation
    checked = succeed(Path.cwd(), "check", run.run_id, "--max-loss=0.9")
    assert "held-out questions" in " ".join(checked.stdout.split())


def test_a_setting_with_a_secret_is_not_repeated(store: MlflowClient, config: RunConfig) -> None:
    config.evaluation.system_instruction = "Use api_key=pl4nted in each answer."
    run = find_run(config.tracking, record_run(config, "one"))
    assert "pl4nted" not in str(run)
    with pytest.raises(ConfigError, match=r"evaluation\.system_instruction"):
        read_config(config.tracking, run)
    read_evaluations(config.tracking, run)


ODD_PARAM = "UPDATE params SET value = '{}' WHERE run_uuid = :id AND key = 'lora.r'"


@pytest.mark.parametrize(
    ("change", "is_named"),
    [
        ("UPDATE runs SET start_time = 1000000000000000000 WHERE run_uuid = :id", True),
        ("UPDATE tags SET value = 'x' WHERE run_uuid = :id AND key = 'slimdown.settings'", True),
        # Nothing is read from what MLflow shows.
        (ODD_PARAM.format("1" * 5000), False),
        (ODD_PARAM.format('{"a":' * 1180), False),
    ],
)
def test_an_odd_record_harms_no_other(
    change: str, is_named: bool, composed: Compose, store: MlflowClient, caplog: Logs
) -> None:
    odd, sound = (record_run(composed(f"lora.r={r}"), f"run {r}") for r in (2, 4))
    with sqlite3.connect("mlruns/mlflow.db") as database:
        database.execute(change, {"id": odd})
    for command in ("status", "compare --by=lora.r --all", f"check {sound} --max-loss=0.9"):
        done = succeed(Path.cwd(), *command.split())
        assert "run 4" in done.stdout or sound[:8] in done.stdout
    assert (odd in caplog.text) is is_named
