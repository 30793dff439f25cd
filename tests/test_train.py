"""Only the adapter learns; nothing done before can change what it learns."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
import trl
from conftest import SMALL

from bench.families import tiny
from slimdown.config.schema import RunConfig
from slimdown.data.loading import load_data
from slimdown.data.tokens import IGNORED
from slimdown.evaluation.harness import evaluate
from slimdown.evaluation.questions import load_tasks
from slimdown.evaluation.rows_apart import attention_by_row
from slimdown.models.dequantize import dequantized, is_4bit
from slimdown.models.model import LoadedModel, load_model
from slimdown.training.fine_tune import StepRecord, Tuned, check_settings, fine_tune
from slimdown.training.lean import SummedLoss, _once
from slimdown.training.rows import prepare_rows
from slimdown.utils.errors import SlimdownError

Composed = Callable[..., RunConfig]


def tuned(config: RunConfig, folder: Path, measure_first: bool = False) -> Tuned:
    base = load_model(config.model, config.quantization)
    data = load_data(config.dataset, config.seed, base.tokenizer)
    rows = prepare_rows(base, data, config.train)
    if measure_first:
        evaluate(base, load_tasks(config.benchmark), config.benchmark, config.evaluation)
    return fine_tune(base, rows, config.method, config.lora, config.train, config.seed, folder)


def digest(adapter: Path) -> str:
    return hashlib.sha256((adapter / "adapter_model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def small() -> RunConfig:
    from hydra import compose, initialize_config_dir

    from slimdown.config.files import CONF_DIR
    from slimdown.config.loader import load_config

    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return load_config(compose("config", overrides=SMALL))


@pytest.fixture(scope="module")
def once(small: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    return tuned(small, tmp_path_factory.mktemp("once"))


def test_the_adapter_changes_and_the_base_does_not(pocket: LoadedModel, once: Tuned) -> None:
    fresh = {name: p.detach() for name, p in pocket.model.named_parameters()}
    trained = dict(once.model.model.named_parameters())
    kept = {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): p.detach()
        for name, p in trained.items()
        if "lora_" not in name
    }
    assert kept.keys() == fresh.keys()
    assert all(torch.equal(kept[name], fresh[name]) for name in fresh)
    moved = [p for name, p in trained.items() if "lora_B" in name]  # they start at zero
    assert moved
    assert all(p.abs().max() > 0 for p in moved)


def test_measuring_before_training_changes_nothing(
    small: RunConfig, once: Tuned, tmp_path: Path
) -> None:
    again = tuned(small, tmp_path, measure_first=True)
    assert digest(again.training.adapter_dir) == digest(once.training.adapter_dir)
    assert again.training.history == once.training.history


def test_gradients_after_a_measurement_equal_gradients_without_one(
    small: RunConfig, pocket: LoadedModel
) -> None:
    def gradients(base: LoadedModel) -> list[torch.Tensor]:
        torch.manual_seed(0)
        wrapped = peft.get_peft_model(
            base.model,
            peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False),
        )
        tokens = torch.arange(3, 60)[None]
        wrapped(input_ids=tokens, labels=tokens).loss.backward()
        return [p.grad for p in wrapped.parameters() if p.grad is not None]

    measured = load_model(small.model, small.quantization)
    evaluate(measured, load_tasks(small.benchmark), small.benchmark, small.evaluation)
    with_one, without = gradients(measured), gradients(pocket)
    assert len(without) == len(with_one) == 2 * 2 * pocket.model.config.num_hidden_layers
    assert all(torch.equal(a, b) for a, b in zip(with_one, without, strict=True))
    assert all(g.abs().max() > 0 for g in without)


def test_another_seed_gives_another_adapter(
    composed: Composed, once: Tuned, tmp_path: Path
) -> None:
    other = tuned(composed(*SMALL, "seed=1", "train.max_steps=2"), tmp_path)
    assert digest(other.training.adapter_dir) != digest(once.training.adapter_dir)


def test_the_record_adds_up(once: Tuned) -> None:
    result = once.training
    assert result.steps == len(result.history) == 8  # 64 rows in batches of 8
    assert [record.step for record in result.history] == list(range(1, 9))
    assert {"loss", "learning_rate", "grad_norm"} <= result.history[0].values.keys()
    assert result.validation_loss_after < result.validation_loss_before
    # r * (inputs + outputs) of q, k and v in each layer
    config = once.model.model.config
    width, kv = (
        config.hidden_size,
        config.hidden_size // config.num_attention_heads * config.num_key_value_heads,
    )
    assert result.n_trainable == config.num_hidden_layers * 8 * ((width + width) + 2 * (width + kv))
    assert result.trainable_percent == pytest.approx(
        100 * result.n_trainable / once.model.n_parameters
    )
    assert result.tokens > 64 * 10
    assert result.tokens_per_second == pytest.approx(result.tokens / result.runtime_seconds)


def test_the_adapter_reloads_with_plain_peft_and_gives_the_same_logits(
    once: Tuned, pocket: LoadedModel
) -> None:
    tokens = torch.arange(3, 60)[None]
    reloaded = peft.PeftModel.from_pretrained(pocket.model, once.training.adapter_dir).eval()
    with torch.no_grad():
        assert torch.equal(
            reloaded(input_ids=tokens).logits, once.model.model(input_ids=tokens).logits
        )


def test_the_adapter_names_its_base_by_id_and_holds_no_path_of_this_machine(once: Tuned) -> None:
    text = (once.training.adapter_dir / "adapter_config.json").read_text()
    assert '"base_model_name_or_path": "pocket:model"' in text
    assert str(Path.home()) not in text


def test_steps_are_told_as_they_happen(
    composed: Composed, pocket: LoadedModel, tmp_path: Path
) -> None:
    config = composed(*SMALL, "train.max_steps=3")
    steps: list[StepRecord] = []
    progress: list[tuple[int, int]] = []
    data = load_data(config.dataset, 0, pocket.tokenizer)
    rows = prepare_rows(pocket, data, config.train)
    result = fine_tune(
        pocket, rows, config.method, config.lora, config.train, 0, tmp_path, on_step=steps.append,
        on_progress=lambda done, total, note: progress.append((done, total)),
    ).training  # fmt: skip
    assert tuple(steps) == result.history
    assert progress == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("override", "answer"),
    [
        (
            "lora.target_modules=[q_proj,query]",
            "has no query; its linear layers are down_proj, gate_proj, k_proj",
        ),
        ("train.max_length=100000", "is beyond the 512 tokens that pocket:model was made for"),
        (
            "lora=all_linear lora.r=400",
            r"the adapter would have .* and pocket:model has .*; the largest adapter that is smaller has",
        ),
        (
            "train.optim=galore_adamw",
            r"train\.optim=galore_adamw cannot be used here: .*; train\.optim=adamw_torch can",
        ),
        (
            "train.lr_scheduler_type=cosine_with_min_lr",
            r"cannot be used here: .*; train\.lr_scheduler_type=linear can",
        ),
        (
            "train.lr_scheduler_type=reduce_lr_on_plateau",
            r"^train\.lr_scheduler_type=reduce_lr_on_plateau cannot be used here: .*eval.*; .*type=linear can",
        ),
    ],
)
def test_settings_that_the_model_cannot_take_are_refused(
    override: str, answer: str, composed: Composed, pocket: LoadedModel
) -> None:
    config = composed(*SMALL, *override.split())
    with pytest.raises(SlimdownError, match=answer):
        check_settings(pocket, config.method, config.lora, config.train)


@pytest.mark.parametrize(
    ("learning_rate", "spoils_gradient", "step"), [("1e20", False, 3), ("50", True, 2)]
)
def test_training_ends_at_the_step_whose_loss_or_gradient_is_not_a_number(
    learning_rate: str,
    spoils_gradient: bool,
    step: int,
    composed: Composed,
    pocket: LoadedModel,
    tmp_path: Path,
) -> None:
    config = composed(*SMALL, f"train.learning_rate={learning_rate}")
    data = load_data(config.dataset, 0, pocket.tokenizer)
    rows = prepare_rows(pocket, data, config.train)
    steps: list[StepRecord] = []

    def on_step(record: StepRecord) -> None:
        steps.append(record)
        if (
            spoils_gradient
        ):  # which learning rate does it by itself differs between versions of torch
            adapter = next(p for p in pocket.model.parameters() if p.requires_grad)
            adapter.register_hook(lambda gradient: gradient * float("nan"))

    with pytest.raises(
        SlimdownError, match="the grad_norm is nan" if spoils_gradient else "the loss is nan"
    ) as ended:
        fine_tune(
            pocket, rows, config.method, config.lora, config.train, 0, tmp_path, on_step=on_step
        )
    assert [record.step for record in steps] == list(range(1, step + 1))
    for said in (
        f"at step {step} of 8",
        f"train.learning_rate={float(learning_rate):g}",
        "e.g. 0.002",
        "warmup_steps",
    ):
        assert said in str(ended.value)


def test_a_model_that_becomes_no_number_in_the_last_step_is_not_handed_on(
    composed: Composed, pocket: LoadedModel, tmp_path: Path
) -> None:
    config = composed(
        *SMALL, "train.learning_rate=1e30", "train.warmup_steps=0", "train.max_steps=1"
    )
    data = load_data(config.dataset, 0, pocket.tokenizer)
    rows = prepare_rows(pocket, data, config.train)
    with pytest.raises(SlimdownError, match=r"after the last step: the validation loss is (nan|inf)"):
        fine_tune(pocket, rows, config.method, config.lora, config.train, 0, tmp_path)


@pytest.mark.parametrize(
    "only", ["train.completion_only_loss=true", "train.completion_only_loss=false"]
)
def test_rows_cut_to_nothing_are_refused_before_the_base_is_measured(
    only: str, composed: Composed, pocket: LoadedModel
) -> None:
    config = composed(*SMALL, "train.max_length=8", only)
    data = load_data(config.dataset, 0, pocket.tokenizer)
    longest = max(
        len(pocket.tokenizer(row["prompt"] + row["completion"]).input_ids) for row in data.train
    )
    with pytest.raises(
        SlimdownError, match="cuts the whole completion off each of the 64 training rows"
    ) as refused:
        prepare_rows(pocket, data, config.train)
    assert f"train.max_length={longest} keeps every row whole" in str(refused.value)


def test_rows_that_are_cut_are_counted_as_trl_cuts_them(
    composed: Composed, pocket: LoadedModel, tmp_path: Path
) -> None:
    config = composed(*SMALL, "train.max_length=31", "train.max_steps=1")
    data = load_data(config.dataset, 0, pocket.tokenizer)
    rows = prepare_rows(pocket, data, config.train)
    lengths = [
        len(pocket.tokenizer(row["prompt"] + row["completion"]).input_ids) for row in data.train
    ]
    cut = rows.cut
    assert (cut.n_rows, cut.longest) == (64, max(lengths))
    assert 0 < cut.n_cut == sum(length > 31 for length in lengths) < 64
    assert len(rows.train) == 64 - cut.n_lost  # TRL drops what has no label left
    assert cut.n_untrained == cut.n_lost
    result = fine_tune(pocket, rows, config.method, config.lora, config.train, 0, tmp_path).training
    assert result.cut == cut
    assert 0 < cut.n_lost < cut.n_cut
    assert str(cut).startswith(
        f"train.max_length=31 cuts {cut.n_cut} of 64 rows ({cut.n_lost} of them lose their whole"
    )


def losses(result: Tuned) -> list[float]:
    return [record.values["loss"] for record in result.training.history]


def test_dequantized_training_has_the_losses_of_the_4_bit_layers_and_gives_them_back(
    small: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered = []
    monkeypatch.setattr(
        "slimdown.training.fine_tune.dequantized",
        lambda model: entered.append(model) or dequantized(model),
    )

    def trained(rule: str) -> Tuned:
        base = load_model(small.model, small.quantization)
        rows = prepare_rows(base, load_data(small.dataset, small.seed, base.tokenizer), small.train)
        return fine_tune(
            base, rows, small.method, small.lora, small.train, small.seed, tmp_path / rule, rule
        )

    packed = trained("false")
    assert not entered
    quick = trained("true")
    assert len(entered) == 1
    assert losses(quick) == pytest.approx(losses(packed), rel=1e-4)
    layers = [
        {name: m.weight for name, m in one.model.model.named_modules() if is_4bit(m)}
        for one in (packed, quick)
    ]
    assert layers[0]
    assert layers[0].keys() == layers[1].keys()
    assert all(torch.equal(weight, layers[1][name]) for name, weight in layers[0].items())


# As instructions begin that are put into one template: two of them here, as Alpaca's with an input and without.
ALIKE = (
    "dataset.pocket_instructions.template='Question: here is what there is to do. {instruction}'"
)


@pytest.mark.skipif(trl.__version__ == "1.15.0", reason="its loss needs a GPU")
@pytest.mark.parametrize("template", [[], [ALIKE]])
@pytest.mark.parametrize(
    "only", ["train.completion_only_loss=true", "train.completion_only_loss=false"]
)
def test_steps_have_the_losses_and_counts_of_plain_trl(
    only: str, template: list[str], composed: Composed, tmp_path: Path
) -> None:
    config = composed(*SMALL, *template, only, "train.gradient_accumulation_steps=2")
    lean = tuned(config, tmp_path / "lean")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "slimdown.training.fine_tune.trainer_class", lambda base, model: trl.SFTTrainer
        )
        patch.setattr("slimdown.evaluation.rows_apart.tells_rows_apart", lambda base, model: False)
        plain = tuned(config, tmp_path / "plain")
    for name in ("loss", "grad_norm", "mean_token_accuracy", "num_tokens"):
        ours = [record.values[name] for record in lean.training.history]
        assert ours == pytest.approx(
            [record.values[name] for record in plain.training.history], rel=1e-3
        )
    assert losses(lean) == pytest.approx(losses(plain), rel=1e-4)


@pytest.mark.parametrize("family", ["deepseek_v3", "llama", "mixtral", "olmo2", "phi3", "qwen3"])
def test_the_gradients_of_a_family_are_those_of_its_rows_one_by_one(
    family: str, pocket: LoadedModel
) -> None:
    base = replace(pocket, model=tiny(family))
    model, alike = base.model.train().requires_grad_(True), list(range(20, 32))
    rows = [[*alike, *range(n, 2 * n - 30)] for n in range(36, 40)]
    rows = [*rows, [40, 41, 42], [*rows[0][:15], 7, 9]]
    alone = [
        torch.nn.functional.cross_entropy(
            model(torch.tensor([row])).logits[0, :-1], torch.tensor(row[1:]), reduction="sum"
        )
        for row in rows
    ]
    ids, positions = (
        torch.tensor([[x for row in rows for x in of(row)]])
        for of in (list, lambda row: range(len(row)))
    )
    batch = {"input_ids": ids, "position_ids": positions}
    inputs, place, target, times = _once(batch, ids.masked_fill(positions == 0, IGNORED), True)
    assert inputs["input_ids"].numel() == ids.numel() - 3 * 12 - 15
    with attention_by_row(base):
        hidden = model.base_model(**inputs, use_cache=False).last_hidden_state[0]
    loss, _ = SummedLoss.apply(hidden[place], model.get_output_embeddings().weight, target, times)
    torch.testing.assert_close(loss, sum(alone))
    gradients = [
        torch.autograd.grad(one, list(model.parameters()), allow_unused=True)
        for one in (loss, sum(alone))
    ]
    for ours, its in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, its, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("dropout", "shares"), [("0.0", True), ("0.1", False)])
def test_what_rows_begin_alike_with_is_computed_once_unless_chance_strikes_each(
    dropout: str, shares: bool, composed: Composed, pocket: LoadedModel, tmp_path: Path
) -> None:
    config = composed(*SMALL, ALIKE, f"lora.lora_dropout={dropout}", "train.max_steps=2")
    rows = prepare_rows(pocket, load_data(config.dataset, 0, pocket.tokenizer), config.train)
    computed: list[int] = []
    pocket.model.get_input_embeddings().register_forward_hook(
        lambda module, args, made: computed.append(
            args[0].numel() if torch.is_grad_enabled() else 0
        )
    )
    tokens = fine_tune(
        pocket, rows, config.method, config.lora, config.train, 0, tmp_path, before=1.0
    ).training.tokens
    assert (sum(computed) < tokens - 2 * 7 * 8) if shares else (sum(computed) == tokens)


def test_the_summed_loss_and_its_gradient_are_those_of_cross_entropy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(SummedLoss, "CHUNK", 5)  # the last chunk is a part of one
    monkeypatch.setattr(SummedLoss, "AT_ONCE", 45)  # two rows of 20, and one
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(12, 8, generator=generator, requires_grad=True)
    weight, labels = (
        torch.randn(20, 8, generator=generator),
        torch.randint(20, (12,), generator=generator),
    )
    weight.requires_grad_()
    for times in (None, torch.randint(1, 4, (12,), generator=generator)):
        each = torch.ones(12) if times is None else times.float()
        loss, hits = SummedLoss.apply(hidden, weight, labels, times)
        expected = each @ torch.nn.functional.cross_entropy(
            hidden @ weight.T, labels, reduction="none"
        )
        torch.testing.assert_close(loss, expected)
        gradients = (torch.autograd.grad(3 * one, (hidden, weight)) for one in (loss, expected))
        for ours, its in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, its)
        assert hits == (each * ((hidden @ weight.T).argmax(-1) == labels)).sum()


def test_the_model_attends_as_before_once_trained(once: Tuned) -> None:
    assert once.model.model.config._attn_implementation == "sdpa"
