"""Any loaded model can be measured and is as it was afterwards."""

import copy
from typing import Any

import accelerate
import peft
import pytest
import torch
from tiny_models import build_byte_tokenizer, build_tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModel, T5Config, T5ForConditionalGeneration

from slimdown.models.bottleneck import attach_behind
from slimdown.models.causal import disabled_adapters, eval_mode, has_untouched_base, wrap_model
from slimdown.utils.errors import ModelError

IDS = torch.arange(3, 30)[None]
N_TOKENS = 260  # of a tiny model
SMALL_T5 = T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=16)


def adapted(**settings: Any) -> Any:
    shape = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **settings)
    return peft.get_peft_model(build_tiny_model("llama"), shape)


def build_headless_model() -> Any:
    """A model whose weights were loaded but for its head."""
    model = build_tiny_model("llama")
    model.lm_head = copy.deepcopy(model.lm_head).to("meta")
    return model


@pytest.mark.parametrize(
    ("model", "answer"),
    [
        (torch.nn.Linear(2, 2), "a Linear and no causal language model"),
        (AutoModel.from_config(build_tiny_model("llama").config), "a LlamaModel and no causal"),
        (T5ForConditionalGeneration(SMALL_T5), "a T5ForConditionalGeneration and no causal"),
        ("a name", "the model is a str"),
        (build_tiny_model("llama").to("meta"), "on the meta device and have no numbers"),
        (build_headless_model(), "on the meta device and have no numbers"),
        (build_tiny_model("llama"), "the tokenizer is a NoneType"),
    ],
)
def test_what_is_no_causal_model_or_tokenizer_is_refused(model: Any, answer: str) -> None:
    tokenizer = None if "tokenizer" in answer else build_byte_tokenizer()
    with pytest.raises(ModelError, match=answer):
        wrap_model(model, tokenizer)


def test_eval_mode_computes_plainly_and_leaves_no_trace() -> None:
    model = adapted(lora_dropout=0.5).train()
    model.config.use_cache = False
    accelerate.state.AcceleratorState._reset_state(True)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    with torch.no_grad():
        plain = build_tiny_model("llama")(input_ids=IDS).logits
    prepared = accelerator.prepare_model(model)
    modes = [module.training for module in prepared.modules()]
    forward = prepared.forward
    with eval_mode(prepared):
        outputs = prepared(input_ids=IDS)
        assert torch.equal(outputs.logits, plain)  # no autocast, no dropout
        assert outputs.past_key_values is not None
        assert not outputs.logits.requires_grad
    assert [module.training for module in prepared.modules()] == modes
    assert prepared.forward == forward
    assert prepared.config.use_cache is False


class NoBatchedLogits(TorchDispatchMode):
    """Refuses logits that torch computes row by row."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        assert func is not torch.ops.aten.bmm.default or result.shape[-1] != N_TOKENS
        return result


def test_a_frozen_head_reads_the_places_of_all_rows_in_one_product() -> None:
    model = adapted()
    assert model.config.vocab_size == N_TOKENS
    with eval_mode(model), NoBatchedLogits():
        model(input_ids=IDS.repeat(3, 1), logits_to_keep=2)
    assert not model.get_output_embeddings().weight.requires_grad


def test_adapters_are_off_inside_and_trained_as_before_on_leaving() -> None:
    before = build_tiny_model("llama")(input_ids=IDS).logits
    lora = adapted(init_lora_weights=False)
    bottleneck = attach_behind(build_tiny_model("llama"), ["o_proj", "down_proj"], 4)
    torch.nn.init.normal_(bottleneck.own_adapter.up[0].weight)
    for model in (lora.eval(), bottleneck.eval()):
        trained = [p.requires_grad for p in model.parameters()]
        assert any(trained)
        assert not all(trained)
        assert has_untouched_base(model)
        changed = model(input_ids=IDS).logits
        with disabled_adapters(model):
            assert torch.equal(model(input_ids=IDS).logits, before)
        assert torch.equal(model(input_ids=IDS).logits, changed)
        assert not torch.equal(changed, before)
        assert [p.requires_grad for p in model.parameters()] == trained


def test_a_base_that_adapters_changed_is_not_untouched() -> None:
    assert not has_untouched_base(build_tiny_model("llama"))
    assert not has_untouched_base(adapted(init_lora_weights="pissa"))
    assert not has_untouched_base(adapted(bias="all"))
