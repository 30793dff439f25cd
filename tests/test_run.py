"""The main job end to end, through the real entry point: what a person sees and what MLflow holds."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import SMALL
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run

ENTRY = [sys.executable, "-m", "slimdown.run"]


def start(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*ENTRY, *arguments], cwd=folder, capture_output=True, text=True, timeout=300
    )


def runs_in(client: MlflowClient, kind: str = "tuned") -> list[Run]:
    experiments = [e.experiment_id for e in client.search_experiments()]
    chosen = f"tags.`slimdown.kind` = '{kind}'"
    return list(client.search_runs(experiments, chosen, order_by=["attributes.start_time"]))


@pytest.fixture(scope="module")
def sweep(
    migrated_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, "subprocess.CompletedProcess[str]"]:
    """Two runs of the embedded world, as one would sweep them."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "mlruns").mkdir()
    (folder / "mlruns" / "mlflow.db").write_bytes(migrated_store.read_bytes())
    done = start(folder, "-m", "lora.r=4,8", *SMALL)
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.fixture
def client(sweep: tuple[Path, "subprocess.CompletedProcess[str]"]) -> MlflowClient:
    return MlflowClient(f"sqlite:///{sweep[0]}/mlruns/mlflow.db")


def test_a_sweep_leaves_two_finished_runs_told_apart_by_name(client: MlflowClient) -> None:
    first, second = runs_in(client)
    assert first.info.status == second.info.status == "FINISHED"
    assert str(first.info.run_name).startswith("pocket lora.r=4 ")
    assert str(second.info.run_name).startswith("pocket lora.r=8 ")


def test_a_run_keeps_its_report_as_a_page_and_its_plots(client: MlflowClient) -> None:
    run, _ = runs_in(client)
    kept = {
        a.path for folder in ("", "plots") for a in client.list_artifacts(run.info.run_id, folder)
    }
    assert {"report.md", "report.html"} <= kept
    assert {
        f"plots/{stem}.{kind}"
        for stem in ("changes", "answers", "training")
        for kind in ("svg", "png")
    } <= kept
    page = Path(client.download_artifacts(run.info.run_id, "report.html")).read_text()
    for name in ("pocket_math", "pocket_instructions"):
        assert name in page
        assert run.data.tags[f"slimdown.verdict.{name}"] in page
    assert "forgetting/pocket_math/change_low" in run.data.metrics
    assert run.data.tags["slimdown.sweep"]


