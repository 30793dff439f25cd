"""Whole runs through the real commands: what you see, what MLflow holds, what a kill leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import SMALL
from golden.make import ADAPTERS
from mlflow import MlflowClient
from mlflow.entities import Run
from safetensors.torch import load_file

from slimdown.config.schema import RunConfig
from slimdown.experiment import run_experiment
from slimdown.tracking.provenance import RunInfo
from slimdown.utils.errors import SlimdownError

BENCHMARKS = ["pocket_instructions", "pocket_math", "pocket_commonsense", "pocket_cs"]
Result = subprocess.CompletedProcess[str]


def run_command(folder: Path, *arguments: str, **environment: str) -> Result:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, **environment},
    )


def find_runs(client: MlflowClient, kind: str = "tuned") -> list[Run]:
    experiments = [e.experiment_id for e in client.search_experiments()]
    query = f"tags.`slimdown.kind` = '{kind}'"
    return list(client.search_runs(experiments, query, order_by=["attributes.start_time"]))


def read_artifact(client: MlflowClient, run: Run, path: str) -> Any:
    file = Path(client.download_artifacts(run.info.run_id, path))
    return json.loads(file.read_text()) if file.suffix == ".json" else file


@pytest.fixture(scope="module")
def sweep(migrated_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Two ranks of the embedded world, swept as on the project's card."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "mlruns").mkdir()
    (folder / "mlruns" / "mlflow.db").write_bytes(migrated_store.read_bytes())
    done = run_command(folder, "slimdown.run", "-m", "lora.r=4,8", *SMALL)
    assert done.returncode == 0, done.stderr
    return folder, done


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
    assert base.info.run_name == f"base pocket:model nf4: {', '.join(BENCHMARKS)}"


def test_the_record_of_a_run_is_small_and_complete(client: MlflowClient) -> None:
    run, _ = find_runs(client)
    metrics, params, tags = run.data.metrics, run.data.params, run.data.tags
    final = [name for name in metrics if not name.startswith("train/step/")]
    assert len(final) <= 30
    assert len(params) <= 40
    assert len([tag for tag in tags if tag.startswith("slimdown.")]) <= 12
    assert params["lora.r"] == "4"
    findings = read_artifact(client, run, "findings.json")
    assert set(findings["benchmarks"]) == set(BENCHMARKS)
    for name in BENCHMARKS:
        difference = findings["benchmarks"][name]["changes"]
        primary = difference[findings["benchmarks"][name]["metric"]]["difference"]
        assert metrics[f"change/{name}"] == pytest.approx(primary["value"])
    assert (
        findings["training"]["validation_loss_after"]
        < findings["training"]["validation_loss_before"]
    )
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) == 8


def test_the_answers_of_both_models_are_read_with_pandas(client: MlflowClient) -> None:
    run, _ = find_runs(client)
    samples = pd.read_parquet(client.download_artifacts(run.info.run_id, "samples"))
    assert len(samples) == 2 * 8 * (1 + 3 + 2 + 1)  # models, questions, metrics of each benchmark
    findings = read_artifact(client, run, "findings.json")
    cs = samples.query("benchmark == 'pocket_cs' and model == 'tuned' and metric == 'acc'")
    change = findings["benchmarks"]["pocket_cs"]["changes"]["acc"]
    assert cs.score.mean() == pytest.approx(change["tuned"]["value"])


def test_the_adapter_loads_with_plain_peft(client: MlflowClient) -> None:
    from peft import PeftConfig
    from safetensors.torch import load_file

    _, run = find_runs(client)
    folder = client.download_artifacts(run.info.run_id, "adapter")
    assert PeftConfig.from_pretrained(folder).r == 8
    assert load_file(Path(folder) / "adapter_model.safetensors")
    assert "pocket_math" in (Path(folder) / "README.md").read_text()


def test_the_console_shows_results_and_where_to_look(
    sweep: tuple[Path, Result], client: MlflowClient
) -> None:
    shown = sweep[1].stdout
    for run in find_runs(client):
        assert run.info.run_id in shown
        page = read_artifact(client, run, "report.html")
        assert all(name in page.read_text() for name in BENCHMARKS)
    assert "Traceback" not in sweep[1].stderr
    assert "Warning" not in sweep[1].stderr


def test_a_repeated_sweep_makes_nothing_again(
    sweep: tuple[Path, Result], client: MlflowClient
) -> None:
    before = len(find_runs(client))
    done = run_command(sweep[0], "slimdown.run", "-m", "lora.r=4,8", *SMALL)
    assert done.returncode == 0, done.stderr
    assert "skipped" in done.stdout
    assert len(find_runs(client)) == before


def test_a_sweep_is_compared_checked_and_listed(
    sweep: tuple[Path, Result], client: MlflowClient
) -> None:
    first, second = (run.info.run_id for run in find_runs(client))

    def run_verb(*arguments: str) -> Result:
        return run_command(sweep[0], "slimdown", *arguments)

    table = run_verb("compare", "--format", "csv")
    assert table.returncode == 0, table.stderr
    assert len(table.stdout.splitlines()) == 3
    paired = run_verb("compare", first, second, "--paired")
    assert paired.returncode == 0, paired.stderr
    assert "pocket_math" in paired.stdout
    budgets = ["--max-loss", "pocket_math=0.99", "--max-loss", "pocket_instructions=0.99"]
    assert run_verb("check", first, *budgets).returncode == 0
    narrow = run_verb("check", first, "--max-loss", "pocket_instructions=0.001")
    assert narrow.returncode == 2, narrow.stdout + narrow.stderr
    unknown = run_verb("check", "no-such-run")
    assert unknown.returncode == 3
    assert "no-such-run" in unknown.stderr
    assert first[:8] in run_verb("status").stdout


def test_a_given_adapter_is_judged_as_it_was_when_trained(
    sweep: tuple[Path, Result], client: MlflowClient
) -> None:
    run, _ = find_runs(client)
    adapter = client.download_artifacts(run.info.run_id, "adapter")
    done = run_command(sweep[0], "slimdown.run", f"tuned={adapter}", *SMALL[3:])
    assert done.returncode == 0, done.stderr
    judged = find_runs(client)[-1]
    expected = read_artifact(client, run, "findings.json")["benchmarks"]
    assert read_artifact(client, judged, "findings.json")["benchmarks"] == expected


def test_a_scaled_adapter_is_saved_and_answers_as_it_was_measured(
    sweep: tuple[Path, Result], client: MlflowClient
) -> None:
    run, _ = find_runs(client)[:2]
    scale = ["scale", run.info.run_id, "--scales", "0,0.5,1", "--max-loss", "0.9", "--save", "half"]
    done = run_command(sweep[0], "slimdown", *scale, "-o", "scales.json")
    assert done.returncode in (0, 2), done.stderr  # eight questions a benchmark may not tell
    rows = json.loads((sweep[0] / "scales.json").read_text())["rows"]
    assert [row["scale"] for row in rows] == [0, 0.5, 1]
    losses = [row["validation_loss"] for row in rows]
    assert losses[0] == run.data.metrics["train/validation_loss_before"]
    assert losses[2] == pytest.approx(run.data.metrics["train/validation_loss_after"], abs=1e-4)
    [chosen] = [row["scale"] for row in rows if row.get("is_chosen")]
    saved = load_file(sweep[0] / "half" / "adapter_model.safetensors")
    trained = load_file(read_artifact(client, run, "adapter/adapter_model.safetensors"))
    for name, tensor in saved.items():
        assert tensor.equal(trained[name] * (chosen if "lora_B" in name else 1))
    assert f"adds {chosen:g} of what was trained" in (sweep[0] / "half/README.md").read_text() or (
        chosen == 1
    )


def test_a_run_is_merged_into_one_model(sweep: tuple[Path, Result], client: MlflowClient) -> None:
    from transformers import AutoModelForCausalLM

    run, _ = find_runs(client)[:2]
    done = run_command(sweep[0], "slimdown", "merge", run.info.run_id, "--out", "merged")
    assert done.returncode == 0, done.stderr
    assert "model_name: merged" in (sweep[0] / "merged" / "README.md").read_text()
    assert AutoModelForCausalLM.from_pretrained(sweep[0] / "merged").config.model_type == "llama"


def test_sizes_of_several_ranks_are_listed(tmp_path: Path) -> None:
    done = run_command(tmp_path, "slimdown", "sizes", "lora.r=4,8")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "28,672" in done.stdout or "28.7" in done.stdout, done.stdout  # trained at rank 8
    done = run_command(tmp_path, "slimdown", "sizes", "lora.target_modules=[nope]")
    assert done.returncode == 1
    assert "target_modules: pocket:model has no nope; its linear layers are" in done.stderr


def test_a_run_that_stops_early_asks_the_base_everything(
    sweep: tuple[Path, Result], client: MlflowClient
) -> None:
    questions = [f"benchmark.{name}.limit=150" for name in BENCHMARKS]
    arguments = [f"tuned={ADAPTERS / 'pocket'}", *questions, "evaluation.until=decided"]
    done = run_command(sweep[0], "slimdown.run", *arguments)
    assert done.returncode == 0, done.stderr
    run = find_runs(client)[-1]
    changes = read_artifact(client, run, "findings.json")["benchmarks"]
    assert all(change["n_available"] == 150 for change in changes.values())
    assert any(change["n"] < 150 for change in changes.values())


def test_a_run_that_is_killed_goes_on_when_its_command_is_repeated(
    migrated_store: Path, tmp_path: Path
) -> None:
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns" / "mlflow.db").write_bytes(migrated_store.read_bytes())
    client = MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    longer = ["train.num_train_epochs=12", "train.checkpoint_minutes=0.005"]
    arguments = [sys.executable, "-m", "slimdown.run", *SMALL[:2], *SMALL[3:], *longer]
    log = (tmp_path / "log.txt").open("w")
    process = subprocess.Popen(
        arguments, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True
    )
    while process.poll() is None:  # until the training has begun
        runs = find_runs(client)
        if runs and "train/loss" in client.get_run(runs[0].info.run_id).data.metrics:
            break
        time.sleep(0.2)
    log.close()
    assert process.returncode is None, (tmp_path / "log.txt").read_text()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=120)
    assert process.returncode != 0
    [run] = find_runs(client)
    assert run.info.status == "RUNNING"
    done = run_command(tmp_path, *arguments[2:])
    assert done.returncode == 0, done.stderr
    [run] = find_runs(client)
    assert run.info.status == "FINISHED"
    assert len(find_runs(client, "baseline")) == 1
    steps = [m.step for m in client.get_metric_history(run.info.run_id, "train/loss")]
    assert sorted(set(steps)) == sorted(steps)
    assert len(steps) == 96


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.learning_rat=1"], "did you mean train.learning_rate"),
        (["benchmark.pocket_cs.task=pocket_sc"], "no such task; did you mean pocket_cs or"),
        (["dataset=[file]", "dataset.file.path=nowhere.jsonl"], "nowhere.jsonl"),
        (["-m", "lora.r=4,0"], "lora.r must be at least 1, got 0"),
        (["model=nowhere"], "nowhere"),
    ],
)
def test_a_mistake_is_one_message_and_leaves_nothing(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    done = run_command(tmp_path, "slimdown.run", *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "mlruns").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("lora.target_modules=[q_proj,k_prjo]", "no k_prjo; its linear layers are .*k_proj"),
        ("benchmark.pocket_cs.metric=bleu", "pocket_cs has no such metric; choose one of acc"),
        ("model.id=empty", "model.id=empty cannot be loaded: .*config.json"),
    ],
)
def test_a_mistake_in_model_or_tasks_leaves_no_run(
    setting: str,
    message: str,
    composed: Callable[..., RunConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SlimdownError, match=message):
        run_experiment(composed(setting), RunInfo("one"))
    assert not (tmp_path / "mlruns").exists()


def test_a_share_that_leaves_too_few_questions_ends_a_run_before_it_trains(
    store: MlflowClient, composed: Callable[..., RunConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SlimdownError, match=r"holdout=0\.99 would split the 8 questions"):
        run_experiment(composed(*SMALL, "evaluation.holdout=0.99"), RunInfo("one"))
    assert "] training" not in capsys.readouterr().out


def test_help_shows_groups_settings_and_examples(tmp_path: Path) -> None:
    done = run_command(tmp_path, "slimdown", "--help")
    assert done.returncode == 0
    for verb in ("run", "compare", "check", "verdict", "status", "merge", "scale", "sizes"):
        assert verb in done.stdout
    done = run_command(tmp_path, "slimdown.run", "--help")
    assert done.returncode == 0
    for word in ("llama32", "benchmark", "lora.r"):
        assert word in done.stdout
