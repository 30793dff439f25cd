"""`ForgettingCallback` in a training of somebody's own with TRL's trainer."""

import io
import json
import re
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import slow
from datasets import Dataset
from peft import LoraConfig
from record_builders import Capture, Patch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, set_seed
from trl import (
    DPOConfig,
    DPOTrainer,
    GRPOConfig,
    GRPOTrainer,
    KTOConfig,
    KTOTrainer,
    SFTConfig,
    SFTTrainer,
)

import slimdown
from slimdown.evaluation.backend import BackendOptions, choose_backend
from slimdown.models.base_model import LoadedModel
from slimdown.pocket import DATA_DIR, MODEL_DIR
from slimdown.utils.errors import ConfigError, ModelError

# trl 1.16 calls methods by names that transformers 5.24 changed; delete when it follows.
pytestmark = pytest.mark.filterwarnings("ignore:`gradient_checkpointing_:FutureWarning")
LORA = LoraConfig(task_type="CAUSAL_LM", r=4, lora_dropout=0.1, target_modules=["q_proj", "v_proj"])
BENCHMARKS = ["pocket_math", "pocket_cs"]
CHOICES = ["pocket_commonsense", "pocket_cs"]  # asked in a fifth of the time
TARGET = {"task": "pocket_math", "role": "target"}
QUIET = {"logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True}
QUIET |= {"use_cpu": True, "bf16": False}
with (DATA_DIR / "pocket_instructions_train.jsonl").open() as file:
    ROWS = [json.loads(line) for line in islice(file, 20)]


def count_letters(completions: list[str], **columns: Any) -> list[float]:
    return [float(sum(map(str.isalpha, text))) for text in completions]


PROMPTS = [f"What is {i} plus {i}?" for i in range(12)]
CHOSEN, REJECTED = [f" It is {2 * i}." for i in range(12)], [f" {i}" for i in range(12)]
IS_RIGHT = [i % 2 == 0 for i in range(12)]
JUDGED = [REJECTED[i] if i % 2 else CHOSEN[i] for i in range(12)]
PAIRS = Dataset.from_dict({"prompt": PROMPTS, "chosen": CHOSEN, "rejected": REJECTED})
LABELLED = Dataset.from_dict({"prompt": PROMPTS, "completion": JUDGED, "label": IS_RIGHT})
ASKED = {"train_dataset": Dataset.from_dict({"prompt": PROMPTS}), "reward_funcs": count_letters}
TRAINED, VALIDATED = Dataset.from_list(ROWS[:16]), Dataset.from_list(ROWS[16:])
# By kind: the trainer, its settings, and the arguments that depend on it.
TRAINERS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "sft": (SFTTrainer, SFTConfig, {"train_dataset": TRAINED, "eval_dataset": VALIDATED}),
    "dpo": (DPOTrainer, DPOConfig, {"train_dataset": PAIRS}),
    "kto": (KTOTrainer, KTOConfig, {"train_dataset": LABELLED}),
    "grpo": (GRPOTrainer, GRPOConfig, ASKED),
}
OWN_SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {"max_steps": 6, "per_device_train_batch_size": 2},
    "grpo": {"num_generations": 2, "max_completion_length": 8, "beta": 0.1},
}


def make_trainer(
    folder: Path, callbacks: list[Any], kind: str = "sft", lora: Any = LORA, **settings: Any
) -> Any:
    trainer, config, arguments = TRAINERS[kind]
    few = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 0.01}
    own = OWN_SETTINGS.get(kind, {})
    set_seed(0)
    return trainer(
        model=AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(MODEL_DIR),
        peft_config=lora,
        callbacks=callbacks,
        args=config(output_dir=str(folder), **{**QUIET, **few, **own, **settings}),
        **arguments,
    )


def make_callback(**settings: Any) -> slimdown.ForgettingCallback:
    few = {"benchmarks": BENCHMARKS, "every": 2, "questions": 4, "limit": 6}
    return slimdown.ForgettingCallback(**{**few, **settings})


def get_losses(trainer: Any) -> list[Any]:
    keys = ("loss", "grad_norm", "learning_rate", "epoch", "step")
    return [[logs.get(k) for k in keys] for logs in trainer.state.log_history if "loss" in logs]


