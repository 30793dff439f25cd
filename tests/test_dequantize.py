"""Dequantized values against the 4-bit layers they come from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from slimdown.evaluation.engine.forward import measuring
from slimdown.models.dequantize import dequantized, dequantizes

# peft 0.21 asks transformers 5.24 for an attribute it renamed; delete when peft asks for the new.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(scope="module")
def four_bit(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=260, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3, attention_bias=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)

    def load(lora: bool = False, **settings: Any) -> Any:
        settings = {"bnb_4bit_compute_dtype": torch.float32} | settings
        model = LlamaForCausalLM.from_pretrained(
            folder,
            quantization_config=BitsAndBytesConfig(load_in_4bit=True, **settings),
            dtype=torch.float32,
        )
        for layer in four_bit_layers(model):
            layer.support_avx512bf16_for_cpu = False
        if not lora:
            return model
        tuned = get_peft_model(
            model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
        )
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.2)
        return tuned

    return load


def four_bit_layers(model: Any) -> list[Linear4bit]:
    return [module for module in model.modules() if isinstance(module, Linear4bit)]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(2, 60).reshape(2, 29)).logits


@pytest.mark.parametrize(
    "settings",
    [
        {"bnb_4bit_quant_type": "nf4"},
        {"bnb_4bit_quant_type": "fp4"},
        {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    ],
)
@pytest.mark.parametrize("lora", [False, True])
def test_same_logits_to_the_bit_and_back_again(
    four_bit: Callable[..., Any], settings: dict[str, Any], lora: bool
) -> None:
    model = four_bit(lora, **settings)
    layers = four_bit_layers(model)
    weights = [layer.weight.data.clone() for layer in layers]
    expected = logits(model)
    with dequantized(model):
        assert not four_bit_layers(model)
        assert torch.equal(logits(model), expected)
    assert four_bit_layers(model) == layers
    assert all(torch.equal(layer.weight.data, w) for layer, w in zip(layers, weights, strict=True))
    assert torch.equal(logits(model), expected)


def test_adapters_train_alike_on_dequantized_values(four_bit: Callable[..., Any]) -> None:
    model, ids = four_bit(lora=True), torch.arange(1, 33)[None]

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    expected = gradients()
    with dequantized(model):
        found = gradients()
    assert expected.keys() == found.keys()
    assert len(found) == 8
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)


def test_it_returns_the_layers_when_the_work_fails(four_bit: Callable[..., Any]) -> None:
    model = four_bit()
    n_layers = len(four_bit_layers(model))
    with pytest.raises(KeyError), dequantized(model):
        raise KeyError
    assert len(four_bit_layers(model)) == n_layers == 14


def test_repacked_weights_are_refused(four_bit: Callable[..., Any]) -> None:
    model = four_bit()
    model.model.layers[0].mlp.down_proj.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(ValueError, match="support_avx512bf16_for_cpu = False"), dequantized(model):
        pass
    assert len(four_bit_layers(model)) == 14


def test_measuring_keeps_the_layout(four_bit: Callable[..., Any]) -> None:
    model = four_bit()
    expected = logits(model)
    for layer in four_bit_layers(model):
        layer.support_avx512bf16_for_cpu = True  # as bitsandbytes sets it where the CPU has it
    with measuring(model):
        assert torch.equal(logits(model), expected)
    assert all(layer.support_avx512bf16_for_cpu for layer in four_bit_layers(model))
    with dequantized(model), measuring(model):
        assert torch.equal(logits(model), expected)


def test_the_rule(four_bit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = four_bit(lora=True)
    n_values = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    for free, fits in ((8 * n_values, True), (8 * n_values - 1, False)):
        monkeypatch.setattr("slimdown.models.dequantize.free_bytes", lambda device, free=free: free)
        assert dequantizes(model, "auto") is fits
        assert dequantizes(model, "True") is True
        assert dequantizes(model, "false") is False
    assert dequantizes(torch.nn.Linear(2, 2), "true") is False
