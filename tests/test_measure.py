"""`slimdown.measure` and `slimdown.judge` on models that somebody else loads and trains."""

import inspect
import json
import math
import random
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
from builders import slow
from peft import (
    LoraConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from record_builders import Patch
from tiny_models import load_in_4bit
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, AutoTokenizer

import slimdown
from slimdown.api.callback import ForgettingCallback
from slimdown.api.measuring import Prompts, build_evaluator
from slimdown.config.benchmark_config import PROMPT_SETTINGS, BenchmarkConfig, ResolvedBenchmark
from slimdown.config.benchmarks import read_benchmarks
from slimdown.config.schema import EvaluationConfig
from slimdown.evaluation.evaluator import Evaluator
from slimdown.evaluation.results import Evaluation
from slimdown.judging.budgets import Outcome
from slimdown.models.causal import wrap_model
from slimdown.pocket import MODEL_DIR
from slimdown.utils.errors import ConfigError, DataError, ModelError, SlimdownError

BENCHMARKS = ["pocket_math", "pocket_cs"]
TOKENIZER = AutoTokenizer.from_pretrained(MODEL_DIR)
LORA = LoraConfig(task_type="CAUSAL_LM", r=4, lora_dropout=0.2, target_modules=["q_proj", "v_proj"])


def load() -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=torch.float32)


def get_answers(evaluation: Evaluation) -> dict[str, Any]:
    return {
        name: [(s.doc_hash, s.response, s.log_likelihoods) for s in b.samples]
        for name, b in evaluation.benchmarks.items()
    }


@pytest.fixture(scope="module")
def before() -> Evaluation:
    return slimdown.measure(load(), TOKENIZER, BENCHMARKS, limit=40)


@pytest.fixture(scope="module")
def findings(before: Evaluation) -> Any:
    model = load()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)  # what a careless training does
    return slimdown.judge(before, slimdown.measure(model, TOKENIZER, before))


def test_a_task_of_the_harness_brings_its_metric_shots_and_chance() -> None:
    evaluation = slimdown.measure(load(), TOKENIZER, "pocket_cs_dev", limit=3)
    own: Any = {"metric": "acc", "num_fewshot": 0, "chance": 0.25, "limit": 3}
    expected = ResolvedBenchmark(task="pocket_cs_dev", **own)
    assert evaluation.benchmarks["pocket_cs_dev"].benchmark == expected


def test_torchs_counter_of_memory_stays_the_users(monkeypatch: Patch) -> None:
    resets: list[int] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: resets.append(1))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 7)
    loaded = replace(wrap_model(load(), TOKENIZER), device="cuda")
    evaluator = build_evaluator("pocket_cs", limit=2, num_fewshot=None)
    evaluator.evaluate(loaded)
    assert not resets
    counting = Evaluator(evaluator.tasks, EvaluationConfig(batch_size=2), counts_memory=True)
    assert counting.evaluate(loaded).peak_bytes == 7
    assert resets == [1]


@pytest.mark.parametrize("form", ["name", "path", "path and name"])
def test_own_questions_are_named_as_on_the_command_line(form: str, tmp_path: Path) -> None:
    file = tmp_path / "my support.jsonl"
    rows = [{"question": f"{n} + {n} =", "answer": str(2 * n)} for n in (1, 2)]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    spec: Any = {
        "name": str(file),
        "path": {"path": str(file)},
        "path and name": {"path": str(file), "task": "my_support"},
    }[form]
    benchmarks = read_benchmarks([spec, "pocket_cs"])
    assert list(benchmarks) == ["my_support", "pocket_cs"]
    assert benchmarks["my_support"].path == str(file)
    assert list(ForgettingCallback([spec])._full_evaluator.tasks) == ["my_support"]


