"""Training: TRL's own steps without its padding, the same whatever came before, and its trial."""

import os
import signal
from contextlib import nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import Any
from unittest.mock import Mock

import peft
import pytest
import torch
import transformers
import trl
from builders import Patch, slow
from commands_and_runs import SMALL
from record_builders import compose_config
from tiny_models import build_byte_tokenizer, build_tiny_model
from training_run import prepare_run

import slimdown
from slimdown.config.engines import ENGINES, Engine
from slimdown.config.schema import RunConfig
from slimdown.data.training_data import load_training_data
from slimdown.evaluation.evaluator import Evaluator
from slimdown.evaluation.tasks import load_tasks
from slimdown.judging.findings import judge
from slimdown.models.base_model import LoadedModel, load_base_model
from slimdown.models.causal import eval_mode
from slimdown.models.device_memory import release_weights
from slimdown.training import fine_tuning, sft
from slimdown.training.fine_tuning import fine_tune, prepare_training
from slimdown.training.result import StepLog
from slimdown.training.tokenizing import TokenizedRows
from slimdown.utils.errors import ModelError


@pytest.mark.skipif(
    find_spec("triton") is not None and not torch.cuda.is_available(),
    reason="where Triton is installed, TRL's own loss needs a GPU",
)
@pytest.mark.parametrize("completion_only", [True, False])
def test_steps_are_those_of_trl(completion_only: bool, tmp_path: Path) -> None:
    settings = ["train.max_steps=4", "quantization=none", "train.gradient_accumulation_steps=2"]
    only = f"train.completion_only_loss={str(completion_only).lower()}"
    run = prepare_run(*SMALL, *settings, only)
    assert run.rows.is_padding_free
    _, result = run.train(tmp_path / "ours")
    trainer = run.build_trl_trainer(tmp_path / "trl")
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    stock = [log for log in trainer.state.log_history if "loss" in log]
    assert run.losses == pytest.approx([log["loss"] for log in stock], rel=2e-4)
    norms = [log.values["grad_norm"] for log in run.logs]
    assert norms == pytest.approx([log["grad_norm"] for log in stock], rel=2e-3)
    assert result.tokens == stock[-1]["num_tokens"]
    assert result.validation_loss_before == pytest.approx(before, rel=0.05)  # mean over batches
    nats, base = [], load_base_model(run.config.model, run.config.quantization)
    for row in run.rows.validation:
        ids, labels = (torch.tensor([row[name]]) for name in ("input_ids", "labels"))
        with torch.no_grad():
            logits = base.model(input_ids=ids).logits[0, :-1]
        trained = labels[0, 1:] != -100
        targets = labels[0, 1:][trained]
        nats += torch.nn.functional.cross_entropy(logits[trained], targets, reduction="none")
    assert result.validation_loss_before == pytest.approx(float(sum(nats)) / len(nats), rel=1e-5)
    assert result.train_loss == pytest.approx(sum(run.losses) / 4)


def test_measuring_before_leaves_training_as_it_is(tmp_path: Path) -> None:
    quiet = prepare_run(*SMALL, "train.max_steps=3", "lora.lora_dropout=0.1")
    measured = quiet.repeat()
    ids = torch.arange(40)[None]
    with eval_mode(measured.base.model):
        before = measured.base.model(input_ids=ids).logits
    torch.randn(1000)  # whatever draws from the generators
    quiet.train(tmp_path / "a")
    tuned, _ = measured.train(tmp_path / "b")
    assert quiet.losses == measured.losses
    moved = [p for name, p in tuned.model.named_parameters() if "lora_B" in name]
    assert len(moved) == 12
    assert all(p.abs().max() > 0 for p in moved)
    with tuned.model.disable_adapter(), torch.no_grad():
        assert torch.equal(tuned.model(input_ids=ids).logits, before)


