"""Runs that end before they are done: killed ones, and those that a mistake forbids."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands_and_runs import call_verb, find_runs, run_command
from conftest import SMALL
from mlflow import MlflowClient

from slimdown import experiment, run
from slimdown.config.schema import RunConfig
from slimdown.evaluation.evaluator import Evaluator
from slimdown.evaluation.results import Evaluation
from slimdown.experiment import run_experiment
from slimdown.tracking.provenance import RunInfo
from slimdown.utils.errors import SlimdownError


def test_sizes_of_several_ranks_are_listed(tmp_path: Path) -> None:
    done = call_verb(tmp_path, "sizes", "lora.r=4,8")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "28,672" in done.stdout or "28.7" in done.stdout, done.stdout  # trained at rank 8
    done = call_verb(tmp_path, "sizes", "lora.target_modules=[nope]")
    assert done.returncode == 1
    assert "target_modules: pocket:model has no nope; its linear layers are" in done.stderr


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
    done = call_verb(tmp_path, "run", *arguments[3:])
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
        (["-m", "lora.r=4,0"], "lora.r must be at least 1, got 0"),
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


@pytest.mark.parametrize("library", ["FSDP", "DEEPSPEED"])
def test_a_launcher_that_splits_the_model_is_refused(
    library: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(f"ACCELERATE_USE_{library}", "true")
    assert run.main(["lora.r=4"]) == 1
    assert f"with {library}, and each process" in capsys.readouterr().err


def test_help_shows_groups_settings_and_examples(tmp_path: Path) -> None:
    done = run_command(tmp_path, "slimdown", "--help")
    assert done.returncode == 0
    for verb in ("run", "compare", "check", "verdict", "status", "merge", "scale", "sizes"):
        assert verb in done.stdout
    done = run_command(tmp_path, "slimdown.run", "--help")
    assert done.returncode == 0
    for word in ("llama32", "benchmark", "lora.r"):
        assert word in done.stdout


def test_notes_about_either_model_are_shown_once(
    store: MlflowClient,
    composed: Callable[..., RunConfig],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class NotingEvaluator(Evaluator):
        def evaluate(self, *args: Any, **kwargs: Any) -> Evaluation:
            self.notes.append(f"odd answers {len(self.notes)}")
            return super().evaluate(*args, **kwargs)

    monkeypatch.setattr(experiment, "Evaluator", NotingEvaluator)
    adapter = Path(__file__).parent / "golden" / "adapters" / "pocket"
    run_experiment(composed(f"tuned={adapter}", *SMALL[3:]), RunInfo("one"))
    shown = capsys.readouterr().out
    assert (shown.count("odd answers 0"), shown.count("odd answers 1")) == (1, 1)
