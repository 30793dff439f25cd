"""Jobs that put one adapter after another on a base load it once, and answer as single runs."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from builders import Patch
from commands_and_runs import find_runs, succeed
from mlflow import MlflowClient
from model_files import load_base
from record_builders import compose_config
from tiny_models import logits_of

from slimdown import pocket
from slimdown.config.schema import RunConfig
from slimdown.config.tracking_config import TrackingConfig
from slimdown.models.adapters import attach_adapter, save_adapter
from slimdown.models.base_model import LoadedModel, load_base_tokenizer, load_outline
from slimdown.models.external import open_tuned_model
from slimdown.models.shared_base import SharedBase
from slimdown.tracking.run_reader import find_run, read_evaluations

COMMON: dict[str, Any] = {"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "down_proj"]}
LORA: dict[str, Any] = {**COMMON, "r": 4, "init_lora_weights": False}
KINDS: dict[str, tuple[peft.PeftConfig, bool]] = {
    "lora": (peft.LoraConfig(**LORA), True),
    "dora": (peft.LoraConfig(**LORA, use_dora=True), True),
    "head": (peft.LoraConfig(**LORA, modules_to_save=["lm_head"]), False),
    "loha": (peft.LoHaConfig(**COMMON, r=2, init_weights=False), True),
    "ia3": (peft.IA3Config(**COMMON, feedforward_modules=["down_proj"]), True),
    "prefix": (peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), True),
    "prompt": (peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), True),
    "pissa": (peft.LoraConfig(**{**LORA, "init_lora_weights": "pissa"}), False),
}
"""Adapters by what they are, and whether their base can be kept."""


def save_kind(kind: str, folder: Path) -> Path:
    """Save an adapter of the embedded model, as PEFT does."""
    model = transformers.AutoModelForCausalLM.from_pretrained(pocket.MODEL_DIR)
    torch.manual_seed(0)
    tuned = peft.get_peft_model(model, KINDS[kind][0])
    for name, parameter in tuned.named_parameters():
        if parameter.requires_grad and "lora" not in name:
            parameter.data.add_(torch.randn_like(parameter) / 10)
    tuned.save_pretrained(str(folder))
    return folder


def load_shared(shared: SharedBase, config: RunConfig) -> LoadedModel:
    tokenizer = load_base_tokenizer(config.model)
    outline = load_outline(config.model, config.quantization.name)
    base: LoadedModel = shared.load(config, tokenizer, outline)
    return base


@pytest.fixture
def loads(monkeypatch: Patch) -> list[str]:
    """Whatever transformers loads with its weights meanwhile."""
    loaded = []
    load = transformers.AutoModelForCausalLM.from_pretrained

    def count(source: str, **settings: Any) -> Any:
        loaded.append(source)
        return load(source, **settings)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", count)
    return loaded


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings", "ignore:`past_key_values`")
@pytest.mark.parametrize(
    ("kind", "quantization"),
    [*((kind, "none") for kind in KINDS), ("lora", "nf4"), ("ia3", "nf4"), ("prompt", "nf4")],
)
def test_a_base_that_is_kept_answers_as_a_fresh_one(
    kind: str, quantization: str, tmp_path: Path, loads: list[str]
) -> None:
    config = compose_config(f"tuned={save_kind(kind, tmp_path)}", f"quantization={quantization}")
    loads.clear()
    shared = SharedBase()
    base = load_shared(shared, config)
    fresh, identity = logits_of(base.model), base.identity
    tuned = open_tuned_model(config, base).load()
    assert not torch.equal(logits_of(tuned.model), fresh)
    shared.keep_base_of(tuned)
    again = load_shared(shared, config)
    assert torch.equal(logits_of(again.model), fresh)
    assert again.identity == identity
    is_refused = (kind, quantization) == ("ia3", "nf4")  # PEFT takes no IA3 off 4-bit weights
    assert (len(loads) == 1) is (KINDS[kind][1] and not is_refused)


def test_other_settings_and_methods_of_our_own_load_a_base_anew(
    tmp_path: Path, loads: list[str]
) -> None:
    save_kind("lora", tmp_path / "lora")
    shared = SharedBase()
    for settings in (["quantization=none"], ["quantization=nf4"], ["model.dtype=bfloat16"]):
        loads.clear()
        config = compose_config(f"tuned={tmp_path / 'lora'}", *settings)
        base = load_shared(shared, config)
        assert len(loads) == 1
        shared.keep_base_of(open_tuned_model(config, base).load())
    own, method = load_base(), compose_config("method=bottleneck").method
    save_adapter(attach_adapter(own, method, config.lora, 0), own, tmp_path / "own")
    config = compose_config(f"tuned={tmp_path / 'own'}", "model.dtype=bfloat16")
    base = load_shared(shared, config)
    shared.keep_base_of(open_tuned_model(config, base).load())
    loads.clear()
    load_shared(shared, config)
    assert len(loads) == 1  # its hooks stay on the layers


def test_three_adapters_load_their_base_once_and_answer_as_three_single_runs(
    store: MlflowClient, tmp_path: Path, loads: list[str]
) -> None:
    folders = [str(save_kind(kind, tmp_path / kind)) for kind in ("lora", "prompt", "ia3")]
    settings = ["benchmark=[pocket_math,pocket_cs]"]
    settings += ["benchmark.pocket_math.limit=8", "benchmark.pocket_cs.limit=8"]
    loads.clear()
    succeed(tmp_path, "run", "-m", "tuned=" + ",".join(folders), *settings)
    assert len(loads) == 1
    shared = [run.info.run_id for run in find_runs(store)]
    tracking = TrackingConfig(uri=store.tracking_uri)
    for folder in folders:
        succeed(tmp_path, "run", f"tuned={folder}", *settings, "rerun=true")
    assert len(loads) == 4
    single = [run.info.run_id for run in find_runs(store)][3:]
    for pair in zip(shared, single, strict=True):
        evaluations = [read_evaluations(tracking, find_run(tracking, run_id)) for run_id in pair]
        for first, second in zip(*evaluations, strict=True):  # of the base, of the tuned model
            for name, benchmark in first.benchmarks.items():
                assert benchmark.samples == second.benchmarks[name].samples
