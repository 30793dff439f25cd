"""Train on batches without padding: with SDPA, each row attends only within itself."""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise
from typing import Any

import torch

from slimdown.models.causal import get_inner_model, learns_prompt

_NAME = "slimdown_within_rows"


def supports_padding_free(model: Any) -> bool:
    """Return whether a model may be able to keep rows apart that lie end to end in a batch.

    Plain causal attention can. Attention in a window, layers that carry a state from token to
    token, and prompts that are learned cannot. A model's config does not say everything: the trial
    before the training finds out the rest.

    Args:
        model: A causal language model, with PEFT's adapters or without.
    """
    inner = get_inner_model(model)
    config = inner.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    return (
        kinds == {"full_attention"}
        and getattr(config, "sliding_window", None) is None
        and inner._supports_attention_backend
        and re.search("sdpa|flash_?att", inner.config._attn_implementation) is not None
        and not learns_prompt(model)
    )


def attention_within_rows(model: Any, is_padding_free: bool = True) -> AbstractContextManager[None]:
    """Inside, SDPA attends within each row of a batch laid end to end, as flash attention does.

    Args:
        model: A model that gets the batches of TRL's padding-free collator.
        is_padding_free: Whether batches are laid end to end; otherwise nothing happens.
    """
    from transformers import AttentionInterface

    if not is_padding_free:
        return nullcontext()
    AttentionInterface.register(_NAME, _attend_within_rows)
    return _switch_attention(model, "sdpa", _NAME)


def attention_as_loaded(model: Any) -> AbstractContextManager[None]:
    """Inside `attention_within_rows`, give the model its own attention back, to measure it."""
    return _switch_attention(model, _NAME, "sdpa")


@contextmanager
def _switch_attention(model: Any, before: str, name: str) -> Iterator[None]:
    """Inside, a model with the attention `before` uses `name` instead; others keep theirs."""
    inner = get_inner_model(model)
    if inner.config._attn_implementation != before:
        yield
        return
    inner.set_attn_implementation(name)
    try:
        yield
    finally:
        inner.set_attn_implementation(before)


def _attend_within_rows(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute attention within each row of a batch in which rows lie end to end.

    transformers sets the signature and the shapes. `query`, `key` and `value` are
    [1, heads, tokens, dim], and the result is [1, tokens, heads, dim]. A row begins where a
    position is 0. A mask would do the same, but SDPA also computes what a mask hides, which is
    most of it.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    starts = (kwargs["position_ids"][0] == 0).nonzero().flatten().tolist()
    kwargs["is_causal"] = True
    rows = []
    for start, end in pairwise([*starts, query.shape[2]]):
        q, k, v = (states[:, :, start:end] for states in (query, key, value))
        attended, _ = sdpa_attention_forward(module, q, k, v, attention_mask=None, **kwargs)
        rows.append(attended)
    return torch.cat(rows, dim=1), None
