"""Rows laid end to end compute what each computes alone."""

from typing import Any

import peft
import pytest
import torch
from tiny_models import build_tiny_model

from slimdown.training.padding_free import attention_within_rows, supports_padding_free

ROWS = [torch.arange(3, 3 + n)[None] for n in (17, 1, 40, 8)]


@pytest.mark.parametrize("family", ["llama", "qwen3", "granite", "olmo2", "gpt_neox", "phi"])
def test_logits_and_gradients_are_those_of_each_row_alone(family: str) -> None:
    model = build_tiny_model(family)
    assert supports_padding_free(model)
    shape = peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    adapted = peft.get_peft_model(model, shape).eval()
    alone = [adapted(input_ids=row).logits for row in ROWS]
    sum(logits.logsumexp(-1).sum() for logits in alone).backward()
    expected = [p.grad.clone() for p in adapted.parameters() if p.grad is not None]
    adapted.zero_grad()
    positions = torch.cat([torch.arange(row.shape[1]) for row in ROWS])[None]
    before = model.config._attn_implementation
    with attention_within_rows(adapted):
        logits = adapted(input_ids=torch.cat(ROWS, 1), position_ids=positions).logits
        logits.logsumexp(-1).sum().backward()
    assert model.config._attn_implementation == before
    assert torch.allclose(logits, torch.cat(alone, 1), atol=1e-4)
    gradients = [p.grad for p in adapted.parameters() if p.grad is not None]
    assert gradients
    torch.testing.assert_close(gradients, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("mistral", {"sliding_window": 16}),
        ("gemma3_text", {}),
        ("mamba", {}),
        ("llama", {"attn_implementation": "eager"}),
    ],
)
def test_what_is_not_plainly_causal_keeps_its_padding(family: str, changes: dict[str, Any]) -> None:
    implementation = changes.pop("attn_implementation", None)
    model = build_tiny_model(family, **changes)
    if implementation:
        model.set_attn_implementation(implementation)
    assert not supports_padding_free(model)


def test_virtual_tokens_keep_their_padding() -> None:
    config = peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    assert not supports_padding_free(peft.get_peft_model(build_tiny_model("llama"), config))