FULL = {"lora": None, "max_steps": 2, "learning_rate": 1e-4}
FEW = {"max_steps": 2}
RARE = [("kto", FULL), ("dpo", FULL), ("kto", FEW), ("grpo", FULL)]


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("sft", {"gradient_accumulation_steps": 2, "bf16": True, "max_steps": 4}),
        ("sft", {"lora": None, "max_steps": 4, "neftune_noise_alpha": 5.0}),
        ("dpo", FEW),
        ("grpo", FEW),
        *slow(*RARE),
    ],
)
def test_training_takes_the_same_steps_and_findings_are_those_by_hand(
    kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    alone = make_trainer(tmp_path, [], kind, **settings)
    alone.train()
    n_steps = settings["max_steps"]
    callback = make_callback(every=n_steps // 2)
    watched = make_trainer(tmp_path, [callback], kind, **settings)
    base = slimdown.measure(watched.model, watched.processing_class, BENCHMARKS, limit=6)
    watched.train()
    assert len(get_losses(watched)) == n_steps
    assert get_losses(watched) == get_losses(alone)
    expected = alone.model.state_dict()
    for name, weight in watched.model.state_dict().items():
        assert torch.equal(weight, expected[name]), name
    steps = {logs["step"] for logs in watched.state.log_history if "change/pocket_cs" in logs}
    assert steps == {n_steps // 2, n_steps}
    tuned = slimdown.measure(watched.model, watched.processing_class, base)
    by_hand = slimdown.judge(base, tuned).to_dict()["benchmarks"]
    assert callback.findings.to_dict()["benchmarks"] == by_hand


def test_a_function_gets_what_is_logged(tmp_path: Path) -> None:
    sent: list[tuple[int, dict[str, float]]] = []
    callback = make_callback(log=lambda values, step: sent.append((step, values)))
    make_trainer(tmp_path, [callback]).train()
    assert [step for step, _ in sent] == [0, 2, 4, 6]
    for name, benchmark in callback.findings.benchmarks.items():
        assert sent[0][1][f"base/{name}"] == benchmark.primary.base.value
        assert sent[-1][1][f"tuned/{name}"] == benchmark.primary.tuned.value
        assert sent[-1][1][f"change/{name}"] == benchmark.primary.difference.value


def describe(values: dict[str, float], names: list[str] = BENCHMARKS) -> str:
    """Write changes from the trainer's log as a line shows them."""
    parts = []
    for name in names:
        ends = (f"change/{name}{end}" for end in ("", "_low", "_high"))
        parts.append("{} {} [{}, {}]".format(name, *(write_points(values[end]) for end in ends)))
    return "   ".join(parts)


def write_points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("+0.0", "0.0").replace("-", "−")


@pytest.mark.parametrize("kind", ["sft", *slow("dpo")])
def test_it_prints_base_looks_and_the_end(kind: str, tmp_path: Path, capsys: Capture) -> None:
    callback = make_callback(every=1)
    trainer = make_trainer(tmp_path, [callback], kind, max_steps=2)
    base = slimdown.measure(trainer.model, trainer.processing_class, BENCHMARKS, limit=4)
    capsys.readouterr()
    trainer.train()
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("{")]
    scores = [f"{n} {100 * b.score.value:.1f}" for n, b in base.benchmarks.items()]
    looks = [logs for logs in trainer.state.log_history if "change/pocket_cs" in logs]
    assert [logs["step"] for logs in looks] == [1, 2]
    begin, first, look, end = lines
    assert begin.startswith("step 0    ")
    assert first.startswith(f"step 0    base   {'   '.join(scores)}   (4 questions")
    assert look == f"step 1/2  {describe(looks[0])}"
    assert end.startswith(f"end       {describe(looks[1])}   (6 questions")


def test_lines_stand_above_the_bar_and_suit_ascii(tmp_path: Path, monkeypatch: Patch) -> None:
    """A terminal shows what follows the last carriage return of a line."""
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    trainer = make_trainer(tmp_path, [make_callback(every=1)], max_steps=2, logging_strategy="no")
    monkeypatch.setattr("sys.stdout", screen)
    with tqdm(total=2, file=screen, disable=False) as bar:
        trainer.train()
        bar.update(2)
    shown = screen.buffer.getvalue().decode("ascii").split("\n")
    assert "2/2 [" in shown[-1] or "2/2 [" in shown[-2]
    visible = [line.rpartition("\r")[2] for line in shown]
    [look] = [logs for logs in trainer.state.log_history if logs["step"] == 1]
    assert [line for line in visible if line.startswith("step 0 ")]
    assert f"step 1/2  {describe(look).replace('−', '-')}" in visible


def test_a_second_training_has_the_base_that_it_begins_with(tmp_path: Path) -> None:
    callback = make_callback(benchmarks=CHOICES, limit=24)
    trainer = make_trainer(tmp_path, [callback], lora=None, max_steps=2)
    trainer.train()
    first = callback.findings.to_dict()["benchmarks"]
    trainer.train()
    for name, benchmark in callback.findings.to_dict()["benchmarks"].items():
        metric = benchmark["metric"]
        before = first[name]["changes"][metric]
        assert benchmark["changes"][metric]["base"] == before["tuned"] != before["base"]


def test_an_adapter_keeps_what_is_frozen_in_it(tmp_path: Path) -> None:
    """PEFT makes all of an adapter trainable when it is switched on again."""
    trainer = make_trainer(tmp_path, [make_callback(benchmarks=CHOICES)], max_steps=2)
    for name, parameter in trainer.model.named_parameters():
        parameter.requires_grad_("lora_B" in name)
    trainer.train()
    trainable = {n.split(".")[-3] for n, p in trainer.model.named_parameters() if p.requires_grad}
    assert trainable == {"lora_B"}


@pytest.mark.parametrize("adapter", [LORA, None], ids=["lora", "full"])
def test_a_resumed_training_has_the_base_that_it_began_with(adapter: Any, tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2, "lora": adapter, "max_steps": 4}
    checkpoint = str(tmp_path / "checkpoint-2")
    whole, resumed = (make_callback(benchmarks=CHOICES) for _ in range(2))
    make_trainer(tmp_path, [whole] if adapter else [], **settings).train()
    trainer = make_trainer(tmp_path, [resumed], **settings)
    if adapter is LORA:  # its base is under it
        trainer.train(resume_from_checkpoint=checkpoint)
        expected = whole.findings.to_dict()["benchmarks"]
        assert resumed.findings.to_dict()["benchmarks"] == expected
    else:
        with pytest.raises(ModelError, match="goes on at step 2"):
            trainer.train(resume_from_checkpoint=checkpoint)


class Wrecking(TrainerCallback):
    """Spoils the trained weights after a step, as a training that goes wrong does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            for parameter in kwargs["model"].parameters():
                if parameter.requires_grad:
                    parameter.data += 3.0


@pytest.mark.parametrize(
    ("wrecked", "kept", "adapter"), [(3, 2, LORA), (1, 0, None), *slow((1, 0, LORA), (3, 2, None))]
)
def test_a_loss_beyond_its_budget_ends_the_training_and_brings_back_the_last_good_weights(
    wrecked: int, kept: int, adapter: Any, tmp_path: Path, capsys: Capture
) -> None:
    """It says why. The training that ends by itself at the step that is kept has its weights."""
    budgets = [{"task": name, "max_loss": 0.1} for name in CHOICES]
    callback = slimdown.ForgettingCallback(
        budgets, every=2, questions=24, limit=24, stop_on_forgetting=True
    )
    settings = {"learning_rate": 1e-5, "lr_scheduler_type": "constant", "lora": adapter}
    trainer = make_trainer(tmp_path, [Wrecking(wrecked), callback], **settings)
    trainer.train()
    assert trainer.state.global_step == kept + 2
    *losses, ended, back = map(float, re.findall(r"\d+(?:\.\d+)?", callback.stopped))
    assert (ended, back) == (kept + 2, kept)
    assert min(losses[::2]) > 10
    assert set(losses[1::2]) == {10}  # what each may lose
    shown = capsys.readouterr().out.splitlines()
    *_, why, end = (line for line in shown if not line.startswith("{"))
    assert why == f"stopped   {callback.stopped}"
    assert end.split()[:2] == ["end", CHOICES[0]]
    assert "(24 questions" in end
    short = make_trainer(tmp_path, [], max_steps=max(1, kept), **settings)
    if kept:
        short.train()
    expected = short.model.state_dict()
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(weight, expected[name]), name
    assert callback.findings.passes(**dict.fromkeys(CHOICES, 0.5))


@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
def test_a_look_leaves_room_for_training(lora: Any, tmp_path: Path, monkeypatch: Patch) -> None:
    """They come after the batch was chosen: 12 bytes of what is trained, in float32."""
    held: list[int] = []

    def choose(model: LoadedModel, *arguments: Any, **options: Any) -> BackendOptions:
        held.append(model.memory_bytes)
        return choose_backend(model, *arguments, **options)

    monkeypatch.setattr("slimdown.evaluation.evaluator.choose_backend", choose)
    callback = make_callback(benchmarks=CHOICES, limit=4)
    trainer = make_trainer(tmp_path, [callback], lora=lora, max_steps=1)
    n_trained = trainer.get_num_trainable_parameters()
    n_all = sum(p.numel() for p in trainer.model.parameters())
    trainer.train()
    assert held[0] == pytest.approx(4 * n_all + 12 * n_trained, rel=0.01)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_steps": 1}, "a look every 2 steps is beyond the 1 steps"),
        (
            {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"},
            "both choose the weights",
        ),
    ],
)
def test_a_training_that_would_not_be_ended_so_is_refused(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    trainer = make_trainer(
        tmp_path, [make_callback(benchmarks=CHOICES, stop_on_forgetting=True)], **settings
    )
    with pytest.raises(ModelError, match=message):
        trainer.train()


def test_findings_are_those_of_the_last_training(tmp_path: Path) -> None:
    """The second one keeps its best weights, which are there only once it has ended."""
    callback = make_callback(benchmarks=CHOICES)
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "save_strategy": "steps"}
    steps = {"eval_steps": 3, "save_steps": 3, "learning_rate": 0.1}
    trainer = make_trainer(tmp_path, [callback], **best, **steps)
    trainer.train()
    first = callback.findings
    trainer.train()
    assert callback.findings is not first
    measured = slimdown.measure(trainer.model, trainer.processing_class, CHOICES, limit=6)
    for name, benchmark in measured.benchmarks.items():
        change = callback.findings.benchmarks[name].primary
        assert change.tuned.value == pytest.approx(benchmark.score.value)


def test_a_training_within_its_budgets_ends_by_itself(tmp_path: Path) -> None:
    callback = make_callback(benchmarks=CHOICES, stop_on_forgetting=True)
    trainer = make_trainer(tmp_path, [callback], learning_rate=1e-5)
    trainer.train()
    assert trainer.state.global_step == 6
    assert callback.stopped == ""
    assert get_losses(trainer)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"benchmarks": BENCHMARKS, "every": 0, "questions": 4}, "questions=4: every=0 looks at"),
        ({"benchmarks": BENCHMARKS, "every": 0, "stop_on_forgetting": True}, "set every"),
        ({"benchmarks": [TARGET], "stop_on_forgetting": True}, "a benchmark that is retained"),
        ({"benchmarks": BENCHMARKS, "every": -1}, "every=-1 must be a whole number of at least 0"),
        ({"benchmarks": BENCHMARKS, "every": 0.5}, "every=0.5 must be a whole number"),
        ({"benchmarks": BENCHMARKS, "stop_on_forgetting": "no"}, "must be True or False"),
        ({"benchmarks": BENCHMARKS, "questions": 0}, "questions=0 must be a whole number"),
        ({"benchmarks": BENCHMARKS, "limit": 0}, "limit=0 must be a whole number of at least 1"),
        ({"benchmarks": BENCHMARKS, "limit": "x"}, "limit='x' must be a whole number"),
        ({"benchmarks": BENCHMARKS, "log": "wandb"}, "log='wandb' must be a function"),
    ],
)
def test_a_mistake_is_refused_before_training(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        slimdown.ForgettingCallback(**settings)
