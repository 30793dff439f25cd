"""4-bit numbers by a table: those of bitsandbytes, bit for bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bitsandbytes.backends.default import ops
from bitsandbytes.functional import quantize_4bit

from slimdown.models import quantize

pytestmark = pytest.mark.skipif(
    not hasattr(ops, quantize._BOUNDS),
    reason="this bitsandbytes finds codes otherwise, and is left alone",
)
KINDS = ["nf4", "fp4"]
OTHER_PROCESS = """
import sys, torch, bitsandbytes
cases = torch.load(sys.argv[1])
torch.save([torch.ops.bitsandbytes.quantize_4bit.default(*case) for case in cases], sys.argv[2])
"""


@pytest.mark.parametrize("kind", KINDS)
def test_each_float_gets_the_code_of_its_place_among_the_bounds(kind: str) -> None:
    """All that begin with the same 16 bits lie between the least and the largest of them, which are tried."""
    bounds, order = ops._get_4bit_quantize_bounds(kind, torch.device("cpu"))
    first = np.arange(2**16, dtype=np.uint32) << 16
    bits = [first | rest for rest in (0, 1, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF)]
    near = bounds.numpy().view(np.uint32)[:, None] + np.arange(-300, 300).astype(np.uint32)
    floats = np.concatenate([*bits, near.ravel(), near.ravel() ^ np.uint32(1 << 31)]).view(
        np.float32
    )
    assert all(
        found.any()
        for found in (np.isnan(floats), np.isinf(floats), np.signbit(floats[floats == 0]))
    )
    expected = order[torch.bucketize(torch.from_numpy(floats), bounds)].numpy()
    np.testing.assert_array_equal(quantize._codes(floats, kind), expected)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_float_gets_the_code_of_its_place_among_the_bounds(kind: str) -> None:
    """All 2^32 of them: a minute a kind."""
    bounds, order = ops._get_4bit_quantize_bounds(kind, torch.device("cpu"))
    some = np.arange(2**24, dtype=np.uint32)
    for beginning in range(2**8):
        floats = (some | np.uint32(beginning << 24)).view(np.float32)
        expected = order[torch.bucketize(torch.from_numpy(floats), bounds)].numpy()
        assert np.array_equal(quantize._codes(floats, kind), expected)


def cases() -> list[tuple[Any, ...]]:
    """Of every dtype, kind and block size, with blocks that are cut short, zero, tiny, or hold no number."""
    torch.manual_seed(0)
    odd = torch.randn(40_000 + 31)
    odd[:64], odd[64:128], odd[130], odd[200], odd[-1] = (
        0,
        odd[64:128] * 1e-42,
        torch.nan,
        torch.inf,
        -0.0,
    )
    dtypes = (torch.bfloat16, torch.float16, torch.float32)
    large = [
        (torch.randn(96, 576).to(dtype) * 0.02, 64, kind, torch.uint8)
        for dtype in dtypes
        for kind in KINDS
    ]
    lengths, sizes = (1, 64, 65, len(odd)), (32, 4096)
    small = [
        (odd[-n:], size, kind, torch.uint8) for n in lengths for size in sizes for kind in KINDS
    ]
    stored = [(torch.randn(64, 64), 64, "nf4", dtype) for dtype in (torch.bfloat16, torch.float32)]
    return [*large, *small, *stored]


def test_bytes_and_scales_are_those_of_bitsandbytes(tmp_path: Path) -> None:
    """Made in another process, where nothing is put in its place."""
    torch.save(cases(), tmp_path / "cases")
    subprocess.run(
        [sys.executable, "-c", OTHER_PROCESS, tmp_path / "cases", tmp_path / "found"], check=True
    )
    for case, expected in zip(cases(), torch.load(tmp_path / "found"), strict=True):
        for one, other in zip(quantize.quantize_4bit(*case), expected, strict=True):
            assert (one.dtype, one.shape) == (other.dtype, other.shape)
            assert torch.equal(one.view(torch.uint8), other.view(torch.uint8))


def test_bitsandbytes_comes_here_for_what_lies_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    quantize.quantize_quickly()
    asked: list[str] = []

    def zeros(scaled: Any, kind: str) -> Any:
        asked.append(kind)
        return np.zeros(len(scaled), np.uint8)

    monkeypatch.setattr(quantize, "_codes", zeros)
    packed, _ = quantize_4bit(torch.randn(8, 64), quant_type="nf4", blocksize=64)
    assert set(asked) == {"nf4"}
    assert not packed.any()