def test_settings_override_those_of_a_benchmark() -> None:
    settings = [
        {"task": "pocket_commonsense", "metric": "acc", "limit": 2},
        BenchmarkConfig(task="pocket_cs", metric="acc", num_fewshot=0, chance=0.5),
    ]
    benchmarks = slimdown.measure(load(), TOKENIZER, settings, limit=3).benchmarks.values()
    measured = [(b.benchmark.metric, b.benchmark.chance, len(b.samples)) for b in benchmarks]
    assert measured == [("acc", 0.25, 3), ("acc", 0.5, 3)]


def test_an_evaluation_prints_as_a_small_table(before: Evaluation) -> None:
    assert "pocket_cs" in repr(before)
    assert len(repr(before)) < 1000


# --- The model comes back as it was --------------------------------------------------------------


@pytest.fixture
def one_process() -> Iterator[None]:
    AcceleratorState._reset_state(reset_partial_state=True)
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def make_lora() -> Any:
    return get_peft_model(load(), LORA)


def make_4bit() -> Any:
    return get_peft_model(load_in_4bit(MODEL_DIR), LORA)


def make_autocast() -> Any:
    return Accelerator(mixed_precision="bf16", cpu=True).prepare_model(make_lora())


def make_half_frozen() -> Any:
    model = make_lora().train()
    model.base_model.model.model.layers[0].eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_B" in name)
    model.config.use_cache = False
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    return model


def make_ddp() -> Any:
    return DistributedDataParallel(make_lora())


def get_state(model: Any) -> Any:
    """Everything beside the weights that measuring could leave changed."""
    inner = getattr(model, "module", model)
    modules = [
        (name, type(m), m.training, sorted(vars(m)), len(m._forward_hooks))
        for name, m in model.named_modules()
    ]
    tensors = [(name, p.requires_grad, p.dtype) for name, p in model.named_parameters()]
    configs = inner.config.to_dict(), inner.generation_config.to_dict()
    return modules, tensors, configs, TOKENIZER.padding_side, vars(inner).get("forward")


def train(make: Callable[[], Any], measure: bool) -> tuple[Any, list[float], Any]:
    """Take four steps; measure amid them or not; return model, losses and the next draws."""
    torch.manual_seed(0)
    model = make()
    if make is not make_half_frozen:
        model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    text = "What is a compiler? a program that translates programs"
    tokens = torch.tensor([TOKENIZER(text).input_ids])
    random.seed(2)
    np.random.seed(2)
    torch.manual_seed(2)
    losses = []
    for step in range(4):
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        losses.append(loss.item())
        if measure and step == 2:  # gradients are there
            state = get_state(model)
            slimdown.measure(model, TOKENIZER, "pocket_cs", limit=4)
            assert get_state(model) == state
        if step % 2:
            optimizer.step()
            optimizer.zero_grad()
    return model, losses, (random.random(), np.random.rand(), torch.rand(1).item())


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "make", [load, make_4bit, make_autocast, make_half_frozen, make_ddp, *slow(make_lora)]
)
def test_measuring_changes_no_training(make: Callable[[], Any], one_process: None) -> None:
    model, losses, draws = train(make, measure=False)
    measured_model, measured_losses, measured_draws = train(make, measure=True)
    assert measured_losses == losses
    assert losses[-1] < losses[0]  # gradients flow
    assert measured_draws == draws
    expected = model.state_dict()
    for name, weight in measured_model.state_dict().items():
        assert torch.equal(weight, expected[name]), name


def test_a_model_inside_a_trainers_wrappers_answers_as_itself(one_process: None) -> None:
    before = slimdown.measure(load(), TOKENIZER, BENCHMARKS, limit=6)
    wrapped = load()
    for _ in range(2):  # a cell that you run twice
        Accelerator(mixed_precision="bf16", cpu=True).prepare_model(wrapped)
    compiled = torch.compile(load(), backend="eager")
    for model in (wrapped, DistributedDataParallel(load()), compiled):
        assert get_answers(slimdown.measure(model, TOKENIZER, before)) == get_answers(before)


# --- Base and tuned model are scored by the same code --------------------------------------------