@pytest.mark.parametrize("method", ["lora", "last_layer quantization=none", *slow("prefix")])
def test_a_killed_training_goes_on(method: str, tmp_path: Path) -> None:
    settings = [*f"method={method}".split(), "lora.lora_dropout=0.1"]
    whole = prepare_run(*SMALL, *settings, "train.max_steps=4", "train.checkpoint_minutes=1e-6")
    killed, resumed = whole.repeat(), whole.repeat()
    _, result = whole.train(tmp_path / "whole")
    killed.train_until(tmp_path / "b", 3)
    _, again = resumed.train(tmp_path / "b")
    assert [log.step for log in resumed.logs] == [1, 2, 3, 4]
    assert resumed.losses == pytest.approx(whole.losses, rel=1e-5)
    assert again.validation_loss_after == pytest.approx(result.validation_loss_after, rel=1e-5)
    assert again.tokens == result.tokens


def test_a_loss_that_is_no_number_ends_a_training(tmp_path: Path) -> None:
    settings = ["train.learning_rate=1e30", "train.warmup_steps=0", "train.max_grad_norm=1e30"]
    run = prepare_run(*SMALL, "train.max_steps=9", *settings)
    with pytest.raises(ModelError, match=r"(nan|inf) in float32.*train\.learning_rate"):
        run.train(tmp_path)


def test_launchers_turn_no_autocast_on(tmp_path: Path, monkeypatch: Patch) -> None:
    """`accelerate launch` passes the precision of its config on in the environment."""
    plain = prepare_run(*SMALL, "train.max_steps=3", "quantization=none")
    launched = plain.repeat()
    plain.train(tmp_path / "a")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    launched.train(tmp_path / "b")
    assert launched.losses == plain.losses


def test_a_copy_for_the_trial_shares_the_weights_of_an_8_bit_base() -> None:
    base = prepare_run(*SMALL, "quantization=int8").base  # is prepared
    layers = [m for m in base.model.modules() if getattr(m, "state", None) is not None]
    held = [layer.state.CB for layer in layers if layer.state.CB is not None]
    weights = {layer.weight.data_ptr() for layer in layers}
    assert len(held) == len(layers) == 28
    assert {copy.data_ptr() for copy in held} == weights
    release_weights(base.model)
    assert not any(copy.numel() for copy in held)


@pytest.mark.parametrize("engine", Engine)
def test_a_scaler_may_skip_a_step(engine: Engine) -> None:
    """Unsloth's trainer has one in float16; a gradient beyond it is none to end a training for."""
    config = replace(compose_config(*SMALL).train, engine=engine)
    callback = sft.TrainingCallback(config, "float16", lambda log: None, lambda *done: None)
    ends = pytest.raises(ModelError, match="grad_norm is inf")
    with nullcontext() if ENGINES[engine].skips_steps else ends:
        callback.log_step(1, 9, {"loss": 1.0, "grad_norm": float("inf")})
    with pytest.raises(ModelError, match="the loss is nan"):
        callback.log_step(2, 9, {"loss": float("nan"), "grad_norm": 1.0})


def test_float16_holds_gradients(tmp_path: Path, monkeypatch: Patch) -> None:
    run = prepare_run(*SMALL, "model.dtype=float16", "quantization=none")
    rows = replace(run.rows, is_padding_free=False)

    def compute_gradients(dtype: torch.dtype) -> torch.Tensor:
        model = run.repeat().base.model.to(dtype)
        torch.manual_seed(0)
        shape = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        adapted = peft.get_peft_model(model, shape).train()
        trainer = sft.build_trainer(adapted, run.base.tokenizer, rows, run.config, tmp_path)
        batch = next(iter(trainer.get_train_dataloader()))  # one of many of a step
        loss = trainer.compute_loss(adapted, batch, num_items_in_batch=torch.tensor(2**22))
        loss.backward()
        return torch.cat([p.grad.flatten() for p in adapted.parameters() if p.grad is not None])

    exact, half = compute_gradients(torch.float32), compute_gradients(torch.float16)
    assert (half - exact).norm() < 0.01 * exact.norm()
    monkeypatch.setattr(sft, "_GRADIENT_SCALE", 1.0)
    lost = compute_gradients(torch.float16)
    assert (lost - exact).norm() > 0.1 * exact.norm()


