"""The recipes of `conf/model/`: asked as HFLM asks, trained as TRL trains, and asked again."""

import json
import sys
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import slow
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from record_builders import compose_config
from stock_harness import ask_harness
from tiny_models import build_byte_tokenizer, build_tiny_model
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from slimdown.config.benchmarks import read_benchmarks
from slimdown.config.naming import flatten
from slimdown.config.schema import RunConfig
from slimdown.data.chat_templates import FIXED_DATE, choose_prompts
from slimdown.evaluation.evaluator import Evaluator
from slimdown.evaluation.families import explain_no_sharing
from slimdown.evaluation.tasks import load_tasks
from slimdown.models.base_model import LoadedModel
from slimdown.pocket import TASKS_DIR

sys.path.append(str(Path(__file__).parents[1] / "training"))
from training_run import TrainingRun

BENCHMARKS = ["pocket_math", "pocket_cs"]  # generated answers, and choices
# As the publisher's: the mode and the day in the system turn, and empty thinking before an answer.
SMOLLM3 = (
    "{%- set thinks = enable_thinking is not defined or enable_thinking %}"
    "{%- set begin = '' if thinks else '<think>\\n\\n</think>\\n' %}"
    "<|im_start|>system\nToday Date: {{ strftime_now('%d %B %Y') }}\n"
    "Reasoning Mode: {{ '/think' if thinks else '/no_think' }}\n<|im_end|>\n"
    "{%- for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n"
    "{{ begin if m.role == 'assistant' else '' }}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{{ begin }}{% endif %}"
)
GRANITE4 = (
    "{%- for m in messages %}<|start_of_role|>{{ m.role }}<|end_of_role|>{{ m.content }}"
    "<|end_of_text|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}"
)
TEMPLATES = {"smollm3": SMOLLM3, "granite4_micro": GRANITE4}
TEMPLATE_FILES = {
    "qwen3_0.6b": "qwen3",
    "qwen3_4b": "qwen3_instruct_2507",
    "gemma3_1b": "gemma3",
    "gemma3_4b": "gemma3",
    "lfm2_1.2b": "lfm2",
}
ATTENTION = {
    "layer_types": ["attention"] * 2,
    "num_local_experts": 0,
    "position_embedding_type": "rope",
    "shared_intermediate_size": 48,
    "mamba_n_heads": 8,
}
CONVOLUTION = {"layer_types": ["conv", "full_attention"]}
# The family, what makes it the recipe's architecture, and why prefixes are not shared, if not.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any], str]] = {
    "qwen3_0.6b": ("qwen3", {}, ""),
    "qwen3_4b": ("qwen3", {}, ""),
    "gemma3_1b": ("gemma3_text", {}, ""),
    "gemma3_4b": ("gemma3", {}, "Gemma3ForConditionalGeneration is not among the families"),
    "smollm3": ("smollm3", {}, ""),
    "granite4_micro": ("granitemoehybrid", ATTENTION, "GraniteMoeHybridForCausalLM is not among"),
    "lfm2_1.2b": ("lfm2", CONVOLUTION, "Lfm2ForCausalLM is not among the families"),
}
# One that shares prefixes, one that does not, and one of pictures.
QUICK = ["smollm3", "lfm2_1.2b", "gemma3_4b"]
SAME_AS = {"qwen3_1.7b": "qwen3_0.6b", "gemma3_270m": "gemma3_1b"}
THINKING = {"qwen3_0.6b", "qwen3_1.7b", "smollm3"}