def test_a_sweep_is_compared_checked_and_paired(
    sweep: tuple[Path, "subprocess.CompletedProcess[str]"], client: MlflowClient
) -> None:
    def ask(module: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", f"slimdown.{module}", *arguments]
        return subprocess.run(command, cwd=sweep[0], capture_output=True, text=True, timeout=120)

    first, second = (run.info.run_id for run in runs_in(client))
    shown = ask("compare", "--by", "lora.r", "--format", "csv")
    assert shown.returncode == 0, shown.stderr
    assert len(shown.stdout.splitlines()) == 3
    paired = ask("compare", first, second, "--paired")
    assert paired.returncode == 0, paired.stderr
    assert "pocket_math" in paired.stdout
    checked = ask("check", first, "--max-loss", "pocket_math=0.99", "pocket_instructions=0.99")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    narrow = ask("check", first, "--max-loss", "pocket_instructions=0.001")
    assert narrow.returncode == 2, narrow.stdout + narrow.stderr  # a few questions cannot tell
    unknown = ask("check", "no-such-run")
    assert unknown.returncode == 3
    assert "there is no run no-such-run" in unknown.stderr


def test_every_number_of_a_run_is_in_the_record(client: MlflowClient) -> None:
    run, _ = runs_in(client)
    metrics, params, tags = run.data.metrics, run.data.params, run.data.tags
    assert params["lora.r"] == "4"
    assert params["benchmark.pocket_math.limit"] == "8"
    for name, metric in {
        "pocket_instructions": "exact_match.strip",
        "pocket_math": "exact_match.strict-match",
        "pocket_commonsense": "acc_norm",
        "pocket_cs": "acc",
    }.items():
        base, tuned = metrics[f"base/{name}/{metric}"], metrics[f"tuned/{name}/{metric}"]
        assert f"base/{name}/{metric}_stderr" in metrics
        assert metrics[f"forgetting/{name}/change"] == pytest.approx(tuned - base)
    assert "tuned/pocket_math/flexible_accuracy" in metrics
    assert metrics["train/validation_loss_after"] < metrics["train/validation_loss_before"]
    for cost in ("load_seconds", "train_seconds", "base_evaluation_seconds", "tuned_evaluation_seconds",
                 "peak_memory_bytes", "tokens_per_second", "training_peak_bytes", "base_evaluation_peak_bytes",
                 "tuned_evaluation_peak_bytes", "estimated_evaluation_peak_bytes"):  # fmt: skip
        assert metrics[f"cost/{cost}"] > 0
    if not torch.__version__.startswith(
        "2.6."
    ):  # whose attention has wrong shapes on the meta device
        assert metrics["cost/estimated_training_peak_bytes"] > 0
    assert metrics["cost/training_peak_bytes"] <= metrics["cost/peak_memory_bytes"]
    assert tags["slimdown.kind"] == "tuned"
    assert tags["slimdown.model"] == "pocket:model"
    assert tags["slimdown.quantization"] == "nf4"
    assert tags["slimdown.compute_dtype"] in ("float32", "bfloat16")
    assert "| pocket_math | strict-match |" in tags["mlflow.note.content"]
    assert len(client.get_metric_history(run.info.run_id, "train/loss")) == 8
    [dataset] = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == (
        "pocket_instructions",
        tags["slimdown.data_fingerprint"],
    )


def test_the_artifacts_are_there_and_read_with_common_tools(client: MlflowClient) -> None:
    run, _ = runs_in(client)
    paths = {a.path for a in client.list_artifacts(run.info.run_id)}
    written = {"config.yaml", "environment.json", "overrides.txt", "report.md", "report.html"}
    assert paths == {"plots", "samples", *written}
    [baseline] = runs_in(client, "baseline")
    folders = [client.download_artifacts(one.info.run_id, "samples") for one in (baseline, run)]
    assert [len(list(Path(folder).iterdir())) for folder in folders] == [4, 4]  # stored once
    samples = pd.concat([pd.read_parquet(folder) for folder in folders])
    assert len(samples) == 2 * 8 * (
        1 + 3 + 2 + 1
    )  # models, questions, metrics of the four benchmarks
    strict = samples.query("benchmark == 'pocket_math' and metric == 'exact_match.strict-match'")
    assert len(strict) == 2 * 8
    for model in ("base", "tuned"):
        mean = strict[strict.model == model].score.mean()
        assert mean == pytest.approx(
            run.data.metrics[f"{model}/pocket_math/exact_match.strict-match"]
        )


def adapter_of(client: MlflowClient, run: Run) -> LoggedModel:
    [logged] = [
        m
        for m in client.search_logged_models([run.info.experiment_id])
        if m.source_run_id == run.info.run_id
    ]
    return logged


def test_the_adapter_is_a_logged_model_with_its_scores(client: MlflowClient) -> None:
    run, _ = runs_in(client)
    logged = adapter_of(client, run)
    assert logged.status == "READY"
    assert logged.params == {
        "base": "pocket:model",
        "base_revision": run.data.tags["slimdown.model_revision"],
        "quantization": "nf4",
    }
    scores = {m.key: m.value for m in logged.metrics}
    assert scores["tuned/pocket_cs/acc"] == run.data.metrics["tuned/pocket_cs/acc"]


def test_the_adapter_is_stored_once_and_fetched_by_the_command_of_the_readme(
    sweep: tuple[Path, "subprocess.CompletedProcess[str]"], client: MlflowClient, tmp_path: Path
) -> None:
    from peft import PeftConfig
    from safetensors.torch import load_file

    assert len(list(sweep[0].rglob("adapter_model.safetensors"))) == len(runs_in(client))
    _, run = runs_in(client)
    fetch = [
        sys.executable,
        "-m",
        "mlflow",
        "artifacts",
        "download",
        "-r",
        run.info.run_id,
        "-a",
        "adapter",
        "-d",
        ".",
    ]
    store = {"MLFLOW_TRACKING_URI": f"sqlite:///{sweep[0]}/mlruns/mlflow.db"}
    subprocess.run(
        fetch,
        cwd=tmp_path,
        env={**os.environ, **store},
        check=True,
        capture_output=True,
        timeout=120,
    )
    assert PeftConfig.from_pretrained(tmp_path / "adapter").r == 8
    assert len(load_file(tmp_path / "adapter" / "adapter_model.safetensors")) > 0


def test_the_console_shows_plan_results_and_where_to_look(
    sweep: tuple[Path, "subprocess.CompletedProcess[str]"], client: MlflowClient
) -> None:
    shown = sweep[1].stdout
    assert "pocket:model, nf4" in shown
    assert "64 of pocket_instructions" in shown
    for run in runs_in(client):
        assert run.info.run_id in shown
    assert "mlflow ui --backend-store-uri sqlite:///mlruns/mlflow.db" in shown
    assert "Warning" not in sweep[1].stderr
    assert "Traceback" not in sweep[1].stderr


def test_the_same_command_gives_the_same_bytes(
    store: MlflowClient,
    tmp_path: Path,
    sweep: tuple[Path, "subprocess.CompletedProcess[str]"],
    client: MlflowClient,
) -> None:
    done = start(tmp_path, "lora.r=4", *SMALL)
    assert done.returncode == 0, done.stderr
    again, [first, _] = runs_in(store)[0], runs_in(client)
    adapters = [
        Path(adapter_of(c, r).artifact_location.removeprefix("file://"))
        for c, r in ((client, first), (store, again))
    ]
    one, other = ((folder / "adapter_model.safetensors").read_bytes() for folder in adapters)
    assert one == other
    answers = [
        pd.read_parquet(c.download_artifacts(r.info.run_id, "samples"))
        for c, r in ((client, first), (store, again))
    ]
    pd.testing.assert_frame_equal(*answers)


def test_the_base_of_a_sweep_is_measured_once(client: MlflowClient) -> None:
    [baseline] = runs_in(client, "baseline")
    assert baseline.info.run_name == "base pocket:model nf4"
    assert baseline.info.status == "FINISHED"
    made = {key for key in baseline.data.tags if key.startswith("slimdown.evaluation.")}
    assert len(made) == 4
    for run in runs_in(client):
        named = {v for k, v in run.data.tags.items() if k.startswith("slimdown.baseline.")}
        assert named == {baseline.info.run_id}
        assert run.data.metrics["base/pocket_cs/acc"] == baseline.data.metrics["base/pocket_cs/acc"]


def test_a_signal_ends_a_run_killed_with_its_data_so_far(migrated_store: Path) -> None:
    """While the record is opened, at moments of a run, and in training where Python swallows it."""
    script = (
        "import sys, signal\n"
        "from pathlib import Path\n"
        "from bench import faults\n"
        "store = Path(sys.argv[1])\n"
        "faults.warm()\n"
        "ends = [faults.at_a_moment(store, t, n) for t, n in ((0.1, signal.SIGINT), (1, signal.SIGTERM))]\n"
        "with faults.scratch(store) as folder:\n"
        "    lose = lambda: faults.lose_a_signal_in('log_step', signal.SIGTERM)\n"
        "    ended = faults.wait(faults.start(folder, faults.QUICK, lose), folder)\n"
        "    ends.append(faults.told_right(ended, 'lost in training'))\n"
        "    from mlflow import MlflowClient\n"
        "    client = MlflowClient(f'sqlite:///{folder}/mlruns/mlflow.db')\n"
        "    metrics = client.get_run(next(i for k, i, _ in ended.runs if k == 'tuned')).data.metrics\n"
        "print(ends, 'base/pocket_cs/acc' in metrics, 'train/loss' in metrics)\n"
    )
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", script, str(migrated_store)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    ends, *kept = done.stdout.strip().rpartition("] ")
    assert kept[-1] == "True True", done.stdout + done.stderr
    assert "None" not in ends
    assert ends.endswith("'KILLED'")


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [(["seed=1"], "hydra.run.dir=FOLDER"), (["-m", "seed=1,2"], "hydra.sweep.dir=FOLDER")],
)
def test_a_folder_that_cannot_be_made_is_named_with_what_to_set(
    arguments: list[str], folder: str, tmp_path: Path, store: MlflowClient
) -> None:
    (tmp_path / "outputs").write_text(
        ""
    )  # a file where the folder should be, which stops even root
    done = start(tmp_path, *arguments, *SMALL)
    assert done.returncode == 1
    assert re.search(r"its folder \S*outputs", done.stderr)
    assert folder in done.stderr
    assert "Traceback" not in done.stderr
    assert not runs_in(store)


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["train.learning_rat=1"], "did you mean train.learning_rate"),
        (["model=llama3", "lora.r=0"], "lora.r must be at least 1, got 0"),
        (["dataset=[file]", "dataset.file.path=nowhere.jsonl"], "there is no file nowhere.jsonl"),
    ],
)
def test_a_mistake_costs_under_a_second_and_shows_no_traceback(
    arguments: list[str], answer: str, tmp_path: Path
) -> None:
    started = time.monotonic()
    done = start(tmp_path, *arguments)
    seconds = time.monotonic() - started
    assert done.returncode == 1
    assert answer in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "mlruns").exists()
    assert seconds < 1 + 2 * os.getloadavg()[0] / (
        os.cpu_count() or 1
    )  # a second on a machine that is free