@pytest.mark.parametrize(
    "adapter",
    [
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=8),
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=8),
        PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
    ],
)
def test_a_learned_prompt_needs_the_harness_own_class(adapter: Any) -> None:
    model = get_peft_model(load(), adapter)
    shared = slimdown.measure(load(), TOKENIZER, "pocket_cs", limit=4)
    with pytest.raises(ModelError, match=r"P\w+ adapter.*share_prefixes=False.*stock=True"):
        slimdown.measure(model, TOKENIZER, shared)
    stock = slimdown.measure(load(), TOKENIZER, "pocket_cs", limit=4, stock=True)
    tuned = slimdown.measure(model, TOKENIZER, stock)
    assert get_answers(tuned) != get_answers(stock)
    assert slimdown.judge(stock, tuned).benchmarks["pocket_cs"].n == 4
    with pytest.raises(DataError, match=r"measure\(model, tokenizer, before\)"):
        slimdown.judge(shared, stock)


# --- Findings ------------------------------------------------------------------------------------


def test_findings_show_themselves(findings: Any, tmp_path: Path) -> None:
    assert "forgotten" in findings._repr_html_()
    assert "pocket_math" in repr(findings)
    table = findings.table()
    assert isinstance(table, pd.DataFrame)
    rows = table.dropna(subset="verdict").set_index("benchmark")
    change = findings.benchmarks["pocket_cs"].primary.difference.value
    assert rows.loc["pocket_cs", "change"] == change
    wrong: Any
    for wrong in (5, None, "a\0b"):
        with pytest.raises(ConfigError, match="give the path"):
            findings.save(wrong)
        with pytest.raises(ConfigError, match="give a text"):
            findings.save(tmp_path / "page.html", title=wrong if wrong != "a\0b" else b"title")
    page = findings.save(tmp_path / "page.html").read_text()
    assert page.lower().startswith("<!doctype html>")
    assert "pocket_math" in page
    rows = json.loads(findings.save(tmp_path / "page.json").read_text())["rows"]
    assert [row["benchmark"] for row in rows if row["verdict"]] == list(findings.benchmarks)
    assert "| benchmark |" in findings.save(str(tmp_path / "page.md")).read_text()
    for wrong in ("page.pdf", "page"):
        with pytest.raises(ConfigError, match=r"\.html, .*\.json|\.json.*\.html"):
            findings.save(tmp_path / wrong)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["page.html", "page.json", "page.md"]


def test_only_a_loss_shown_to_be_within_its_budget_passes(findings: Any) -> None:
    loss = -findings.benchmarks["pocket_math"].primary.difference.value
    assert loss > 0.3
    beyond = findings.passes("off", pocket_math=0.02)
    assert (bool(beyond), beyond.outcome) == (False, Outcome.beyond)
    undecided = findings.passes("off", pocket_math=loss)
    assert (bool(undecided), undecided.outcome) == (False, Outcome.undecided)
    assert findings.passes("off", pocket_math=0.999)
    assert len(findings.passes(pocket_math=0.999).checks) > 1  # the others keep theirs
    assert not findings.passes(pocket_math=0.999, pocket_cs=0.0)
    assert findings.passes("off", pocket_math=np.float32(0.999))
    others = {name: "off" for name in findings.benchmarks if name != "pocket_math"}
    assert findings.passes(pocket_math=0.999, **others)
    assert not findings.passes(0.0, pocket_math=0.999)
    for wrong in ("pocket_math", ["pocket_math"]):
        with pytest.raises(ConfigError, match="give a share"):
            findings.passes(wrong)