def make_base(model: Any, dtype: str = "float32") -> LoadedModel:
    model.config._name_or_path = "tiny"
    return LoadedModel(model, build_byte_tokenizer(), "tiny", dtype, n_parameters=1)


def prepare_rows(base: LoadedModel, config: RunConfig) -> TokenizedRows:
    data = load_training_data(config.dataset, base.tokenizer, config.seed)
    return prepare_training(base, data, config)


def prepare_tiny(model: Any, dtype: str = "float32") -> TokenizedRows:
    settings = ["quantization=none", "lora.target_modules=[all-linear]", "train.max_length=128"]
    return prepare_rows(make_base(model, dtype), compose_config(*SMALL, *settings))


DOGE_WORKS = pytest.mark.skipif(
    tuple(map(int, trl.__version__.split(".")[:2])) < (1, 15),
    reason="Doge fails in the code of the oldest versions (IndexError)",
)


@DOGE_WORKS
def test_a_mask_that_is_more_than_causal_keeps_its_padding() -> None:
    model = build_tiny_model("doge", keep_window_size=4, router_aux_loss_coef=0.0)
    for layer in model.model.layers:  # what decides which keys its dynamic mask drops
        torch.nn.init.normal_(layer.self_attn.A, std=2.0)
    prepared = prepare_tiny(model)
    assert not prepared.is_padding_free
    assert any("pads its rows" in note for note in prepared.notes)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        pytest.param(
            "doge", {"keep_window_size": 90, "router_aux_loss_coef": 0.0}, marks=DOGE_WORKS
        ),
        ("roberta", {"initializer_range": 0.05}),  # its positions begin at 2
    ],
)
def test_rounding_in_half_precision_hides_no_row_that_another_changes(
    family: str, changes: dict[str, Any]
) -> None:
    model = build_tiny_model(family, **changes)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if name.endswith("self_attn.A"):
            torch.nn.init.normal_(parameter, std=0.5)
    assert not prepare_tiny(model.bfloat16(), "bfloat16").is_padding_free
    assert prepare_tiny(build_tiny_model("llama").bfloat16(), "bfloat16").is_padding_free


def test_a_head_that_changes_logits_trains_on_them(tmp_path: Path) -> None:
    class Scaled(transformers.LlamaForCausalLM):
        def forward(self, *args: Any, logits_to_keep: Any = 0, **kwargs: Any) -> Any:
            outputs = super().forward(*args, logits_to_keep=logits_to_keep, **kwargs)
            outputs.logits = 0.3 * outputs.logits
            return outputs

    model = build_tiny_model("llama")
    model.__class__ = Scaled
    prepared = prepare_tiny(model)
    two = prepared.train.select(range(2))
    rows = replace(prepared, train=two, is_padding_free=False)
    config = compose_config(*SMALL, "train.max_length=128")
    shape = peft.LoraConfig(r=4, target_modules="all-linear")
    adapted = peft.get_peft_model(model, shape).eval()
    trainer = sft.build_trainer(adapted, build_byte_tokenizer(), rows, config, tmp_path)
    batch = trainer.data_collator(list(rows.train))
    with torch.no_grad():
        loss = float(trainer.compute_loss(adapted, dict(batch)))
        labels = batch.pop("labels")
        logits = adapted(**batch).logits[:, :-1]
    own = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
    assert loss == pytest.approx(float(own), rel=1e-4)


@pytest.mark.parametrize(
    "method", ["last_layer quantization=none", *slow("lora", "bottleneck", "prefix")]
)
def test_a_training_that_has_ended_is_not_made_again(
    method: str, tmp_path: Path, monkeypatch: Patch
) -> None:
    whole = prepare_run(*SMALL, *f"method={method}".split(), "train.max_steps=3")
    killed, again = whole.repeat(), whole.repeat()
    tuned, result = whole.train(tmp_path / "whole")

    def kill_after_training(done: int, total: int, words: str) -> None:
        if words == "validating" and killed.logs:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed.train(tmp_path / "b", on_progress=kill_after_training)
    monkeypatch.delattr(transformers.Trainer, "train")
    taken, same = again.train(tmp_path / "b")
    assert again.losses == whole.losses
    assert same.validation_loss_after == result.validation_loss_after
    assert (same.steps, same.tokens) == (result.steps, result.tokens)
    assert taken.identity == tuned.identity


