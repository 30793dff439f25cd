"""Memory of the machine and its cards: what is free, what was the peak, and giving it back."""

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch

from slimdown.utils.distributed import process_count
from slimdown.utils.errors import ModelError

try:
    import resource
except ImportError:
    raise ModelError(
        "models are trained and measured on Linux and macOS; on Windows use WSL. slimdown verdict "
        "judges logs here, too"
    ) from None


def free_memory(device: torch.device) -> int:
    """Return the bytes that this process may still take on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    # The processes of a run share the machine's memory.
    return int(psutil.virtual_memory().available) // process_count()


def card_memory(device: torch.device) -> int | None:
    """Return all the bytes of a card, free or not; None where the device is no card."""
    if device.type != "cuda":
        return None
    return int(torch.cuda.get_device_properties(device).total_memory)


def list_int8_copies(model: Any) -> list[torch.Tensor]:
    """List the tensors that bitsandbytes' 8-bit layers hold beside their parameters.

    A layer has them only after its first forward pass.
    """
    states = [getattr(module, "state", None) for module in model.modules()]
    held = [getattr(state, name, None) for state in states for name in ("CB", "SCB")]
    return [tensor for tensor in held if isinstance(tensor, torch.Tensor)]


def release_weights(model: Any) -> None:
    """Free a model's memory, even if others still refer to it; it is not usable any more."""
    for tensor in (*model.parameters(), *model.buffers(), *list_int8_copies(model)):
        tensor.data = tensor.data.new_empty(0)
    release_memory()


def release_memory() -> None:
    """Collect garbage and return a GPU's cached memory to the driver."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether memory ran out on any device, so that a smaller batch could succeed."""
    # torch has no class for these: cuBLAS and cuDNN on a GPU, a tensor too large for Apple's GPU,
    # and a CPU's memory.
    texts = ["CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_NOT_SUPPORTED", "Invalid buffer size"]
    texts += ["DefaultCPUAllocator: can't allocate memory", "out of memory"]
    has_known_text = isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or has_known_text


@contextmanager
def measure_peak_memory(device: str) -> Iterator[Callable[[], float]]:
    """Yield a function that returns the most bytes held so far.

    On a GPU, it counts tensors since the context was entered. That resets torch's only counter, so
    use it in a process of our own, and never within another such context. Elsewhere, it counts the
    whole process since it began.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        yield lambda: float(torch.cuda.max_memory_allocated())
        return
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    yield lambda: float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
