"""Whole runs through the real commands: what you see, and what MLflow holds."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from commands_and_runs import SMALL, Result, call_verb, find_runs, find_trained, succeed
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import Run
from peft import PeftModel
from record_builders import Patch
from safetensors.torch import load_file
from tiny_models import load_in_4bit
from transformers import AutoModelForCausalLM, AutoTokenizer

from slimdown import pocket
from slimdown.tracking.recorded_settings import digest_settings

BENCHMARKS = ["pocket_instructions", "pocket_math", "pocket_commonsense", "pocket_cs"]


def read_artifact(client: MlflowClient, run: Run, path: str) -> Any:
    file = Path(client.download_artifacts(run.info.run_id, path))
    return json.loads(file.read_text()) if file.suffix == ".json" else file


@pytest.fixture(scope="module")
def sweep(recorded: Path) -> tuple[Path, Result]:
    """Two ranks of the embedded world, swept as on the project's card."""
    return recorded, succeed(recorded, "run", "-m", "lora.r=4,8", *SMALL)


@pytest.fixture
def client(sweep: tuple[Path, Result]) -> MlflowClient:
    return MlflowClient(f"sqlite:///{sweep[0]}/mlruns/mlflow.db")


def test_a_sweep_leaves_two_finished_runs_and_one_base(client: MlflowClient) -> None:
    first, second = find_runs(client)
    assert [run.info.status for run in (first, second)] == ["FINISHED", "FINISHED"]
    assert "lora.r=4" in str(first.info.run_name)
    assert "lora.r=8" in str(second.info.run_name)
    [base] = find_runs(client, "baseline")
    assert base.info.status == "FINISHED"
    assert base.info.run_name.endswith(f" nf4: {', '.join(BENCHMARKS)}")


def test_the_record_of_a_run_is_small_and_complete(client: MlflowClient) -> None:
    run, _ = find_runs(client)
    metrics, params, tags = run.data.metrics, run.data.params, run.data.tags
    final = [name for name in metrics if not name.startswith(("train/step/", "system/"))]
    assert len(final) <= 35
    assert len(params) <= 20
    assert not [text for text in params.values() if text.startswith(("{", "["))]
    assert len([tag for tag in tags if tag.startswith("slimdown.")]) <= 14
    assert params["lora.r"] == "4"
    findings = read_artifact(client, run, "findings.json")
    assert set(findings["benchmarks"]) == set(BENCHMARKS)
    for name in BENCHMARKS:
        difference = findings["benchmarks"][name]["changes"]
        primary = difference[findings["benchmarks"][name]["metric"]]["difference"]
        assert metrics[f"change/{name}"] == round(100 * primary["value"], 2)
        has_choices = name in ("pocket_commonsense", "pocket_cs")
        assert ("p_right" in difference) == has_choices
    training = findings["training"]
    assert training["validation_loss_after"] < training["validation_loss_before"]
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) == 8
    assert "pocket_math" in (find_trained(client, run.info.run_id) / "README.md").read_text()


def test_the_answers_of_both_models_are_read_with_pandas(client: MlflowClient) -> None:
    run, _ = find_runs(client)
    samples = pd.read_parquet(client.download_artifacts(run.info.run_id, "samples"))
    assert len(samples) == 2 * 8 * (1 + 3 + 3 + 2)  # models, questions, metrics of each benchmark
    findings = read_artifact(client, run, "findings.json")
    cs = samples.query("benchmark == 'pocket_cs' and model == 'tuned' and metric == 'acc'")
    change = findings["benchmarks"]["pocket_cs"]["changes"]["acc"]
    assert cs.score.mean() == pytest.approx(change["tuned"]["value"])