@pytest.mark.parametrize("number", [SIGTERM, *slow(SIGINT)])
def test_a_signal_ends_a_training_when_its_step_is_kept(
    number: signal.Signals, tmp_path: Path
) -> None:
    whole = prepare_run(*SMALL, "train.max_steps=4", "train.checkpoint_minutes=10")
    killed, again = whole.repeat(), whole.repeat()
    whole.train(tmp_path / "whole")

    def stop(log: StepLog) -> None:
        if log.step == 2:
            os.kill(os.getpid(), number)

    # as `slimdown run` has them
    before = {n: signal.signal(n, signal.default_int_handler) for n in (SIGINT, SIGTERM)}
    try:
        with pytest.raises(KeyboardInterrupt):
            killed.train(tmp_path / "b", stop)
        handlers = set(map(signal.getsignal, before))
    finally:
        for handled, handler in before.items():
            signal.signal(handled, handler)
    assert handlers == {signal.default_int_handler}
    assert len(list(tmp_path.glob("b/checkpoint-*"))) == 1
    again.train(tmp_path / "b")
    assert [log.step for log in again.logs] == [1, 2, 3, 4]
    assert again.losses == pytest.approx(whole.losses, rel=1e-5)


def test_a_signal_ends_a_run_that_loads_its_trained_weights(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    (tmp_path / "trained.pt").touch()
    config = compose_config(*SMALL)
    ignore: Any = lambda *done: None  # noqa: E731
    callback = sft.TrainingCallback(config.train, "float32", ignore, ignore, checkpoint_seconds=600)
    monkeypatch.setattr(callback, "load", lambda *_: signal.raise_signal(SIGINT))
    trainer = Mock(transformers.Trainer)
    training = fine_tuning._Training(trainer, None, callback, None, tmp_path, resumes=True)
    before = signal.signal(SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            training.run(Mock(LoadedModel, device="cpu"), Mock(TokenizedRows), config)
    finally:
        signal.signal(SIGINT, before)


@pytest.mark.parametrize("family", ["mixtral", *slow("qwen3_moe")])
def test_experts_are_trained_and_judged(family: str, tmp_path: Path) -> None:
    settings = ["quantization=none", "lora.target_modules=[q_proj,v_proj]", "train.max_length=128"]
    settings += ["model.dtype=float32", "evaluation.apply_chat_template=false"]
    config = compose_config(*SMALL, *settings, "train.max_steps=2")
    base = make_base(build_tiny_model(family, router_aux_loss_coef=0.02))
    rows = prepare_rows(base, config)
    evaluator = Evaluator(load_tasks({"cs": config.benchmark["pocket_cs"]}), config.evaluation)
    before = evaluator.evaluate(base)
    progress: Any = lambda *done: None  # noqa: E731
    tuned, _ = fine_tune(base, rows, config, tmp_path, progress, on_progress=progress)
    assert tuned.model.config.router_aux_loss_coef == 0.02
    after = evaluator.evaluate(tuned)
    assert before.backend == after.backend
    assert "PrefixLM" in after.backend
    assert judge(before, after).benchmarks["cs"].n == 8


def test_a_model_that_trl_wants_router_logits_of_is_measured_as_before() -> None:
    model, tokenizer = build_tiny_model("mixtral", initializer_range=0.05), build_byte_tokenizer()
    before = slimdown.measure(model, tokenizer, "pocket_cs", limit=8)
    model.config.output_router_logits = True  # TRL 1.16 does so when a trainer is made
    after = slimdown.measure(model, tokenizer, before)
    assert model.config.output_router_logits
    assert before.benchmarks["pocket_cs"].samples == after.benchmarks["pocket_cs"].samples
    assert slimdown.judge(before, after).benchmarks["pocket_cs"].n == 8
