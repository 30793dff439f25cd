"""The validation loss is TRL's, from less work; the base's is made once."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
import trl
from conftest import SMALL
from mlflow import MlflowClient
from recorded import settings_of

from bench.families import tiny
from slimdown.config.schema import RunConfig, TrackingConfig
from slimdown.data.loading import load_data
from slimdown.evaluation.measure import loss_key, measure_loss
from slimdown.evaluation.rows_apart import attention_by_row, attention_of_few
from slimdown.evaluation.validation import validation_loss
from slimdown.models.identity import identify
from slimdown.models.model import LoadedModel, load_model
from slimdown.tracking.evaluations import base_records
from slimdown.tracking.write import TrackedRun
from slimdown.training.fine_tune import fine_tune
from slimdown.training.rows import prepare_rows

Composed = Callable[..., RunConfig]
needs_loss_of_trl = pytest.mark.skipif(trl.__version__ == "1.15.0", reason="its loss needs a GPU")
ROWS = [
    "dataset.pocket_instructions.validation_examples=20"
]  # two batches of TRL's and a part of one


def validation_rows(base: LoadedModel, config: RunConfig) -> Any:
    return prepare_rows(base, load_data(config.dataset, 0, base.tokenizer), config.train).validation


def of_trl(base: LoadedModel, config: RunConfig, folder: Path) -> float:
    data = load_data(config.dataset, 0, base.tokenizer)  # whose files TRL works beside
    rows = data.validation
    arguments = trl.SFTConfig(
        output_dir=str(folder),
        per_device_eval_batch_size=config.train.per_device_eval_batch_size,
        max_length=config.train.max_length,
        completion_only_loss=config.train.completion_only_loss,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
    )
    nothing = peft.LoraConfig(
        r=1, target_modules=["q_proj"], task_type="CAUSAL_LM"
    )  # TRL trains no model without one
    trainer = trl.SFTTrainer(
        base.model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=base.tokenizer,
        peft_config=nothing,
    )
    return float(trainer.evaluate()["eval_loss"])


@needs_loss_of_trl
@pytest.mark.parametrize(
    "only", ["train.completion_only_loss=true", "train.completion_only_loss=false"]
)
@pytest.mark.parametrize("longest", [192, 28])  # whole rows, and most of them cut
@pytest.mark.parametrize("padded", [False, True])
def test_the_loss_is_trls(
    only: str, longest: int, padded: bool, composed: Composed, pocket: LoadedModel, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    config = composed(
        *SMALL, *ROWS, only, f"train.max_length={longest}", "train.per_device_eval_batch_size=8"
    )
    rows = validation_rows(pocket, config)
    monkeypatch.setattr("slimdown.evaluation.validation._TOKENS", 150)  # several forwards
    if padded:
        monkeypatch.setattr(
            "slimdown.evaluation.rows_apart.tells_rows_apart", lambda base, model=None: False
        )
        monkeypatch.setattr(
            "slimdown.evaluation.validation.tells_rows_apart", lambda base, model=None: False
        )
    ours = [
        validation_loss(pocket, pocket.model, rows, config.train, rule)
        for rule in ("true", "false")
    ]
    assert ours == pytest.approx([of_trl(pocket, config, tmp_path)] * 2, rel=1e-5)


@needs_loss_of_trl
def test_the_loss_of_a_family_whose_head_goes_past_its_base_model_is_trls(
    composed: Composed, pocket: LoadedModel, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    shape = transformers.OPTConfig(
        vocab_size=len(pocket.tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48,
        word_embed_proj_dim=32, max_position_embeddings=256,
    )  # fmt: skip
    opt = replace(pocket, model=transformers.OPTForCausalLM(shape).eval())
    config = composed(*SMALL, *ROWS, "train.per_device_eval_batch_size=8")
    rows = validation_rows(pocket, config)
    assert validation_loss(opt, opt.model, rows, config.train) == pytest.approx(
        of_trl(opt, config, tmp_path), rel=1e-5
    )


def test_what_rows_begin_alike_with_is_computed_once(
    composed: Composed, pocket: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    alike, train = list(range(20, 40)), composed(*SMALL, "train.per_device_eval_batch_size=1").train
    rows = [
        [*alike, 50, 51, 52],
        [*alike, 60, 61],
        [*alike[:10], 70],
        alike,
        [*alike, 50, 51, 53],
        [80, 81, 82],
    ]
    each = [
        validation_loss(pocket, pocket.model, {"input_ids": [row], "labels": [row]}, train)
        for row in rows
    ]
    computed: list[int] = []
    pocket.model.get_input_embeddings().register_forward_hook(
        lambda *called: computed.append(called[1][0].numel())
    )
    together = {"input_ids": rows, "labels": rows}
    assert validation_loss(pocket, pocket.model, together, train) == pytest.approx(
        sum(each) / len(each), rel=1e-5
    )
    assert computed == [20 + 4 + 2 + 1 + 3]
    computed.clear()
    monkeypatch.setattr("slimdown.evaluation.validation._TOKENS", 28)
    assert validation_loss(pocket, pocket.model, together, train) == pytest.approx(
        sum(each) / len(each), rel=1e-5
    )
    assert computed == [27, 3]


@pytest.mark.parametrize(
    "family", ["deepseek_v3", "gpt2", "gptj", "llama", "opt", "phi3", "qwen3_moe"]
)
def test_whatever_the_kind_of_positions_the_loss_is_that_of_padded_rows(
    family: str, composed: Composed, pocket: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, train = replace(pocket, model=tiny(family)), composed(*SMALL).train
    alike = list(range(20, 40))
    rows = [[*alike[: 20 - 5 * (n % 2)], *range(n, 3 * n)] for n in range(50, 56)]
    rows = {"input_ids": rows, "labels": rows}
    shared = validation_loss(base, base.model, rows, train)
    for module in ("rows_apart", "validation"):
        monkeypatch.setattr(
            f"slimdown.evaluation.{module}.tells_rows_apart", lambda base, model=None: False
        )
    assert validation_loss(base, base.model, rows, train) == pytest.approx(shared, rel=1e-5)


@pytest.mark.parametrize("scaling", [None, 0.3])
def test_attention_of_few_tokens_is_torchs(scaling: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"query": (1, 6, 5, 16), "key": (1, 2, 9, 16), "value": (1, 2, 9, 8)}
    states = {
        name: torch.randn(shape, generator=generator, requires_grad=True)
        for name, shape in shapes.items()
    }
    mask = torch.ones(5, 9, dtype=torch.bool).tril(4)
    ours = attention_of_few(**states, mask=mask, scaling=scaling)
    its = torch.nn.functional.scaled_dot_product_attention(
        **states, attn_mask=mask, scale=scaling, enable_gqa=True
    ).transpose(1, 2)
    torch.testing.assert_close(ours, its)
    for one, other in zip(
        *(torch.autograd.grad((x**2).sum(), states.values()) for x in (ours, its)), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_only_training_attends_by_the_formula_and_its_loss_is_near(
    composed: Composed, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = composed(*SMALL, *ROWS, "quantization=none", "model.dtype=bfloat16")
    base = load_model(config.model, config.quantization)
    rows = validation_rows(base, config)
    tokens = torch.tensor([rows[0]["input_ids"][:60]])
    batch = {
        "input_ids": tokens,
        "position_ids": torch.arange(tokens.shape[1])[None],
        "labels": tokens,
    }

    def losses() -> tuple[float, float]:
        with attention_by_row(base):
            trained = base.model(**batch).loss
        assert trained.requires_grad
        return float(trained.detach()), validation_loss(base, base.model, rows, config.train)

    base.model.requires_grad_(True)
    by_formula, measured = losses()
    monkeypatch.setattr("slimdown.evaluation.rows_apart.SHORT", 0)
    by_torch, as_before = losses()
    assert measured == as_before
    assert by_formula != by_torch
    assert by_formula == pytest.approx(by_torch, rel=2e-3)


def test_the_model_is_handed_back_as_it_came(composed: Composed, pocket: LoadedModel) -> None:
    config = composed(*SMALL)
    rows = validation_rows(pocket, config)
    before, generator = identify(pocket.model, pocket.tokenizer), torch.get_rng_state()
    pocket.model.train()
    validation_loss(pocket, pocket.model, rows, config.train)
    assert pocket.model.training
    assert identify(pocket.model, pocket.tokenizer) == before
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_loss_that_is_known_is_not_measured_again(
    composed: Composed, pocket: LoadedModel, tmp_path: Path
) -> None:
    config = composed(*SMALL, "train.max_steps=1")
    rows = prepare_rows(pocket, load_data(config.dataset, 0, pocket.tokenizer), config.train)
    result = fine_tune(
        pocket, rows, config.method, config.lora, config.train, 0, tmp_path, before=1.25
    ).training
    assert result.validation_loss_before == 1.25


def test_the_bases_loss_is_made_once_and_found_to_the_last_digit(
    store: MlflowClient, composed: Composed, pocket: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = composed(*SMALL)
    rows = validation_rows(pocket, config)
    made: list[float] = []

    def once(*arguments: Any) -> float:
        made.append(validation_loss(*arguments))
        return made[-1]

    monkeypatch.setattr("slimdown.evaluation.measure.validation_loss", once)
    local = TrackingConfig(uri="sqlite:///mlruns/mlflow.db", experiment="slimdown")
    found = []
    for reuse in (True, True, False):
        with (
            TrackedRun(local, "a run", kind="tuned", tags={}) as run,
            base_records(settings_of(local, reuse), pocket, run)() as record,
        ):
            found.append(measure_loss(pocket, rows, config.train, "auto", record))
    assert len(made) == 2  # the second run took it; the third was asked to measure anew
    assert found == [made[0], made[0], made[1]]


def test_what_a_loss_depends_on_is_in_its_key(composed: Composed, pocket: LoadedModel) -> None:
    config = composed(*SMALL)
    train = config.train

    def prepared(**settings: Any) -> Any:
        return validation_rows(pocket, replace(config, train=replace(train, **settings)))

    rows = prepared()
    keys = [
        loss_key(pocket, rows, train, "true"),
        loss_key(pocket, rows, train, "false"),
        loss_key(pocket, rows.select(range(5)), train, "true"),
        loss_key(pocket, prepared(max_length=40), train, "true"),
        loss_key(pocket, prepared(completion_only_loss=False), train, "true"),
        loss_key(pocket, rows, replace(train, per_device_eval_batch_size=3), "true"),
        loss_key(
            replace(pocket, identity={**pocket.identity, "weights": "others"}), rows, train, "true"
        ),
    ]
    assert len(set(keys)) == len(keys)
    same = replace(
        train,
        learning_rate=1.0,
        per_device_train_batch_size=1,
        num_train_epochs=9,
        max_grad_norm=0.1,
    )
    assert loss_key(pocket, rows, same, "true") == keys[0]  # how it will be trained is no matter