def test_help_names_groups_settings_and_examples(tmp_path: Path) -> None:
    done = start(tmp_path, "--help")
    assert done.returncode == 0
    for line in (
        "model: llama32,",
        "quantization: fp4, int8, nf4, none",
        "train.learning_rate",
        "Examples",
    ):
        assert line in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_job_that_diverges_fails_alone_in_a_sweep_and_keeps_its_curve(
    store: MlflowClient, tmp_path: Path
) -> None:
    done = start(tmp_path, "-m", "train.learning_rate=1e20,4e-3", *SMALL, "train.max_steps=4")
    assert done.returncode == 1
    for said in (
        "at step 3 of 4: the loss is nan",
        "train.learning_rate=1e+20",
        "is marked FAILED and keeps",
    ):
        assert said in done.stderr
    assert "Traceback" not in done.stderr
    diverged, finished = runs_in(store)
    assert (diverged.info.status, finished.info.status) == ("FAILED", "FINISHED")
    assert "the loss is nan" in diverged.data.tags["slimdown.error"]
    assert [m.step for m in store.get_metric_history(diverged.info.run_id, "train/loss")] == [1, 2]
    assert [m.step for m in store.get_metric_history(diverged.info.run_id, "train/grad_norm")] == [
        1,
        2,
    ]
    assert "base/pocket_cs/acc" in diverged.data.metrics
    assert not any(key.startswith(("tuned/", "forgetting/")) for key in diverged.data.metrics)
