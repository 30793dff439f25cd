"""Requests for tiny models, and what a notebook would hand to an Evaluator."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import torch
from lm_eval.api.instance import Instance
from tiny_models import build_byte_tokenizer, build_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from slimdown.config.benchmark_config import BenchmarkConfig, Until
from slimdown.config.schema import EvaluationConfig
from slimdown.models.base_model import LoadedModel
from slimdown.models.causal import wrap_model
from slimdown.pocket import MODEL_DIR

SHOTS = "Which letter comes first?\nA. the\nB. an\nAnswer: B\n\n" * 2


def make_config(**changes: Any) -> EvaluationConfig:
    defaults = {"batch_size": None, "apply_chat_template": False, "holdout": 0.0}
    defaults |= {"until": Until.all}
    return EvaluationConfig(**(defaults | changes))


def make_benchmark_config(task: str, **changes: Any) -> BenchmarkConfig:
    defaults = {"metric": "acc", "num_fewshot": 0, "chance": 0.25}
    return BenchmarkConfig(task=task, **(defaults | changes))


def load_pocket(dtype: torch.dtype = torch.float32) -> LoadedModel:
    """The embedded model as a notebook loads it."""
    model = AutoModelForCausalLM.from_pretrained(MODEL_DIR, dtype=dtype)
    loaded = wrap_model(model, AutoTokenizer.from_pretrained(MODEL_DIR))
    return replace(loaded, id="pocket:model", identity={"weights": "pocket"})


def wrap_tiny_model() -> LoadedModel:
    return wrap_model(build_tiny_model("llama"), build_byte_tokenizer())


def ask(context: str, answers: list[str], doc: int) -> list[Instance]:
    return [
        Instance("loglikelihood", {}, (context, answer), i, ("task", doc, 1))
        for i, answer in enumerate(answers)
    ]


def make_questions() -> list[Instance]:
    """Choices behind shared worked examples of unequal length, alone, behind nothing, too long."""
    contexts = [f"{SHOTS}{'more ' * (i % 3)}{i}?\nAnswer:" for i in range(7)]
    contexts += ["A man walks", "", "x", "the cat and " * 30, "Grüße aus 東京 🙂 "]
    answers = [" A", " of the land", "yz", " A"]
    return [r for doc, context in enumerate(contexts) for r in ask(context, answers, doc)]


def make_prompts(prompts: list[str], **settings: Any) -> list[Instance]:
    settings = {"until": [], "max_gen_toks": 12, "do_sample": False} | settings
    return [
        Instance("generate_until", {}, (prompt, copy.deepcopy(settings)), 0, ("task", i, 1))
        for i, prompt in enumerate(prompts)
    ]


def build_windowed_model(family: str, window: int) -> Any:
    """A tiny model of which a layer looks back over `window` positions, or all layers do."""
    settings = {
        "sliding_window": window,
        "use_sliding_window": True,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    known = type(CONFIG_MAPPING[family]().get_text_config(decoder=True))
    used = {name: value for name, value in settings.items() if hasattr(known, name)}
    return build_tiny_model(family, **used)


def add_adapter(model: Any, kind: str, **settings: Any) -> Any:
    """`model` with an adapter of PEFT that has an effect."""
    tuned = peft.get_peft_model(model, getattr(peft, kind)(task_type="CAUSAL_LM", **settings))
    torch.manual_seed(1)
    for name, weight in tuned.named_parameters():
        if weight.requires_grad and "lora_A" not in name:
            torch.nn.init.normal_(weight, std=0.3)
    return tuned.eval()


def write_rows(file: Path, rows: list[Any]) -> Path:
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return file
