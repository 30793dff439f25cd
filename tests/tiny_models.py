"""Tiny random models of any family, a tokenizer of bytes for them, and a chatty pocket model."""

import shutil
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from slimdown.pocket import MODEL_DIR

WINDOW = 192  # tokens that a tiny model has positions for


def spread(values: dict[str, Any]) -> dict[str, Any]:
    """Give each of several names, with spaces between them, the same value."""
    return {name: value for names, value in values.items() for name in names.split()}


# What makes a model tiny, by the families' names for it; a config takes those that it knows.
SIZES = spread(
    {
        "hidden_size n_embd d_model": 32,
        "num_hidden_layers n_layer n_layers decoder_layers encoder_layers": 2,
        "num_attention_heads n_head n_heads decoder_attention_heads encoder_attention_heads": 4,
        "max_position_embeddings n_positions n_ctx max_seq_len": WINDOW,
        "intermediate_size ffn_dim n_inner decoder_ffn_dim encoder_ffn_dim": 48,
        "moe_intermediate_size shared_expert_intermediate_size": 16,
        "num_local_experts num_experts n_routed_experts": 4,
        "q_lora_rank kv_lora_rank": 16,
        "qk_rope_head_dim qk_nope_head_dim v_head_dim head_dim rotary_dim": 8,
        "vocab_size": 260,
        "num_key_value_heads num_experts_per_tok": 2,
        "initializer_range init_std": 0.3,  # far from uniform: likelihoods and greedy texts vary
        "is_decoder": True,
        "bos_token_id pad_token_id": None,
        "eos_token_id": 0,
    }
)
MLA = {"head_dim": None, "num_key_value_heads": 4}
PADDED = {"pad_token_id": 1, "bos_token_id": 2, "max_position_embeddings": WINDOW + 8}
# What a family needs besides; None takes a size away.
TWEAKS = spread(
    {
        "axk1 axk2 deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe_lite": MLA,
        "glm_moe_dsa longcat_flash minicpm3 sarvam_mla youtu": MLA,
        "camembert data2vec-text roberta roberta-prelayernorm xlm-roberta": PADDED,
        "emu3 mllama modernbert-decoder xlm-roberta-xl xlm": PADDED,
        "codegen": {"n_embd": 64, "rotary_dim": 8},
        "dots1": {"n_shared_experts": 1},
        "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "num_heads": 4},
        "cwm": {**PADDED, "rope_parameters": None},
    }
)


TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def save_chatty_pocket(folder: Path) -> None:
    """Save a copy of the pocket model that has a chat template."""
    shutil.copytree(MODEL_DIR, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def build_byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, but for a few merges, so that stop strings straddle tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<|end|>", *letters, "Ċ" * 2, "th", "an"])}
    merges = [("Ċ", "Ċ"), ("t", "h"), ("a", "n")]
    backend = Tokenizer(models.BPE(vocabulary, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|end|>", clean_up_tokenization_spaces=False
    )


def build_tiny_model(family: str, seed: int = 0, **changes: Any) -> Any:
    """A random model of `family`, tiny, with `changes` of its config."""
    config = CONFIG_MAPPING[family]().get_text_config(decoder=True)
    sizes = SIZES | TWEAKS.get(family, {}) | changes
    known = {*config.to_dict(), *getattr(config, "attribute_map", {}), *changes}
    chosen = {key: value for key, value in sizes.items() if key in known}
    chosen = {
        key: value for key, value in chosen.items() if value is not None or key.endswith("token_id")
    }
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(type(config)(**chosen)).eval()


def load_in_4bit(name: str | Path, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """A model in NF4 as transformers loads it, which every CPU computes alike."""
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    model: Any = AutoModelForCausalLM.from_pretrained(
        name, quantization_config=nf4, dtype=dtype, **options
    )
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def logits_of(model: Any) -> torch.Tensor:
    """The logits that a model with the embedded model's tokens computes for 55 of them."""
    tokens = torch.arange(5, 60)[None]
    with torch.no_grad():
        return model(input_ids=tokens).logits[:, -tokens.shape[1] :]  # none of a learned prompt
