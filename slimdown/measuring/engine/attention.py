"""Attention of many rows to one preamble, for CPUs: the preamble's keys are read once for all rows.

Through the ordinary path every row attends to its own repetition of the preamble, which is half the
time of a five-shot question. Here all rows' queries attend to the preamble as one long row, each
row attends to itself, and the two are merged by their softmax normalizers, which is exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from transformers import AttentionInterface, DynamicCache

NAME = "slimdown_preamble"
_preamble: ContextVar[DynamicCache] = ContextVar("preamble")


def preamble_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention to the preamble of `attending_to` and to the row itself.

    query: [rows, heads, width, dim]; key, value: [rows, key heads, own tokens, dim], without the
    preamble; attention_mask: additive [rows, 1, width, own tokens], all of the preamble in sight,
    or with columns in front for as many of its last tokens, the others out of sight.
    Result: [rows, width, heads, dim]. Raises ValueError for what it does not compute.
    """
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise ValueError("neither softcap nor sinks are computed here")
    # torch has no public attention that returns its normalizers on a CPU without compiling; delete
    # this for one that does.
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    rows, n_heads, width, dim = query.shape
    n_key_heads = key.shape[1]
    per_key = n_heads // n_key_heads
    n_masked = attention_mask.shape[-1] - key.shape[2]
    own_mask = attention_mask[..., n_masked:]
    if width == 1:  # decoding: the queries that share keys see the same tokens, so no key is copied
        own, own_norm = attend(
            query.reshape(rows, n_key_heads, per_key, dim), key, value, attn_mask=own_mask, scale=scaling
        )
        own, own_norm = own.reshape(query.shape), own_norm.reshape(rows, n_heads, width)
    else:
        own, own_norm = attend(
            query,
            key.repeat_interleave(per_key, dim=1),
            value.repeat_interleave(per_key, dim=1),
            attn_mask=own_mask,
            scale=scaling,
        )
    layer = _preamble.get().layers[module.layer_idx]
    grouped = query.reshape(rows, n_key_heads, per_key * width, dim).transpose(0, 1)
    before_mask = None
    if n_masked:
        # Where a token sees none of these, all are level at the least number there is, and get no share below.
        before_mask = attention_mask[..., :n_masked].expand(-1, per_key, -1, -1).reshape(1, 1, -1, n_masked)
    before, before_norm = attend(
        grouped.reshape(1, n_key_heads, rows * per_key * width, dim),
        layer.keys[:, :, -n_masked:],  # all of them where it is 0
        layer.values[:, :, -n_masked:],
        attn_mask=before_mask,
        scale=scaling,
    )
    before = before.reshape(n_key_heads, rows, per_key * width, dim).transpose(0, 1)
    before_norm = before_norm.reshape(n_key_heads, rows, per_key * width).transpose(0, 1)
    share = torch.sigmoid(before_norm.reshape(own_norm.shape) - own_norm)[..., None]
    merged = torch.lerp(own.float(), before.reshape(own.shape).float(), share).to(query.dtype)
    return merged.transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, preamble_attention)


@contextmanager
def attending_to(model: Any, preamble: DynamicCache) -> Iterator[None]:
    """The model attends to `preamble` in front of every row, which its cache need not hold."""
    usual = model.config._attn_implementation
    token = _preamble.set(preamble)
    model.config._attn_implementation = NAME
    try:
        yield
    finally:
        model.config._attn_implementation = usual
        _preamble.reset(token)
