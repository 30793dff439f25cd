"""Which models can share work between rows: the rule, in one place."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from slimdown.forward import packed_logits, preamble_cache
from slimdown.packing import Question, pack

# Largest mean difference between shared and plain logits, in standard deviations of the plain
# ones, that is rounding. A token that sees the wrong tokens moves them by a good part of one.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
TOLERANCE_HALF = 0.1
# How a model that was not made for it turns shared rows down.
REFUSALS = (TypeError, ValueError, AttributeError, IndexError, KeyError, RuntimeError)

# What a generation config may set without changing greedy decoding.
GREEDY_SETTINGS = frozenset(
    [
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "do_sample",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "typical_p",
        "max_length",
        "max_new_tokens",
        "use_cache",
        "cache_implementation",
        "output_attentions",
        "output_hidden_states",
        "transformers_version",
        "_from_model_config",
    ]
)


def why_stock(model: Any) -> str:
    """Why `model` cannot share work between rows; empty where it can.

    Work is shared by models that keep every key and value, take a 4D attention mask, and then give
    the logits they give without sharing: the last is tried on a few tokens.
    """
    adapters = getattr(model, "peft_config", {}).values()
    if any(adapter.is_prompt_learning for adapter in adapters):
        return "prompt-learning adapter"
    if model.get_output_embeddings() is None:
        return "no separate LM head"
    if model.config._attn_implementation not in ("sdpa", "eager"):
        return f"{model.config._attn_implementation} attention takes no 4D mask"
    layers = DynamicCache(config=model.config).layers
    if odd := sorted({type(layer).__name__ for layer in layers if type(layer) is not DynamicLayer}):
        return f"cache of {', '.join(odd)}"
    try:
        error = sharing_error(model)
    except REFUSALS as refusal:
        return f"refuses shared rows: {type(refusal).__name__}: {refusal}"
    if not error <= TOLERANCE.get(model.dtype, TOLERANCE_HALF):
        return f"shared rows give other logits: by {error:.2g} standard deviations"
    return ""


def merges_preamble(model: Any) -> bool:
    """Whether a model that shares work may also attend to a preamble once for all rows."""
    if model.device.type != "cpu" or model.config._attn_implementation != "sdpa":
        return False
    try:
        error = sharing_error(model, merging=True)
    except REFUSALS:
        return False
    return error <= TOLERANCE.get(model.dtype, TOLERANCE_HALF)


def sharing_error(model: Any, merging: bool = False) -> float:
    """How far shared rows move the logits of a few tokens: mean, in standard deviations."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    tokens = [(7 + 31 * i * i) % vocabulary for i in range(24)]
    preamble, context = tuple(tokens[:8]), tuple(tokens[:14])
    answers = {tuple(tokens[14:19]): [0], tuple(tokens[19:24]): [1]}
    packed = pack([[Question(context, answers)], [Question(context[:11], answers)]], len(preamble))
    cache = preamble_cache(model, preamble, model.device)
    shared = packed_logits(model, packed, cache, merging)
    plain = []
    for start in (context, context[:11]):
        alone = []
        for answer in answers:
            row = torch.tensor([[*start, *answer[:-1]]], device=model.device)
            alone.append(model(input_ids=row, use_cache=False).logits[0, len(start) - 1 :])
        plain += [alone[0], alone[1][1:]]  # the context's last token is kept once
    expected = torch.cat(plain).float()
    return float((shared.float() - expected).abs().mean() / expected.std())


def decodes_greedily(model: Any, settings: dict[str, Any]) -> bool:
    """Whether `settings` of the harness ask `model` for plain greedy decoding and nothing else."""
    config = getattr(model, "generation_config", None)
    return (
        config is not None
        and config.to_diff_dict().keys() <= GREEDY_SETTINGS
        and settings.keys() <= {"until", "max_gen_toks", "do_sample", "temperature"}
        and not settings["do_sample"]
    )
