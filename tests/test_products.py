"""float32 products by oneDNN: the values of torch's own, for what it multiplies, and nothing left behind."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from slimdown.models import products


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor where MKL leaves half of the width idle."""
    monkeypatch.setattr(products, "mkl_is_narrow", lambda: True)


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("shape", [(6,), (1, 6), (5, 6), (2, 7, 6), (2, 0, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("has_bias", [True, False])
def test_products_are_those_of_torch(
    shape: tuple[int, ...], dtype: torch.dtype, has_bias: bool
) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(shape, dtype=dtype), torch.randn(4, 6, dtype=dtype)
    bias = torch.randn(4, dtype=dtype) if has_bias else None
    turned = x.movedim(-1, 0).contiguous().movedim(0, -1)  # the same numbers, laid out otherwise
    expected = functional.linear(x, weight, bias)
    with torch.no_grad(), products.wide_products(), products.wide_products():
        found = [functional.linear(one, weight, bias) for one in (x, turned)]
    for one in found:
        torch.testing.assert_close(one, expected)


@pytest.mark.skipif(products._wide is None, reason="this torch has no such product")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("n_tokens", "n_seen"), [(1, 1), (5, 9), (128, 128), (300, 300), (200, 311)]
)
def test_attention_is_that_of_torch(n_tokens: int, n_seen: int, dtype: torch.dtype) -> None:
    """Queries in several blocks, keys that two heads share, columns of which no token sees any."""
    torch.manual_seed(0)
    query = torch.randn(1, 4, n_tokens, 8, dtype=dtype)
    key, value = torch.randn(2, 2, n_seen + 7, 8, dtype=dtype)
    places = torch.arange(n_seen - n_tokens, n_seen)
    hidden = torch.arange(n_seen + 7) > places[:, None]
    mask = torch.zeros(n_tokens, n_seen + 7, dtype=dtype).masked_fill_(
        hidden, torch.finfo(dtype).min
    )
    found, norms = products.wide_attention(query, key, value, mask, n_seen, None)
    exact = query.float(), key[None].float(), value[None].float()
    scores = exact[0] @ exact[1].repeat_interleave(2, dim=1).mT / 8**0.5 + mask.float()
    expected = functional.scaled_dot_product_attention(
        *exact, attn_mask=mask.float(), enable_gqa=True
    )
    assert found.dtype == dtype
    torch.testing.assert_close(
        found, expected.to(dtype), atol=1e-5, rtol=1.6e-2 if dtype == torch.bfloat16 else 1e-5
    )
    torch.testing.assert_close(norms, scores.logsumexp(-1), atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("narrow")
def test_what_is_trained_and_what_is_autocast_is_left_to_torch() -> None:
    usual = functional.linear
    layer, x = torch.nn.Linear(6, 4), torch.randn(3, 6)
    with products.wide_products():
        assert functional.linear is not usual
        layer(x).sum().backward()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
    assert layer.weight.grad is not None
    assert functional.linear is usual
