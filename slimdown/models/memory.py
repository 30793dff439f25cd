"""Memory: what weights take by arithmetic, what is free, and the peak of what was held."""

import gc
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from torch import nn

from slimdown.config.schema import QuantizationConfig
from slimdown.utils.distributed import process_count

# bitsandbytes: numbers of a block share one scale; scales that are quantized share one in turn.
_BLOCK, _SCALES_BLOCK = 64, 256
# What says so besides torch's own allocator: the driver, cuBLAS and cuDNN.
_NO_ROOM = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def estimate_weight_bytes(
    outline: Any, quantization: QuantizationConfig, dtype: torch.dtype
) -> int:
    """Estimate what a model's weights take: parameters times bits (the paper's eq. 1.1), and scales.

    Args:
        outline: The model, with or without its numbers; bitsandbytes quantizes its linear layers
            but the head.
        quantization: How they are held.
        dtype: Of what is not quantized.

    Returns:
        Bytes; within 1 % of what is held once the model is loaded.
    """
    head = outline.get_output_embeddings()
    total = sum(parameter.numel() for parameter in outline.parameters())
    layers = [m for m in outline.modules() if isinstance(m, nn.Linear) or _is_conv1d(m)]
    n_quantized = n_rows = 0
    if quantization.name != "none":
        n_quantized = sum(layer.weight.numel() for layer in layers if layer is not head)
        n_rows = sum(max(layer.weight.shape) for layer in layers if layer is not head)
    held = (total - n_quantized) * dtype.itemsize
    if quantization.load_in_8bit:
        return int(held + n_quantized + 4 * n_rows)
    scales = n_quantized / _BLOCK
    if quantization.bnb_4bit_use_double_quant:
        return int(held + n_quantized / 2 + scales + 4 * scales / _SCALES_BLOCK)
    return int(held + n_quantized / 2 + 4 * scales)


def count_weight_bytes(model: nn.Module) -> int:
    """Count the bytes of a loaded model's tensors, the constants of quantized ones included."""
    total = 0
    for parameter in model.parameters():
        tensors = [parameter.data, getattr(parameter, "SCB", None)]
        state = getattr(parameter, "quant_state", None)
        for constants in (state, getattr(state, "state2", None)):
            tensors += [getattr(constants, "absmax", None), getattr(constants, "code", None)]
        total += sum(tensor.nbytes for tensor in tensors if tensor is not None)
    return total + sum(buffer.nbytes for buffer in model.buffers())


def free_memory(device: torch.device) -> int:
    """Return the bytes that this process may still take on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available) // process_count()


def release_memory() -> None:
    """Collect garbage and return a GPU's cached memory to the driver."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that less at once could succeed, on any device."""
    from accelerate.utils.memory import should_reduce_batch_size

    is_known = isinstance(error, Exception) and should_reduce_batch_size(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError)
        and (is_known or any(text in str(error) for text in _NO_ROOM))
    )


@contextmanager
def measure_peak_memory(device: str) -> Iterator[Callable[[], float]]:
    """Yield a function that returns the most bytes held so far.

    On a GPU those of tensors since the context was entered; elsewhere those of the whole process
    since it began.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        yield lambda: float(torch.cuda.max_memory_allocated())
        return
    unit = 1 if sys.platform == "darwin" else 1024
    yield lambda: float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def _is_conv1d(layer: nn.Module) -> bool:
    return type(layer).__name__ == "Conv1D"  # GPT-2's linear layer, which lies transposed