def build_vision_model() -> Any:
    """Gemma 3 from 4B on: the language model of the smaller ones, and a vision tower."""
    text = build_tiny_model("gemma3_text", vocab_size=264, max_position_embeddings=4096).config
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    tokens = {"image_token_index": 261, "boi_token_index": 262, "eoi_token_index": 263}
    config = CONFIG_MAPPING["gemma3"](
        text_config=text.to_dict(), vision_config=vision, mm_tokens_per_image=4, **tokens
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def save_model(recipe: str, folder: Path) -> None:
    family, changes, _ = ARCHITECTURES[recipe]
    changes = {"max_position_embeddings": 4096, **changes}
    model = build_vision_model() if family == "gemma3" else build_tiny_model(family, **changes)
    model.save_pretrained(folder)
    tokenizer = build_byte_tokenizer()
    tokenizer.bos_token = "<|end|>"
    name = TEMPLATE_FILES.get(recipe)
    file = files("trl").joinpath(f"chat_templates/{name}.jinja")
    tokenizer.chat_template = TEMPLATES.get(recipe) or file.read_text()
    tokenizer.save_pretrained(folder)


def compose_recipe(recipe: str, folder: Path) -> RunConfig:
    """The recipe's settings on a tiny model of its architecture, and a few rows of one's own."""
    save_model(recipe, folder / "model")
    rows = [
        {"instruction": f"What is {i} and {i}?", "input": "", "output": f"It is {2 * i}."}
        for i in range(1, 12)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [f"model={recipe}", f"model.id={folder}/model", "model.dtype=float32"]
    settings += ["model.device=cpu", "quantization=none", "evaluation.apply_chat_template=true"]
    settings += ["dataset=[file]", f"dataset.file.path={folder}/rows.jsonl"]
    settings += ["dataset.file.template=chat", "dataset.file.validation_examples=1"]
    settings += ["dataset.file.max_examples=8"]
    settings += ["train.max_steps=2", "train.per_device_train_batch_size=8"]
    return compose_config(*settings)


def ask(model: LoadedModel, config: RunConfig) -> dict[tuple[str, int], Any]:
    evaluation, _ = choose_prompts(config.evaluation, model.tokenizer, auto_uses_template=True)
    tasks = load_tasks(read_benchmarks(BENCHMARKS, limit=3, num_fewshot=0))
    tasks["pocket_math"].config.max_gen_toks = 24
    tasks = load_tasks({name: task.config for name, task in tasks.items()})
    benchmarks = Evaluator(tasks, evaluation).evaluate(model).benchmarks
    return {(name, s.doc_id): s for name, b in benchmarks.items() for s in b.samples}


def ask_stock(model: LoadedModel, config: RunConfig) -> dict[tuple[str, int], Any]:
    switch, mark = config.evaluation.enable_thinking, config.evaluation.think_end_token
    variables: dict[str, Any] = {} if switch is None else {"enable_thinking": switch}
    template = str(model.tokenizer.chat_template)
    variables["chat_template"] = template.replace("strftime_now('%d %B %Y')", "'26 Jul 2024'")
    lm = HFLM(
        pretrained=model.model,
        tokenizer=model.tokenizer,
        batch_size=1,
        chat_template_args={**FIXED_DATE, **variables},
        **({"think_end_token": mark} if mark else {}),
    )
    results: Any = ask_harness(
        lm,
        tasks=BENCHMARKS,
        task_manager=TaskManager(include_path=str(TASKS_DIR), include_defaults=False),
        limit=3,
        gen_kwargs={"max_gen_toks": 24},
        bootstrap_iters=0,
        apply_chat_template=True,
        fewshot_as_multiturn=True,
        num_fewshot=0,
    )
    samples = results["samples"]
    return {(name, s["doc_id"]): s for name in BENCHMARKS for s in samples[name]}


def assert_as_stock(model: LoadedModel, config: RunConfig) -> list[Any]:
    ours, stock = ask(model, config), ask_stock(model, config)
    assert ours.keys() == stock.keys()
    for key, sample in ours.items():
        expected = stock[key]
        if key[0] == "pocket_math":
            assert sample.prompt == expected["arguments"][0][0]
            assert sample.response == expected["resps"][0][0]
        else:
            values = [float(resps[0][0]) for resps in expected["resps"]]
            assert list(sample.log_likelihoods) == pytest.approx(values, abs=5e-4)
    return [(s.response, s.log_likelihoods) for s in ours.values()]


def train_by_trl(run: TrainingRun, folder: Path) -> list[float]:
    # of the answer alone, and no loss of experts, which Granite's Micro has not
    trainer = run.build_trl_trainer(folder, completion_only_loss=True, router_aux_loss_coef=0.0)
    trainer.train()
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


@pytest.mark.parametrize("recipe", [*QUICK, *slow(*sorted(ARCHITECTURES.keys() - set(QUICK)))])
def test_a_model_is_asked_before_and_after(recipe: str, tmp_path: Path) -> None:
    config = compose_recipe(recipe, tmp_path)
    run = TrainingRun(config)
    reason = explain_no_sharing(run.base.model)
    assert reason.startswith(ARCHITECTURES[recipe][2])
    assert bool(reason) == bool(ARCHITECTURES[recipe][2])
    before = assert_as_stock(run.base, config)
    tuned, _ = run.train(tmp_path / "ours")
    assert run.losses == pytest.approx(train_by_trl(run, tmp_path / "trl"), rel=2e-4)
    for name, weight in tuned.model.named_parameters():
        if "lora_B" in name:
            with torch.no_grad():
                weight.mul_(300)  # of two steps nothing would show in the answers
    adapted = {name for name, _ in tuned.model.named_modules() if name.endswith("lora_B")}
    assert adapted
    assert not any("vision" in name or "projector" in name for name in adapted)
    after = assert_as_stock(replace(tuned, tokenizer=run.base.tokenizer), config)
    assert after != before


@pytest.mark.parametrize("recipe", sorted(THINKING - set(SAME_AS)))
def test_rows_are_written_as_questions(recipe: str, tmp_path: Path) -> None:
    config = compose_recipe(recipe, tmp_path)
    run = TrainingRun(config)
    row = run.data.parts[0].train[0]
    tokenizer = run.base.tokenizer
    text = tokenizer.decode(run.rows.train[0]["input_ids"])
    assert row["chat_template_kwargs"] == {"enable_thinking": False}
    assert "<think>\n\n</think>\n" in text
    assert "Reasoning Mode: /think" not in text
    [prompt, *_] = [s.prompt for s in ask(run.base, config).values()]
    frame, _, _ = prompt.partition("Question")
    assert text.startswith(frame.partition("Today")[0])
    assert text.count(prompt[-20:]) == 1  # what stands before an answer
    if recipe == "smollm3":
        assert "Date: 26 Jul 2024" in prompt


@pytest.mark.parametrize("recipe", [*ARCHITECTURES, *SAME_AS])
def test_a_recipe_leaves_choices_open(recipe: str, tmp_path: Path) -> None:
    plain = compose_config(f"model={recipe}")
    assert plain.dataset["alpaca_chat"].template == "chat"
    assert plain.evaluation.apply_chat_template == "auto"
    off = (False, "</think>") if recipe in THINKING else (None, None)
    assert (plain.evaluation.enable_thinking, plain.evaluation.think_end_token) == off
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    choices = ["dataset=[file]", f"dataset.file.path={tmp_path}/rows.jsonl", "benchmark=[arc_easy]"]
    choices += ["lora=mlp", "lora.r=4", "evaluation.apply_chat_template=false"]
    chosen = compose_config(f"model={recipe}", *choices)
    assert (list(chosen.dataset), list(chosen.benchmark)) == (["file"], ["arc_easy"])
    assert (chosen.lora.r, chosen.lora.target_modules[0]) == (4, "gate_proj")
    assert chosen.evaluation.apply_chat_template is False
    same = ("dataset.", "lora.", "train.", "evaluation.enable", "evaluation.think")
    kept = [
        {key: value for key, value in flatten(config).items() if key.startswith(same)}
        for config in (plain, compose_config(f"model={recipe}", "suite=chat"))
    ]
    assert kept[0] == kept[1]


def test_plain_prompts_switch_no_thinking_off(tmp_path: Path) -> None:
    """Where no answer is generated, or rows are texts, nothing goes through the template."""
    config = compose_recipe("qwen3_0.6b", tmp_path)
    evaluation = replace(config.evaluation, apply_chat_template="auto")
    tokenizer = TrainingRun(config).base.tokenizer
    plain, _ = choose_prompts(evaluation, tokenizer, auto_uses_template=False)
    assert plain.apply_chat_template is False
    assert plain.narrow(generates=True).enable_thinking is None
