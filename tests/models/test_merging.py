"""A merged model answers as the base with its adapter does."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from builders import Patch, slow
from model_files import load_base
from record_builders import compose_config
from transformers import AutoModelForCausalLM, AutoTokenizer

from slimdown import pocket
from slimdown.commands.merge import _choose_model
from slimdown.config.schema import RunConfig
from slimdown.models.adapters import attach_adapter, load_adapter, save_adapter
from slimdown.models.base_model import LoadedModel, load_base_model
from slimdown.models.merging import merge_adapter
from slimdown.utils.errors import ModelError

IDS = torch.arange(5, 60)[None]
# LoRA on each quantization, and each other kind of change of the weights once.
QUICK = [("lora", "nf4"), ("lora", "int8"), ("lora", "none")]
QUICK += [("dora", "nf4"), ("ia3", "nf4"), ("oft", "none"), ("shira", "none")]
# PEFT 0.21 cannot attach DoRA to int8, and SHiRA is refused on both.
SLOW = [("rslora", "nf4"), ("rslora", "int8"), ("rslora", "none"), ("dora", "none")]
SLOW += [("ia3", "int8"), ("ia3", "none"), ("oft", "nf4"), ("oft", "int8")]


def make_adapter(config: RunConfig, folder: Path) -> LoadedModel:
    base = load_base_model(config.model, config.quantization)
    model = attach_adapter(base, config.method, config.lora, 0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, 1.0 if "magnitude" in str(parameter) else 0.0, 0.05)
    save_adapter(model, base, folder)
    return load_base_model(config.model, config.quantization)


@pytest.mark.parametrize(("method", "quantization"), [*QUICK, *slow(*SLOW)])
def test_merged_logits_are_those_of_the_adapter_on_its_base(
    method: str, quantization: str, tmp_path: Path
) -> None:
    settings = [f"method={method}", f"quantization={quantization}", "model.dtype=float32"]
    base = make_adapter(compose_config(*settings), tmp_path / "adapter")
    assert merge_adapter(base, tmp_path / "adapter", tmp_path / "merged") == "float32"
    adapted = load_adapter(load_base(*settings), tmp_path / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not getattr(merged.config, "quantization_config", None)
    with torch.no_grad():
        expected, logits = adapted(input_ids=IDS).logits, merged(input_ids=IDS).logits
    # int8 rounds what it multiplies, too
    tolerance = 1.0 if quantization == "int8" else 2e-3
    assert (logits - expected).abs().max() < tolerance
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.get_vocab() == base.tokenizer.get_vocab()


# Where the LM head and the embeddings of the base are one tensor.
TIED: dict[str, dict[str, Any]] = {
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "both": {"target_modules": ["embed_tokens", "lm_head"]},
    "both alike": {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    "dora": {"target_modules": ["embed_tokens"], "use_dora": True},
    "a head of its own": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [0, 5, 2047]},
}


def make_plain_adapter(folder: Path, source: Any, **settings: Any) -> None:
    """Save a trained-looking LoRA as plain PEFT makes it."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    lora = peft.LoraConfig(r=4, **settings, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, lora)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    adapted.save_pretrained(folder)


def check_merged(base: LoadedModel, folder: Path, source: Any) -> None:
    """Merge an adapter that moves the logits far, and compare with plain libraries."""
    assert merge_adapter(base, folder / "adapter", folder / "merged", "float32") == "float32"
    merged = AutoModelForCausalLM.from_pretrained(folder / "merged")
    plain = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        before = plain(input_ids=IDS).logits
        adapted = peft.PeftModel.from_pretrained(plain, str(folder / "adapter")).eval()
        expected, logits = adapted(input_ids=IDS).logits, merged(input_ids=IDS).logits
    assert (expected - before).abs().max() > 1
    assert (expected - logits).abs().max() < 1e-3


SLOW_TIED = {"head", "both alike", "dora"}


@pytest.mark.parametrize("case", [*sorted(TIED.keys() - SLOW_TIED), *slow(*sorted(SLOW_TIED))])
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_tied_weights_are_merged_right(case: str, tmp_path: Path) -> None:
    make_plain_adapter(tmp_path / "adapter", pocket.MODEL_DIR, **TIED[case])
    check_merged(load_base("quantization=none"), tmp_path, pocket.MODEL_DIR)


@pytest.mark.hub
@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_real_tied_weights_are_merged(target: str, tmp_path: Path) -> None:
    base = load_base("model=smollm2", "model.dtype=float32", "quantization=none")
    make_plain_adapter(tmp_path / "adapter", base.files, target_modules=["q_proj", target])
    check_merged(base, tmp_path, base.files)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.filterwarnings("ignore::UserWarning:peft")
def test_a_model_that_answers_otherwise_is_refused_before_it_is_written(
    dtype: str, tmp_path: Path
) -> None:
    rows = {"lm_head": [5, 16, 47]}  # PEFT writes them into the embeddings, too
    make_plain_adapter(
        tmp_path, pocket.MODEL_DIR, target_modules=["q_proj"], trainable_token_indices=rows
    )
    base = load_base("quantization=none")
    with pytest.raises(ModelError, match=r"logits .*[\d.]+ away"):
        merge_adapter(base, tmp_path, tmp_path / "merged", dtype)
    assert not (tmp_path / "merged").exists()


def test_what_no_weights_can_hold_is_not_merged(tmp_path: Path) -> None:
    base = make_adapter(compose_config("method=prefix"), tmp_path / "adapter")
    with pytest.raises(ModelError, match="cannot be merged"):
        merge_adapter(base, tmp_path / "adapter", tmp_path / "merged")


def test_memory_that_runs_out_while_merging_names_the_way_out(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    """A GPU that holds four bits a parameter may not hold 32."""
    base = make_adapter(compose_config(), tmp_path / "adapter")

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr("slimdown.models.merging.load_adapter", fail)
    with pytest.raises(ModelError, match=r"CUDA out.*--device cpu"):
        merge_adapter(base, tmp_path / "adapter", tmp_path / "merged")


def test_each_process_saves_an_adapter_alike(tmp_path: Path) -> None:
    """PEFT holds modules as a set; a repeated run would not find its own adapter's answers."""
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    config = compose_config(f"lora.target_modules=[{','.join(names)}]")
    base = load_base_model(config.model, config.quantization)
    save_adapter(attach_adapter(base, config.method, config.lora, 0), base, tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["target_modules"] == sorted(names)
    assert list(saved) == sorted(saved)


def test_a_whole_models_dtype_is_that_of_its_run_also_onto_original() -> None:
    """Its files are copied unchanged; the card would call them float32 otherwise."""
    options = Namespace(device="cpu", onto="original")
    whole = compose_config("method=full", "quantization=none", "model.dtype=bfloat16")
    assert _choose_model(whole, options).model.dtype == "bfloat16"
    adapter = compose_config("method=lora", "model.dtype=bfloat16")
    assert _choose_model(adapter, options).model.dtype == "float32"
