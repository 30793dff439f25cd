"""float32 products at a processor's full width, where torch's own take half of it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch.nn import functional

from slimdown.models.dtype import processor_vendor

# Queries of a head whose scores are held at once, few enough for a cache; columns, by which their keys grow.
QUERIES, COLUMNS = 128, 128
# oneDNN keeps what it compiled for each shape that it met, 1,024 times 0.2 MB; anew it takes 0.4 ms.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
_usual = functional.linear
_wide = getattr(
    torch.ops.mkldnn, "_linear_pointwise", None
)  # without a promise, but there from torch 2.0 to 2.15


@cache
def mkl_is_narrow() -> bool:
    """Whether MKL, which multiplies float32 in torch, leaves half of this processor's vector width idle.

    MKL 2024.2 multiplies with AVX2 on processors of other makers; with AVX-512, oneDNN is 1.6 to 2.3 times as fast on
    an AMD EPYC from four rows on (docs/studies/evaluation-speed.md). bfloat16 is oneDNN's anyway.
    """
    has_width = torch.backends.cpu.get_cpu_capability() == "AVX512" and _wide is not None
    return (
        has_width
        and torch._C.has_mkl
        and torch._C._has_mkldnn
        and processor_vendor() == "AuthenticAMD"
    )


def _linear(
    input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    is_plain = (
        input.device.type == "cpu"
        and input.dtype == weight.dtype == torch.float32
        and weight.dim() == 2
        and input.numel()
    )
    is_tensor = type(input) is torch.Tensor and type(weight) in (torch.Tensor, torch.nn.Parameter)
    if not (is_plain and is_tensor) or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return _usual(input, weight, bias)
    return _product(input, weight, bias)


@contextmanager
def wide_products() -> Iterator[None]:
    """Inside, float32 layers without gradients multiply with oneDNN where that is faster."""
    before = functional.linear
    if mkl_is_narrow():
        functional.linear = _linear
    try:
        yield
    finally:
        functional.linear = before


def wide_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    n_seen: int,
    scale: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of a row's last tokens by oneDNN's float32 products, and its normalizers, [1, heads, tokens].

    query: [1, heads, tokens, dim]; key, value: [key heads, columns, dim], of which `n_seen` are the row's and the last
    of these the tokens' own; mask: additive, [tokens, columns], with no token seeing what comes after it.
    """
    n_heads, n_tokens, dim = query.shape[1:]
    n_key_heads, n_columns = key.shape[:2]
    per_key, usual = n_heads // n_key_heads, query.dtype
    query = query[0].float() * (dim**-0.5 if scale is None else scale)
    found = query.new_empty(1, n_heads, n_tokens, value.shape[2])
    norms = query.new_empty(1, n_heads, n_tokens)
    at_once = min(n_tokens, QUERIES)
    # The last ones may be asked twice, and masked columns be multiplied: oneDNN keeps 0.2 MB for each shape it meets.
    starts = [*range(0, n_tokens - at_once, at_once), n_tokens - at_once]
    for k in range(n_key_heads):
        heads = slice(k * per_key, (k + 1) * per_key)
        keys, values = key[k].float(), value[k].float().T
        for start in starts:
            end = start + at_once
            n = min(n_columns, -(-(n_seen - n_tokens + end) // COLUMNS) * COLUMNS)
            scores = _product(query[heads, start:end].reshape(-1, dim), keys[:n])
            scores.view(per_key, -1, n).add_(mask[start:end, :n])
            shares = scores.softmax(-1)
            norms[0, heads, start:end] = (scores.amax(-1) - shares.amax(-1).log()).view(per_key, -1)
            found[0, heads, start:end] = _product(shares, values[:, :n].contiguous()).view(
                per_key, at_once, -1
            )
    return found.to(usual), norms


def _product(
    one: torch.Tensor, other: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """The product of `one` with `other` transposed."""
    assert _wide is not None
    found: torch.Tensor = _wide(one, other, bias, "none", [], "")
    return found
