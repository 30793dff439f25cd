"""Runs are found, and an odd one harms no other."""

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Param
from record_builders import make_info, record_run, serve_mlflow

from slimdown.config.schema import RunConfig
from slimdown.tracking.run_reader import check_finished, find_run, find_runs, read_evaluations
from slimdown.tracking.run_writer import open_run
from slimdown.utils.errors import TrackingError

Compose = Callable[..., RunConfig]


def test_a_run_is_found_by_id_beginning_or_name(store: MlflowClient, composed: Compose) -> None:
    config = composed()
    first, second = (record_run(config, name) for name in ("one", "other"))
    for text in (first, first[:8], "one"):
        assert find_run(config.tracking, text).run_id == first
    record_run(config, "other")
    base = store.create_run("1", tags={"slimdown.kind": "baseline"}).info.run_id
    for text, message in (
        (base, "is a baseline run, and no fine-tuning; slimdown compare lists"),
        (base[:8], f"{base} is a baseline run, and no fine-tuning"),
        ("other", "2 runs are called other; give an id"),
        ("nobody", "there is no run nobody"),
        ("", "RUN is empty"),
    ):
        with pytest.raises(TrackingError, match=message):
            find_run(config.tracking, text)
    assert find_run(config.tracking, second).findings is not None


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
    with pytest.raises(TrackingError, match=r"no experiment secnd.*did you mean second"):
        names(experiments=["secnd"])
    with pytest.raises(TrackingError, match=r"a filter is written so: "):
        names(filter_string="lora is 2")


def test_an_odd_run_is_left_out_with_a_line(
    store: MlflowClient, composed: Compose, caplog: pytest.LogCaptureFixture
) -> None:
    config = composed()
    damaged = [b"{", b"{}", b"[]", b"null", b'{"benchmarks": {"a": {"n": 1e999}}}', b"\xff"]
    runs = {text: record_run(config, repr(text)) for text in [b"good", *damaged]}
    for text in damaged:
        artifacts = store.get_run(runs[text]).info.artifact_uri.removeprefix("file://")
        (Path(artifacts) / "findings.json").write_bytes(text)
    found = find_runs(config.tracking, with_findings=True)
    assert [run.name for run in found if run.findings] == ["b'good'"]
    for text in damaged:
        line = f"run {runs[text]} is left out: its findings.json is damaged; rerun=true makes"
        assert line in caplog.text
    assert "Error" not in caplog.text
    (Path(artifacts) / "findings.json").unlink()
    find_runs(config.tracking, with_findings=True)
    assert "findings.json; MLflow looks only where the run was made" in caplog.text


def test_a_run_that_is_not_finished_is_refused_with_its_reason(
    store: MlflowClient, composed: Compose
) -> None:
    config = composed()
    with pytest.raises(ValueError, match="no"), open_run(config, make_info(config, "x")) as run:
        raise ValueError("no such layer")
    with pytest.raises(TrackingError, match="failed: ValueError: no such layer"):
        check_finished(find_run(config.tracking, run.run_id))


def test_samples_that_are_damaged_or_gone_are_named(store: MlflowClient, composed: Compose) -> None:
    config = composed()
    run = find_run(config.tracking, record_run(config, "one"))
    file = Path(run.artifact_uri.removeprefix("file://")) / "samples" / "tuned-pocket_cs.parquet"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(TrackingError, match=r"samples/tuned-pocket_cs.parquet is gone or damaged"):
        read_evaluations(config.tracking, run)
    file.unlink()
    with pytest.raises(TrackingError, match=r"samples/tuned-pocket_cs.parquet is gone or damaged"):
        read_evaluations(config.tracking, run)


@pytest.mark.slow
def test_a_thousand_runs_on_a_server_are_read_in_ten_seconds(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with serve_mlflow(tmp_path) as (uri, _):
        config = replace(composed(), tracking=replace(composed().tracking, uri=uri))
        first = record_run(config, "one")
        run = MlflowClient(uri).get_run(first)
        findings = tmp_path / "files" / run.info.experiment_id / first / "artifacts/findings.json"
        copies = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
        tags = {k: v for k, v in run.data.tags.items() if k != "mlflow.runName"}
        params = [Param(key, value) for key, value in run.data.params.items()]
        for number in range(999):
            copy = copies.create_run(run.info.experiment_id, None, tags, f"run {number}").info
            copies.log_batch(copy.run_id, params=params)
            copies.set_terminated(copy.run_id, "FINISHED")
            target = findings.parents[2] / copy.run_id / "artifacts"
            target.mkdir(parents=True)
            shutil.copy(findings, target)
        began = time.monotonic()
        found = find_runs(config.tracking, with_findings=True)
        seconds = time.monotonic() - began
    assert sum(run.findings is not None for run in found) == 1000
    assert seconds < 20  # 10 on a quiet machine
