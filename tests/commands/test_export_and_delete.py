"""`export` copies what a run trained, `status RUN` says where it is, `delete` deletes it."""

import json
from dataclasses import replace
from pathlib import Path

from commands_and_runs import call_verb, succeed
from mlflow import MlflowClient
from record_builders import (
    Compose,
    Patch,
    list_models,
    make_info,
    record_run,
    save_answers,
    serve_mlflow,
    set_metric,
)
from transformers import AutoTokenizer

from slimdown.tracking.metrics_and_tags import Tag
from slimdown.tracking.run_writer import open_run


def test_an_adapter_is_copied_whole_and_nothing_is_overwritten(
    store: MlflowClient, composed: Compose, tmp_path: Path
) -> None:
    run_id = record_run(composed(), "trained")
    folder = tmp_path / "mine"
    succeed(tmp_path, "export", run_id[:8], "mine")
    written = {file.name for file in folder.iterdir()}
    assert written > {"adapter_config.json", "tokenizer_config.json"}
    assert AutoTokenizer.from_pretrained(folder)("2 + 2").input_ids
    (folder / "adapter_config.json").write_text("changed")
    done = call_verb(tmp_path, "export", run_id[:8], "mine")
    assert done.returncode == 1
    assert "mine is not empty" in done.stderr
    assert (folder / "adapter_config.json").read_text() == "changed"
    assert call_verb(tmp_path, "export", "nobody", "other").returncode == 1
    assert not (tmp_path / "other").exists()


def test_an_adapter_is_copied_without_a_tokenizer_that_cannot_be_loaded(
    store: MlflowClient, composed: Compose, tmp_path: Path
) -> None:
    config = composed()
    record_run(replace(config, model=replace(config.model, id="nobody/none")), "trained")
    assert "model.id=nobody/none" in succeed(tmp_path, "export", "trained", "mine").stderr
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["adapter_config.json"]


def test_a_run_that_trained_nothing_has_nothing_to_copy(
    store: MlflowClient, composed: Compose, tmp_path: Path
) -> None:
    record_run(composed(), "measured", tags={Tag.origin: "me/adapter@main"})
    done = call_verb(tmp_path, "export", "measured", "mine")
    assert done.returncode == 1
    assert "me/adapter@main" in done.stderr
    assert not (tmp_path / "mine").exists()


def test_a_server_hands_an_adapter_out(composed: Compose, tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    with serve_mlflow(tmp_path / "server") as (uri, _):
        record_run(composed(f"tracking.uri={uri}"), "trained")
        place = ["--tracking-uri", uri]
        assert "slimdown export" in succeed(tmp_path, "status", "trained", *place).stdout
        succeed(tmp_path, "export", "trained", "mine", *place)
        assert (tmp_path / "mine" / "adapter_config.json").is_file()
        assert "mlflow gc" in succeed(tmp_path, "delete", "trained", "--yes", *place).stdout
        assert call_verb(tmp_path, "status", "trained", *place).returncode == 1


def test_nothing_is_deleted_before_yes_and_then_all_but_the_base(
    store: MlflowClient, composed: Compose, tmp_path: Path
) -> None:
    kept, gone = (record_run(composed(f"lora.r={r}"), f"rank {r}") for r in (2, 4))
    models = [model for model in list_models(store, "tuned") if model.source_run_id == gone]
    places = [store.get_run(gone).info.artifact_uri, *(m.artifact_location for m in models)]
    folders = [Path(place.removeprefix("file://")).parent for place in places]
    assert len(folders) == 2
    n_bases = len(list_models(store, "base"))
    succeed(tmp_path, "delete", gone)
    assert all(folder.is_dir() for folder in folders)
    succeed(tmp_path, "delete", gone, "--yes")
    assert not any(folder.exists() for folder in folders)
    listed = json.loads(succeed(tmp_path, "status", "--format", "json").stdout)
    assert [row["run_id"] for row in listed["rows"]] == [kept]
    assert len(list_models(store, "tuned")) == 1
    assert len(list_models(store, "base")) == n_bases
    assert call_verb(tmp_path, "delete", gone, "--yes").returncode == 1  # it is gone


def test_a_run_in_use_is_kept(store: MlflowClient, composed: Compose) -> None:
    config = set_metric(composed())
    with open_run(config, make_info(config, "busy")) as run:
        assert "works on" in call_verb(Path(), "delete", "busy", "--yes").stderr
        save_answers(run, config)
    store.create_registered_model("support")
    store.create_model_version("support", run.artifact_uri, run.run_id)
    done = call_verb(Path(), "delete", "busy", "--yes")
    assert done.returncode == 1
    assert "models:/support/1" in done.stderr
    assert store.get_run(run.run_id).info.lifecycle_stage == "active"


def test_a_folder_elsewhere_is_left_alone(
    store: MlflowClient, composed: Compose, tmp_path: Path, monkeypatch: Patch
) -> None:
    """Whoever writes the store names the folders; one of yours must not go with a run."""
    run_id = record_run(composed(), "trained")
    precious = tmp_path.parent / f"{tmp_path.name}-yours" / run_id / "artifacts"
    precious.mkdir(parents=True)
    real = MlflowClient.search_runs

    def lie(self: MlflowClient, *arguments: object, **options: object) -> object:
        found = real(self, *arguments, **options)  # type: ignore[arg-type]
        for run in found:
            run.info._artifact_uri = precious.as_uri()
        return found

    monkeypatch.setattr(MlflowClient, "search_runs", lie)
    call_verb(Path(), "delete", run_id, "--yes")
    assert precious.is_dir()