# --- Mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("benchmarks", "settings", "message"),
    [
        ("pocket_sc", {}, "did you mean pocket_cs"),
        (["arc_easi"], {}, "did you mean arc_easy"),
        ([{"task": "pocket_cs", "limt": 3}], {}, "did you mean limit"),
        ("pocket_cs", {"limit": 10**30}, "limit must be from 1 to 1,000,000,000, got 10"),
        ("pocket_math", {"think_end_token": "3"}, "think_end_token=3 must be a text, such as"),
        ("pocket_cs", {"chat_template_args": 5}, "chat_template_args must be a mapping"),
        ("pocket_cs", {"stock": "x"}, "stock='x' must be True, False or None"),
        ("pocket_cs", {"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ("pocket_cs", {"apply_chat_template": True}, "chat template"),
        ("pocket_cs", {"enable_thinkin": True}, "did you mean enable_thinking"),
        ("pocket_cs", {"enable_thinking": True}, "are for the chat template"),
        ("pocket_cs", {"limit": math.inf}, "limit must be a whole number"),
        ("pocket_cs", {"batch_size": "auto"}, "batch_size must be a whole number"),
        ("pocket_cs", {"batch_size": 2.5}, "batch_size must be a whole number"),
        ("pocket_cs", {"apply_chat_template": []}, "must be true or false"),
        ("pocket_cs", {"system_instruction": 5}, "system_instruction must be a text"),
        ("pocket_cs", {"include_path": [5]}, "include_path must be a folder"),
        ("pocket_math", {"max_gen_toks": 0}, "max_gen_toks must be at least 1, got 0"),
        ("pocket_math", {"max_gen_toks": "x"}, "max_gen_toks must be a whole number"),
        ("pocket_math", {"stop": [5]}, "stop must be a list"),
        ("pocket_math", {"stop": [""]}, "stop must be a list of texts"),
        ("pocket_cs", {"max_gen_toks": 8}, "has choices"),
        ("pocket_math", {"max_gen_toks": 4000}, "beside 4000 new ones"),
    ],
)
def test_a_mistake_is_refused(benchmarks: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SlimdownError, match=message):
        slimdown.measure(load(), TOKENIZER, benchmarks, **settings)


def test_numbers_of_numpy_are_numbers() -> None:
    evaluator = build_evaluator(
        "pocket_math",
        limit=np.int64(4),
        num_fewshot=np.int64(0),
        batch_size=np.int32(2),
        max_gen_toks=np.int64(8),
    )
    config = evaluator.tasks["pocket_math"].config
    assert (config.limit, config.num_fewshot, config.max_gen_toks) == (4, 0, 8)


def test_two_evaluations_of_nothing_are_refused() -> None:
    nothing = slimdown.Evaluation({}, "0.4.13", "hf", 0.0)
    with pytest.raises(DataError, match="holds no benchmark"):
        slimdown.judge(nothing, nothing)


def test_tokens_that_the_model_does_not_embed_are_named() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    tokenizer.add_tokens([f"<{i}>" for i in range(5000)] + ["Question:"])
    with pytest.raises(ModelError, match="resize_token_embeddings"):
        slimdown.measure(load(), tokenizer, "pocket_cs", limit=2)


@pytest.mark.parametrize(
    "setting", [{"limit": 3}, {"stock": True}, {"include_path": "."}, {"batch_size": 1}]
)
def test_a_repeated_measure_takes_no_settings(setting: dict[str, Any], before: Evaluation) -> None:
    with pytest.raises(ConfigError, match="leave out all"):
        slimdown.measure(load(), TOKENIZER, before, **setting)


def test_measure_and_the_callback_know_how_a_run_can_ask() -> None:
    names = {*PROMPT_SETTINGS, "max_gen_toks", "stop"}
    for function in (slimdown.measure, slimdown.ForgettingCallback.__init__):
        parameters = inspect.signature(function).parameters
        assert names <= {*parameters, *Prompts.__annotations__}
        assert parameters["prompts"].kind is inspect.Parameter.VAR_KEYWORD
    settings: dict[str, Any] = {"system_instruction": "Count.", "max_gen_toks": 4, "stop": ["\n"]}
    measured = slimdown.measure(load(), TOKENIZER, "pocket_math", limit=3, **settings)
    expected = {f"pocket_math.{name}": str(value) for name, value in settings.items()}
    assert measured.conditions == expected
    assert all(s.prompt.startswith("Count.") for s in measured.benchmarks["pocket_math"].samples)
