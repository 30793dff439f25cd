"""Any model, measured before and after somebody's own training: handed back as it came, judged, shown."""

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import (
    LoraConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import slimdown
from slimdown.config.schema import BenchmarkConfig, RunConfig
from slimdown.evaluation.answers import Evaluation
from slimdown.evaluation.harness import evaluate
from slimdown.evaluation.questions import load_tasks
from slimdown.models.model import load_model
from slimdown.pocket import MODEL_DIR
from slimdown.stats.budget import Outcome
from slimdown.utils.errors import SlimdownError

ASKED = ["pocket_math", "pocket_cs"]
TOKENIZER = AutoTokenizer.from_pretrained(MODEL_DIR)
LORA = LoraConfig(task_type="CAUSAL_LM", r=4, lora_dropout=0.2, target_modules=["q_proj", "v_proj"])


def plain(**settings: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL_DIR, **{"dtype": torch.float32, **settings})


def spoil(model: Any) -> Any:
    """What a careless training does: every weight moved a little."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return model


@pytest.fixture(scope="module")
def before() -> Evaluation:
    return slimdown.measure(plain(), TOKENIZER, ASKED, limit=40)


@pytest.fixture(scope="module")
def findings(before: Evaluation) -> slimdown.Findings:
    return slimdown.judge(before, slimdown.measure(spoil(plain()), TOKENIZER, before))


def answers(evaluation: Evaluation) -> dict[str, Any]:
    return {name: report.samples for name, report in evaluation.benchmarks.items()}


# --- measured as a run measures --------------------------------------------------------------------------


def test_it_answers_as_in_a_run(composed: Callable[..., RunConfig], before: Evaluation) -> None:
    config = composed("quantization=none", f"benchmark=[{','.join(ASKED)}]")
    chosen = {name: replace(benchmark, limit=40) for name, benchmark in config.benchmark.items()}
    loaded = load_model(config.model, config.quantization)
    assert answers(evaluate(loaded, load_tasks(chosen), chosen, config.evaluation)) == answers(
        before
    )
    assert {name: report.benchmark for name, report in before.benchmarks.items()} == chosen


def test_a_task_of_the_harness_brings_its_own_metric_shots_and_chance() -> None:
    report = slimdown.measure(plain(), TOKENIZER, "pocket_cs_dev", limit=3).benchmarks[
        "pocket_cs_dev"
    ]
    assert report.benchmark == BenchmarkConfig("pocket_cs_dev", "acc", 0, 0.25, limit=3)


def test_settings_go_above_a_benchmarks_own() -> None:
    asked = [
        {"task": "pocket_commonsense", "metric": "acc", "limit": 2},
        BenchmarkConfig("pocket_cs", "acc", 0, 0.5),
    ]
    found = slimdown.measure(plain(), TOKENIZER, asked, limit=3).benchmarks
    assert [(b.benchmark.metric, b.benchmark.chance, len(b.samples)) for b in found.values()] == [
        ("acc", 0.25, 3),
        ("acc", 0.5, 3),
    ]


def test_an_evaluation_is_shown_without_its_answers(before: Evaluation) -> None:
    assert "pocket_cs" in repr(before)
    assert "Sample(" not in repr(before)


# --- handed back as it came ---------------------------------------------------------------------------------


@pytest.fixture
def one_process() -> Iterator[None]:
    AcceleratorState._reset_state(
        reset_partial_state=True
    )  # of a trainer that another test made in this process
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def lora() -> Any:
    return get_peft_model(plain(), LORA)


def four_bit() -> Any:
    settings = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    return get_peft_model(plain(quantization_config=settings), LORA)


def with_autocast() -> Any:
    return Accelerator(mixed_precision="bf16", cpu=True).prepare_model(lora())


def half_frozen() -> Any:
    model = lora().train()
    model.base_model.model.model.layers[0].eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_B" in name)
    model.config.use_cache = False
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    return model


def with_own_head() -> Any:
    """An adapter with a trained copy of the head, whose base shares the head with the embeddings."""
    return get_peft_model(
        plain(), LoraConfig(task_type="CAUSAL_LM", r=2, modules_to_save=["lm_head"])
    )


def in_ddp() -> Any:
    return DistributedDataParallel(lora())


def trained(make: Callable[[], Any], measured: bool) -> tuple[Any, list[float], Any]:
    """The model after a few steps, its losses, and the draws that come next; measured amid a step or not."""
    torch.manual_seed(0)
    model = make()
    if make is not half_frozen:
        model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    tokens = torch.tensor(
        [TOKENIZER("What is a compiler? a program that translates programs").input_ids]
    )
    random.seed(2)
    np.random.seed(2)
    torch.manual_seed(2)
    losses = []
    for step in range(4):
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        losses.append(loss.item())
        if measured and step == 2:  # gradients lie ready
            shape = state_of(model)
            slimdown.measure(model, TOKENIZER, "pocket_cs", limit=4)
            assert state_of(model) == shape
        if step % 2:
            optimizer.step()
            optimizer.zero_grad()
    return model, losses, (random.random(), np.random.rand(), torch.rand(1).item())


def state_of(model: Any) -> Any:
    """What measuring could leave behind, beside the numbers: modes, flags, hooks, layouts, configs."""
    inner = getattr(model, "module", model)
    modules = [
        (
            name,
            type(module),
            module.training,
            sorted(vars(module)),
            len(module._forward_hooks),
            len(module._forward_pre_hooks),
            getattr(module, "support_avx512bf16_for_cpu", None),
        )
        for name, module in model.named_modules()
    ]
    tensors = [
        (name, p.requires_grad, p.dtype, p.shape, p.grad is not None and p.grad.sum().item())
        for name, p in model.named_parameters()
    ]
    config = (
        inner.config.to_dict(),
        inner.generation_config.to_dict(),
        inner.config._attn_implementation,
    )
    return (
        modules,
        tensors,
        config,
        TOKENIZER.padding_side,
        TOKENIZER.init_kwargs,
        vars(inner).get("forward"),
    )


@pytest.mark.parametrize(
    "adapter",
    [
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=8),
        PrefixTuningConfig(num_virtual_tokens=8),
    ],
)
def test_a_model_whose_virtual_tokens_are_switched_off_is_its_base(
    adapter: Any, before: Evaluation
) -> None:
    adapter.task_type = "CAUSAL_LM"
    model = get_peft_model(plain(), adapter)
    assert answers(slimdown.measure(model, TOKENIZER, before)) != answers(before)
    with model.disable_adapter():
        assert answers(slimdown.measure(model, TOKENIZER, before)) == answers(before)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "make", [plain, lora, four_bit, with_autocast, half_frozen, with_own_head, in_ddp]
)
def test_training_goes_on_as_if_nothing_had_been_measured(
    make: Callable[[], Any], one_process: None
) -> None:
    alone, losses, draws = trained(make, measured=False)
    model, other_losses, other_draws = trained(make, measured=True)
    assert other_losses == losses
    assert losses[-1] < losses[0]  # gradients flow
    assert other_draws == draws
    for (name, one), other in zip(
        alone.state_dict().items(), model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name


def test_ddp_keeps_its_hold_on_the_gradients_of_a_family_that_nobody_tried(
    one_process: None,
) -> None:
    """A trial would compute in float32, in weights that DDP then watches no more."""

    class OfMyOwn(LlamaForCausalLM): ...

    wrapped, reduced = (
        DistributedDataParallel(OfMyOwn.from_pretrained(MODEL_DIR, dtype=torch.bfloat16)),
        [],
    )

    def reduce(state: None, bucket: distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
        reduced.append(bucket.index())
        done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    wrapped.register_comm_hook(None, reduce)
    for times in (1, 2):
        wrapped(input_ids=torch.tensor([[5, 6]]), labels=torch.tensor([[5, 6]])).loss.backward()
        assert reduced.count(0) == times
        slimdown.measure(wrapped, TOKENIZER, "pocket_cs", limit=2)


def test_the_weights_own_numbers_are_measured_whatever_a_trainer_puts_around_them(
    before: Evaluation, one_process: None
) -> None:
    again = plain()
    for _ in range(2):  # a cell that is run twice
        Accelerator(mixed_precision="bf16", cpu=True).prepare_model(again)
    assert answers(slimdown.measure(again, TOKENIZER, before)) == answers(before)
    with torch.no_grad():
        assert (
            again(input_ids=torch.tensor([[5, 6]])).logits.dtype == torch.float32
        )  # of bfloat16, by the trainer
    for wrapped in (DistributedDataParallel(plain()), torch.compile(plain(), backend="eager")):
        assert answers(slimdown.measure(wrapped, TOKENIZER, before)) == answers(before)


# --- scored alike -------------------------------------------------------------------------------------------


def test_a_base_and_what_peft_makes_of_it_in_place_are_scored_alike(before: Evaluation) -> None:
    model = plain()
    get_peft_model(model, LORA)
    for tuned in (
        slimdown.measure(model, TOKENIZER, ASKED, limit=40),
        slimdown.measure(model, TOKENIZER, before),
    ):
        found = slimdown.judge(before, tuned)
        assert [b.primary.difference.value for b in found.changes.benchmarks.values()] == [0, 0]


def test_an_adapter_that_looks_at_the_row_asks_for_stock() -> None:
    def p_tuned() -> Any:
        return get_peft_model(
            plain(), PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
        )

    shared = slimdown.measure(plain(), TOKENIZER, "pocket_cs", limit=4)
    with pytest.raises(SlimdownError, match="P_TUNING adapter; measure both with stock=True"):
        slimdown.measure(p_tuned(), TOKENIZER, shared)
    alone = slimdown.measure(p_tuned(), TOKENIZER, "pocket_cs", limit=4)
    with pytest.raises(
        SlimdownError, match=r"scoring_path differs.*measure\(model, tokenizer, before\)"
    ):
        slimdown.judge(shared, alone)
    stock = slimdown.measure(plain(), TOKENIZER, "pocket_cs", limit=4, stock=True)
    assert (
        slimdown.judge(stock, slimdown.measure(p_tuned(), TOKENIZER, stock))
        .changes.benchmarks["pocket_cs"]
        .n
        == 4
    )


# --- judged and shown -----------------------------------------------------------------------------------------


def test_findings_show_themselves(findings: slimdown.Findings, tmp_path: Path) -> None:
    shown = findings._repr_html_()
    assert '<span class="badge forgotten">' in shown
    assert "Forgotten: pocket_math" in shown
    assert "pocket_math" in repr(findings)
    table = findings.table()
    assert isinstance(table, pd.DataFrame)
    rows = table.dropna(subset="verdict").set_index("benchmark")
    assert (
        rows.loc["pocket_cs", "change"]
        == findings.changes.benchmarks["pocket_cs"].primary.difference.value
    )
    page = findings.save(tmp_path / "page.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "pocket_math" in page


def test_only_a_loss_that_is_shown_to_be_within_its_budget_passes(
    findings: slimdown.Findings,
) -> None:
    fell = -findings.changes.benchmarks["pocket_math"].primary.difference.value
    assert fell > 0.3
    beyond = findings.passes(pocket_math=0.02)
    assert (bool(beyond), beyond.outcome) == (False, Outcome.beyond)
    open_ = findings.passes(pocket_math=fell)
    assert (bool(open_), open_.outcome) == (False, Outcome.undecided)
    assert "questions cannot tell" in repr(open_)
    assert findings.passes(pocket_math=0.999)
    assert not findings.passes(pocket_math=0.999, pocket_cs=0.0)
    assert [j.budget for j in findings.passes().judgements] == [0.02, 0.02]


# --- mistakes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("benchmarks", "settings", "answer"),
    [
        ("pocket_sc", {}, "pocket_sc: there is no such benchmark; did you mean pocket_cs"),
        (["hellaswog"], {}, "hellaswog: there is no such benchmark; did you mean hellaswag?"),
        (["arc_easi"], {}, "arc_easi: the harness has no such task; did you mean arc_easy"),
        ([], {}, "no benchmark is named; name some of gsm8k"),
        ([3], {}, "3 names no benchmark"),
        (["pocket_cs", "pocket_cs"], {}, "pocket_cs is named twice"),
        (
            [{"task": "pocket_cs", "limt": 3}],
            {},
            "pocket_cs: limt is not a setting; did you mean limit?",
        ),
        ("pocket_cs", {"limit": 0}, "pocket_cs: limit must be at least 1, got 0"),
        (
            "pocket_cs",
            {"limit": "many"},
            "Value 'many' of type 'str' could not be converted to Integer",
        ),
        ("pocket_cs", {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ("pocket_cs", {"num_fewshot": 3}, "asked without worked examples"),
        ("pocket_cs", {"apply_chat_template": True}, "this model's tokenizer has no chat template"),
    ],
)
def test_what_cannot_be_asked_is_said(
    benchmarks: Any, settings: dict[str, Any], answer: str
) -> None:
    with pytest.raises(SlimdownError) as refused:
        slimdown.measure(plain(), TOKENIZER, benchmarks, **settings)
    assert answer in str(refused.value)


def test_what_is_no_causal_model_is_said() -> None:
    small = T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=16)
    for model, answer in (
        ("gpt2", "the model is a str; give a loaded one"),
        (torch.nn.Linear(2, 2), "the model is a Linear; give a loaded one"),
        (AutoModel.from_pretrained(MODEL_DIR), "LlamaModel is no causal language model"),
        (
            T5ForConditionalGeneration(small),
            "T5ForConditionalGeneration is no causal language model",
        ),
    ):
        with pytest.raises(SlimdownError, match=answer):
            slimdown.measure(model, TOKENIZER, "pocket_cs")
    with pytest.raises(SlimdownError, match="the tokenizer is a NoneType; give the model's own"):
        slimdown.measure(plain(), None, "pocket_cs")


def test_what_cannot_be_compared_is_said(before: Evaluation, findings: slimdown.Findings) -> None:
    with pytest.raises(SlimdownError, match="what was asked before is asked again: leave out limit"):
        slimdown.measure(plain(), TOKENIZER, before, limit=3)
    with pytest.raises(SlimdownError, match="before and after cannot be compared: benchmarks differ"):
        slimdown.judge(before, slimdown.measure(plain(), TOKENIZER, "pocket_cs", limit=2))
    with pytest.raises(SlimdownError, match="after is a Linear"):
        slimdown.judge(before, torch.nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(
        SlimdownError,
        match="budget of pocket_sc: no such benchmark was measured; did you mean pocket_cs",
    ):
        findings.passes(pocket_sc=0.02)
    with pytest.raises(
        SlimdownError, match=r"pocket_cs=2: give a share from 0 up to, not including, 1"
    ):
        findings.passes(pocket_cs=2)


def test_importing_is_free_and_judging_needs_no_torch() -> None:
    script = """
import sys
import slimdown
assert len(sys.modules) < 200 and "measure" in dir(slimdown)
slimdown.judge, slimdown.Findings
assert "torch" not in sys.modules
slimdown.mesure
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "AttributeError: module 'slimdown' has no attribute 'mesure'" in done.stderr
