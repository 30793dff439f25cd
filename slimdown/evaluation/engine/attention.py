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

from slimdown.models.products import mkl_is_narrow, wide_attention

NAME = "slimdown_preamble"
# The preamble; and where tokens of many rows lie one after another, of each row which keys are its own, where its
# tokens begin and end, and how many columns they see.
_attended: ContextVar[tuple[DynamicCache | None, list[tuple[int, int, int, int]]]] = ContextVar(
    "attended"
)
# Tokens of a row, from which on its keys are repeated for the heads that share them, and not the mask for these.
MANY = 64


# torch has no public attention that returns its normalizers on a CPU without compiling; delete this for one that does.
_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


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

    Where `attending_to` was told of rows, query is [1, heads, tokens, dim]; key and value have a row for each of them.
    """
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise ValueError("neither softcap nor sinks are computed here")
    preamble, ranges = _attended.get()
    rows, n_heads, width, dim = query.shape
    n_key_heads = key.shape[1]
    per_key = n_heads // n_key_heads
    n_masked = attention_mask.shape[-1] - key.shape[2]
    own, own_norm = _own_part(query, key, value, attention_mask[..., n_masked:], scaling, ranges)
    if preamble is None:
        return own.transpose(1, 2).contiguous(), None
    layer = preamble.layers[module.layer_idx]
    grouped = query.reshape(rows, n_key_heads, per_key * width, dim).transpose(0, 1)
    before_mask = None
    if n_masked:
        # Where a token sees none of these, all are level at the least number there is, and get no share below.
        before_mask = (
            attention_mask[..., :n_masked].expand(-1, per_key, -1, -1).reshape(1, 1, -1, n_masked)
        )
    before, before_norm = _attend(
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


def _own_part(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
    ranges: list[tuple[int, int, int, int]],
) -> tuple[torch.Tensor, torch.Tensor]:
    """What rows attend to in themselves, [rows, heads, width, dim], and its normalizers, [rows, heads, width]."""
    n_heads, n_key_heads, dim = query.shape[1], key.shape[1], query.shape[3]
    per_key = n_heads // n_key_heads
    if not ranges:
        keys, values = (states.repeat_interleave(per_key, dim=1) for states in (key, value))
        own, norm = _attend(query, keys, values, attn_mask=mask, scale=scaling)
        return own, norm
    found = []
    for row, start, end, n_seen in ranges:
        asked, seen = query[:, :, start:end], mask[:, :, start:end, :n_seen]
        keys, values = (states[row : row + 1, :, :n_seen] for states in (key, value))
        if mkl_is_narrow() and end - start >= MANY:
            own = key[row], value[row], mask[0, 0, start:end]
            found.append(wide_attention(asked, *own, n_seen, scaling))
        elif end - start >= MANY:
            keys, values = (states.repeat_interleave(per_key, dim=1) for states in (keys, values))
            found.append(_attend(asked, keys, values, attn_mask=seen, scale=scaling))
        else:
            asked = asked.reshape(1, n_key_heads, -1, dim)
            seen = seen.repeat(1, 1, per_key, 1)
            found.append(_attend(asked, keys, values, attn_mask=seen, scale=scaling))
    own = torch.cat([part.reshape(1, n_heads, -1, dim) for part, _ in found], dim=2)
    return own, torch.cat([norm.reshape(1, n_heads, -1) for _, norm in found], dim=2)


AttentionInterface.register(NAME, preamble_attention)


@contextmanager
def attending_to(
    model: Any, preamble: DynamicCache | None, ranges: list[tuple[int, int, int, int]] | None = None
) -> Iterator[None]:
    """The model attends to `preamble`, if any, in front of every row, and its cache need not hold it.

    ranges: where tokens of several rows come as one: of each row its place among the keys, its first token,
    its end, the columns that it sees.
    """
    usual = model.config._attn_implementation
    token = _attended.set((preamble, ranges or []))
    model.config._attn_implementation = NAME
    try:
        yield
    finally:
        model.config._attn_implementation = usual
        _attended.reset(token)
