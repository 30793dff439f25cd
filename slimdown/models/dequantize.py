"""4-bit layers computing on their dequantized values, and back again.

A 4-bit layer multiplies with its weights dequantized; holding those values instead of unpacking them at every forward
gives the same products sooner, for the memory of an unquantized model.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import nn
from torch.nn import functional

from slimdown.utils import distributed as processes

# Of the memory that is free, the part that dequantized weights may take; the rest is for the work.
FREE_MEMORY_SHARE = 0.5


class DequantizedLinear(nn.Module):
    """The linear layer that a 4-bit layer stands for: same input and output dtypes, same values."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        from bitsandbytes.functional import dequantize_4bit

        state = layer.weight.quant_state
        if getattr(state, "packing_format_for_cpu", False):
            raise ValueError(
                "the 4-bit weights were repacked for AVX512-BF16 by an earlier forward and cannot be dequantized: set "
                "support_avx512bf16_for_cpu = False on every 4-bit layer right after loading the model"
            )
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.compute_dtype = layer.compute_dtype
        weight = dequantize_4bit(layer.weight.data, state)
        self.weight: torch.Tensor
        self.register_buffer("weight", weight.to(layer.compute_dtype or weight.dtype))
        self.bias = layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dtype = self.compute_dtype or x.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        return functional.linear(x.to(dtype), self.weight.to(dtype), bias).to(x.dtype)


@contextmanager
def dequantized(model: nn.Module) -> Iterator[nn.Module]:
    """The model, its 4-bit layers replaced by their dequantized values; on leaving they are back.

    They are set aside untouched, those in adapters included, so training can follow.

    Raises:
        ValueError: bitsandbytes has repacked the weights for its CPU kernel.
    """
    replaced: list[tuple[nn.Module, str, nn.Module]] = []
    try:
        for parent in list(model.modules()):
            for name, layer in list(parent.named_children()):
                if is_4bit(layer):
                    setattr(parent, name, DequantizedLinear(layer).train(layer.training))
                    replaced.append((parent, name, layer))
        yield model
    finally:
        for parent, name, layer in replaced:
            setattr(parent, name, layer)


def dequantizes(model: nn.Module, rule: str) -> bool:
    """Whether to compute on dequantized values; of a model without 4-bit layers there are none.

    Args:
        model: with adapters or without.
        rule: of the settings: true, false, or auto, where the values fit in half of the memory that is free.
    """
    layers: list[Any] = [layer for layer in model.modules() if is_4bit(layer)]
    if not layers or rule.lower() != "auto":
        return bool(layers) and rule.lower() == "true"
    n_bytes: int = sum(
        layer.in_features * layer.out_features * (layer.compute_dtype or torch.float32).itemsize
        for layer in layers
    )
    return processes.from_first(n_bytes <= FREE_MEMORY_SHARE * free_bytes(layers[0].weight.device))


def free_bytes(device: torch.device) -> int:
    """Bytes free on `device`; of a machine's memory, what falls to each of the processes that make this run."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what torch keeps of freed tensors is free for new ones, and the driver does not know
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available) // processes.count()


def is_4bit(layer: Any) -> bool:
    """Whether `layer` is a bitsandbytes 4-bit linear layer, quantized."""
    state = getattr(getattr(layer, "weight", None), "quant_state", None)
    return state is not None and hasattr(layer, "compute_dtype")