def test_plain_mlflow_finds_and_loads_the_champion_with_the_runs_answers(
    sweep: tuple[Path, Result], client: MlflowClient, monkeypatch: Patch
) -> None:
    """What follows the check uses no slimdown."""
    run, _ = find_runs(client)[:2]
    budgets = ["--max-loss", "0.99"]
    register = ["--register", "support", "--alias", "champion"]
    succeed(sweep[0], "check", run.info.run_id, *budgets, *register)
    monkeypatch.chdir(sweep[0])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    order = [{"field_name": "metrics.kept", "ascending": False}]
    tuned = "tags.`slimdown.kind` = 'tuned'"
    models = client.search_logged_models(experiments, tuned, order_by=order)
    kept = [{metric.key: metric.value for metric in model.metrics}["kept"] for model in models]
    assert len(kept) > 1
    assert kept == sorted(kept, reverse=True)
    version = client.get_model_version_by_alias("support", "champion")
    folder = download_artifacts("models:/support@champion")
    model = PeftModel.from_pretrained(load_in_4bit(pocket.MODEL_DIR), folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(pocket.MODEL_DIR)
    file = client.download_artifacts(version.run_id, "samples/tuned-pocket_cs.parquet")
    for row in pd.read_parquet(file).query("metric == 'acc'").itertuples():
        prompt = tokenizer(row.prompt).input_ids
        for choice, recorded in zip(row.choices, row.log_likelihoods, strict=True):
            ids = torch.tensor([tokenizer(f"{row.prompt} {choice}").input_ids])
            with torch.no_grad():
                logs = model(ids).logits[0, :-1].log_softmax(-1)
            answer = logs.gather(1, ids[0, 1:, None])[len(prompt) - 1 :].sum().item()
            assert answer == pytest.approx(recorded, abs=1e-3)


def test_the_console_shows_the_results(sweep: tuple[Path, Result], client: MlflowClient) -> None:
    shown = sweep[1].stdout
    for run in find_runs(client):
        assert f"finished, run {run.info.run_id[:8]}" in shown
        page = read_artifact(client, run, "report.html")
        assert all(name in page.read_text() for name in BENCHMARKS)
    assert "Traceback" not in sweep[1].stderr
    assert "Warning" not in sweep[1].stderr
    assert "INFO" not in sweep[1].stderr  # of MLflow's system metrics, which it has
    assert all("system/disk_usage_percentage" in r.data.metrics for r in find_runs(client))


def test_a_given_adapter_is_judged_alike(sweep: tuple[Path, Result], client: MlflowClient) -> None:
    run, _ = find_runs(client)
    adapter = find_trained(client, run.info.run_id)
    succeed(sweep[0], "run", f"tuned={adapter}", *SMALL[3:])
    judged = find_runs(client)[-1]
    expected = read_artifact(client, run, "findings.json")["benchmarks"]
    assert read_artifact(client, judged, "findings.json")["benchmarks"] == expected


def test_a_scaled_adapter_is_saved_and_answers_as_it_was_measured(
    sweep: tuple[Path, Result], client: MlflowClient
) -> None:
    run, _ = find_runs(client)[:2]
    scale = [run.info.run_id, "--scales", "0,0.5,1", "--max-loss", "0.9", "--save", "half"]
    done = call_verb(sweep[0], "scale", *scale, "-o", "scales.json")
    assert done.returncode in (0, 2), done.stderr  # eight questions a benchmark may not tell
    lines = [line.split() for line in done.stdout.splitlines()]
    heading = max(i for i, words in enumerate(lines) if words[:1] == ["Scale"])
    assert "budget" in [word for words in lines[heading + 1 : heading + 4] for word in words]
    rows = json.loads((sweep[0] / "scales.json").read_text())["rows"]
    assert [row["scale"] for row in rows] == [0, 0.5, 1]
    losses = [row["validation_loss"] for row in rows]
    assert losses[0] == run.data.metrics["train/validation_loss_before"]
    assert losses[2] == pytest.approx(run.data.metrics["train/validation_loss_after"], abs=1e-4)
    [chosen] = [row["scale"] for row in rows if row.get("is_chosen")]
    saved = load_file(sweep[0] / "half" / "adapter_model.safetensors")
    trained = load_file(find_trained(client, run.info.run_id) / "adapter_model.safetensors")
    for name, tensor in saved.items():
        assert tensor.equal(trained[name] * (chosen if "lora_B" in name else 1))
    assert chosen == 1 or f"adds {chosen:g} of" in (sweep[0] / "half/README.md").read_text()


def test_a_run_is_merged_in_its_own_dtype(sweep: tuple[Path, Result], client: MlflowClient) -> None:
    """`auto` was float16 on the GPU of the run, whatever it is on the machine that merges."""
    run, _ = find_runs(client)[:2]
    tags = run.data.tags
    file = Path(run.info.artifact_uri.removeprefix("file://")) / "settings.json"
    settings = file.read_text()
    changed = settings.replace('"dtype": "float32"', '"dtype": "auto"')
    assert changed != settings
    try:
        file.write_text(changed)
        client.set_tag(run.info.run_id, "slimdown.settings", digest_settings(changed))
        client.set_tag(run.info.run_id, "slimdown.model", "a@b nf4 float16")
        merge = ["merge", run.info.run_id, "--out", "halved", "--device", "cpu"]
        done = call_verb(sweep[0], *merge)
    finally:
        file.write_text(settings)
        for tag in ("slimdown.settings", "slimdown.model"):
            client.set_tag(run.info.run_id, tag, tags[tag])
    assert done.returncode == 0, done.stderr
    assert "merged, float16" in done.stdout
    assert "model_name: halved" in (sweep[0] / "halved" / "README.md").read_text()
    assert AutoModelForCausalLM.from_pretrained(sweep[0] / "halved").dtype == torch.float16
