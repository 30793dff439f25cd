"""float32 products at a processor's full width, where torch's own take half of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch.nn import functional

from slimdown.preparing.dtype import processor_vendor

_usual = functional.linear
_wide = getattr(torch.ops.mkldnn, "_linear_pointwise", None)  # without a promise, but there from torch 2.0 to 2.15


@cache
def mkl_is_narrow() -> bool:
    """Whether MKL, which multiplies float32 in torch, leaves half of this processor's vector width idle.

    MKL 2024.2 multiplies with AVX2 on processors of other makers; with AVX-512, oneDNN is 1.6 to 2.3 times as fast on
    an AMD EPYC from four rows on (docs/studies/evaluation-speed.md). bfloat16 is oneDNN's anyway.
    """
    has_width = torch.backends.cpu.get_cpu_capability() == "AVX512" and _wide is not None
    return has_width and torch._C.has_mkl and torch._C._has_mkldnn and processor_vendor() == "AuthenticAMD"


def _linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    is_plain = (
        input.device.type == "cpu"
        and input.dtype == weight.dtype == torch.float32
        and weight.dim() == 2
        and input.numel()
    )
    is_tensor = type(input) is torch.Tensor and type(weight) in (torch.Tensor, torch.nn.Parameter)
    if not (is_plain and is_tensor) or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return _usual(input, weight, bias)
    assert _wide is not None
    found: torch.Tensor = _wide(input, weight, bias, "none", [], "")
    return found


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
