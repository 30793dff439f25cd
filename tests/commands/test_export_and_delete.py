"""`export` copies what a run trained, `status RUN` says where it is, `delete` deletes it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from record_builders import (
    Capture,
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

from slimdown.commands import delete, export, status
from slimdown.tracking.metrics_and_tags import Tag
from slimdown.tracking.run_writer import open_run


def test_an_adapter_is_copied_whole_and_nothing_is_overwritten(
    store: MlflowClient, composed: Compose, tmp_path: Path, capsys: Capture
) -> None:
    run_id = record_run(composed(), "trained")
    folder = tmp_path / "mine"
    assert export.main([run_id[:8], str(folder)]) == 0
    assert str(folder) in capsys.readouterr().out
    written = {file.name for file in folder.iterdir()}
    assert written > {"adapter_config.json", "tokenizer_config.json"}
    assert AutoTokenizer.from_pretrained(folder)("2 + 2").input_ids
    (folder / "adapter_config.json").write_text("changed")
    assert export.main([run_id[:8], str(folder)]) == 1
    assert f"{folder} is not empty" in capsys.readouterr().err
    assert (folder / "adapter_config.json").read_text() == "changed"
    assert export.main(["nobody", str(tmp_path / "other")]) == 1
    assert not (tmp_path / "other").exists()


def test_an_adapter_is_copied_without_a_tokenizer_that_cannot_be_loaded(
    store: MlflowClient, composed: Compose, tmp_path: Path, capsys: Capture
) -> None:
    config = composed()
    record_run(replace(config, model=replace(config.model, id="nobody/none")), "trained")
    assert export.main(["trained", str(tmp_path / "mine")]) == 0
    assert "model.id=nobody/none" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["adapter_config.json"]


def test_a_run_that_trained_nothing_has_nothing_to_copy(
    store: MlflowClient, composed: Compose, tmp_path: Path, capsys: Capture
) -> None:
    record_run(composed(), "measured", tags={Tag.origin: "me/adapter@main"})
    assert export.main(["measured", str(tmp_path / "mine")]) == 1
    assert "me/adapter@main" in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()


def test_status_names_the_files(store: MlflowClient, composed: Compose, capsys: Capture) -> None:
    run_id = record_run(composed(), "trained")
    assert status.main([run_id[:8]]) == 0
    facts = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert facts["run"].startswith(run_id)
    assert Path(facts["page"]).is_file()
    assert (Path(facts["adapter"]) / "adapter_config.json").is_file()
    assert facts["status"] == "finished"
    with pytest.raises(SystemExit):
        status.main([run_id[:8], "--sweep", "s"])


def test_a_server_hands_an_adapter_out(composed: Compose, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "server").mkdir()
    with serve_mlflow(tmp_path / "server") as (uri, _):
        record_run(composed(f"tracking.uri={uri}"), "trained")
        place = ["--tracking-uri", uri]
        assert status.main(["trained", *place]) == 0
        assert "slimdown export" in capsys.readouterr().out
        assert export.main(["trained", str(tmp_path / "mine"), *place]) == 0
        assert (tmp_path / "mine" / "adapter_config.json").is_file()
        assert delete.main(["trained", "--yes", *place]) == 0
        assert "mlflow gc" in capsys.readouterr().out
        assert status.main(["trained", *place]) == 1


def test_nothing_is_deleted_before_yes_and_then_all_but_the_base(
    store: MlflowClient, composed: Compose, tmp_path: Path, capsys: Capture
) -> None:
    kept, gone = (record_run(composed(f"lora.r={r}"), f"rank {r}") for r in (2, 4))
    [places] = [
        [
            model.artifact_location
            for model in list_models(store, "tuned")
            if model.source_run_id == id_
        ]
        for id_ in (gone,)
    ]
    folders = [Path(store.get_run(gone).info.artifact_uri.removeprefix("file://")).parent]
    folders += [Path(place.removeprefix("file://")).parent for place in places]
    n_bases = len(list_models(store, "base"))
    assert delete.main([gone]) == 0
    assert all(folder.is_dir() for folder in folders)
    assert "--yes" in capsys.readouterr().out
    assert delete.main([gone, "--yes"]) == 0
    assert not any(folder.exists() for folder in folders)
    capsys.readouterr()
    assert status.main(["--format", "json"]) == 0
    assert [row["run_id"] for row in json.loads(capsys.readouterr().out)["rows"]] == [kept]
    assert len(list_models(store, "tuned")) == 1
    assert len(list_models(store, "base")) == n_bases
    assert delete.main([gone, "--yes"]) == 1  # it is not there any more


def test_a_run_in_use_is_kept(store: MlflowClient, composed: Compose, capsys: Capture) -> None:
    config = set_metric(composed())
    with open_run(config, make_info(config, "busy")) as run:
        assert delete.main(["busy", "--yes"]) == 1
        assert "works on" in capsys.readouterr().err
        save_answers(run, config)
    store.create_registered_model("support")
    store.create_model_version("support", run.artifact_uri, run.run_id)
    assert delete.main(["busy", "--yes"]) == 1
    assert "models:/support/1" in capsys.readouterr().err
    assert store.get_run(run.run_id).info.lifecycle_stage == "active"


def test_a_folder_elsewhere_is_left_alone(
    store: MlflowClient, composed: Compose, tmp_path: Path, monkeypatch: Patch
) -> None:
    """Whoever writes the store names the folders; one of yours must not go with a run."""
    run_id = record_run(composed(), "trained")
    yours = tmp_path.parent / f"{tmp_path.name}-yours"
    precious = yours / run_id / "artifacts"
    precious.mkdir(parents=True)
    real = MlflowClient.search_runs

    def lie(self: MlflowClient, *arguments: object, **options: object) -> object:
        found = real(self, *arguments, **options)  # type: ignore[arg-type]
        for run in found:
            run.info._artifact_uri = precious.as_uri()
        return found

    monkeypatch.setattr(MlflowClient, "search_runs", lie)
    delete.main([run_id, "--yes"])
    assert precious.is_dir()
