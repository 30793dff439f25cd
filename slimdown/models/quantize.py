"""bitsandbytes' 4-bit numbers of a CPU's tensors, bit for bit, in a seventh of the time.

bitsandbytes (0.50) has no 4-bit quantization of its own for CPUs, and looks for each number among 15 bounds by
`torch.bucketize`, which takes 17 ns a number (docs/studies/training-speed.md). To be deleted when it has one.
"""

from functools import cache
from typing import Any

import numpy as np
import torch

_BOUNDS = "_get_4bit_quantize_bounds"  # bitsandbytes'
_AT_ONCE = (
    7 * 2**12
)  # numbers: what a core's cache holds, and from 2**15 on torch divides them among threads
_NEAR = 255  # no code: a bound lies among the numbers that begin with these bits


@cache
def quantize_quickly() -> None:
    """Have bitsandbytes quantize what lies on a CPU by `quantize_4bit`, in the versions that it does the same as."""
    from bitsandbytes.backends.default import ops

    operation, name = torch.ops.bitsandbytes.quantize_4bit.default, "bitsandbytes::quantize_4bit"
    if torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU") or not hasattr(ops, _BOUNDS):
        return
    tried = torch.randn(2**13 + 17, generator=torch.Generator().manual_seed(0))
    for how in ((64, kind, torch.uint8) for kind in ("nf4", "fp4")):
        if not all(map(torch.equal, operation(tried, *how), quantize_4bit(tried, *how))):
            return
    torch.library.register_kernel(name, "cpu", quantize_4bit)


def quantize_4bit(
    A: torch.Tensor, blocksize: int, quant_type: str, quant_storage: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two codes a byte, of shape (bytes, 1) in `quant_storage`, and the largest number of each block in float32.

    Every operation on the numbers is upstream's, in its order.

    Args:
        A: on a CPU, of any shape and floating-point dtype.
        blocksize: how many numbers are scaled together; a power of two.
        quant_type: nf4 or fp4.
        quant_storage: what the bytes are kept as.
    """
    numbers = A.reshape(-1)
    n, blocks = numbers.numel(), -(-numbers.numel() // blocksize)
    absmax = torch.empty(blocks)
    codes = np.full(
        n + n % 2, _codes(np.zeros(1, np.float32), quant_type), np.uint8
    )  # the odd one out is a zero
    at_once = max(_AT_ONCE, blocksize)
    for start in range(0, n - n % blocksize, at_once):
        end = min(start + at_once, n - n % blocksize)
        part = numbers[start:end].float().view(-1, blocksize)
        largest = absmax[start // blocksize : end // blocksize] = part.abs().amax(-1)
        scaled = torch.clamp(part * (1.0 / largest.clamp(min=1e-38).view(-1, 1)), -1, 1)
        codes[start:end] = _codes(scaled.view(-1).numpy(), quant_type)
    if rest := n % blocksize:
        part = numbers[-rest:].float()
        absmax[-1] = part.abs().max().clamp(min=1e-38)
        codes[n - rest : n] = _codes(torch.clamp(part / absmax[-1], -1, 1).numpy(), quant_type)
    packed = torch.from_numpy(codes[::2] << 4 | codes[1::2])
    return packed.view(quant_storage).unsqueeze(1), absmax


def _codes(scaled: Any, quant_type: str) -> Any:
    """The code of each float32: by its first 16 bits, or where these do not decide by its place among the bounds."""
    table, bounds, order = _table(quant_type)
    codes = np.take(table, scaled.view(np.uint32) >> 16)
    near = np.flatnonzero(codes == _NEAR)
    codes[near] = order[torch.bucketize(torch.from_numpy(scaled[near]), bounds).numpy()]
    return codes


@cache
def _table(quant_type: str) -> tuple[Any, torch.Tensor, Any]:
    """The code of all float32 that begin with the same 16 bits, or `_NEAR`; the bounds; the code between each two."""
    from bitsandbytes.backends.default import ops

    bounds, order = getattr(ops, _BOUNDS)(quant_type, torch.device("cpu"))
    first = np.arange(2**16, dtype=np.uint32) << 16
    ends = [torch.from_numpy(bits.view(np.float32)) for bits in (first, first | 0xFFFF)]
    low, high = (torch.bucketize(end, bounds).numpy() for end in ends)
    codes = order.to(torch.uint8).numpy()
    return np.where(low == high, codes[low], np.uint8(_NEAR)), bounds, codes
