"""Forgetting watched in a training of somebody's own: TRL's trainer, a few lines, in every condition it may run in."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import load_dataset
from mlflow import MlflowClient
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer

import slimdown
from slimdown.pocket import DATA_DIR, MODEL_DIR
from slimdown.utils.errors import SlimdownError

LORA = LoraConfig(task_type="CAUSAL_LM", r=4, lora_dropout=0.1, target_modules=["q_proj", "v_proj"])
ASKED = ["pocket_math", "pocket_cs"]


def trainer(folder: Path, callbacks: list[Any], **settings: Any) -> SFTTrainer:
    """What somebody wrote who never heard of slimdown."""
    lora = settings.pop("peft_config", LORA)
    set_seed(
        0
    )  # trl 1.10 draws the adapter's start before it seeds: two trainings without a callback differ there
    return SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(MODEL_DIR),
        train_dataset=load_dataset(
            "json", data_files=str(DATA_DIR / "pocket_instructions_train.jsonl"), split="train[:64]", cache_dir=folder
        ),
        peft_config=lora,
        callbacks=callbacks,
        args=SFTConfig(
            **{
                "output_dir": str(folder), "max_steps": 6, "per_device_train_batch_size": 2, "learning_rate": 0.01,
                "logging_steps": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True, "bf16": False,
                "disable_tqdm": True, **settings,
            }
        ),
    )  # fmt: skip


def callback(**settings: Any) -> slimdown.ForgettingCallback:
    return slimdown.ForgettingCallback(
        ASKED, **{"every": 2, "questions": 4, "limit": 12, **settings}
    )


def losses(trained: SFTTrainer) -> list[dict[str, float]]:
    """What the trainer said of itself at each step, but its speed."""
    kept = (
        "loss",
        "grad_norm",
        "mean_token_accuracy",
        "num_tokens",
        "learning_rate",
        "epoch",
        "step",
    )
    return [
        {k: logs[k] for k in kept if k in logs}
        for logs in trained.state.log_history
        if "loss" in logs
    ]


def watched(trained: SFTTrainer) -> dict[int, dict[str, float]]:
    """What was logged of forgetting, by step."""
    return {
        logs["step"]: logs
        for logs in trained.state.log_history
        if any(key.startswith(("forgetting/", "base/")) for key in logs)
    }


# --- training is what it was -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "condition",
    [
        {},
        {"gradient_accumulation_steps": 2, "max_steps": 4},
        {"gradient_checkpointing": True, "max_steps": 4},
        {"bf16": True, "max_steps": 4},
        {"peft_config": None, "max_steps": 4, "neftune_noise_alpha": 5.0},
    ],
    ids=lambda condition: next(iter(condition), "plain"),
)
def test_training_takes_the_same_steps(condition: dict[str, Any], tmp_path: Path) -> None:
    alone = trainer(tmp_path, [], **condition)
    alone.train()
    seen = callback()
    other = trainer(tmp_path, [seen], **condition)
    other.train()
    assert losses(other) == losses(alone)
    assert len(losses(other)) == condition.get("max_steps", 6)
    for (name, one), two in zip(
        alone.model.state_dict().items(), other.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, two), name
    assert sorted(watched(other)) == list(range(0, condition.get("max_steps", 6) + 1, 2))
    assert seen.findings is not None


# --- what is measured -------------------------------------------------------------------------------------


class Closing(TrainerCallback):
    """Like an integration: takes what is logged, until training ends."""

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []
        self.is_open = False

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.is_open = True

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any
    ) -> None:
        assert self.is_open
        self.logged.append({**logs, "step": state.global_step})

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self.is_open = False


def test_findings_are_those_of_measuring_by_hand(tmp_path: Path) -> None:
    integration, seen = Closing(), callback()
    training = trainer(tmp_path, [integration, seen])
    before = slimdown.measure(
        training.model, training.processing_class, ASKED, limit=12
    )  # an adapter that does nothing
    training.train()
    by_hand = slimdown.judge(
        before, slimdown.measure(training.model, training.processing_class, before)
    )
    assert seen.findings is not None
    assert seen.findings.changes == by_hand.changes
    last = integration.logged[-1]
    assert last["step"] == 6
    for name, change in by_hand.changes.benchmarks.items():
        assert last[f"forgetting/{name}/change"] == change.primary.difference.value
        assert last[f"tuned/{name}/{change.metric}"] == change.primary.tuned.value
        assert integration.logged[0][f"base/{name}/{change.metric}"] == change.primary.base.value
    assert set(integration.logged[2]) == {
        *(
            f"forgetting/{name}/{key}"
            for name in ASKED
            for key in ("change", "change_low", "change_high")
        ),
        *(f"forgetting/mean_retained_change{end}" for end in ("", "_low", "_high")),
        "epoch",
        "step",
    }


def test_mlflow_gets_it_through_the_trainers_own_reporting(
    store: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    seen = callback()
    trainer(tmp_path / "out", [seen], report_to=["mlflow"], max_steps=3).train()
    assert seen.findings is not None
    [run] = store.search_runs(["0"])  # and none that was opened after the first was closed
    assert run.info.status == "FINISHED"
    for name, change in seen.findings.changes.benchmarks.items():
        assert [
            (m.step, m.value)
            for m in store.get_metric_history(run.info.run_id, f"forgetting/{name}/change")
        ][-1] == (3, change.primary.difference.value)


def test_an_adapter_is_trained_as_far_as_it_was(tmp_path: Path) -> None:
    """PEFT makes all of an adapter trainable when it is put back."""
    training = trainer(tmp_path, [callback()], max_steps=2)
    for name, parameter in training.model.named_parameters():
        parameter.requires_grad_("lora_B" in name)
    training.train()
    assert {n.split(".")[-3] for n, p in training.model.named_parameters() if p.requires_grad} == {
        "lora_B"
    }


# --- resumed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "adapter", [LORA, None, LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights="olora")]
)
def test_a_training_that_is_resumed_has_the_base_that_it_began_with(
    adapter: Any, tmp_path: Path
) -> None:
    whole, stopped = (
        callback(),
        {"save_strategy": "steps", "save_steps": 2, "peft_config": adapter, "max_steps": 4},
    )
    trainer(tmp_path, [whole], **stopped).train()
    again = callback()
    resumed = trainer(tmp_path, [again], **stopped)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert whole.findings is not None
    assert again.findings is not None
    assert again.findings.changes == whole.findings.changes
    shutil.rmtree(tmp_path / "forgetting")
    anew = callback()
    resumed = trainer(tmp_path, [anew], **stopped)
    if adapter is LORA:  # its base lies under it
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
        assert anew.findings is not None
        assert anew.findings.changes == whole.findings.changes
    else:
        with pytest.raises(
            SlimdownError, match=r"training goes on at step 2, where the weights are not the base's"
        ):
            resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_another_question_is_not_answered_by_what_was_kept(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 1, "peft_config": None, "max_steps": 2}
    trainer(tmp_path, [callback()], **settings).train()
    with pytest.raises(SlimdownError, match="does not hold what the base answered to these questions"):
        trainer(tmp_path, [callback(limit=11)], **settings).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-1")
        )


# --- mistakes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        ({"benchmarks": ["pocket_sc"]}, "did you mean pocket_cs"),
        ({"benchmarks": ASKED, "every": -1}, "every=-1 must be a whole number of at least 0"),
        ({"benchmarks": ASKED, "every": 0.5}, "every=0.5 must be a whole number"),
        ({"benchmarks": ASKED, "questions": 0}, "questions=0 must be a whole number of at least 1"),
        ({"benchmarks": ASKED, "limit": 0}, "limit must be at least 1, got 0"),
    ],
)
def test_a_mistake_is_said_before_there_is_a_trainer(settings: dict[str, Any], answer: str) -> None:
    with pytest.raises(SlimdownError, match=answer):
        slimdown.ForgettingCallback(**settings)
