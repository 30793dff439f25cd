"""A merged model answers as the base with its adapter does."""

from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from slimdown.config.schema import RunConfig
from slimdown.models.adapters import attach_adapter, load_adapter, save_adapter
from slimdown.models.base_model import LoadedModel, load_base_model
from slimdown.models.merging import merge_adapter
from slimdown.utils.errors import ModelError

Composed = Callable[..., RunConfig]
IDS = torch.arange(5, 60)[None]


def make_adapter(config: RunConfig, folder: Path) -> LoadedModel:
    base = load_base_model(config.model, config.quantization)
    model = attach_adapter(base, config.method, config.lora, 0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, 1.0 if "magnitude" in str(parameter) else 0.0, 0.05)
    save_adapter(model, base, folder)
    return load_base_model(config.model, config.quantization)


@pytest.mark.parametrize("method", ["lora", "rslora", "dora", "ia3"])
@pytest.mark.parametrize("quantization", ["nf4", "int8", "none"])
def test_merged_logits_are_those_of_the_adapter_on_its_base(
    method: str, quantization: str, composed: Composed, tmp_path: Path
) -> None:
    if (method, quantization) == ("dora", "int8"):
        pytest.skip("PEFT 0.21 cannot attach it")
    config = composed(f"method={method}", f"quantization={quantization}", "model.dtype=float32")
    base = make_adapter(config, tmp_path / "adapter")
    assert merge_adapter(base, tmp_path / "adapter", tmp_path / "merged") == "float32"
    fresh = load_base_model(config.model, config.quantization)
    adapted = load_adapter(fresh, tmp_path / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not getattr(merged.config, "quantization_config", None)
    with torch.no_grad():
        expected, logits = adapted(input_ids=IDS).logits, merged(input_ids=IDS).logits
    # int8 rounds what it multiplies, too
    tolerance = 1.0 if quantization == "int8" else 2e-3
    assert (logits - expected).abs().max() < tolerance
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").get_vocab() == (
        base.tokenizer.get_vocab()
    )


def test_what_no_weights_can_hold_is_not_merged(composed: Composed, tmp_path: Path) -> None:
    config = composed("method=prefix")
    base = load_base_model(config.model, config.quantization)
    model = attach_adapter(base, config.method, config.lora, 0)
    assert isinstance(model, peft.PeftModel)
    save_adapter(model, base, tmp_path / "adapter")
    fresh = load_base_model(config.model, config.quantization)
    with pytest.raises(ModelError, match="cannot be merged into pocket:model"):
        merge_adapter(fresh, tmp_path / "adapter", tmp_path / "merged")


def test_a_damaged_adapter_is_named(composed: Composed, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"r": 8}')
    config = composed("quantization=none")
    base = load_base_model(config.model, config.quantization)
    with pytest.raises(ModelError, match=r"adapter_config.json is damaged: .*; get it again"):
        merge_adapter(base, tmp_path, tmp_path / "merged")
